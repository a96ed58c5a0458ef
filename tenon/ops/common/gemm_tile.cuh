// The portable GEMM tile of fp8_gemm and bf16_gemm: every target, the first to be right.
//
// The sum of one output, the same bits on every target and for every number of rows:
//   block      = Σ x[k] · w[k] over 128 elements of k: 8 parts of 16 in order of k, each from zero,
//                added as a binary tree, adjacent pairs first
//   segment    = fma(block, x scale · w scale, segment), from zero, blocks ascending   (fp8)
//              = segment + block                                                       (bf16)
//   the output = ((segment 0 + segment 1) + …), rounded once; the segments are those of segments.h
//
// A block of threads makes kTileColumns columns of at most kTileRows rows at a time. For
// products a thread owns (column, part) pairs: eight neighbours read 128 elements of a weight row
// in one piece. For sums it owns outputs: the parts meet in shared memory, once per block of k.
#pragma once

#include "tenon/core/fp8.h"
#include "tenon/core/tensor.h"
#include "tenon/device/device.cuh"
#include "tenon/device/math.cuh"
#include "tenon/device/vec.cuh"
#include "tenon/ops/common/segments.h"

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

inline constexpr int kGemmBlock = kProductBlock;  // elements of k that share a scale
inline constexpr int kParts = 8;
inline constexpr int kPartSize = kGemmBlock / kParts;
inline constexpr int kTileRows = 8;
inline constexpr int kTileColumns = 16;
inline constexpr int kGemmThreads = kWave == 1 ? 1 : kTileColumns * kParts;
inline constexpr int kItems = kTileColumns * kParts / kGemmThreads;  // pairs that a thread owns
inline constexpr int kPartStride = kPartSize + 4;  // floats; padded against bank conflicts
inline constexpr int kXStride = kParts * kPartStride;
inline constexpr int kOutputs = kTileRows * kTileColumns / kGemmThreads;  // that a thread owns
inline constexpr int kOutputStride = kParts + 1;  // floats between the parts of two outputs

TENON_DEVICE std::int64_t token_of(const GemmCall& call, int row) {
  return call.row_map != nullptr ? call.row_map[row] : row;
}

// at: in elements from the first output.
TENON_DEVICE void store_output_at(const GemmCall& call, std::int64_t at, float value) {
  if (call.out_is_f32) {
    static_cast<float*>(call.out)[at] = value;
  } else {
    static_cast<bf16*>(call.out)[at] = to_bf16(value);
  }
}
TENON_DEVICE void store_output(const GemmCall& call, int row, int column, float value) {
  store_output_at(call, row * call.out_stride + column, value);
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

// Phase 2: every (column, part) pair makes the sum of its 16 products for each row.
template <class Product>
TENON_DEVICE void make_parts(const GemmTile<Product>& tile, int k_begin, const float* x,
                             float* parts) {
  for (int item = 0; item < kItems; ++item) {
    const int pair = thread_id() + item * kGemmThreads;
    const int part = pair % kParts;
    const int column = tile.first_column + pair / kParts;
    if (column >= tile.call.n) continue;
    float weight[kPartSize] = {};
    load_weight(tile.product, tile.expert, column, k_begin + part * kPartSize, weight);
    TENON_UNROLL
    for (int row = 0; row < kTileRows; ++row) {
      if (row >= tile.num_rows) break;
      float sum = 0.0f;
      TENON_UNROLL
      for (int j = 0; j < kPartSize; ++j)
        sum = sum + x[row * kXStride + part * kPartStride + j] * weight[j];
      parts[(row * kTileColumns + pair / kParts) * kOutputStride + part] = sum;
    }
  }
}

// What a thread knows of its outputs. Number i is output thread_id() + i · kGemmThreads of the
// tile, row by row.
struct OutputSums {
  float segment[kOutputs];  // of the segment so far
  float whole[kOutputs];    // of the segments before it
};
struct OutputPlace {
  int row, column;  // within the tile; of the matrix
  bool exists;
};
template <class Product>
TENON_DEVICE OutputPlace place_of(const GemmTile<Product>& tile, int i) {
  const int output = thread_id() + i * kGemmThreads;
  const int row = output / kTileColumns, column = tile.first_column + output % kTileColumns;
  return {row, column, row < tile.num_rows && column < tile.call.n};
}

// Phase 3: the block sum of every output joins its segment.
template <class Product>
TENON_DEVICE void add_block(const GemmTile<Product>& tile, int k_begin, const float* parts,
                            const float* scales, OutputSums& sums) {
  TENON_UNROLL
  for (int i = 0; i < kOutputs; ++i) {
    const OutputPlace place = place_of(tile, i);
    if (!place.exists) continue;
    const float* p = parts + (thread_id() + i * kGemmThreads) * kOutputStride;
    const float block = ((p[0] + p[1]) + (p[2] + p[3])) + ((p[4] + p[5]) + (p[6] + p[7]));
    if constexpr (Product::kScaled) {
      const float scale = scales[place.row] * weight_scale(tile.product, tile.expert, place.column,
                                                           k_begin / kGemmBlock);
      sums.segment[i] = fma_f(block, scale, sums.segment[i]);
    } else {
      sums.segment[i] = sums.segment[i] + block;
    }
  }
}

template <class Product>
TENON_DEVICE void run_tile(const GemmTile<Product>& tile) {
  TENON_SHARED(float, x, kTileRows* kXStride);
  TENON_SHARED(float, scales, 2 * kTileRows);  // of two blocks: one is read, one is loaded
  TENON_SHARED(float, parts, kTileRows* kTileColumns* kOutputStride);
  OutputSums sums{};
  const Segments cut = segments_of(tile.call.n, tile.call.k);
  for (int segment = 0; segment < cut.count; ++segment) {
    for (int k_begin = cut.begin(segment); k_begin < cut.begin(segment + 1);
         k_begin += kGemmBlock) {
      float* const of_block = scales + k_begin / kGemmBlock % 2 * kTileRows;
      load_x_tile(tile, k_begin, x, of_block);
      sync_block();
      make_parts(tile, k_begin, x, parts);
      sync_block();
      add_block(tile, k_begin, parts, of_block, sums);
    }
    TENON_UNROLL
    for (int i = 0; i < kOutputs; ++i) {
      sums.whole[i] = segment == 0 ? sums.segment[i] : sums.whole[i] + sums.segment[i];
      sums.segment[i] = 0.0f;
    }
  }
  TENON_UNROLL
  for (int i = 0; i < kOutputs; ++i) {
    const OutputPlace place = place_of(tile, i);
    if (place.exists)
      store_output(tile.call, tile.first_row + place.row, place.column, sums.whole[i]);
  }
  sync_block();  // scales and parts are free for the next tile
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
