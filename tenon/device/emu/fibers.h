// The emulator's threads: one fiber per GPU thread, all on the OS thread that launches the kernel.
// Fibers switch only where GPU threads meet or wait: barriers, shuffles, pauses, and now and then
// at stores that other threads watch. Who runs next is drawn from a seed.
//
// A barrier or shuffle that not every thread of its block or wave reaches ends the launch with a
// report of who stood where. Private to this floor and to emu/device.cuh.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tenon/core/status.h"
#include "tenon/device/runtime.h"

namespace tenon::emu {

// Where the running fiber stands in its grid.
struct Position {
  int thread = 0, num_threads = 1;
  int block = 0, num_blocks = 1;
};
inline constinit thread_local const Position* position = nullptr;

// A place in a kernel, for reports and to tell barriers apart.
struct Site {
  const char* file;
  int line;
};

// Runs a kernel. Cooperative: the fibers of all blocks take turns. Otherwise block after block, in
// a drawn order; then there are no clusters. Fails with kInternal when threads got stuck,
// kInvalidArgument for a bad shape.
Status run_grid(const LaunchShape& shape, const KernelCall& call, int wave);

// The rest is called by the running fiber.

// Every thread of the block must come to the same site.
void sync_block(Site site);
// What lane `source` of this wave passed at the same site; every lane of the wave must come.
std::uint32_t shuffle(std::uint32_t value, int source, Site site);
// Lets every other fiber run, and other OS threads if all fibers only pause.
void pause();
// Sometimes lets another fiber run: called beside stores and atomics that others may watch.
void maybe_switch();
// The block's memory for the TENON_SHARED declaration that `key` identifies; all-ones at first.
void* shared_memory(const void* key, std::size_t bytes);
void* dynamic_shared();
// Where block `rank` of this block's cluster has what lies at `mine` in a declared array of this
// one.
void* in_cluster(void* mine, int rank);

// Limits of an emulated device: the smallest of the real ones, so that what fits here fits there;
// of shared memory, those of the real ones with waves as wide (compute capability 9.0; gfx942).
inline constexpr int kMaxThreads = 1024;
inline constexpr int kMaxCooperativeBlocks = 8;
inline constexpr std::size_t kMaxStaticSharedBytes = 48 * 1024;
inline constexpr std::size_t kMaxSharedBytes = 227 * 1024;
constexpr std::size_t max_shared_bytes(int wave) {
  return wave == 32 ? kMaxSharedBytes : 64 * 1024;
}

}  // namespace tenon::emu
