// The emulated targets emu32 and emu64: real waves, barriers and shared memory on fibers.
// TENON_WAVE is the wave's width, TENON_TARGET the namespace; cmake/targets.cmake sets both.
#pragma once

#include <bit>

#include "tenon/device/cpu/memory.h"
#include "tenon/device/emu/fibers.h"

#define TENON_KERNEL static void
#define TENON_KERNEL_MAX(threads) static void
#define TENON_KERNEL_RESIDENT(threads, blocks) static void
#define TENON_ARGS(type) type
#define TENON_DEVICE static inline
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

inline void sync_block(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  emu::sync_block({file, line});
}
inline void sync_roles() { emu::sync_block({"sync_roles()", 0}); }

#if TENON_WAVE == 32  // as on the devices that have them
#define TENON_HAS_CLUSTERS 1
// Where block `rank` of the cluster has what lies at `mine`, in a TENON_SHARED of this one.
template <class T>
inline T* in_cluster(T* mine, int rank) {
  emu::maybe_switch();
  return static_cast<T*>(emu::in_cluster(mine, rank));
}
#endif

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

// Needless here, but lanes that are missing show.
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

using host_memory::load16;
using host_memory::load16_relaxed;
using host_memory::load4_relaxed;
using host_memory::load8_relaxed;
using host_memory::load_acquire;
using host_memory::store16;
using host_memory::store8_bytes;
using host_memory::ticks;

inline void store_release(std::uint32_t* at, std::uint32_t value) {
  emu::maybe_switch();
  host_memory::store_release(at, value);
}
inline void store4_relaxed(void* at, std::uint32_t value) {
  emu::maybe_switch();
  host_memory::store4_relaxed(at, value);
}
inline void store8_relaxed(void* at, Word2 value) {
  emu::maybe_switch();
  host_memory::store8_relaxed(at, value);
}
inline void store16_relaxed(void* at, Word4 value) {
  emu::maybe_switch();
  host_memory::store16_relaxed(at, value);
}
inline void fence_system() {
  emu::maybe_switch();
  host_memory::fence_system();
}
inline std::uint32_t atomic_add(std::uint32_t* at, std::uint32_t value) {
  emu::maybe_switch();
  return host_memory::atomic_add(at, value);
}
inline std::uint32_t atomic_add_system(std::uint32_t* at, std::uint32_t value) {
  return atomic_add(at, value);
}
inline void pause() { emu::pause(); }
inline void let_next_start() {}
inline void wait_for_previous() {}

}  // namespace tenon::TENON_TARGET
