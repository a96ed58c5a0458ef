// A target of tests: the cpu target on a WeakMemory. Named by TENON_DEVICE_HEADER in a test that
// includes a kernel file; the namespace is tenon::weak.
#pragma once

#include "tenon/gpu/cpu/block.h"
#include "tenon/gpu/cpu/memory.h"
#include "tests/support/weak_memory.h"

#define TENON_KERNEL static void
#define TENON_KERNEL_MAX(threads) TENON_KERNEL
#define TENON_KERNEL_RESIDENT(threads, blocks) TENON_KERNEL
#define TENON_ARGS(type) type
#define TENON_DEVICE [[maybe_unused]] static inline
#define TENON_SHARED(type, name, count) alignas(64) type name[count]
#define TENON_DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(::tenon::cpu_block.shared)

namespace tenon::weak {

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

using host_memory::atomic_add;
inline std::uint32_t atomic_add_system(std::uint32_t* at, std::uint32_t value) {
  return atomic_add(at, value);
}
using host_memory::load16;
using host_memory::load_acquire;
using host_memory::store16;
using host_memory::store8_bytes;
using host_memory::ticks;

// Of a mailbox as of counters: what nobody stored through the weak memory is visible at once.
inline std::uint32_t load4_relaxed(const void* at) {
  return testing::weak_memory->load(static_cast<const std::uint32_t*>(at));
}
inline void store4_relaxed(void* at, std::uint32_t value) {
  testing::weak_memory->store(static_cast<std::uint32_t*>(at), value);
}
inline Word2 load8_relaxed(const void* at) {
  const auto* const words = static_cast<const std::uint32_t*>(at);
  return {load4_relaxed(words), load4_relaxed(words + 1)};
}
inline void store8_relaxed(void* at, Word2 value) {
  auto* const words = static_cast<std::uint32_t*>(at);
  store4_relaxed(words, value.x);
  store4_relaxed(words + 1, value.y);
}
inline Word4 load16_relaxed(const void* at) {
  testing::WeakMemory& memory = *testing::weak_memory;
  memory.before_load();
  const auto* const words = static_cast<const std::uint32_t*>(at);
  return {memory.load(words), memory.load(words + 1), memory.load(words + 2),
          memory.load(words + 3)};
}
inline void store16_relaxed(void* at, Word4 value) {
  testing::WeakMemory& memory = *testing::weak_memory;
  auto* const words = static_cast<std::uint32_t*>(at);
  memory.store(words, value.x);
  memory.store(words + 1, value.y);
  memory.store(words + 2, value.z);
  memory.store(words + 3, value.w);
}
inline void fence_system() {
  testing::weak_memory->fence();
  host_memory::fence_system();
}
inline void store_release(std::uint32_t* at, std::uint32_t value) {
  testing::weak_memory->fence();
  host_memory::store_release(at, value);
}
inline void pause() { testing::weak_memory->idle(); }
inline void let_next_start() {}
inline void wait_for_previous() {}

}  // namespace tenon::weak
