// The choice of a token's experts by a wave on Hopper: see ops/common/choice.cuh. Lane l has
// experts l, l + 32, …; what it knows of them is a bit for each.
#pragma once

#include "tenon/device/cuda_hip/sm90/lanes.cuh"
#include "tenon/ops/common/choice.cuh"

namespace tenon::TENON_TARGET::moe_experts {

using namespace sm90;

TENON_DEVICE void put_in_order(std::uint32_t& a, std::uint32_t& b) {
  const std::uint32_t larger = a > b ? a : b;
  b = a > b ? b : a;
  a = larger;
}

// By a wave: bit j of the result says whether the lane's expert lane + 32 j is chosen.
TENON_DEVICE std::uint32_t choose_by_p(int experts, int top_k, const Logits& all) {
  float value[kChoiceSlices];
  const float sum = exponentials(experts, all, value);
  std::uint32_t keys[kChoiceSlices], chosen = 0;
  TENON_UNROLL
  for (int j = 0; j < kChoiceSlices; ++j)
    keys[j] = lane_id() + j * kChoiceLanes < experts ? key_of(value[j] / sum) : 0u;
  TENON_NO_UNROLL
  for (int k = 0; k < top_k; ++k) {
    std::uint32_t most = 0;
    TENON_UNROLL
    for (int j = 0; j < kChoiceSlices; ++j) most = most > keys[j] ? most : keys[j];
    most = max_lane(most);
    std::uint32_t lowest = 0;  // as its complement
    TENON_UNROLL
    for (int j = kChoiceSlices - 1; j >= 0; --j)
      lowest = keys[j] == most ? ~static_cast<std::uint32_t>(lane_id() + j * kChoiceLanes) : lowest;
    const int expert = static_cast<int>(~max_lane(lowest));
    TENON_UNROLL
    for (int j = 0; j < kChoiceSlices; ++j) {
      if (expert != lane_id() + j * kChoiceLanes) continue;
      keys[j] = 0u;
      chosen |= 1u << j;
    }
  }
  return chosen;
}

// The same, by the logits where they suffice.
TENON_DEVICE std::uint32_t choose_experts(int experts, int top_k, const Logits& all) {
  std::uint32_t keys[kChoiceSlices], sorted[kChoiceSlices];
  TENON_UNROLL
  for (int j = 0; j < kChoiceSlices; ++j)
    sorted[j] = keys[j] =
        lane_id() + j * kChoiceLanes < experts ? ordered_bits(all.of_lane[j]) : 0u;
  TENON_UNROLL
  for (int size = 1; size < kChoiceSlices; size *= 2) {  // Batcher's odd-even merge sort
    TENON_UNROLL
    for (int by = size; by > 0; by /= 2) {
      TENON_UNROLL
      for (int a = by % size; a + by < kChoiceSlices; ++a)
        if ((a - by % size) / by % 2 == 0 && a / (2 * size) == (a + by) / (2 * size))
          put_in_order(sorted[a], sorted[a + by]);
    }
  }
  // The largest keys one after another; lanes that have the same one take it together, and then too
  // many are chosen at the end, which is seen.
  std::uint32_t first = 0, last = 0;
  TENON_NO_UNROLL
  for (int k = 0; k < top_k; ++k) {
    last = max_lane(sorted[0]);
    first = k == 0 ? last : first;
    const bool has = sorted[0] == last;
    TENON_UNROLL
    for (int j = 0; j + 1 < kChoiceSlices; ++j) sorted[j] = has ? sorted[j + 1] : sorted[j];
    sorted[kChoiceSlices - 1] = has ? 0u : sorted[kChoiceSlices - 1];
  }
  const std::uint32_t next = max_lane(sorted[0]);
  std::uint32_t chosen = 0;
  TENON_UNROLL
  for (int j = 0; j < kChoiceSlices; ++j) chosen |= keys[j] >= last ? 1u << j : 0u;
  if (sum_lanes(count_ones(chosen)) != top_k || !are_apart(first, last, next))
    return choose_by_p(experts, top_k, all);
  return chosen;
}

// Which of the lane's experts are this rank's.
TENON_DEVICE std::uint32_t own_experts(int first_expert, int experts) {
  std::uint32_t own = 0;
  TENON_UNROLL
  for (int j = 0; j < kChoiceSlices; ++j) {
    const int local = lane_id() + j * kChoiceLanes - first_expert;
    own |= local >= 0 && local < experts ? 1u << j : 0u;
  }
  return own;
}

// --- for the second kernel ---

struct ChoiceMemory {
  float *values, *in_order;  // [top_k]
  int* experts;
};
inline constexpr int kChoiceWords = 3 * kMostChoices;
TENON_DEVICE ChoiceMemory choice_memory(void* words) {
  auto* const values = static_cast<float*>(words);
  return {values, values + kMostChoices, reinterpret_cast<int*>(values + 2 * kMostChoices)};
}

// By a wave: lane l < top_k has the l-th of the chosen experts by their numbers, which choice it
// is, and its weight. word_at(j): bit l says whether expert l + 32 j is chosen.
struct WeighedExpert {
  int expert, choice;
  float weight;
};
template <class WordAt>
TENON_DEVICE WeighedExpert weigh_chosen(int experts, int top_k, const Logits& all,
                                        const ChoiceMemory& memory, WordAt word_at) {
  const int lane = lane_id();
  float value[kChoiceSlices];
  const float sum = exponentials(experts, all, value);
  int before = 0;
  TENON_UNROLL
  for (int j = 0; j < kChoiceSlices; ++j) {
    const std::uint32_t word = word_at(j);
    if ((word >> lane & 1u) != 0) {
      const int at = before + count_ones(word & ((1u << lane) - 1u));
      memory.values[at] = value[j];
      memory.experts[at] = lane + j * kChoiceLanes;
    }
    before += count_ones(word);
  }
  sync_wave();
  const int expert = lane < top_k ? memory.experts[lane] : 0;
  const float p = lane < top_k ? memory.values[lane] / sum : 0.0f;
  const WeightedChoice own = weigh(top_k, expert, p, memory.in_order);
  sync_wave();  // the memory may be used again
  return {expert, own.choice, own.weight};
}

}  // namespace tenon::TENON_TARGET::moe_experts
