// Matrix products of a warpgroup (sm_90a): D[64, N] (+)= A[64, K] · B[N, K]ᵀ, fp32 sums; K is 32 of
// e4m3 or 16 of bf16.
//
// 128 threads (4 warps, the first one's index divisible by 4) act together. Thread t of warp w
// holds of D: d[4 j + 2 h + c] = D[16 w + t / 4 + 8 h][8 j + 2 (t % 4) + c], h and c 0 or 1.
// A tile of an operand: a row is 128 bytes, 8 rows an atom of 1024 bytes, the 16-byte chunk c of
// row r at place c ^ (r % 8). That is what copy_tile() writes. An instruction takes 32 bytes of
// each row.
//
//   wgmma_begin();                      once before the first product on these registers
//   for (i < 4) add_product<N>(d, descriptor_at(a, 2 * i), descriptor_at(b, 2 * i), i > 0);
//   wgmma_commit(); wgmma_wait_all(); hold_sums(d);     then d may be read
//
// Descriptors come from values that the compiler knows to be the same in all of a warp: arguments
// of the kernel, constants, what shuffle_from(v, 0) has made. Of others each product moves its own
// into a uniform register, and waits for the product before it, which still reads there.
//
// Products of bf16 are add_product<N, true>. What it computes, to the bit and for every N:
// tests/support/tensor_core.h.
#pragma once

#include "tenon/device/cuda_hip/sm90/mbarrier.cuh"

namespace tenon::TENON_TARGET::sm90 {

// The descriptor of a tile; `tile` is a multiple of 1024 bytes. Its atoms lie `kAtomStride` bytes
// apart, a multiple of 1024.
template <int kAtomStride = 1024>
static __device__ __forceinline__ std::uint64_t tile_descriptor(const void* tile) {
  constexpr std::uint64_t kAtom = kAtomStride / 16, kSwizzle128 = 1;
  return std::uint64_t{(shared_address(tile) & 0x3ffffu) >> 4} | std::uint64_t{1} << 16 |
         kAtom << 32 | kSwizzle128 << 62;
}
// The same with a stride that is known later.
static __device__ __forceinline__ std::uint64_t tile_descriptor(const void* tile, int atom_stride) {
  return tile_descriptor<0>(tile) | static_cast<std::uint64_t>(atom_stride / 16) << 32;
}
// The descriptor of what lies `sixteens` · 16 bytes behind; the address part never overflows.
TENON_DEVICE std::uint64_t descriptor_at(std::uint64_t first, int sixteens) {
  const std::uint32_t low =
      static_cast<std::uint32_t>(first) + static_cast<std::uint32_t>(sixteens);
  return first >> 32 << 32 | low;
}

// The same for a number that is known to the compiler: an addition of 64 bits is one uniform
// instruction, where the above takes moves of both halves besides.
TENON_DEVICE std::uint64_t descriptor_step(std::uint64_t first, int sixteens) {
  return first + static_cast<std::uint64_t>(sixteens);
}

TENON_DEVICE void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" : : : "memory"); }
TENON_DEVICE void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" : : : "memory");
}
TENON_DEVICE void wgmma_wait_all() {
  asm volatile("wgmma.wait_group.sync.aligned 0;" : : : "memory");
}
// Until at most kCount of the latest commits have not ended.
template <int kCount>
TENON_DEVICE void wgmma_wait_all_but() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" : : "n"(kCount) : "memory");
}
// Keeps the compiler from moving uses of d over the wait.
template <int kCount>
TENON_DEVICE void hold_sums(float (&d)[kCount]) {
  TENON_UNROLL
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i]) : : "memory");
}

// A kernel whose warpgroups need different numbers of registers: each warpgroup says its own, a
// multiple of 8, all its warps together. Their sum fits what the launch gave to the block.
template <int kCount>
TENON_DEVICE void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" : : "n"(kCount));
}
template <int kCount>
TENON_DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" : : "n"(kCount));
}

// The instruction names every register of D, and its three inputs are numbered behind them.
// Operands of bf16 may lie either way round: zeros say that rows are contiguous.
// clang-format off
#define TENON_NAMES_4 "%0, %1, %2, %3"
#define TENON_NAMES_8 TENON_NAMES_4 ", %4, %5, %6, %7"
#define TENON_NAMES_16 TENON_NAMES_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define TENON_NAMES_32 TENON_NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, %25, %26, %27, %28, %29, %30, %31"
#define TENON_NAMES_64 TENON_NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, " \
  "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, " \
  "%56, %57, %58, %59, %60, %61, %62, %63"
#define TENON_SUMS_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define TENON_SUMS_8(i) TENON_SUMS_4(i), TENON_SUMS_4(i + 4)
#define TENON_SUMS_16(i) TENON_SUMS_8(i), TENON_SUMS_8(i + 8)
#define TENON_SUMS_32(i) TENON_SUMS_16(i), TENON_SUMS_16(i + 16)
#define TENON_SUMS_64(i) TENON_SUMS_32(i), TENON_SUMS_32(i + 32)
#define TENON_PRODUCT_OF(n, types, layout, sums, a, b, add)                                 \
  asm volatile("{\n\t.reg .pred add;\n\tsetp.ne.b32 add, " add ", 0;\n\t"                   \
               "wgmma.mma_async.sync.aligned.m64n" #n types " {"                            \
               TENON_NAMES_##sums "}, " a ", " b ", add, 1, 1" layout ";\n\t}"              \
               : TENON_SUMS_##sums(0) : "l"(at), "l"(bt), "r"(adds))
#define TENON_PRODUCT(n, sums, a, b, add)                                                   \
  if constexpr (kBf16) {                                                                    \
    TENON_PRODUCT_OF(n, "k16.f32.bf16.bf16", ", 0, 0", sums, a, b, add);                    \
  } else {                                                                                  \
    TENON_PRODUCT_OF(n, "k32.f32.e4m3.e4m3", "", sums, a, b, add);                          \
  }
// clang-format on

// a, b: descriptors. add false: from zero.
template <int kN, bool kBf16 = false>
static __device__ __forceinline__ void add_product(float (&d)[kN / 2], std::uint64_t at,
                                                   std::uint64_t bt, bool add) {
  const auto adds = static_cast<std::uint32_t>(add);
  if constexpr (kN == 8) {
    TENON_PRODUCT(8, 4, "%4", "%5", "%6")
  } else if constexpr (kN == 16) {
    TENON_PRODUCT(16, 8, "%8", "%9", "%10")
  } else if constexpr (kN == 32) {
    TENON_PRODUCT(32, 16, "%16", "%17", "%18")
  } else if constexpr (kN == 64) {
    TENON_PRODUCT(64, 32, "%32", "%33", "%34")
  } else {
    static_assert(kN == 128);
    TENON_PRODUCT(128, 64, "%64", "%65", "%66")
  }
}

#undef TENON_PRODUCT
#undef TENON_PRODUCT_OF
#undef TENON_SUMS_64
#undef TENON_SUMS_32
#undef TENON_SUMS_16
#undef TENON_SUMS_8
#undef TENON_SUMS_4
#undef TENON_NAMES_64
#undef TENON_NAMES_32
#undef TENON_NAMES_16
#undef TENON_NAMES_8
#undef TENON_NAMES_4

}  // namespace tenon::TENON_TARGET::sm90
