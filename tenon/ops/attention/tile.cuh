// One tile of context positions against the rows of a block: scores, softmax weights, weighted
// values; and how partials join. Order of every sum: positions in order within the tile, tiles in
// order within the partial, head_dim as in dot(). A tile is loaded in pieces, which show in no bit.
// Not here: where tiles lie in the paged cache (attention.cu).
#pragma once

#include "tenon/core/fp8.h"
#include "tenon/device/device.cuh"
#include "tenon/device/math.cuh"
#include "tenon/ops/common/simd.cuh"

namespace tenon::TENON_TARGET::attention {

inline constexpr int kMaxHeadDim = 256;
inline constexpr int kTile = 64;      // context positions between two moves of the running maximum
inline constexpr int kPartial = 256;  // context positions with a softmax of their own
inline constexpr int kPiece = 16;     // context positions that a block holds at a time

// What a block keeps about each of its rows.
struct Running {
  // Of the partial: maximum so far, Σ e^(score − peak), and the factor that this tile brings.
  float peak, total, rescale;
  int context, visible;  // positions the row sees, and those of this tile
  // Of the partials before it, joined; and the factors of the joint and of the next partial.
  float whole_peak, whole_total, keep, add;
};

// Where the rows of a piece lie: in fp32, kMaxHeadDim apart, or as bf16 wherever the cache has
// them.
struct FloatTile {
  using Element = float;
  const float* data;
};
struct CacheTile {
  using Element = bf16;
  const bf16* rows[kPiece];
};
TENON_DEVICE const float* row_of(const FloatTile& tile, int position) {
  return tile.data + position * kMaxHeadDim;
}
TENON_DEVICE const bf16* row_of(const CacheTile& tile, int position) { return tile.rows[position]; }

// scores[r][j] = scale · q_r · k_j for kRowCount rows and kCount positions from (row, first) on.
template <int kRowCount, int kCount, class Tile>
TENON_DEVICE void score_block(const float* queries, const Tile& keys, int row, int first, int n,
                              float scale, float* scores) {
  const float* q[kRowCount];
  const typename Tile::Element* k[kCount];
  float found[kRowCount][kCount];
  TENON_UNROLL
  for (int r = 0; r < kRowCount; ++r) q[r] = queries + (row + r) * kMaxHeadDim;
  TENON_UNROLL
  for (int j = 0; j < kCount; ++j) k[j] = row_of(keys, first + j);
  dots(q, k, n, found);
  TENON_UNROLL
  for (int r = 0; r < kRowCount; ++r) {
    TENON_UNROLL
    for (int j = 0; j < kCount; ++j) scores[(row + r) * kTile + first + j] = found[r][j] * scale;
  }
}

// Scores of every row and position of a piece; `scores` points at its first one. On targets with
// waves each group of lanes takes a pair at a time; one thread takes blocks of two by two, which
// share their loads.
template <class Tile>
TENON_DEVICE void score_piece(const float* queries, const Tile& keys, int rows, int positions,
                              int n, float scale, float* scores) {
  if constexpr (kWave == 1) {
    for (int r = 0; r < rows; r += 2) {
      for (int j = 0; j < positions; j += 2) {
        const bool one_row = r + 1 == rows, one_position = j + 1 == positions;
        if (!one_row && !one_position) {
          score_block<2, 2>(queries, keys, r, j, n, scale, scores);
        } else if (!one_row) {
          score_block<2, 1>(queries, keys, r, j, n, scale, scores);
        } else if (!one_position) {
          score_block<1, 2>(queries, keys, r, j, n, scale, scores);
        } else {
          score_block<1, 1>(queries, keys, r, j, n, scale, scores);
        }
      }
    }
  } else {
    const int pairs = rows * positions;
    for (int base = 0; base < pairs; base += num_slot_groups()) {
      const int wanted = base + slot_group();
      const int pair = wanted < pairs ? wanted : pairs - 1;  // surplus groups repeat the last one
      const int row = pair % rows, position = pair / rows;
      const float found = dot(queries + row * kMaxHeadDim, row_of(keys, position), n);
      if (wanted < pairs && thread_id() % kSlots == 0)
        scores[row * kTile + position] = found * scale;
    }
  }
}

// Turns a row's scores of a tile into weights e^(score − peak) and moves its peak and total on.
TENON_DEVICE void weigh_row(Running& row, float* scores, int first) {
  const int left = row.context - first;
  row.visible = left < 0 ? 0 : left < kTile ? left : kTile;
  row.rescale = 1.0f;
  if (row.visible == 0) return;
  float peak = row.peak;
  for (int j = 0; j < row.visible; ++j) peak = max_f(peak, scores[j]);
  row.rescale = exp_f(row.peak - peak);
  for (int piece = 0; piece < row.visible; piece += kPiece)  // whole pieces: a loop of fixed length
    for (int j = 0; j < kPiece; ++j) scores[piece + j] = exp_f(scores[piece + j] - peak);
  float total = row.total * row.rescale;
  for (int j = 0; j < row.visible; ++j) total = total + scores[j];
  row.total = total;
  row.peak = peak;
}

// How many positions of the tile's piece from `piece` on a row sees.
TENON_DEVICE int visible_of(const Running& row, int piece) {
  const int left = row.visible - piece;
  return left < 0 ? 0 : left < kPiece ? left : kPiece;
}

// sum_r = sum_r · rescale + Σ_j weight[r][j] · v_j for kRowCount rows of a block and the positions
// of a piece, in order. The first piece of a tile rescales; `weights` points at the piece's first
// one.
template <int kRowCount, class Tile>
TENON_DEVICE void add_values(const Running* running, const float* weights, const Tile& values,
                             int piece, int n, float* sums) {
  constexpr int kPacks = kWave == 1 ? kSlots / kSimd : 1;
  constexpr int kWidth = kPacks * kSimd;
  float rescale[kRowCount];
  int visible[kRowCount];
  int shared = kPiece;  // positions that all rows see
  TENON_UNROLL
  for (int r = 0; r < kRowCount; ++r) {
    rescale[r] = piece == 0 ? running[r].rescale : 1.0f;
    visible[r] = visible_of(running[r], piece);
    shared = visible[r] < shared ? visible[r] : shared;
  }
  for (int i = thread_id() * kWidth; i < n; i += block_threads() * kWidth) {
    Simd sum[kRowCount * kPacks];
    TENON_UNROLL
    for (int at = 0; at < kRowCount * kPacks; ++at)
      sum[at] = load_simd(sums + at / kPacks * kMaxHeadDim + i + at % kPacks * kSimd) *
                rescale[at / kPacks];
    for (int j = 0; j < shared; ++j) {
      TENON_UNROLL
      for (int p = 0; p < kPacks; ++p) {
        const Simd v = load_simd(row_of(values, j) + i + p * kSimd);
        TENON_UNROLL
        for (int r = 0; r < kRowCount; ++r)
          sum[r * kPacks + p] = sum[r * kPacks + p] + weights[r * kTile + j] * v;
      }
    }
    TENON_UNROLL
    for (int r = 0; r < kRowCount; ++r) {
      for (int j = shared; j < visible[r]; ++j) {
        TENON_UNROLL
        for (int p = 0; p < kPacks; ++p)
          sum[r * kPacks + p] =
              sum[r * kPacks + p] +
              weights[r * kTile + j] * load_simd(row_of(values, j) + i + p * kSimd);
      }
    }
    TENON_UNROLL
    for (int at = 0; at < kRowCount * kPacks; ++at)
      store_simd(sums + at / kPacks * kMaxHeadDim + i + at % kPacks * kSimd, sum[at]);
  }
}

// Every row of the block; two at a time share the loads of v.
template <class Tile>
TENON_DEVICE void add_piece(const Running* running, const float* weights, const Tile& values,
                            int rows, int piece, int n, float* sums) {
  const float* const from = weights + piece;
  int r = 0;
  for (; r + 1 < rows; r += 2)
    add_values<2>(running + r, from + r * kTile, values, piece, n, sums + r * kMaxHeadDim);
  if (r < rows)
    add_values<1>(running + r, from + r * kTile, values, piece, n, sums + r * kMaxHeadDim);
}

// --- partials (the formula in attention.h) ------------------------------------------------------

// A row's partial that begins at `first` joins those before it: the scalars and the two factors.
TENON_DEVICE void join_row(Running& row, int first) {
  row.keep = 1.0f;
  row.add = 0.0f;
  if (row.context <= first) return;  // the row sees nothing of it
  if (first == 0) {
    row.whole_peak = row.peak;
    row.whole_total = row.total;
  } else {
    const float peak = max_f(row.whole_peak, row.peak);
    row.keep = exp_f(row.whole_peak - peak);
    row.add = exp_f(row.peak - peak);
    row.whole_total = row.whole_total * row.keep + row.total * row.add;
    row.whole_peak = peak;
  }
  row.peak = -kInfinity;  // for the next one
  row.total = 0.0f;
}

// The same for its weighted values; `sums` are zeros afterwards. Every thread of the block calls
// it.
TENON_DEVICE void join_sums(const Running& row, int first, int n, float* sums, float* whole) {
  if (row.context <= first) return;
  for (int i = thread_id() * kSimd; i < n; i += block_threads() * kSimd) {
    const Simd partial = load_simd(sums + i);
    store_simd(whole + i,
               first == 0 ? partial : load_simd(whole + i) * row.keep + partial * row.add);
    store_simd(sums + i, Simd{});
  }
}

}  // namespace tenon::TENON_TARGET::attention
