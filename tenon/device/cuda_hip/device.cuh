// The primitives of device/device.cuh on CUDA and on HIP. HIP is spelled in what the compiler
// itself knows, so that a plain clang compiles kernels with no ROCm on the machine. Not here: the
// host side (cuda_hip/runtime.cc), the copy engine and tensor cores of Hopper (cuda_hip/sm90).
#pragma once

#if !defined(__CUDACC__) && !defined(__HIP__)
#error "vendor/device.h needs nvcc or clang -x hip"
#endif

#include <cstdint>

#if defined(__HIP__)
#define TENON_GLOBAL_ __attribute__((global))
#define TENON_SHARED_ __attribute__((shared))
#define TENON_DEVICE static __attribute__((device)) inline
#define TENON_BOUNDS_(threads) __attribute__((amdgpu_flat_work_group_size(1, threads)))
#define TENON_RESIDENT_(threads, blocks) \
  TENON_BOUNDS_(threads) __attribute__((amdgpu_waves_per_eu(((threads) * (blocks) + 255) / 256)))
#define TENON_ARGS(type) const type
#else
#define TENON_GLOBAL_ __global__
#define TENON_SHARED_ __shared__
#define TENON_DEVICE static __device__ inline
#define TENON_BOUNDS_(threads) __launch_bounds__(threads)
#define TENON_RESIDENT_(threads, blocks) __launch_bounds__(threads, blocks)
#define TENON_ARGS(type) const __grid_constant__ type
#define TENON_HAS_CLUSTERS 1
#endif

#define TENON_KERNEL TENON_KERNEL_MAX(1024)
#define TENON_KERNEL_MAX(threads) TENON_GLOBAL_ static TENON_BOUNDS_(threads) void
#define TENON_KERNEL_RESIDENT(threads, blocks) \
  TENON_GLOBAL_ static TENON_RESIDENT_(threads, blocks) void
#define TENON_SHARED(type, name, count) TENON_SHARED_ alignas(16) type name[count]
#define TENON_DYNAMIC_SHARED(type, name)                                              \
  extern TENON_SHARED_ __attribute__((aligned(16))) std::byte tenon_dynamic_shared[]; \
  type* name = reinterpret_cast<type*>(tenon_dynamic_shared)

namespace tenon::TENON_TARGET {

inline constexpr int kWave = TENON_WAVE;
inline constexpr bool kConvertsInHardware = true;

#if defined(__HIP__)

TENON_DEVICE int thread_id() { return static_cast<int>(__builtin_amdgcn_workitem_id_x()); }
TENON_DEVICE int block_threads() { return static_cast<int>(__builtin_amdgcn_workgroup_size_x()); }
TENON_DEVICE int block_id() { return static_cast<int>(__builtin_amdgcn_workgroup_id_x()); }
TENON_DEVICE int grid_blocks() {
  return static_cast<int>(__builtin_amdgcn_grid_size_x() / __builtin_amdgcn_workgroup_size_x());
}
// Until all that this wave has stored has been performed. Said by hand where a fence says too
// little: see sync_block() and store_release(). tools/check_isa.py looks for it.
TENON_DEVICE void wait_for_stores_() { asm volatile("s_waitcnt vmcnt(0)" : : : "memory"); }

// A fence of a work-group waits for nothing on these devices: its waves see each other's stores in
// order anyway. But a wave that releases after the barrier waits for its own stores alone.
TENON_DEVICE void sync_block() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
  wait_for_stores_();
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}
TENON_DEVICE void sync_roles() { sync_block(); }

template <class T>
TENON_DEVICE T shuffle_from(T value, int lane) {
  static_assert(sizeof(T) == 4);
  return __builtin_bit_cast(T,
                            __builtin_amdgcn_ds_bpermute(lane * 4, __builtin_bit_cast(int, value)));
}
template <class T>
TENON_DEVICE T shuffle_xor(T value, int mask) {
  const auto lane =
      static_cast<int>(__builtin_amdgcn_mbcnt_hi(~0u, __builtin_amdgcn_mbcnt_lo(~0u, 0u)));
  return shuffle_from(value, lane ^ mask);
}
TENON_DEVICE void sync_wave() {}  // lanes that leave a loop wait for the others anyway
TENON_DEVICE std::uint32_t max_lane(std::uint32_t value) {
  for (int mask = 1; mask < kWave; mask *= 2) {
    const std::uint32_t other = shuffle_xor(value, mask);
    value = other > value ? other : value;
  }
  return value;
}

// Compilers up to LLVM 22 drop the wait between writing the caches back and the store that tells
// of it, where the wave has nothing else to wait for (llvm-project, pull request 178316).
TENON_DEVICE void store_release(std::uint32_t* at, std::uint32_t value) {
  __scoped_atomic_thread_fence(__ATOMIC_RELEASE, __MEMORY_SCOPE_SYSTEM);
  wait_for_stores_();
  __scoped_atomic_store_n(at, value, __ATOMIC_RELAXED, __MEMORY_SCOPE_SYSTEM);
}
TENON_DEVICE std::uint32_t load_acquire(const std::uint32_t* at) {
  return __scoped_atomic_load_n(at, __ATOMIC_ACQUIRE, __MEMORY_SCOPE_SYSTEM);
}
TENON_DEVICE std::uint32_t load4_relaxed(const void* at) {
  return __scoped_atomic_load_n(static_cast<const std::uint32_t*>(at), __ATOMIC_RELAXED,
                                __MEMORY_SCOPE_SYSTEM);
}
TENON_DEVICE void store4_relaxed(void* at, std::uint32_t value) {
  __scoped_atomic_store_n(static_cast<std::uint32_t*>(at), value, __ATOMIC_RELAXED,
                          __MEMORY_SCOPE_SYSTEM);
}
TENON_DEVICE Word2 load8_relaxed(const void* at) {
  const std::uint64_t both = __scoped_atomic_load_n(static_cast<const std::uint64_t*>(at),
                                                    __ATOMIC_RELAXED, __MEMORY_SCOPE_SYSTEM);
  return {static_cast<std::uint32_t>(both), static_cast<std::uint32_t>(both >> 32)};
}
TENON_DEVICE void store8_relaxed(void* at, Word2 value) {
  __scoped_atomic_store_n(static_cast<std::uint64_t*>(at), std::uint64_t{value.y} << 32 | value.x,
                          __ATOMIC_RELAXED, __MEMORY_SCOPE_SYSTEM);
}
// As two halves of 8 bytes: the widest that the compiler keeps atomic without waiting for each.
TENON_DEVICE Word4 load16_relaxed(const void* at) {
  const auto* halves = static_cast<const std::uint64_t*>(at);
  const Word2 low = load8_relaxed(halves), high = load8_relaxed(halves + 1);
  return {low.x, low.y, high.x, high.y};
}
TENON_DEVICE void store16_relaxed(void* at, Word4 value) {
  auto* halves = static_cast<std::uint64_t*>(at);
  store8_relaxed(halves, {value.x, value.y});
  store8_relaxed(halves + 1, {value.z, value.w});
}
TENON_DEVICE void fence_system() {
  __scoped_atomic_thread_fence(__ATOMIC_RELEASE, __MEMORY_SCOPE_SYSTEM);
  wait_for_stores_();
  __scoped_atomic_thread_fence(__ATOMIC_ACQUIRE, __MEMORY_SCOPE_SYSTEM);
}
TENON_DEVICE std::uint32_t atomic_add(std::uint32_t* at, std::uint32_t value) {
  return __scoped_atomic_fetch_add(at, value, __ATOMIC_RELAXED, __MEMORY_SCOPE_DEVICE);
}
TENON_DEVICE std::uint32_t atomic_add_system(std::uint32_t* at, std::uint32_t value) {
  return __scoped_atomic_fetch_add(at, value, __ATOMIC_RELAXED, __MEMORY_SCOPE_SYSTEM);
}
// The constant clock of gfx94x and gfx950 runs at 100 MHz.
TENON_DEVICE std::uint64_t ticks() { return __builtin_amdgcn_s_memrealtime() * 10u; }
TENON_DEVICE void pause() { __builtin_amdgcn_s_sleep(1); }
TENON_DEVICE void prefetch(const void*) {}
template <class T>
TENON_DEVICE T load_constant(const T* at) {
  return *at;
}
template <class T>
TENON_DEVICE void hold(T&) {}
TENON_DEVICE void let_next_start() {}  // kernels of a stream never overlap
TENON_DEVICE void wait_for_previous() {}

using Float2_ = float __attribute__((ext_vector_type(2)));
TENON_DEVICE std::uint32_t convert_bf16x2(float low, float high) {
  using Bf16x2 = __bf16 __attribute__((ext_vector_type(2)));
  return __builtin_bit_cast(std::uint32_t, __builtin_convertvector(Float2_{low, high}, Bf16x2));
}
TENON_DEVICE std::uint32_t convert_f16x2(float low, float high) {
  using F16x2 = _Float16 __attribute__((ext_vector_type(2)));
  return __builtin_bit_cast(std::uint32_t, __builtin_convertvector(Float2_{low, high}, F16x2));
}
TENON_DEVICE float convert_f16(std::uint32_t bits) {
  return static_cast<float>(__builtin_bit_cast(_Float16, static_cast<std::uint16_t>(bits)));
}
// What the device's own conversion makes: fnuz on gfx94x, e4m3fn on gfx950.
#if defined(__gfx940__) || defined(__gfx941__) || defined(__gfx942__)
inline constexpr DType kNativeFp8 = DType::kE4M3Fnuz;
inline constexpr float kOwnFp8Max = 240.0f;
#else
inline constexpr DType kNativeFp8 = DType::kE4M3;
inline constexpr float kOwnFp8Max = 448.0f;
#endif
// The instruction does not saturate, and the clamp would lose a NaN.
TENON_DEVICE float clamp_to_own_(float value) {
  const float within = __builtin_amdgcn_fmed3f(value, kOwnFp8Max, -kOwnFp8Max);
  return value != value ? value : within;
}
TENON_DEVICE std::uint32_t convert_fp8x4(float a, float b, float c, float d) {
#if defined(__HIP_DEVICE_COMPILE__)
  int codes = __builtin_amdgcn_cvt_pk_fp8_f32(clamp_to_own_(a), clamp_to_own_(b), 0, false);
  codes = __builtin_amdgcn_cvt_pk_fp8_f32(clamp_to_own_(c), clamp_to_own_(d), codes, true);
  return static_cast<std::uint32_t>(codes);
#else
  return 0;
#endif
}

#else  // CUDA

TENON_DEVICE int thread_id() { return static_cast<int>(threadIdx.x); }
TENON_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
TENON_DEVICE int block_id() { return static_cast<int>(blockIdx.x); }
TENON_DEVICE int grid_blocks() { return static_cast<int>(gridDim.x); }
TENON_DEVICE void sync_block() { __syncthreads(); }
// __syncthreads() and bar.sync promise nothing for threads at different places; barrier.sync
// counts.
TENON_DEVICE void sync_roles() {
  asm volatile("barrier.sync 2, %0;" : : "r"(blockDim.x) : "memory");
}

template <class T>
TENON_DEVICE T shuffle_from(T value, int lane) {
  static_assert(sizeof(T) == 4);
  std::uint32_t bits = __builtin_bit_cast(std::uint32_t, value);  // const crashes nvcc 13.0
  return __builtin_bit_cast(T, __shfl_sync(0xffffffffu, bits, lane));
}
template <class T>
TENON_DEVICE T shuffle_xor(T value, int mask) {
  static_assert(sizeof(T) == 4);
  std::uint32_t bits = __builtin_bit_cast(std::uint32_t, value);  // const crashes nvcc 13.0
  return __builtin_bit_cast(T, __shfl_xor_sync(0xffffffffu, bits, mask));
}
TENON_DEVICE void sync_wave() { __syncwarp(); }
TENON_DEVICE std::uint32_t max_lane(std::uint32_t value) {
  return __reduce_max_sync(0xffffffffu, value);
}

// These take shared memory too; the relaxed ones below global memory only.
TENON_DEVICE void store_release(std::uint32_t* at, std::uint32_t value) {
  asm volatile("st.release.sys.u32 [%0], %1;" : : "l"(at), "r"(value) : "memory");
}
TENON_DEVICE std::uint32_t load_acquire(const std::uint32_t* at) {
  std::uint32_t value;
  asm volatile("ld.acquire.sys.u32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
  return value;
}
TENON_DEVICE std::uint32_t load4_relaxed(const void* at) {
  std::uint32_t value;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];"
               : "=r"(value)
               : "l"(__cvta_generic_to_global(at))
               : "memory");
  return value;
}
TENON_DEVICE void store4_relaxed(void* at, std::uint32_t value) {
  asm volatile("st.relaxed.sys.global.u32 [%0], %1;"
               :
               : "l"(__cvta_generic_to_global(at)), "r"(value)
               : "memory");
}
TENON_DEVICE Word2 load8_relaxed(const void* at) {
  Word2 value;
  asm volatile("ld.relaxed.sys.global.v2.u32 {%0, %1}, [%2];"
               : "=r"(value.x), "=r"(value.y)
               : "l"(__cvta_generic_to_global(at))
               : "memory");
  return value;
}
TENON_DEVICE void store8_relaxed(void* at, Word2 value) {
  asm volatile("st.relaxed.sys.global.v2.u32 [%0], {%1, %2};"
               :
               : "l"(__cvta_generic_to_global(at)), "r"(value.x), "r"(value.y)
               : "memory");
}
TENON_DEVICE Word4 load16_relaxed(const void* at) {
  Word4 value;
  asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(__cvta_generic_to_global(at))
               : "memory");
  return value;
}
TENON_DEVICE void store16_relaxed(void* at, Word4 value) {
  asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(__cvta_generic_to_global(at)), "r"(value.x), "r"(value.y), "r"(value.z),
                 "r"(value.w)
               : "memory");
}
TENON_DEVICE void fence_system() { asm volatile("fence.acq_rel.sys;" : : : "memory"); }
TENON_DEVICE std::uint32_t atomic_add(std::uint32_t* at, std::uint32_t value) {
  return atomicAdd(at, value);
}
TENON_DEVICE std::uint32_t atomic_add_system(std::uint32_t* at, std::uint32_t value) {
  return atomicAdd_system(at, value);
}
TENON_DEVICE std::uint64_t ticks() {
  std::uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}
// Nothing: a sleep would cost more than the signals that kernels wait for.
TENON_DEVICE void pause() {}
TENON_DEVICE std::uint32_t convert_bf16x2(float low, float high) {
  std::uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
TENON_DEVICE std::uint32_t convert_f16x2(float low, float high) {
  std::uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
TENON_DEVICE float convert_f16(std::uint32_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(static_cast<std::uint16_t>(bits)));
  return value;
}
inline constexpr DType kNativeFp8 = DType::kE4M3;
TENON_DEVICE std::uint32_t convert_fp8x4(float a, float b, float c, float d) {
  std::uint32_t codes;
  asm("{\n\t.reg .b16 low, high;\n\t"
      "cvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\n\t"
      "cvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n\t"
      "mov.b32 %0, {low, high};\n\t}"
      : "=r"(codes)
      : "f"(a), "f"(b), "f"(c), "f"(d));
  return codes;
}
TENON_DEVICE void prefetch(const void* at) { asm volatile("prefetch.global.L2 [%0];" : : "l"(at)); }
// tools/check_ptx.py knows it by its form, which the compiler gives to no other load.
template <class T>
TENON_DEVICE T load_constant(const T* at) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4);
  T value;
  if constexpr (sizeof(T) == 2) {
    std::uint16_t bits;
    asm volatile("ld.global.nc.L1::no_allocate.b16 %0, [%1];" : "=h"(bits) : "l"(at));
    __builtin_memcpy(&value, &bits, 2);
  } else {
    std::uint32_t bits;
    asm volatile("ld.global.nc.L1::no_allocate.b32 %0, [%1];" : "=r"(bits) : "l"(at));
    __builtin_memcpy(&value, &bits, 4);
  }
  return value;
}
template <class T>
TENON_DEVICE void hold(T& value) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  if constexpr (__is_same(T, float)) {
    asm volatile("" : "+f"(value));
  } else if constexpr (sizeof(T) == 4) {
    asm volatile("" : "+r"(value));
  } else {
    asm volatile("" : "+l"(value));
  }
}
TENON_DEVICE void let_next_start() { asm volatile("griddepcontrol.launch_dependents;"); }
TENON_DEVICE void wait_for_previous() { asm volatile("griddepcontrol.wait;" : : : "memory"); }

#endif

TENON_DEVICE Word4 load16(const void* at) { return *static_cast<const Word4*>(at); }
TENON_DEVICE void store16(void* at, Word4 value) { *static_cast<Word4*>(at) = value; }
TENON_DEVICE void store8_bytes(void* at, std::uint32_t low, std::uint32_t high) {
  *static_cast<Word2*>(at) = {low, high};
}

}  // namespace tenon::TENON_TARGET
