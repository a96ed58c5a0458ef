// Matrix products of one warp on registers (mma.sync), the loads that feed them, and a fast power
// of two. They exist since sm_80; here for variants of the cuda target alone.
//
// Lane l = 4 g + p of a warp holds, of A [16 rows, 16] as four words of two neighbours:
//   a[0] = A[g][2 p …], a[1] = A[g + 8][2 p …], a[2] = A[g][2 p + 8 …], a[3] = A[g + 8][2 p + 8 …]
// of B [16, 8 columns]: b[0] = B[2 p, 2 p + 1][g], b[1] = B[2 p + 8, 2 p + 9][g]
// of D [16, 8]: d[2 h + c] = D[g + 8 h][2 p + c]
#pragma once

#include "tenon/device/cuda_hip/sm90/mbarrier.cuh"

namespace tenon::TENON_TARGET::sm90 {

// d += a · b, bf16 with fp32 sums. All lanes together.
TENON_DEVICE void add_product_16x8(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                   std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four matrices of 8 rows of 16 bytes in shared memory: lane l says where row l % 8 of matrix l / 8
// lies. word[i] of lane 4 g + p: elements 2 p, 2 p + 1 of row g of matrix i.
TENON_DEVICE void load_matrices(std::uint32_t (&word)[4], std::uint32_t row_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
               : "r"(row_address)
               : "memory");
}
// The same of the transposed matrices: rows 2 p, 2 p + 1 of column g.
TENON_DEVICE void load_transposed(std::uint32_t (&word)[4], std::uint32_t row_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
               : "r"(row_address)
               : "memory");
}

// 2^x, with a relative error of at most 2^-22; exactly 1 for 0, 0 for −∞ and where the result is
// not a normal number.
TENON_DEVICE float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// What this thread has stored to shared memory is seen by the copy engine and by wgmma, once the
// thread that starts them knows of it by a barrier. Named for shared memory alone: without that it
// is a fence of the whole device.
TENON_DEVICE void fence_async() { asm volatile("fence.proxy.async.shared::cta;" : : : "memory"); }

}  // namespace tenon::TENON_TARGET::sm90
