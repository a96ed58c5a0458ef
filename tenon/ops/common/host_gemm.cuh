// The GEMM of the cpu target: fp8_gemm and bf16_gemm for processors, with the vector instructions
// that the processor has, chosen when the program runs. Compiled for wave width 1 only.
//
// The sum of one output, the same bits with every instruction set and for every number of rows:
// 16 lanes; lane l has the elements k ≡ l (mod 16) of each block of 128.
//   block_l    = Σ x[k] · w[k] over the lane's 8 elements in order of k, from zero
//   segment_l  = fma(block_l, x scale · w scale, segment_l), from zero, blocks ascending   (fp8)
//              = segment_l + x[k] · w[k], k ascending                                      (bf16)
//   segment    = the lanes added up: the upper half to the lower half until one is left
//   the output = ((segment 0 + segment 1) + …), rounded once; the segments are those of segments.h
// So lanes stand in the place of the block sum of ops/common/gemm_tile.cuh and meet later: bits of
// their own. Products are exact, so fused and separate multiply-adds agree on them.
//
// A block makes kHostColumns columns of at most kHostRows rows, kHostChunk elements of K at a time.
// x is decoded once per block; a weight once per block, in registers for up to four rows.
#pragma once

#include <cstring>

#include "tenon/ops/common/gemm_tile.cuh"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace tenon::TENON_TARGET {

inline constexpr int kHostColumns = 64;
inline constexpr int kHostRows = 32;
inline constexpr int kHostChunk = 1024;
inline constexpr int kHostStride = kHostChunk + 16;  // or all rows would share a few cache sets
inline constexpr int kHostScales = kHostChunk / kGemmBlock;
inline constexpr int kLanes = 16;
inline constexpr int kGroup = 4;  // columns that are worked on together

// The working memory of a block: dynamic shared memory, for it is too large for a small stack.
struct HostScratch {
  alignas(64) float x[kHostRows][kHostStride];
  alignas(64) float weight[kGroup][kHostStride];
  alignas(64) float sums[kHostRows][kHostColumns][kLanes];  // of a segment
  float whole[kHostRows][kHostColumns];                     // of the segments before it
  float x_scale[kHostRows][kHostScales];
  bool damaged[kHostColumns];  // the column's weights hold a NaN code
};

struct HostTile {
  const GemmCall& call;
  const GemmScales& scales;
  int expert, first_row, num_rows, first_column, num_columns;
};

inline int num_host_blocks(const GemmCall& call) {
  const int row_groups = call.offsets != nullptr ? call.experts : ceil_div(call.rows, kHostRows);
  return ceil_div(call.n, kHostColumns) * row_groups;
}

// Calls run(tile) for each tile of the block.
inline void run_host_block(const GemmCall& call, const GemmScales& scales,
                           void (*run)(const HostTile& tile)) {
  const int column_tiles = ceil_div(call.n, kHostColumns);
  const int first_column = block_id() % column_tiles * kHostColumns;
  const int columns_left = call.n - first_column;
  const int num_columns = columns_left < kHostColumns ? columns_left : kHostColumns;
  const int group = block_id() / column_tiles;
  const bool grouped = call.offsets != nullptr;
  const int begin = grouped ? call.offsets[group] : group * kHostRows;
  const int dense_end = begin + kHostRows < call.rows ? begin + kHostRows : call.rows;
  const int end = grouped ? call.offsets[group + 1] : dense_end;
  for (int row = begin; row < end; row += kHostRows) {
    const int num_rows = end - row < kHostRows ? end - row : kHostRows;
    run(HostTile{call, scales, grouped ? group : 0, row, num_rows, first_column, num_columns});
  }
}

}  // namespace tenon::TENON_TARGET

// The same code once per instruction set: TENON_ISA is its namespace, TENON_ISA_WIDTH the floats of
// a register, TENON_ISA_CODE the attribute of functions that use it.
#define TENON_ISA lanes
#define TENON_ISA_WIDTH 4
#define TENON_ISA_CODE
#include "tenon/ops/common/host_lanes.cuh"
#undef TENON_ISA
#undef TENON_ISA_WIDTH
#undef TENON_ISA_CODE

#if defined(__x86_64__)
#define TENON_ISA avx2
#define TENON_ISA_WIDTH 8
#define TENON_ISA_CODE __attribute__((target("avx2,fma,f16c")))
#include "tenon/ops/common/host_lanes.cuh"
#undef TENON_ISA
#undef TENON_ISA_WIDTH
#undef TENON_ISA_CODE

#define TENON_ISA avx512
#define TENON_ISA_WIDTH 16
#define TENON_ISA_CODE __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")))
#include "tenon/ops/common/host_lanes.cuh"
#undef TENON_ISA
#undef TENON_ISA_WIDTH
#undef TENON_ISA_CODE
#endif

namespace tenon::TENON_TARGET {

inline Status needs(bool has, std::string_view features) {
  if (has) return Status::ok();
  return Status::error(Code::kUnsupported, "this processor lacks " + std::string(features));
}
inline Status has_any() { return Status::ok(); }
#if defined(__x86_64__)
inline Status has_avx512() {
  return needs(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"),
               "avx512f, bw, vl or dq");
}
// Older clangs do not know this feature by name.
inline bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
inline Status has_avx2() {
  return needs(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c(),
               "avx2, fma or f16c");
}
#endif

}  // namespace tenon::TENON_TARGET
