// Products of bf16 tiles by a wave of 32 lanes, fp32 sums: D[16, 8] += A[16, 16] · B[16, 8]. On
// CUDA the instruction mma.sync (sm_80 and later), on emu32 the same by shuffles, with an order of
// sums of its own. Every lane of the wave calls everything here. With g = lane / 4 and q = lane % 4
// a lane holds
//   of D  d[c + 2 h] = D[g + 8 h][2 q + c]
//   of A  a[h + 2 s] = A[g + 8 h][2 q + 8 s] and its right neighbour, the first in the low half
//   of B  b[s] = B[2 q + 8 s][g] and the one below it
// for c, h, s 0 or 1. So two tiles of D side by side, rounded and packed, are an A.
#pragma once

#include "tenon/core/fp8.h"
#include "tenon/device/device.cuh"
#include "tenon/device/vec.cuh"

namespace tenon::TENON_TARGET {

#if defined(__CUDACC__)
TENON_DEVICE void add_product(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                              std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#else
TENON_DEVICE void add_product(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                              std::uint32_t b1) {
  const int lane = thread_id() % kWave, row = lane / 4 * 4, column = lane % 4 * 8;
  for (int s = 0; s < 2; ++s)
    for (int k = 0; k < 4; ++k) {
      const std::uint32_t b = s == 0 ? b0 : b1;
      const std::uint32_t upper = shuffle_from(a[2 * s], row + k);
      const std::uint32_t lower = shuffle_from(a[2 * s + 1], row + k);
      const std::uint32_t left = shuffle_from(b, column + k);
      const std::uint32_t right = shuffle_from(b, column + 4 + k);
      const auto both = [](std::uint32_t x, std::uint32_t y) {
        return low_half<bf16>(x) * low_half<bf16>(y) + high_half<bf16>(x) * high_half<bf16>(y);
      };
      d[0] = d[0] + both(upper, left);
      d[1] = d[1] + both(upper, right);
      d[2] = d[2] + both(lower, left);
      d[3] = d[3] + both(lower, right);
    }
}
#endif

// Four tiles of 8 × 8 in shared memory. Lane l names row l % 8 of tile l / 8, a multiple of 16
// bytes, and gets of tile i its elements [g][2 q], [g][2 q + 1]; transposed: [2 q][g], [2 q +
// 1][g].
template <bool kTransposed>
TENON_DEVICE void load_tiles(const bf16* row, std::uint32_t (&to)[4]) {
#if defined(__CUDACC__)
  const auto at = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(at)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(at)
                 : "memory");
  }
#else
  const int g = thread_id() % kWave / 4, q = thread_id() % 4;
  const auto address = reinterpret_cast<std::uintptr_t>(row);
  for (int i = 0; i < 4; ++i) {
    std::uint32_t halves[2];
    for (int c = 0; c < 2; ++c) {
      const int from = 8 * i + (kTransposed ? 2 * q + c : g);
      const std::uintptr_t named =
          std::uintptr_t{shuffle_from(static_cast<std::uint32_t>(address >> 32), from)} << 32 |
          shuffle_from(static_cast<std::uint32_t>(address), from);
      halves[c] = reinterpret_cast<const bf16*>(named)[kTransposed ? g : 2 * q + c].bits;
    }
    to[i] = halves[0] | halves[1] << 16;
  }
#endif
}

// An A from a matrix whose rows lie `stride` elements apart.
TENON_DEVICE void load_a(const bf16* matrix, int stride, std::uint32_t (&a)[4]) {
  const int lane = thread_id() % kWave;
  load_tiles<false>(matrix + lane % 16 * stride + lane / 16 * 8, a);
}
// Two B side by side, {b[0], b[1]} of each, from a matrix with the rows [column of B][k].
TENON_DEVICE void load_two_b(const bf16* matrix, int stride, std::uint32_t (&b)[4]) {
  const int lane = thread_id() % kWave;
  load_tiles<false>(matrix + (lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * 8, b);
}
// The same from a matrix with the rows [k][column of B].
TENON_DEVICE void load_two_b_transposed(const bf16* matrix, int stride, std::uint32_t (&b)[4]) {
  const int lane = thread_id() % kWave;
  load_tiles<true>(matrix + lane % 16 * stride + lane / 16 * 8, b);
}

// Two floats as sums of two bf16 each, what is left being below 2^-17 of them.
struct SplitPair {
  std::uint32_t high, low;
};
TENON_DEVICE SplitPair split_pair(float first, float second) {
  const std::uint32_t high = pack_halves<bf16>(first, second);
  return {high, pack_halves<bf16>(first - low_half<bf16>(high), second - high_half<bf16>(high))};
}

// An A of floats in two parts.
struct SplitA {
  std::uint32_t high[4], low[4];
};
// From two tiles of D side by side.
TENON_DEVICE SplitA split_a(const float (&left)[4], const float (&right)[4]) {
  const SplitPair parts[4] = {split_pair(left[0], left[1]), split_pair(left[2], left[3]),
                              split_pair(right[0], right[1]), split_pair(right[2], right[3])};
  SplitA a;
  TENON_UNROLL
  for (int i = 0; i < 4; ++i) {
    a.high[i] = parts[i].high;
    a.low[i] = parts[i].low;
  }
  return a;
}
}  // namespace tenon::TENON_TARGET
