// The portable GEMM tile of fp8_gemm and bf16_gemm: every target, the first to be right.
//
// The sum of one output, the same bits on every target and for every number of rows: K is cut into
// blocks of 128 and a block into 8 parts of 16. Part p of the blocks adds up in block order,
//   sum_p += scale(block) · Σ_{16 k of the part} x[k] · w[k]      (no scale: one for bf16)
// and the 8 sums are added as a binary tree, adjacent pairs first.
//
// A block of threads makes kTileColumns columns of at most kTileRows rows at a time. A thread owns
// (column, part) pairs: eight neighbours read 128 elements of a weight row in one piece.
#pragma once

#include "tenon/core/fp8.h"
#include "tenon/core/tensor.h"
#include "tenon/device/device.cuh"
#include "tenon/device/vec.cuh"

namespace tenon::TENON_TARGET {

// Where the operands lie and which rows belong together.
struct GemmCall {
  const void* x = nullptr;
  const void* weight = nullptr;
  void* out = nullptr;
  std::int64_t x_stride = 0, weight_stride = 0, expert_stride = 0, out_stride = 0;  // elements
  const std::int32_t* row_map = nullptr;  // token of each output row; null: the row itself
  const std::int32_t* offsets = nullptr;  // rows of each expert; null: dense
  std::int32_t rows = 0, n = 0, k = 0, experts = 1;
  bool out_is_f32 = false;
};

// Where the scales of fp8 operands lie. Of x: at token · x_row_stride + block · x_block_stride,
// whatever the layout.
struct GemmScales {
  const float* x = nullptr;
  const float* weight = nullptr;
  std::int64_t x_row_stride = 0, x_block_stride = 0;
  std::int64_t weight_row_stride = 0, weight_expert_stride = 0;  // of 128 columns; of an expert
};

inline constexpr int kGemmBlock = 128;  // elements of K that share a scale
inline constexpr int kParts = 8;
inline constexpr int kPartSize = kGemmBlock / kParts;
inline constexpr int kTileRows = 8;
inline constexpr int kTileColumns = 16;
inline constexpr int kGemmThreads = kWave == 1 ? 1 : kTileColumns * kParts;
inline constexpr int kItems = kTileColumns * kParts / kGemmThreads;  // pairs that a thread owns
inline constexpr int kPartStride = kPartSize + 4;  // floats; padded against bank conflicts
inline constexpr int kXStride = kParts * kPartStride;

TENON_DEVICE std::int64_t token_of(const GemmCall& call, int row) {
  return call.row_map != nullptr ? call.row_map[row] : row;
}

TENON_DEVICE void store_output(const GemmCall& call, int row, int column, float value) {
  const std::int64_t at = row * call.out_stride + column;
  if (call.out_is_f32) {
    static_cast<float*>(call.out)[at] = value;
  } else {
    static_cast<bf16*>(call.out)[at] = to_bf16(value);
  }
}

// Product is the op's: what elements and scales are. It has `static constexpr bool kScaled`, and in
// its namespace:
//   void load_x(const Product&, std::int64_t token, int k, float (&values)[16])
//   void load_weight(const Product&, int expert, int column, int k, float (&values)[16])
//   float x_scale(const Product&, std::int64_t token, int block)                     if kScaled
//   float weight_scale(const Product&, int expert, int column, int block)            if kScaled
template <class Product>
struct GemmTile {
  const Product& product;
  const GemmCall& call;
  int expert, first_row, num_rows, first_column;
};

// Phase 1: the block's 128 columns of x, as floats, and their scales.
template <class Product>
TENON_DEVICE void load_x_tile(const GemmTile<Product>& tile, int k_begin, float* x, float* scales) {
  for (int i = thread_id(); i < tile.num_rows * kParts; i += block_threads()) {
    const int row = i / kParts, part = i % kParts;
    const std::int64_t token = token_of(tile.call, tile.first_row + row);
    float values[kPartSize] = {};
    load_x(tile.product, token, k_begin + part * kPartSize, values);
    for (int j = 0; j < kPartSize; ++j) x[row * kXStride + part * kPartStride + j] = values[j];
    if constexpr (Product::kScaled) {
      if (part == 0) scales[row] = x_scale(tile.product, token, k_begin / kGemmBlock);
    }
  }
}

// Phase 2: every (column, part) pair adds its 16 products of each row to its sums.
template <class Product>
TENON_DEVICE void add_products(const GemmTile<Product>& tile, int k_begin, const float* x,
                               const float* scales, float (&sums)[kItems][kTileRows]) {
  for (int item = 0; item < kItems; ++item) {
    const int pair = thread_id() + item * kGemmThreads;
    const int part = pair % kParts;
    const int column = tile.first_column + pair / kParts;
    if (column >= tile.call.n) continue;
    float weight[kPartSize] = {};
    load_weight(tile.product, tile.expert, column, k_begin + part * kPartSize, weight);
    [[maybe_unused]] float scale = 1.0f;
    if constexpr (Product::kScaled)
      scale = weight_scale(tile.product, tile.expert, column, k_begin / kGemmBlock);
    TENON_UNROLL
    for (int row = 0; row < kTileRows; ++row) {
      if (row >= tile.num_rows) break;
      float sum = 0.0f;
      TENON_UNROLL
      for (int j = 0; j < kPartSize; ++j)
        sum = sum + x[row * kXStride + part * kPartStride + j] * weight[j];
      if constexpr (Product::kScaled) sum = (scales[row] * scale) * sum;
      sums[item][row] = sums[item][row] + sum;
    }
  }
}

// Phase 3: the tree over the parts, one output per thread.
template <class Product>
TENON_DEVICE void finish_tile(const GemmTile<Product>& tile, float (&sums)[kItems][kTileRows]) {
  TENON_SHARED(float, of_part, kTileRows* kTileColumns* kParts);
  for (int item = 0; item < kItems; ++item) {
    const int pair = thread_id() + item * kGemmThreads;
    TENON_UNROLL
    for (int row = 0; row < kTileRows; ++row)
      of_part[row * kTileColumns * kParts + pair] = sums[item][row];
  }
  sync_block();
  for (int i = thread_id(); i < tile.num_rows * kTileColumns; i += block_threads()) {
    const int column = tile.first_column + i % kTileColumns;
    if (column >= tile.call.n) continue;
    const float* p = of_part + i * kParts;
    const float sum = ((p[0] + p[1]) + (p[2] + p[3])) + ((p[4] + p[5]) + (p[6] + p[7]));
    store_output(tile.call, tile.first_row + i / kTileColumns, column, sum);
  }
  sync_block();  // of_part is free for the next tile
}

template <class Product>
TENON_DEVICE void run_tile(const GemmTile<Product>& tile) {
  TENON_SHARED(float, x, kTileRows* kXStride);
  TENON_SHARED(float, scales, kTileRows);
  float sums[kItems][kTileRows] = {};
  for (int k_begin = 0; k_begin < tile.call.k; k_begin += kGemmBlock) {
    load_x_tile(tile, k_begin, x, scales);
    sync_block();
    add_products(tile, k_begin, x, scales, sums);
    sync_block();
  }
  finish_tile(tile, sums);
}

// How a grid is laid over the product: neighbouring blocks take neighbouring columns.
constexpr int ceil_div(int value, int divisor) { return (value + divisor - 1) / divisor; }
inline int num_tile_blocks(const GemmCall& call) {
  const int row_groups = call.offsets != nullptr ? call.experts : ceil_div(call.rows, kTileRows);
  return ceil_div(call.n, kTileColumns) * row_groups;
}

// The block's share: dense, one tile of rows; grouped, all rows of one expert.
template <class Product>
TENON_DEVICE void run_gemm_block(const Product& product, const GemmCall& call) {
  const int column_tiles = ceil_div(call.n, kTileColumns);
  const int first_column = block_id() % column_tiles * kTileColumns;
  const int group = block_id() / column_tiles;
  const bool grouped = call.offsets != nullptr;
  const int begin = grouped ? call.offsets[group] : group * kTileRows;
  const int end = grouped ? call.offsets[group + 1]
                          : (begin + kTileRows < call.rows ? begin + kTileRows : call.rows);
  for (int row = begin; row < end; row += kTileRows) {
    const int num_rows = end - row < kTileRows ? end - row : kTileRows;
    run_tile(GemmTile<Product>{product, call, grouped ? group : 0, row, num_rows, first_column});
  }
}

// Host side of a launch: the views as pointers and strides.
inline GemmCall gemm_call(const TensorView& x, const TensorView& weight, const TensorView& out,
                          const TensorView* row_map, const TensorView* offsets) {
  const bool grouped = weight.num_dims == 3;
  GemmCall call;
  call.x = x.data;
  call.weight = weight.data;
  call.out = out.data;
  call.x_stride = x.stride[0];
  call.weight_stride = weight.stride[grouped ? 1 : 0];
  call.expert_stride = grouped ? weight.stride[0] : 0;
  call.out_stride = out.stride[0];
  call.row_map = row_map != nullptr ? row_map->as<const std::int32_t>() : nullptr;
  call.offsets = offsets != nullptr ? offsets->as<const std::int32_t>() : nullptr;
  call.rows = static_cast<std::int32_t>(out.shape[0]);
  call.n = static_cast<std::int32_t>(out.shape[1]);
  call.k = static_cast<std::int32_t>(x.shape[1]);
  call.experts = grouped ? static_cast<std::int32_t>(weight.shape[0]) : 1;
  call.out_is_f32 = out.dtype == DType::kF32;
  return call;
}

}  // namespace tenon::TENON_TARGET
