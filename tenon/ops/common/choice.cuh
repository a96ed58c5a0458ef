// The choice of one token's experts by several waves of a block, where a wave alone would take most
// of a kernel's time: the softmax, the order and the ties are those of moe_route.h, and so are the
// bits. Keys are for moe_route's own kernels too.
//
// Wave s has the slice [32 s, 32 s + 32) of the experts, an expert a lane. Places are counted, not
// found one after another: an expert's place in its slice is the number of those before it there;
// the first of each slice then meet, and count once more.
//
// Who is chosen mostly shows by the logits alone, without exponentials and their sum: if the last
// one chosen is well above the next one, no rounding of p can turn them round. are_apart() says
// whether it is so; if not, p decides.
#pragma once

#include "tenon/device/ascending.cuh"
#include "tenon/device/math.cuh"
#include "tenon/device/reduce.cuh"

namespace tenon::TENON_TARGET {

// Keys order as p does: 0 for an expert that is taken or does not exist, 1 for a NaN. The largest
// is far below 2^31.
TENON_DEVICE std::uint32_t key_of(float p) { return is_nan(p) ? 1u : float_bits(p) + 2u; }
TENON_DEVICE float p_of(std::uint32_t key) {
  return bits_float(key == 1u ? 0x7fc00000u : key - 2u);
}

inline constexpr int kChoiceLanes = 32, kChoiceSlices = 8;
inline constexpr int kMostChoiceExperts = kChoiceLanes * kChoiceSlices, kMostChoices = 16;

// Shared memory, aligned to 16 bytes.
struct ChoiceMemory {
  float* values;              // [experts]: exp(logit − the largest)
  std::uint32_t* keys;        // [experts]
  std::uint32_t* best;        // [slices, of_slice]: those that meet
  std::int32_t* best_expert;  // the same
  std::uint32_t* found;       // [top_k + 1]: keys of the chosen ones in order, and of the next one
  std::int32_t* expert;       // the same; by logits their order is not that of the choices
  float* p;                   // [top_k]: in the order of the choices
  int of_slice;
};
TENON_HD constexpr int choice_of_slice(int top_k) { return (top_k + 4) / 4 * 4; }
// In words, rounded up to 16 bytes.
TENON_HD constexpr int choice_words(int top_k) {
  return 2 * kMostChoiceExperts + (2 * kChoiceSlices + 3) * choice_of_slice(top_k);
}
TENON_DEVICE ChoiceMemory choice_memory(std::uint32_t* words, int top_k) {
  ChoiceMemory memory;
  memory.of_slice = choice_of_slice(top_k);
  const int met = kChoiceSlices * memory.of_slice;
  memory.values = reinterpret_cast<float*>(words);
  memory.keys = words + kMostChoiceExperts;
  memory.best = memory.keys + kMostChoiceExperts;
  memory.best_expert = reinterpret_cast<std::int32_t*>(memory.best + met);
  memory.found = memory.best + 2 * met;
  memory.expert = reinterpret_cast<std::int32_t*>(memory.found + memory.of_slice);
  memory.p = reinterpret_cast<float*>(memory.found + 2 * memory.of_slice);
  return memory;
}

// Integers that order as floats do, a NaN above all. Behind each of them there is another one.
TENON_DEVICE std::uint32_t ordered_bits(float x) {
  return is_nan(x) ? 0xfffffffeu : ascending_bits(x);
}
TENON_DEVICE float ordered_float(std::uint32_t x) {
  return x == 0xfffffffeu ? bits_float(0x7fc00000u) : ascending_float(x);
}

TENON_DEVICE int count_from(const Word4& keys, std::uint32_t least) {
  return static_cast<int>(keys.x >= least) + static_cast<int>(keys.y >= least) +
         static_cast<int>(keys.z >= least) + static_cast<int>(keys.w >= least);
}

// How many of a slice's keys stand before the lane's own: greater ones, and equal ones of lower
// lanes.
TENON_DEVICE int place_in_slice(const std::uint32_t* keys, std::uint32_t key, int lane) {
  const int own = lane / 4;
  int place = 0;
  TENON_UNROLL
  for (int four = 0; four < kChoiceLanes / 4; ++four)
    place += count_from(load16(keys + 4 * four), four < own ? key : key + 1u);
  const Word4 beside = load16(keys + 4 * own);
  return place + static_cast<int>(lane % 4 > 0 && beside.x == key) +
         static_cast<int>(lane % 4 > 1 && beside.y == key) +
         static_cast<int>(lane % 4 > 2 && beside.z == key);
}

// By the wave of a slice: its first ones. key: of the lane's expert, 0 where there is none.
TENON_DEVICE void rank_slice(const ChoiceMemory& memory, std::uint32_t key) {
  const int lane = lane_id(), slice = wave_id(), own = slice * kChoiceLanes + lane;
  memory.keys[own] = key;
  sync_wave();
  const int place = place_in_slice(memory.keys + slice * kChoiceLanes, key, lane);
  if (place >= memory.of_slice) return;
  memory.best[slice * memory.of_slice + place] = key;
  memory.best_expert[slice * memory.of_slice + place] = own;
}

// Behind a sync_block(), by all threads of a block: the first ones of all slices. Ends with
// sync_block().
TENON_DEVICE void meet_slices(int top_k, const ChoiceMemory& memory) {
  // Two threads for each of those that meet, each for half of the slices.
  constexpr int kParts = 2, kOfPart = kChoiceSlices / kParts;
  const int of_slice = memory.of_slice, tasks = of_slice * kChoiceSlices * kParts;
  TENON_NO_UNROLL
  for (int task = thread_id(); task < tasks; task += block_threads()) {
    const int part = task % kParts, slice = task / kParts % kChoiceSlices;
    const int in_slice = task / (kParts * kChoiceSlices);
    const std::uint32_t key = memory.best[slice * of_slice + in_slice];
    int place = 0;
    TENON_UNROLL
    for (int i = 0; i < kOfPart; ++i) {
      const int other = part * kOfPart + i;
      const std::uint32_t least = other == slice  ? 0xffffffffu  // counted there
                                  : other < slice ? key
                                                  : key + 1u;
      TENON_NO_UNROLL
      for (int four = 0; four < of_slice; four += 4)
        place += count_from(load16(memory.best + other * of_slice + four), least);
    }
    place += shuffle_xor(place, 1) + in_slice;
    if (part != 0 || place > top_k) continue;
    memory.found[place] = key;
    memory.expert[place] = memory.best_expert[slice * of_slice + in_slice];
  }
  sync_block();
}

// --- by logits ---

// By all threads of a block of at least kChoiceSlices waves of 32 lanes, with a wave for each
// slice. logit(expert). Then sync_block() and meet_slices().
template <class Logit>
TENON_DEVICE void rank_logits(int experts, const ChoiceMemory& memory, Logit logit) {
  const int own = wave_id() * kChoiceLanes + lane_id();
  if (wave_id() < kChoiceSlices) rank_slice(memory, own < experts ? ordered_bits(logit(own)) : 0u);
}

// Of the largest, the last chosen and the next key: what the logits choose is what p chooses. The
// largest is at most 60 above the last one, so no p that counts is a denormal number; logit −
// largest is wrong by 2^-19 at most, an exponential and a quotient by two units in the last place
// each, so what lies 2^-14 apart stays in order. A NaN and an infinity are never apart.
TENON_DEVICE bool are_apart(std::uint32_t first, std::uint32_t last, std::uint32_t next) {
  const float least = ordered_float(last);
  return ordered_float(first) - least < 60.0f &&
         (next == 0u || least - ordered_float(next) > 0x1p-14f);  // 0: there is none
}
TENON_DEVICE bool are_apart(int top_k, const ChoiceMemory& memory) {
  return are_apart(memory.found[0], memory.found[top_k - 1], memory.found[top_k]);
}

// --- by p ---

// Of a lane: experts lane, lane + 32, …
struct Logits {
  float of_lane[kChoiceSlices];
};
template <class Logit>
TENON_DEVICE Logits load_logits(int experts, Logit logit) {
  Logits all;
  TENON_UNROLL
  for (int j = 0; j < kChoiceSlices; ++j) {
    const int expert = lane_id() + j * kChoiceLanes;
    all.of_lane[j] = expert < experts ? logit(expert) : -kInfinity;
  }
  return all;
}
// exp(logit − the largest) of these experts, and its sum over all.
TENON_DEVICE float exponentials(int experts, const Logits& all, float (&value)[kChoiceSlices]) {
  std::uint32_t most = ordered_bits(all.of_lane[0]);
  TENON_UNROLL
  for (int j = 1; j < kChoiceSlices; ++j) {
    const std::uint32_t other = ordered_bits(all.of_lane[j]);
    most = most > other ? most : other;
  }
  const float largest = ordered_float(max_lane(most));
  // Slot s of 64 adds experts s, s + 64, … in order; then the upper half of the slots is added to
  // the lower half, six times.
  float slot[2] = {};
  TENON_UNROLL
  for (int j = 0; j < kChoiceSlices; ++j) {
    value[j] = lane_id() + j * kChoiceLanes < experts ? exp_f(all.of_lane[j] - largest) : 0.0f;
    slot[j % 2] = slot[j % 2] + value[j];
  }
  float sum = slot[0] + slot[1];
  TENON_UNROLL
  for (int half = kChoiceLanes / 2; half > 0; half /= 2) sum = sum + shuffle_xor(sum, half);
  return sum;
}
// Into memory.
TENON_DEVICE float sum_values(int experts, const ChoiceMemory& memory, const Logits& all) {
  float value[kChoiceSlices];
  const float sum = exponentials(experts, all, value);
  TENON_UNROLL
  for (int j = 0; j < kChoiceSlices; ++j) memory.values[lane_id() + j * kChoiceLanes] = value[j];
  sync_wave();
  return sum;
}

// Like rank_logits(), by p. Every wave of a slice makes all exponentials: this is rare.
template <class Logit>
TENON_DEVICE void rank_p(int experts, const ChoiceMemory& memory, Logit logit) {
  const int own = wave_id() * kChoiceLanes + lane_id();
  if (wave_id() >= kChoiceSlices) return;
  const float sum = sum_values(experts, memory, load_logits(experts, logit));
  rank_slice(memory, own < experts ? key_of(memory.values[own] / sum) : 0u);
}

// By a wave whose lane l < top_k has one of the chosen experts, and its p: which choice that is,
// and its weight, p over the sum of the chosen ones, added in order. in_order: memory of top_k
// floats.
struct WeightedChoice {
  int choice;
  float weight;
};
TENON_DEVICE WeightedChoice weigh(int top_k, int expert, float p, float* in_order) {
  const std::uint32_t key = key_of(p);
  WeightedChoice own{0, 0.0f};
  for (int other = 0; other < top_k; ++other) {
    const std::uint32_t its_key = shuffle_from(key, other);
    const int its_expert = shuffle_from(expert, other);
    own.choice += its_key > key || (its_key == key && its_expert < expert) ? 1 : 0;
  }
  if (lane_id() < top_k) in_order[own.choice] = p;
  sync_wave();
  float sum = 0.0f;
  for (int k = 0; k < top_k; ++k) sum = sum + in_order[k];
  own.weight = p / sum;
  return own;
}

}  // namespace tenon::TENON_TARGET
