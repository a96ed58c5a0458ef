// The one header a kernel includes: it brings the target's primitives into tenon::TENON_TARGET.
//
// A kernel file (.cu) is compiled once per target with two macros set by cmake/targets.cmake:
//   TENON_TARGET         the target's name and namespace: cuda, hip, cpu, emu32, emu64
//   TENON_DEVICE_HEADER  device.cuh of the folder of its target
//
// What every target's device.cuh supplies, in namespace tenon::TENON_TARGET:
//
// clang-format off
//   kWave                                  lanes that shuffle together: 1, 32 or 64 (constexpr int)
//   thread_id() block_threads()            position in the block; on width 1: 0 and 1, constexpr
//   block_id() grid_blocks()               position in the grid
//   sync_block()                           barrier of the block; every thread must reach it. What a
//                                          thread releases after it covers what others stored before
//   sync_roles()                           the same where waves of different roles reach it at different
//                                          places of the code, which sync_block() may not be
//   shuffle_xor(v, mask)                   v of lane (lane ^ mask); T of 4 bytes; all lanes together
//   shuffle_from(v, lane)                  v of that lane of the wave, 0 <= lane < kWave; as above
//   sync_wave()                            lanes that have left a loop at different times go on
//                                          together, so that their next access is one; as above
//   max_lane(v)                            the largest 32-bit v of the wave's lanes; as above
//   store_release(p, v) load_acquire(p)    32-bit, system scope: peers on other devices see them
//   load4_relaxed(p) store4_relaxed(p, v)  4, 8 or 16 bytes of global memory, system scope, each
//   load8_… store8_… load16_… store16_…    32-bit word atomic, no order
//   load16(p) store16(p, v)                16 bytes, plain, aligned
//   store8_bytes(p, low, high)             8 bytes as two words, plain, aligned
//   fence_system()                         acquire and release, system scope: all but an earlier store
//                                          and a later load are ordered by it
//   atomic_add(p, v)                       32-bit, device scope, relaxed, returns the old value
//   atomic_add_system(p, v)                the same in pinned host memory and with system scope
//   let_next_start()                       every block: the stream's next kernel may be started, if
//                                          its LaunchShape says that it waits
//   wait_for_previous()                    every thread, before it touches memory: the stream's
//                                          kernels before this one have ended
//   kConvertsInHardware                              whether the device rounds by itself; only then there are
//   convert_bf16x2(a, b) convert_f16x2     two floats to nearest even, the first in the low half
//   convert_f16(bits)                      the float of a half
//   kNativeFp8 convert_fp8x4(a, b, c, d)      four floats to that e4m3, saturating, the first lowest.
//                                          All as core/fp8.h but for the bits of a NaN
//   ticks()                                nanoseconds of a monotonic clock of this device
//   prefetch(p)                            p will be wanted soon; reads nothing
//   load_constant(p)                       *p, of 2 or 4 bytes that no kernel of a step writes: the
//                                          one load that may stand before wait_for_previous()
//   hold(v)                                v is wanted in a register from here on: compilers else
//                                          fetch arguments again where each is used
//   pause()                                a polite pause in a spin; emulated targets yield here
//   TENON_KERNEL                           in front of a kernel: TENON_KERNEL f(Args args) { … }
//   TENON_KERNEL_MAX(threads)              the same for blocks of at most so many threads: leaves
//                                          the compiler more registers. Plain kernels are compiled
//                                          for up to 1024 threads
//   TENON_KERNEL_RESIDENT(threads, blocks) … and so that `blocks` of them fit on a multiprocessor
//   TENON_ARGS(type)                       the type of a kernel's argument that is only read: it
//                                          stays where the launch put it, also when indexed
//   TENON_DEVICE                           in front of a function that only kernels call; members
//                                          of structs and what the host calls too take TENON_HD
//   TENON_SHARED(type, name, count)        declares `type name[count]` shared by the block
//   TENON_DYNAMIC_SHARED(type, name)       declares `type* name`: LaunchShape::shared_bytes of it
//   TENON_HAS_CLUSTERS                     defined where blocks of a cluster reach each other's shared
//                                          memory: what device/cluster_sum.cuh needs
//   TENON_UNROLL                           in front of a loop of known length: unroll it
//   TENON_NO_UNROLL                        in front of a loop that is rarely taken twice
// clang-format on
//
// The host part of a .cu (supports, launch, the table) needs no guard: CUDA and HIP compilers see
// it too and find there which kernels to emit. It must only stay free of vendor calls. Protocol for
// kernels: docs/targets.md.
#pragma once

#include <cstdint>

#include "tenon/core/dtype.h"

namespace tenon {

// Sixteen bytes as four words: the unit of vector loads, and of data that is its own flag.
struct alignas(16) Word4 {
  std::uint32_t x, y, z, w;
};
// Half of it.
struct alignas(8) Word2 {
  std::uint32_t x, y;
};

}  // namespace tenon

namespace tenon::TENON_TARGET {

// Whether all that a kernel stores has been performed when the next kernel of its stream starts. On
// host targets a launch is a mere call.
#if defined(__CUDACC__) || defined(__HIP__)
inline constexpr bool kKernelsAreOrdered = true;
#else
inline constexpr bool kKernelsAreOrdered = false;

// Host targets round by core/fp8.h; these are only named.
inline constexpr bool kConvertsInHardware = false;
inline constexpr DType kNativeFp8 = DType::kE4M3;
std::uint32_t convert_bf16x2(float low, float high);
std::uint32_t convert_f16x2(float low, float high);
float convert_f16(std::uint32_t bits);
template <class T>
void hold(T&) {}
inline void prefetch(const void*) {}
template <class T>
inline T load_constant(const T* at) {
  return *at;
}
std::uint32_t convert_fp8x4(float a, float b, float c, float d);
#endif

}  // namespace tenon::TENON_TARGET

#if defined(__clang__) || defined(__CUDACC__)
#define TENON_UNROLL _Pragma("unroll")
#define TENON_NO_UNROLL _Pragma("unroll 1")
#else
#define TENON_UNROLL _Pragma("GCC unroll 16")
#define TENON_NO_UNROLL
#endif

#include TENON_DEVICE_HEADER
