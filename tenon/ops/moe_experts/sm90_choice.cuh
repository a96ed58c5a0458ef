// The choice of a token's experts by a wave on Hopper: see ops/common/choice.cuh. What a lane knows
// of its experts is a bit for each. Which ones it has: by lanes, lane l has 8 l to 8 l + 7; by
// slices it has l, l + 32, …. Every instruction here is on the way of a step, and a wave takes some
// five cycles for each.
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

inline constexpr int kLaneExperts = 8;
static_assert(kLaneExperts == kChoiceSlices);

// By a wave, by slices.
TENON_DEVICE std::uint32_t choose_by_p(int experts, int top_k, const float* logits) {
  const Logits all = load_logits(experts, logits + lane_id());
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
// Bits by slices as bits by lanes.
TENON_DEVICE std::uint32_t bits_by_lanes(std::uint32_t by_slices) {
  std::uint32_t own = 0;
  TENON_UNROLL
  for (int j = 0; j < kChoiceSlices; ++j) {
    const std::uint32_t word = ballot((by_slices >> j & 1u) != 0);
    if (lane_id() / 4 == j) own = word >> lane_id() % 4 * kLaneExperts & 0xffu;
  }
  return own;
}

// The same, by the logits where they suffice; by lanes or by slices. Rows that are aligned to 16
// bytes are read faster by lanes, others by slices.
template <bool kByLanes>
TENON_DEVICE std::uint32_t choose_experts(int experts, int top_k, const float* of_token) {
  constexpr int kStep = kByLanes ? 1 : kChoiceLanes;
  const int own_first = kByLanes ? kLaneExperts * lane_id() : lane_id();
  const float* const from = of_token + own_first;
  const auto exists = [&](int j) { return own_first + j * kStep < experts; };
  float logits[kLaneExperts] = {};
  if (kByLanes && exists(kLaneExperts - 1) && reinterpret_cast<std::uintptr_t>(from) % 16 == 0) {
    TENON_UNROLL
    for (int j = 0; j < kLaneExperts; j += 4) {
      const float4 four = *reinterpret_cast<const float4*>(from + j);
      logits[j] = four.x, logits[j + 1] = four.y, logits[j + 2] = four.z, logits[j + 3] = four.w;
    }
  } else {
    TENON_UNROLL
    for (int j = 0; j < kLaneExperts; ++j)
      if (exists(j)) logits[j] = from[j * kStep];
  }
  std::uint32_t keys[kLaneExperts], sorted[kLaneExperts];
  float zero = 0.0f;  // a NaN where a logit is one, or infinite
  TENON_UNROLL
  for (int j = 0; j < kLaneExperts; ++j) {
    sorted[j] = keys[j] = exists(j) ? ascending_bits(logits[j]) : 0u;
    zero = fma_f(logits[j], 0.0f, zero);
  }
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
  constexpr int kTooMany = 1000;
  const int count = sum_lanes(zero == 0.0f ? count_ones(chosen) : kTooMany);
  if (count == top_k && are_apart(first, last, next)) return chosen;
  const std::uint32_t by_slices = choose_by_p(experts, top_k, of_token);
  return kByLanes ? bits_by_lanes(by_slices) : by_slices;
}

// By lanes: which of the lane's experts are this rank's.
TENON_DEVICE std::uint32_t own_experts(int first_expert, int experts) {
  std::uint32_t own = 0;
  TENON_UNROLL
  for (int j = 0; j < kLaneExperts; ++j) {
    const int local = kLaneExperts * lane_id() + j - first_expert;
    own |= local >= 0 && local < experts ? 1u << j : 0u;
  }
  return own;
}

// The sum over the lanes before this one, and over all, of up to 8.
struct LaneSum {
  int before, all;
};
TENON_DEVICE LaneSum sum_small(int value) {
  const std::uint32_t lower = (1u << lane_id()) - 1u;
  LaneSum sum{0, 0};
  TENON_UNROLL
  for (int bit = 0; bit < 4; ++bit) {
    const std::uint32_t have = ballot((value >> bit & 1) != 0);
    sum.before += count_ones(have & lower) << bit;
    sum.all += count_ones(have) << bit;
  }
  return sum;
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
// Bits as words: expert e is bit e % 32 of word e / 32.
template <bool kByLanes>
TENON_DEVICE void put_bits(std::uint32_t* words, std::uint32_t chosen) {
  if constexpr (kByLanes) {
    reinterpret_cast<std::uint8_t*>(words)[lane_id()] = static_cast<std::uint8_t>(chosen);
  } else {
    TENON_UNROLL
    for (int j = 0; j < kChoiceSlices; ++j) {
      const std::uint32_t word = ballot((chosen >> j & 1u) != 0);
      if (lane_id() == j) words[j] = word;
    }
  }
}

// By a wave: lane l < top_k has the l-th of the chosen experts by their numbers, which choice it
// is, and its weight. word_at(j): bit l says whether expert l + 32 j is chosen.
struct WeighedExpert {
  int expert, choice;
  float weight;
};
TENON_DEVICE WeighedExpert weigh_chosen(int experts, int top_k, const float* logits,
                                        const ChoiceMemory& memory, const std::uint32_t* words) {
  const int lane = lane_id();
  const Logits all = load_logits(experts, logits + lane);
  float value[kChoiceSlices];
  const float sum = exponentials(experts, all, value);
  int before = 0;
  TENON_UNROLL
  for (int j = 0; j < kChoiceSlices; ++j) {
    const std::uint32_t word = words[j];
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
