// The choice of a token's experts by a wave on Hopper: see ops/common/choice.cuh. What a lane knows
// of its experts is a bit for each. Which ones it has, of 32 k: by lanes, lane l has k l and the k
// - 1 behind it; by slices it has l, l + 32, …. Every instruction here is on the way of a step, and
// a wave takes some five cycles for each.
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
// Four keys, the largest first.
struct FourKeys {
  std::uint32_t key[4];
};
TENON_DEVICE FourKeys four_keys(const std::uint32_t* of) {
  FourKeys four{{of[0], of[1], of[2], of[3]}};
  put_in_order(four.key[0], four.key[1]), put_in_order(four.key[2], four.key[3]);
  put_in_order(four.key[0], four.key[2]), put_in_order(four.key[1], four.key[3]);
  put_in_order(four.key[1], four.key[2]);
  return four;
}
// Of both.
TENON_DEVICE FourKeys largest_of(const FourKeys& a, const FourKeys& b) {
  FourKeys four;
  TENON_UNROLL
  for (int i = 0; i < 4; ++i) four.key[i] = a.key[i] > b.key[3 - i] ? a.key[i] : b.key[3 - i];
  put_in_order(four.key[0], four.key[2]), put_in_order(four.key[1], four.key[3]);
  put_in_order(four.key[0], four.key[1]), put_in_order(four.key[2], four.key[3]);
  return four;
}

// By a wave, by slices.
template <int kSlices>
TENON_DEVICE std::uint32_t choose_by_p(int experts, int top_k, const float* logits) {
  const Logits<kSlices> all = load_logits<kSlices>(experts, logits + lane_id());
  float value[kSlices];
  const float sum = exponentials(experts, all, value);
  std::uint32_t keys[kSlices], chosen = 0;
  TENON_UNROLL
  for (int j = 0; j < kSlices; ++j)
    keys[j] = lane_id() + j * kChoiceLanes < experts ? key_of(value[j] / sum) : 0u;
  TENON_NO_UNROLL
  for (int k = 0; k < top_k; ++k) {
    std::uint32_t most = 0;
    TENON_UNROLL
    for (int j = 0; j < kSlices; ++j) most = most > keys[j] ? most : keys[j];
    most = max_lane(most);
    std::uint32_t lowest = 0;  // as its complement
    TENON_UNROLL
    for (int j = kSlices - 1; j >= 0; --j)
      lowest = keys[j] == most ? ~static_cast<std::uint32_t>(lane_id() + j * kChoiceLanes) : lowest;
    const int expert = static_cast<int>(~max_lane(lowest));
    TENON_UNROLL
    for (int j = 0; j < kSlices; ++j) {
      if (expert != lane_id() + j * kChoiceLanes) continue;
      keys[j] = 0u;
      chosen |= 1u << j;
    }
  }
  return chosen;
}
// Bits by slices as bits by lanes.
template <int kSlices>
TENON_DEVICE std::uint32_t bits_by_lanes(std::uint32_t by_slices) {
  std::uint32_t own = 0;
  TENON_UNROLL
  for (int j = 0; j < kSlices; ++j) {
    const std::uint32_t word = ballot((by_slices >> j & 1u) != 0);
    constexpr int kOfWord = kChoiceLanes / kSlices;  // lanes
    constexpr std::uint32_t kOwn = (1u << kSlices) - 1u;
    if (lane_id() / kOfWord == j) own = word >> lane_id() % kOfWord * kSlices & kOwn;
  }
  return own;
}

// The same, by the logits where they suffice; by lanes or by slices. Rows that are aligned to 16
// bytes are read faster by lanes, others by slices.
template <int kSlices, bool kByLanes>
TENON_DEVICE std::uint32_t choose_experts(int experts, int top_k, const float* of_token) {
  constexpr int kStep = kByLanes ? 1 : kChoiceLanes;
  const int own_first = kByLanes ? kSlices * lane_id() : lane_id();
  const float* const from = of_token + own_first;
  const auto exists = [&](int j) { return own_first + j * kStep < experts; };
  float logits[kSlices] = {};
  if (kByLanes && exists(kSlices - 1) && reinterpret_cast<std::uintptr_t>(from) % 16 == 0) {
    TENON_UNROLL
    for (int j = 0; j < kSlices; j += 4) {
      const float4 four = *reinterpret_cast<const float4*>(from + j);
      logits[j] = four.x, logits[j + 1] = four.y, logits[j + 2] = four.z, logits[j + 3] = four.w;
    }
  } else {
    TENON_UNROLL
    for (int j = 0; j < kSlices; ++j)
      if (exists(j)) logits[j] = from[j * kStep];
  }
  std::uint32_t keys[kSlices];
  float zero = 0.0f;  // a NaN where a logit is one, or infinite
  TENON_UNROLL
  for (int j = 0; j < kSlices; ++j) {
    keys[j] = exists(j) ? ascending_bits(logits[j]) : 0u;
    zero = fma_f(logits[j], 0.0f, zero);
  }
  FourKeys own = four_keys(keys);
  TENON_UNROLL
  for (int j = 4; j < kSlices; j += 4) own = largest_of(own, four_keys(keys + j));
  // The largest keys one after another; lanes that have the same one take it together, and then too
  // many are chosen at the end, which is seen. So is a lane whose four are taken and that has more.
  std::uint32_t first = 0, last = 0;
  TENON_NO_UNROLL
  for (int k = 0; k < top_k; ++k) {
    last = max_lane(own.key[0]);
    first = k == 0 ? last : first;
    const bool has = own.key[0] == last;
    TENON_UNROLL
    for (int j = 0; j < 3; ++j) own.key[j] = has ? own.key[j + 1] : own.key[j];
    own.key[3] = has ? 0u : own.key[3];
  }
  const std::uint32_t next = max_lane(own.key[0]);
  const bool is_known = zero == 0.0f && (own.key[0] != 0u || !exists(4));
  std::uint32_t chosen = 0;
  TENON_UNROLL
  for (int j = 0; j < kSlices; ++j) chosen |= keys[j] >= last ? 1u << j : 0u;
  constexpr int kTooMany = 1000;
  const int count = sum_lanes(is_known ? count_ones(chosen) : kTooMany);
  if (count == top_k && are_apart(first, last, next)) return chosen;
  const std::uint32_t by_slices = choose_by_p<kSlices>(experts, top_k, of_token);
  return kByLanes ? bits_by_lanes<kSlices>(by_slices) : by_slices;
}

// By lanes: which of the lane's experts are this rank's.
template <int kSlices>
TENON_DEVICE std::uint32_t own_experts(int first_expert, int experts) {
  std::uint32_t own = 0;
  TENON_UNROLL
  for (int j = 0; j < kSlices; ++j) {
    const int local = kSlices * lane_id() + j - first_expert;
    own |= local >= 0 && local < experts ? 1u << j : 0u;
  }
  return own;
}

// The sum over the lanes before this one, and over all, of up to kMost.
struct LaneSum {
  int before, all;
};
template <int kMost>
TENON_DEVICE LaneSum sum_small(int value) {
  const std::uint32_t lower = (1u << lane_id()) - 1u;
  LaneSum sum{0, 0};
  TENON_UNROLL
  for (int bit = 0; 1 << bit <= kMost; ++bit) {
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
template <int kSlices, bool kByLanes>
TENON_DEVICE void put_bits(std::uint32_t* words, std::uint32_t chosen) {
  if constexpr (kByLanes) {
    // Lanes of one word put their bits together.
    std::uint32_t word = chosen << lane_id() % (kChoiceLanes / kSlices) * kSlices;
    TENON_UNROLL
    for (int by = 1; by < kChoiceLanes / kSlices; by *= 2) word |= shuffle_xor(word, by);
    if (lane_id() % (kChoiceLanes / kSlices) == 0) words[lane_id() * kSlices / kChoiceLanes] = word;
  } else {
    TENON_UNROLL
    for (int j = 0; j < kSlices; ++j) {
      const std::uint32_t word = ballot((chosen >> j & 1u) != 0);
      if (lane_id() == j) words[j] = word;
    }
  }
}

// By a wave: lane l < top_k has the l-th of the chosen experts by their numbers, which choice it
// is, and its weight. Bit l of words[j] says whether
// expert l + 32 j is chosen.
struct WeighedExpert {
  int expert, choice;
  float weight;
};
template <int kSlices>
TENON_DEVICE WeighedExpert weigh_chosen(int experts, int top_k, const float* logits,
                                        const ChoiceMemory& memory, const std::uint32_t* words) {
  const int lane = lane_id();
  const Logits<kSlices> all = load_logits<kSlices>(experts, logits + lane);
  float value[kSlices];
  const float sum = exponentials(experts, all, value);
  int before = 0;
  TENON_UNROLL
  for (int j = 0; j < kSlices; ++j) {
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
