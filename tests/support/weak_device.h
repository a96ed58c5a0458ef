// A target of tests: the cpu target on a WeakMemory. Named by TENON_DEVICE_HEADER in a test that
// includes a kernel file. All that a rank does, it does on one thread.
#pragma once

#include <sched.h>

#include "tenon/device/cpu/block.h"
#include "tests/support/weak_memory.h"

#define TENON_KERNEL static void
#define TENON_KERNEL_MAX(threads) TENON_KERNEL
#define TENON_KERNEL_RESIDENT(threads, blocks) TENON_KERNEL
#define TENON_ARGS(type) type
#define TENON_DEVICE [[maybe_unused]] static inline
#define TENON_SHARED(type, name, count) alignas(64) type name[count]
#define TENON_DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(::tenon::cpu_block.shared)

namespace tenon::TENON_TARGET {

inline constexpr int kWave = 1;

constexpr int thread_id() { return 0; }
constexpr int block_threads() { return 1; }
inline int block_id() { return cpu_block.block; }
inline int grid_blocks() { return cpu_block.num_blocks; }
inline void sync_block() {}

template <class T>
inline T shuffle_xor(T value, int) {
  return value;
}
template <class T>
inline T shuffle_from(T value, int) {
  return value;
}
inline void sync_wave() {}
inline std::uint32_t max_lane(std::uint32_t value) { return value; }

inline void pause() {
  test::weak_memory->idle();
  sched_yield();
}

// For weak_access.h.
inline test::WeakMemory::Writer writer() { return {}; }
inline void switch_threads() {}
inline void rest(test::WeakMemory::Rest how) {
  if (how.time.count() == 0) return;
  const auto until = std::chrono::steady_clock::now() + how.time;
  while (std::chrono::steady_clock::now() < until) pause();
}

}  // namespace tenon::TENON_TARGET

#include "tests/support/weak_access.h"
