// Copies from global to shared memory that a thread starts and awaits later, where the target has
// them; elsewhere they are plain copies.
#pragma once

#include "tenon/device/device.cuh"

namespace tenon::TENON_TARGET {

// Sixteen bytes, aligned. Without await_copies() nobody may look at them.
TENON_DEVICE void copy_async16(void* shared, const void* from) {
#if defined(__CUDACC__)
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
               :
               : "r"(static_cast<std::uint32_t>(__cvta_generic_to_shared(shared))),
                 "l"(__cvta_generic_to_global(from))
               : "memory");
#else
  store16(shared, load16(from));
#endif
}
// What this thread has started has come. Other threads see it after sync_block().
TENON_DEVICE void await_copies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_all;" : : : "memory");
#endif
}

}  // namespace tenon::TENON_TARGET
