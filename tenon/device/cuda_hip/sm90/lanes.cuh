// Votes and integer sums over the 32 lanes of a wave, all lanes together; and a fence. For variants
// of the cuda target alone.
#pragma once

#include "tenon/device/device.cuh"

namespace tenon::TENON_TARGET::sm90 {

// Bit l: what lane l says.
TENON_DEVICE std::uint32_t ballot(bool says) { return __ballot_sync(0xffffffffu, says); }
TENON_DEVICE int count_ones(std::uint32_t bits) { return __popc(bits); }
TENON_DEVICE int lowest_one(std::uint32_t bits) { return __ffs(static_cast<int>(bits)) - 1; }
TENON_DEVICE int sum_lanes(int value) {
  return static_cast<int>(__reduce_add_sync(0xffffffffu, static_cast<unsigned>(value)));
}
// The sum over the lanes before this one.
TENON_DEVICE int sum_before(int value) {
  const int lane = thread_id() % kWave;
  int sum = value;
  TENON_UNROLL
  for (int by = 1; by < kWave; by *= 2) {
    const int other = shuffle_from(sum, lane < by ? lane : lane - by);
    if (lane >= by) sum += other;
  }
  return sum - value;
}

// Like fence_system(), for this device alone.
TENON_DEVICE void fence_device() { asm volatile("fence.acq_rel.gpu;" : : : "memory"); }

}  // namespace tenon::TENON_TARGET::sm90
