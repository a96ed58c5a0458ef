// The choice of one token's experts by several waves of a block, where a wave alone would take most
// of a kernel's time: the softmax, the order and the ties are those of moe_route.h, and so are the
// bits. Keys are for moe_route's own kernels too.
//
// Wave s has the slice [32 s, 32 s + 32) of the experts, an expert a lane. Places are counted, not
// found one after another: an expert's place in its slice is the number of those before it there;
// the first of each slice then meet, and count once more.
#pragma once

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
  float* p;                   // [top_k]: chosen ones
  std::int32_t* expert;       // the same
  int of_slice;
};
TENON_HD constexpr int choice_of_slice(int top_k) { return (top_k + 3) / 4 * 4; }
// In words, rounded up to 16 bytes.
TENON_HD constexpr int choice_words(int top_k) {
  return 2 * kMostChoiceExperts + (2 * kChoiceSlices + 2) * choice_of_slice(top_k);
}
TENON_DEVICE ChoiceMemory choice_memory(std::uint32_t* words, int top_k) {
  ChoiceMemory memory;
  memory.of_slice = choice_of_slice(top_k);
  const int met = kChoiceSlices * memory.of_slice;
  memory.values = reinterpret_cast<float*>(words);
  memory.keys = words + kMostChoiceExperts;
  memory.best = memory.keys + kMostChoiceExperts;
  memory.best_expert = reinterpret_cast<std::int32_t*>(memory.best + met);
  memory.p = reinterpret_cast<float*>(memory.best + 2 * met);
  memory.expert = reinterpret_cast<std::int32_t*>(memory.p + memory.of_slice);
  return memory;
}

// Integers that order as floats do, a NaN above all.
TENON_DEVICE std::uint32_t ordered_bits(float x) {
  const std::uint32_t bits = float_bits(x);
  const std::uint32_t number = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return is_nan(x) ? 0xffffffffu : number;
}
TENON_DEVICE float ordered_float(std::uint32_t x) {
  const std::uint32_t number = (x & 0x80000000u) != 0 ? x & 0x7fffffffu : ~x;
  return bits_float(x == 0xffffffffu ? 0x7fc00000u : number);
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

// The first of the wave's slice. By all threads of the block; waves behind the slices only meet.
template <class Logit>
TENON_DEVICE void choose_in_slices(int experts, const ChoiceMemory& memory, Logit logit) {
  const int lane = lane_id(), slice = wave_id(), own = slice * kChoiceLanes + lane;
  const bool chooses = slice < kChoiceSlices, exists = own < experts;
  float value = 0.0f;
  if (chooses) {
    float all[kChoiceSlices];
    TENON_UNROLL
    for (int j = 0; j < kChoiceSlices; ++j) {
      const int expert = lane + j * kChoiceLanes;
      all[j] = expert < experts ? logit(expert) : -kInfinity;
    }
    value = exists ? logit(own) : 0.0f;
    std::uint32_t most = ordered_bits(all[0]);
    TENON_UNROLL
    for (int j = 1; j < kChoiceSlices; ++j) {
      const std::uint32_t other = ordered_bits(all[j]);
      most = most > other ? most : other;
    }
    const float largest = ordered_float(max_lane(most));
    value = exists ? exp_f(value - largest) : 0.0f;
    memory.values[own] = value;
  }
  sync_block();
  if (!chooses) return;
  // Slot s of 64 adds experts s, s + 64, … in order; then the upper half of the slots is added to
  // the lower half, six times.
  float slot[2] = {};
  TENON_UNROLL
  for (int j = 0; j < kChoiceSlices; ++j)
    slot[j % 2] = slot[j % 2] + memory.values[lane + j * kChoiceLanes];
  float sum = slot[0] + slot[1];
  TENON_UNROLL
  for (int half = kChoiceLanes / 2; half > 0; half /= 2) sum = sum + shuffle_xor(sum, half);
  const std::uint32_t key = exists ? key_of(value / sum) : 0u;
  memory.keys[own] = key;
  sync_wave();
  const int place = place_in_slice(memory.keys + slice * kChoiceLanes, key, lane);
  if (place >= memory.of_slice) return;
  memory.best[slice * memory.of_slice + place] = key;
  memory.best_expert[slice * memory.of_slice + place] = own;
}

// The second, behind a sync_block(), by all threads of a block of at least kChoiceSlices waves of
// 32 lanes: the token's chosen experts and their p, in order. Ends with sync_block().
TENON_DEVICE void meet_slices(int top_k, const ChoiceMemory& memory) {
  // Four threads for each of those that meet, each for two slices.
  constexpr int kParts = 4, kOfPart = kChoiceSlices / kParts;
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
    TENON_UNROLL
    for (int mask = 1; mask < kParts; mask *= 2) place += shuffle_xor(place, mask);
    place += in_slice;
    if (part != 0 || place >= top_k) continue;
    memory.p[place] = p_of(key);
    memory.expert[place] = memory.best_expert[slice * of_slice + in_slice];
  }
  sync_block();
}

// The weight of a choice: its p over the sum of the chosen ones, added in order.
TENON_DEVICE float choice_weight(int top_k, const ChoiceMemory& memory, int choice) {
  float sum = 0.0f;
  for (int k = 0; k < top_k; ++k) sum = sum + memory.p[k];
  return memory.p[choice] / sum;
}

}  // namespace tenon::TENON_TARGET
