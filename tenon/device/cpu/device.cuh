// The cpu target: one thread per block, wave width 1. Barriers vanish, shuffles are the identity,
// shared memory is the block's own stack. The compiler vectorises the loops.
#pragma once

#include "tenon/device/cpu/block.h"
#include "tenon/device/cpu/memory.h"

#define TENON_KERNEL static void
#define TENON_KERNEL_MAX(threads) static void
#define TENON_KERNEL_RESIDENT(threads, blocks) static void
#define TENON_ARGS(type) type
#define TENON_DEVICE static inline
#define TENON_SHARED(type, name, count) alignas(64) type name[count]
#define TENON_DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(::tenon::cpu_block.shared)

namespace tenon::cpu {

inline constexpr int kWave = 1;

constexpr int thread_id() { return 0; }
constexpr int block_threads() { return 1; }
inline int block_id() { return cpu_block.block; }
inline int grid_blocks() { return cpu_block.num_blocks; }
inline void sync_block() {}
inline void sync_roles() {}

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
  return host_memory::atomic_add(at, value);
}
using host_memory::fence_system;
using host_memory::load16;
using host_memory::load16_relaxed;
using host_memory::load4_relaxed;
using host_memory::load8_relaxed;
using host_memory::load_acquire;
using host_memory::store16;
using host_memory::store16_relaxed;
using host_memory::store4_relaxed;
using host_memory::store8_bytes;
using host_memory::store8_relaxed;
using host_memory::store_release;
using host_memory::ticks;

// Gives the core away: ranks of one process may outnumber the cores.
void pause();
inline void let_next_start() {}
inline void wait_for_previous() {}

}  // namespace tenon::cpu
