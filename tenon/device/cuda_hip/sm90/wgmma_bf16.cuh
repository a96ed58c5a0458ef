// Matrix products of a warpgroup in bf16 (sm_90a), for scores and values of attention. How the
// threads hold D, how tiles lie and how a chain is waited for: sm90/wgmma.cuh.
#pragma once

#include "tenon/device/cuda_hip/sm90/wgmma.cuh"

namespace tenon::TENON_TARGET::sm90 {

// All warps of a warpgroup: registers that the one that copies gives up go to those that multiply.
// A kernel of three warpgroups is launched with 168 for each thread.
TENON_DEVICE void keep_40_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 40;" : : : "memory");
}
TENON_DEVICE void take_232_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 232;" : : : "memory");
}

// Two warpgroups, kThreads together, start their products in turn: while those of one are worked
// on, the other one does what lies between. Group 0 begins once group 1 has passed its turn before
// any product; after its last product group 1 passes no more.
template <int kThreads>
TENON_DEVICE void wait_for_turn(int group) {
  asm volatile("bar.sync %0, %1;" : : "r"(2 + group), "n"(kThreads) : "memory");
}
template <int kThreads>
TENON_DEVICE void pass_turn(int group) {
  asm volatile("bar.arrive %0, %1;" : : "r"(3 - group), "n"(kThreads) : "memory");
}

// The descriptor of B where its columns are contiguous: tiles of 64 columns by `rows` of k, in each
// a row of k is 128 bytes; tiles lie rows · 128 bytes apart. 16 of k are 128 · 16 bytes on.
TENON_DEVICE std::uint64_t wide_descriptor(const void* tile, int rows) {
  constexpr std::uint64_t kAtom = 1024 / 16, kSwizzle128 = 1;
  return std::uint64_t{(shared_address(tile) & 0x3ffffu) >> 4} |
         static_cast<std::uint64_t>(rows * 128 / 16) << 16 | kAtom << 32 | kSwizzle128 << 62;
}

// D[64, 64] (+)= A[64, 16] · B[64, 16]ᵀ: A in registers, B 32 bytes of each row in shared memory.
// Thread 4 g + p of a warp w holds of A, two neighbours in a word: a[h + 2 j] = row 16 w + g + 8 h,
// columns 8 j + 2 p and 8 j + 2 p + 1.
static __device__ __forceinline__ void add_bf16_product(float (&d)[32], std::uint32_t a0,
                                                        std::uint32_t a1, std::uint32_t a2,
                                                        std::uint32_t a3, std::uint64_t bt,
                                                        bool add) {
  const auto adds = static_cast<std::uint32_t>(add);
  asm volatile(
      "{\n\t.reg .pred add;\n\tsetp.ne.b32 add, %37, 0;\n\t"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, "
      "%8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31"
      "}, {%32, %33, %34, %35}, %36, add, 1, 1, 0;\n\t}"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
        "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
        "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
        "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
        "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(bt), "r"(adds));
}

// D[64, 128] += A[64, 16] · B[16, 128]: A in registers likewise, B in shared memory by
// wide_descriptor().
static __device__ __forceinline__ void add_bf16_product(float (&d)[64], std::uint32_t a0,
                                                        std::uint32_t a1, std::uint32_t a2,
                                                        std::uint32_t a3, std::uint64_t bt) {
  asm volatile(
      "{\n\t.reg .pred add;\n\tsetp.eq.b32 add, 0, 0;\n\t"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, "
      "%8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, "
      "%40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, "
      "%56, %57, %58, %59, %60, %61, %62, %63"
      "}, {%64, %65, %66, %67}, %68, add, 1, 1, 1;\n\t}"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
        "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
        "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
        "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
        "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]),
        "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]),
        "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),
        "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
        "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]),
        "+f"(d[63])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(bt));
}

}  // namespace tenon::TENON_TARGET::sm90
