// Copies that threads ask for and do not wait for (cp.async), told to an mbarrier; and what must
// stand between shared memory that threads have written and the tensor cores (sm_90). For operands
// whose rows lie where a tile of the copy engine cannot name them.
#pragma once

#include "tenon/device/copy.cuh"
#include "tenon/device/cuda_hip/sm90/mbarrier.cuh"

namespace tenon::TENON_TARGET::sm90 {

// Like copy_async16() of device/copy.cuh, whose await_copies() ends all of these: the first `bytes`
// of 16, which are at least 1, and zeros behind them.
TENON_DEVICE void copy16_later(void* shared, const void* global, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(shared_address(shared)), "l"(__cvta_generic_to_global(global)), "r"(bytes)
               : "memory");
}
// 4 bytes, aligned to as much on both sides.
TENON_DEVICE void copy4_later(void* shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;"
               :
               : "r"(shared_address(shared)), "l"(__cvta_generic_to_global(global))
               : "memory");
}
// One of the arrivals that the barrier counts, made when all copies of this thread so far have
// landed.
TENON_DEVICE void arrive_after_copies(Mbarrier* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];"
               :
               : "r"(shared_address(barrier))
               : "memory");
}

// This thread's copies since the last call are a set, perhaps an empty one; and a wait until all but
// the latest kCount sets have landed.
TENON_DEVICE void end_copies() { asm volatile("cp.async.commit_group;" : : : "memory"); }
template <int kCount>
TENON_DEVICE void await_copies_but() {
  asm volatile("cp.async.wait_group %0;" : : "n"(kCount) : "memory");
}

// What threads have stored or copied, as far as this thread knows of it, is there for products that
// it starts later, or that others start whom it tells.
TENON_DEVICE void show_to_tensor_cores() {
  asm volatile("fence.proxy.async.shared::cta;" : : : "memory");
}

// Where the 16-byte chunk `chunk` of row `row` lies in a tile (sm90/wgmma.cuh), in bytes.
TENON_HD constexpr int tile_place(int row, int chunk) { return row * 128 + (chunk ^ row % 8) * 16; }

}  // namespace tenon::TENON_TARGET::sm90
