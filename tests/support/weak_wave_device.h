// A target of tests: blocks of waves as on emu32, on a WeakMemory as weak as a device's: a fence
// covers the thread that makes it, and its block up to the last barrier. Named by
// TENON_DEVICE_HEADER in a test that includes a kernel file; TENON_WAVE is 32. The test must say
// begin_kernel() before a launch, and show_all() of the memory after it.
#pragma once

#include <sched.h>

#include <bit>
#include <vector>

#include "tenon/device/emu/fibers.h"
#include "tests/support/weak_memory.h"

#define TENON_KERNEL static void
#define TENON_KERNEL_MAX(threads) TENON_KERNEL
#define TENON_KERNEL_RESIDENT(threads, blocks) TENON_KERNEL
#define TENON_ARGS(type) type
#define TENON_DEVICE [[maybe_unused]] static inline
#define TENON_SHARED(type, name, count)              \
  static constexpr char name##_key_ = 0;             \
  type(&name)[count] = *static_cast<type(*)[count]>( \
      ::tenon::emu::shared_memory(&name##_key_, sizeof(type) * (count)))
#define TENON_DYNAMIC_SHARED(type, name) \
  type* name = static_cast<type*>(::tenon::emu::dynamic_shared())

namespace tenon::TENON_TARGET {

inline constexpr int kWave = TENON_WAVE;

inline int thread_id() { return emu::position->thread; }
inline int block_threads() { return emu::position->num_threads; }
inline int block_id() { return emu::position->block; }
inline int grid_blocks() { return emu::position->num_blocks; }

// Barriers that each thread of this rank's kernel has passed.
inline thread_local std::vector<std::uint32_t> barriers_passed;
inline void begin_kernel(int blocks, int most_threads) {
  barriers_passed.assign(static_cast<std::size_t>(blocks * most_threads), 0);
}
inline std::uint32_t& barriers_of_this_thread() {
  return barriers_passed[static_cast<std::size_t>(block_id() * block_threads() + thread_id())];
}
inline void sync_block(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  emu::sync_block({file, line});
  ++barriers_of_this_thread();
}

template <class T>
inline T shuffle_from(T value, int lane, const char* file = __builtin_FILE(),
                      int line = __builtin_LINE()) {
  static_assert(sizeof(T) == 4);
  return std::bit_cast<T>(emu::shuffle(std::bit_cast<std::uint32_t>(value), lane, {file, line}));
}
template <class T>
inline T shuffle_xor(T value, int mask, const char* file = __builtin_FILE(),
                     int line = __builtin_LINE()) {
  return shuffle_from(value, (thread_id() % kWave) ^ mask, file, line);
}
inline void sync_wave(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  shuffle_from(0u, 0, file, line);
}
inline std::uint32_t max_lane(std::uint32_t value, const char* file = __builtin_FILE(),
                              int line = __builtin_LINE()) {
  for (int mask = 1; mask < kWave; mask *= 2) {
    const std::uint32_t other = shuffle_xor(value, mask, file, line);
    value = other > value ? other : value;
  }
  return value;
}

inline void pause() {
  test::weak_memory->idle();
  emu::pause();
}

// For weak_access.h.
inline test::WeakMemory::Writer writer() {
  return {block_id(), thread_id(), barriers_of_this_thread()};
}
inline void switch_threads() { emu::maybe_switch(); }
inline void rest(test::WeakMemory::Rest how) {
  if (how.time.count() == 0) return;
  const auto until = std::chrono::steady_clock::now() + how.time;
  while (std::chrono::steady_clock::now() < until) {
    test::weak_memory->idle();
    if (how.alone) {
      emu::pause();
    } else {
      sched_yield();
    }
  }
}

}  // namespace tenon::TENON_TARGET

#include "tests/support/weak_access.h"
