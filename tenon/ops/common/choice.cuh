// The choice of a token's experts by several waves, for kernels of few tokens, where a wave alone
// would take most of their time: the softmax, the order and the ties are those of moe_route.h, and
// so are the bits. For targets whose waves have 32 lanes.
//
// A team of kChoiceSlices waves shares a token: wave s has the slice [32 s, 32 s + 32) of its
// experts, an expert a lane. Places are counted, not found one after another: an expert's place in
// its slice is the number of those before it there; the first of each slice then meet, and count
// once more.
#pragma once

#include "tenon/device/math.cuh"
#include "tenon/device/reduce.cuh"

namespace tenon::TENON_TARGET {

inline constexpr int kChoiceLanes = 32, kChoiceSlices = 8;
inline constexpr int kMostChoiceExperts = kChoiceLanes * kChoiceSlices, kMostChoices = 16;

struct ChoiceShape {
  std::int32_t tokens, experts, top_k;
};

// Words of shared memory that are aligned to 16 bytes. of_slice: how many of a slice meet.
struct ChoiceMemory {
  float* values;              // of a team [kAtOnce, experts]: exp(logit - the largest)
  std::uint32_t* keys;        // [kAtOnce, experts]
  std::uint32_t* best;        // [tokens, slices, of_slice]
  std::int32_t* best_expert;  // the same
  float* p;                   // [tokens, top_k]: chosen ones
  std::int32_t* expert;       // the same
  int of_slice;
};
TENON_HD constexpr int choice_of_slice(int top_k) { return (top_k + 3) / 4 * 4; }
// Rounded up to 16 bytes. waves: of the block.
TENON_HD constexpr int choice_words(int waves, int at_once, int tokens, int top_k) {
  return 2 * (waves / kChoiceSlices) * at_once * kMostChoiceExperts +
         2 * tokens * kChoiceSlices * choice_of_slice(top_k) + (2 * tokens * top_k + 3) / 4 * 4;
}
TENON_DEVICE ChoiceMemory choice_memory(std::uint32_t* words, int waves, int at_once, int tokens,
                                        int top_k) {
  const int of_team = at_once * kMostChoiceExperts, teams = waves / kChoiceSlices;
  ChoiceMemory memory;
  memory.of_slice = choice_of_slice(top_k);
  const int met = tokens * kChoiceSlices * memory.of_slice;
  memory.values = reinterpret_cast<float*>(words);
  memory.keys = words + teams * of_team;
  memory.best = memory.keys + teams * of_team;
  memory.best_expert = reinterpret_cast<std::int32_t*>(memory.best + met);
  memory.p = reinterpret_cast<float*>(memory.best + 2 * met);
  memory.expert = reinterpret_cast<std::int32_t*>(memory.best + 2 * met + tokens * top_k);
  return memory;
}

// Keys order as p does: 0 for an expert that does not exist, 1 for a NaN. The largest is far below
// 2^31.
TENON_DEVICE std::uint32_t key_of(float p) { return is_nan(p) ? 1u : float_bits(p) + 2u; }
TENON_DEVICE float p_of(std::uint32_t key) {
  return bits_float(key == 1u ? 0x7fc00000u : key - 2u);
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

// The first of each slice of up to kAtOnce tokens from `first` on, by a team. Tokens that do not
// exist are worked on like the last one and leave nothing.
template <int kAtOnce, class Logit>
TENON_DEVICE void choose_in_slices(const ChoiceShape& shape, const ChoiceMemory& memory,
                                   Logit logit, int team, int slice, int first) {
  const int lane = thread_id() % kChoiceLanes, own = slice * kChoiceLanes + lane;
  const bool chooses = first < shape.tokens && team >= 0;
  const bool exists = own < shape.experts;
  float* const values = memory.values + team * kAtOnce * kMostChoiceExperts;
  std::uint32_t* const keys = memory.keys + team * kAtOnce * kMostChoiceExperts;
  float value[kAtOnce];
  if (chooses) {
    float all[kAtOnce][kChoiceSlices];
    TENON_UNROLL
    for (int t = 0; t < kAtOnce; ++t) {
      const int token = first + t < shape.tokens ? first + t : shape.tokens - 1;
      TENON_UNROLL
      for (int j = 0; j < kChoiceSlices; ++j) {
        const int expert = lane + j * kChoiceLanes;
        all[t][j] = expert < shape.experts ? logit(token, expert) : -kInfinity;
      }
      value[t] = exists ? logit(token, own) : 0.0f;
    }
    TENON_UNROLL
    for (int t = 0; t < kAtOnce; ++t) {
      std::uint32_t most = ordered_bits(all[t][0]);
      TENON_UNROLL
      for (int j = 1; j < kChoiceSlices; ++j) {
        const std::uint32_t other = ordered_bits(all[t][j]);
        most = most > other ? most : other;
      }
      const float largest = ordered_float(max_lane(most));
      value[t] = exists ? exp_f(value[t] - largest) : 0.0f;
      values[t * kMostChoiceExperts + own] = value[t];
    }
  }
  sync_block();
  if (!chooses) return;
  TENON_UNROLL
  for (int t = 0; t < kAtOnce; ++t) {
    // Slot s of 64 adds experts s, s + 64, … in order; then the upper half of the slots is added to
    // the lower half, six times.
    float slot[2] = {};
    TENON_UNROLL
    for (int j = 0; j < kChoiceSlices; ++j)
      slot[j % 2] = slot[j % 2] + values[t * kMostChoiceExperts + lane + j * kChoiceLanes];
    float sum = slot[0] + slot[1];
    TENON_UNROLL
    for (int half = kChoiceLanes / 2; half > 0; half /= 2) sum = sum + shuffle_xor(sum, half);
    const std::uint32_t key = exists ? key_of(value[t] / sum) : 0u;
    value[t] = bits_float(key);
    keys[t * kMostChoiceExperts + own] = key;
  }
  sync_wave();
  TENON_UNROLL
  for (int t = 0; t < kAtOnce; ++t) {
    const std::uint32_t key = float_bits(value[t]);
    const int place =
        place_in_slice(keys + t * kMostChoiceExperts + slice * kChoiceLanes, key, lane);
    if (place >= memory.of_slice || first + t >= shape.tokens) continue;
    const int at = ((first + t) * kChoiceSlices + slice) * memory.of_slice + place;
    memory.best[at] = key;
    memory.best_expert[at] = own;
  }
}

// By all threads of a block of at least kChoiceSlices waves: every token's chosen experts and their
// p, in order. logit(token, expert); put(token, choice, expert): told once for each, by some
// thread. Ends with sync_block().
template <int kAtOnce, class Logit, class Put>
TENON_DEVICE void choose_together(const ChoiceShape& shape, const ChoiceMemory& memory, Logit logit,
                                  Put put) {
  static_assert(kAtOnce > 0 && kWave == kChoiceLanes);
  const int teams = block_threads() / kWave / kChoiceSlices;
  const int team = wave_id() / kChoiceSlices, slice = wave_id() % kChoiceSlices;
  TENON_NO_UNROLL
  for (int first = 0; first < shape.tokens; first += teams * kAtOnce) {
    if (first > 0) sync_block();  // the values of the tokens before are used
    choose_in_slices<kAtOnce>(shape, memory, logit, team < teams ? team : -1, slice,
                              first + team * kAtOnce);
  }
  sync_block();
  // Four threads for each of those that meet, each for two slices.
  constexpr int kParts = 4, kOfPart = kChoiceSlices / kParts;
  const int of_slice = memory.of_slice, tasks = shape.tokens * of_slice * kChoiceSlices * kParts;
  TENON_NO_UNROLL
  for (int task = thread_id(); task < tasks; task += block_threads()) {
    const int part = task % kParts, slice_of = task / kParts % kChoiceSlices;
    const int at = task / (kParts * kChoiceSlices), token = at / of_slice, in_slice = at % of_slice;
    const int of_token = token * kChoiceSlices * of_slice;
    const std::uint32_t key = memory.best[of_token + slice_of * of_slice + in_slice];
    int place = 0;
    TENON_UNROLL
    for (int i = 0; i < kOfPart; ++i) {
      const int other = part * kOfPart + i;
      const std::uint32_t least = other == slice_of  ? 0xffffffffu  // counted there
                                  : other < slice_of ? key
                                                     : key + 1u;
      TENON_NO_UNROLL
      for (int four = 0; four < of_slice; four += 4)
        place += count_from(load16(memory.best + of_token + other * of_slice + four), least);
    }
    TENON_UNROLL
    for (int mask = 1; mask < kParts; mask *= 2) place += shuffle_xor(place, mask);
    place += in_slice;
    if (part != 0 || place >= shape.top_k) continue;
    const int expert = memory.best_expert[of_token + slice_of * of_slice + in_slice];
    memory.p[token * shape.top_k + place] = p_of(key);
    memory.expert[token * shape.top_k + place] = expert;
    put(token, place, expert);
  }
  sync_block();
}

// The weight of a choice: its p over the sum of the chosen ones, added in order.
TENON_DEVICE float choice_weight(const ChoiceShape& shape, const ChoiceMemory& memory, int token,
                                 int choice) {
  const float* const p = memory.p + token * shape.top_k;
  float sum = 0.0f;
  for (int k = 0; k < shape.top_k; ++k) sum = sum + p[k];
  return p[choice] / sum;
}

}  // namespace tenon::TENON_TARGET
