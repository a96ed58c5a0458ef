// Reductions over aligned groups of lanes, a wave or a block, built on shuffles, barriers and
// shared memory only, for any wave width. Every thread gets the result, and it is the same bits
// everywhere: sums form the perfect binary tree over the threads, adjacent pairs first
// (docs/boundary.md step 6).
//
// The number of threads of the block must be a multiple of kWave and at most kMaxBlockThreads.
// Every thread of the block must call the block_ functions, of the wave the others.
#pragma once

#include "tenon/device/device.cuh"
#include "tenon/device/math.cuh"

namespace tenon::TENON_TARGET {

inline constexpr int kMaxBlockThreads = kWave == 1 ? 1 : 1024;
inline constexpr int kMaxWaves = kMaxBlockThreads / kWave;
static_assert(kMaxWaves <= kWave);

TENON_DEVICE int lane_id() { return thread_id() % kWave; }
TENON_DEVICE int wave_id() { return thread_id() / kWave; }

// Over each aligned group of kLanes lanes; kLanes is a power of two, at most kWave.
// combine(a, b) must be commutative; T has 4 bytes.
template <int kLanes, class T, class Combine>
TENON_DEVICE T lanes_reduce(T value, Combine combine) {
  static_assert(kLanes >= 1 && kLanes <= kWave && (kLanes & (kLanes - 1)) == 0);
  static_assert(sizeof(T) == 4);
  TENON_UNROLL
  for (int mask = 1; mask < kLanes; mask *= 2) value = combine(value, shuffle_xor(value, mask));
  return value;
}
template <int kLanes>
TENON_DEVICE float lanes_sum(float value) {
  return lanes_reduce<kLanes>(value, [](float a, float b) { return a + b; });
}
template <int kLanes>
TENON_DEVICE float lanes_max(float value) {  // a NaN wins
  return lanes_reduce<kLanes>(value, [](float a, float b) { return max_f(a, b); });
}
TENON_DEVICE float wave_sum(float value) { return lanes_sum<kWave>(value); }
TENON_DEVICE float wave_max(float value) { return lanes_max<kWave>(value); }

// Over the block. `identity` pads the waves that are missing to a power of two.
template <class T, class Combine>
TENON_DEVICE T block_reduce(T value, T identity, Combine combine) {
  if constexpr (kWave == 1) {
    return value;
  } else {
    TENON_SHARED(T, of_wave, kMaxWaves);
    value = lanes_reduce<kWave>(value, combine);
    sync_block();  // the readers of an earlier call are done
    if (lane_id() == 0) of_wave[wave_id()] = value;
    sync_block();
    const int num_waves = block_threads() / kWave;
    return lanes_reduce<kWave>(lane_id() < num_waves ? of_wave[lane_id()] : identity, combine);
  }
}
TENON_DEVICE float block_sum(float value) {
  return block_reduce(value, 0.0f, [](float a, float b) { return a + b; });
}
// The sum of what kMaxWaves waves have left, adjacent pairs first.
TENON_DEVICE float sum_of_waves(const Word4* waves) {
  float of_four[kMaxWaves / 4];
  TENON_UNROLL
  for (int i = 0; i < kMaxWaves / 4; ++i) {
    const Word4 four = waves[i];
    of_four[i] =
        (bits_float(four.x) + bits_float(four.y)) + (bits_float(four.z) + bits_float(four.w));
  }
  TENON_UNROLL
  for (int width = kMaxWaves / 8; width > 0; width /= 2) {
    TENON_UNROLL
    for (int i = 0; i < width; ++i) of_four[i] = of_four[2 * i] + of_four[2 * i + 1];
  }
  return of_four[0];
}
// The same for a loop that numbers its calls from 0 and a block of at least 64 threads: one barrier
// instead of two, since whoever passes the barrier of the next rows_done has read the sums of this
// one. Every thread adds up the sums of the waves itself.
TENON_DEVICE float block_sum(float value, int rows_done) {
  if constexpr (kWave == 1) {
    return value;
  } else {
    TENON_SHARED(Word4, of_waves, 2 * kMaxWaves / 4);
    auto* const sums = reinterpret_cast<float*>(of_waves);
    const int num_waves = block_threads() / kWave;
    if (rows_done == 0 && thread_id() < 2 * kMaxWaves && thread_id() % kMaxWaves >= num_waves)
      sums[thread_id()] = 0.0f;  // waves that are missing, in both halves
    value = wave_sum(value);
    if (lane_id() == 0) sums[rows_done % 2 * kMaxWaves + wave_id()] = value;
    sync_block();
    return sum_of_waves(of_waves + rows_done % 2 * (kMaxWaves / 4));
  }
}
TENON_DEVICE float block_max(float value) {  // a NaN wins
  return block_reduce(value, -kInfinity, [](float a, float b) { return max_f(a, b); });
}

}  // namespace tenon::TENON_TARGET
