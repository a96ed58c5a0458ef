// Products for many rows on Hopper (sm_90a): bound by the tensor cores. The same bits as the
// kernels for few rows (sm90_product.cuh): wgmma gives the same sums whichever operand has its 64
// rows, and here those are rows of x. The kernel for one matrix, of e4m3 or of bf16, and what the
// one for experts (fp8_gemm/sm90_expert_tiles.cuh) shares with it: what a Grid is to these
// functions, TileGrid shows.
//
// A block of threads, one on a multiprocessor, makes one tile after another of 128 rows and 128 ·
// kHalves columns. One thread fills a ring of stages with 128 bytes of k each, which is a block of
// e4m3 or half a block of bf16: a tile of x and kHalves tiles of the weight. In a cluster of two,
// which have the same columns, each asks for half of the weight and the copy engine writes it to
// both. Two warpgroups multiply 64 rows each, a half of the columns at a time. A warpgroup that has
// registers for it (one half, one segment) starts the products of a block of k before it scales
// those of the block before: the tensor cores always have something to do. Else the other warpgroup
// has to fill the gaps.
//
// kActivates: the halves are gate and up, so a thread has both of an output, and four neighbouring
// lanes have a group of 128 of a row.
#pragma once

#include "tenon/device/cuda_hip/sm90/tma.cuh"
#include "tenon/device/cuda_hip/sm90/wgmma.cuh"
#include "tenon/device/variant.h"
#include "tenon/ops/common/gemm_tile.cuh"
#include "tenon/ops/common/quantize.cuh"
#include "tenon/ops/common/silu_mul.cuh"
#include "tenon/ops/common/sm90_plan.cuh"

namespace tenon::TENON_TARGET {

using namespace sm90;

inline constexpr int kTileSide = 128;  // rows of a tile, columns of a half, bytes of k
inline constexpr int kTileSquare = kTileSide * kTileSide;
inline constexpr int kTilesConsumers = 256, kTilesThreads = kTilesConsumers + 128;
inline constexpr int kTilesBand = 8;  // of clusters in a column, which read a weight at one time

struct TilesCall {
  TensorMap x, weight;  // in tiles of 128 rows, of 64 · kHalves columns
  GemmCall gemm;
  GemmScales scales;
  QuantSpec activated;
  Segments cut;     // one segment if kHalves is 2
  int cluster = 1;  // 1 or 2
};

constexpr int tiles_stages(int halves) { return halves == 2 ? 4 : 6; }
constexpr int tiles_stage_bytes(int halves) { return (1 + halves) * kTileSquare; }
constexpr int tiles_shared_bytes(int halves) {
  return tiles_stages(halves) * (tiles_stage_bytes(halves) + 16);
}

// How tiles lie over the product, and which of them a block makes: first, first + step, … below
// end.
struct TilePlace {
  int first_row, end_row;  // of the tile; of its matrix
  int column_tile;
  int expert;
};
template <int kHalvesOf, bool kActivatesOf, bool kBf16Of = false>
struct TileGrid {
  static constexpr int kHalves = kHalvesOf;  // of 128 columns, of a warpgroup
  static constexpr bool kActivates = kActivatesOf, kBf16 = kBf16Of;
  static constexpr int kColumns = kTileSide * kHalves;  // of a tile
  static constexpr int kParts = 1;  // of a half, whose weights have a scale of their own
  static constexpr int kStages = tiles_stages(kHalves);
  static constexpr int kBytes = tiles_stage_bytes(kHalves), kXBytes = kTileSquare;  // of a stage
  // Where a warpgroup's rows and columns begin.
  static constexpr int kRowsApart = kTileSide / 2, kColumnsApart = 0;

  int rows, row_units, column_tiles, width;  // a unit: rows of a cluster
  int cluster, rank;
  int first, step, end;

  // Bands of units of rows: a part of the weight is read by all of a band at about one time.
  TENON_HD TilePlace place(int t) const {
    const int band = t / (kTilesBand * column_tiles) * kTilesBand;
    const int in_band = row_units - band < kTilesBand ? row_units - band : kTilesBand;
    const int rest = t - band * column_tiles;
    return {((band + rest % in_band) * cluster + rank) * kTileSide, rows, rest / in_band, 0};
  }
  // The column of n where part 0 or 1 of a tile's weight begins.
  TENON_HD int column_of(const TilePlace& at, int part) const {
    return kActivates ? part * width + at.column_tile * kTileSide
                      : (2 * at.column_tile + part) * (kTileSide / 2) * kHalves;
  }
  // The scales' group of columns of a half of a warpgroup; the last one where it does not exist.
  TENON_HD int group_of(const TilePlace& at, int, int half, int n) const {
    const int group =
        kActivates ? column_of(at, half) / kTileSide : at.column_tile * kHalves + half;
    const int last = (n - 1) / kTileSide;
    return group < last ? group : last;
  }
};
template <class Grid>
TENON_DEVICE Grid tile_grid(const TilesCall& call) {
  Grid grid{};
  grid.cluster = call.cluster;
  grid.rank = block_id() % call.cluster;
  grid.rows = call.gemm.rows;
  grid.row_units = ceil_div(call.gemm.rows, kTileSide * call.cluster);
  grid.column_tiles = ceil_div(call.gemm.n, grid.kColumns);
  grid.width = call.gemm.n / 2;
  grid.first = block_id() / call.cluster;
  grid.step = grid_blocks() / call.cluster;
  grid.end = grid.row_units * grid.column_tiles;
  return grid;
}

template <class Grid>
struct TilesRing {
  static constexpr int kStages = Grid::kStages, kBytes = Grid::kBytes;
  std::byte* shared;
  Mbarrier *full, *empty;
};
// By the first thread behind those that multiply. Then sync_block(), and of a cluster all blocks.
// `tellers`: how many arrive when their part of a stage is asked for or there.
template <class Grid>
TENON_DEVICE void open_ring(const TilesRing<Grid>& ring, int cluster, int tellers = 1) {
  TENON_NO_UNROLL
  for (int stage = 0; stage < ring.kStages; ++stage) {
    barrier_init(&ring.full[stage], static_cast<std::uint32_t>(tellers));
    barrier_init(&ring.empty[stage], static_cast<std::uint32_t>(kTilesConsumers / kWave * cluster));
  }
  publish_barriers();
}

template <class Grid>
TENON_DEVICE void ask_weight(const TilesCall& call, const Grid& grid, const TilesRing<Grid>& ring,
                             const TilePlace& at, int block, int stage, std::uint64_t policy) {
  TENON_UNROLL
  for (int part = 0; part < 2; ++part) {
    std::byte* const to =
        ring.shared + stage * ring.kBytes + kTileSquare + part * (grid.kHalves * kTileSquare / 2);
    const int column = grid.column_of(at, part);
    if (grid.cluster == 1) {
      copy_tile(to, &call.weight, block * kTileSide, column, &ring.full[stage], policy);
    } else if (part == grid.rank) {
      copy_tile_to(3, to, &call.weight, block * kTileSide, column, &ring.full[stage], policy);
    }
  }
}

// One thread. The weights of the first stages are asked for before the wait for the kernel before.
template <class Grid>
TENON_DEVICE void fill_tiles(const TilesCall& call, const Grid& grid, const TilesRing<Grid>& ring) {
  const std::uint64_t policy = policy_evict_last();
  const int blocks = call.cut.num_blocks * (Grid::kBf16 ? 2 : 1);  // of 128 bytes
  int ahead = 0;
  if (grid.first < grid.end) {
    ahead = blocks < ring.kStages ? blocks : ring.kStages;
    const TilePlace at = grid.place(grid.first);
    TENON_NO_UNROLL
    for (int b = 0; b < ahead; ++b) {
      barrier_arrive_expect(&ring.full[b], ring.kBytes);
      ask_weight(call, grid, ring, at, b, b, policy);
    }
  }
  wait_for_previous();
  RingPlace to;
  TENON_NO_UNROLL
  for (int t = grid.first; t < grid.end; t += grid.step) {
    const TilePlace at = grid.place(t);
    TENON_NO_UNROLL
    for (int b = 0; b < blocks; ++b) {
      if (ahead > 0) {
        --ahead;
      } else {
        barrier_wait_cluster(&ring.empty[to.stage], to.parity ^ 1);
        barrier_arrive_expect(&ring.full[to.stage], ring.kBytes);
        ask_weight(call, grid, ring, at, b, to.stage, policy);
      }
      copy_tile(ring.shared + to.stage * ring.kBytes, &call.x, b * kTileSide, at.first_row,
                &ring.full[to.stage], policy);
      to.next(ring.kStages);
    }
  }
}

// Scales of a thread's two rows and kGroups groups of columns. Each of four neighbouring lanes
// holds the products of one of four blocks of k, and has asked for those of the next four.
template <int kGroups>
struct TileScales {
  const float* x[2];
  const float* weight[kGroups];
  std::int64_t x_stride;
  int last;  // block of k
  float made[2][kGroups], next_x[2], next_weight[kGroups];
};
template <class Grid>
using ScalesOf = TileScales<Grid::kHalves * Grid::kParts>;
template <int kGroups>
TENON_DEVICE void ask_scales(TileScales<kGroups>& scales, int block) {
  const int own = block + thread_id() % 4, at = own < scales.last ? own : scales.last;
  TENON_UNROLL
  for (int r = 0; r < 2; ++r) scales.next_x[r] = scales.x[r][at * scales.x_stride];
  TENON_UNROLL
  for (int i = 0; i < kGroups; ++i) scales.next_weight[i] = scales.weight[i][at];
}
// Before block `block` of k; blocks ascend from 0.
template <int kGroups>
TENON_DEVICE void advance_scales(TileScales<kGroups>& scales, int block) {
  if (block % 4 != 0) return;
  TENON_UNROLL
  for (int r = 0; r < 2; ++r) {
    TENON_UNROLL
    for (int i = 0; i < kGroups; ++i) scales.made[r][i] = scales.next_x[r] * scales.next_weight[i];
  }
  ask_scales(scales, block + 4);
}

// sums[4 j + 2 r + c] belongs to row g + 8 r of the warp's 16 and column 8 j + 2 p + c of the half,
// for lane 4 g + p.
using HalfSums = float[64];

// `row`: of a lane's first sums, end_row: behind the last that exists; `column`: of the half's
// first. Lanes exchange, so that four neighbours write 32 bytes in a row.
TENON_DEVICE void store_in_fours(const GemmCall& gemm, int row, int end_row, int column,
                                 const HalfSums& sums) {
  const int pair = thread_id() % 4, odd = pair % 2;
  TENON_UNROLL
  for (int r = 0; r < 2; ++r) {
    const bool exists = row + 8 * r < end_row;
    bf16* const to = static_cast<bf16*>(gemm.out) + (row + 8 * r) * gemm.out_stride;
    TENON_UNROLL
    for (int j = 0; j < 16; j += 2) {
      const float* four = sums + 4 * j + 2 * r;
      const std::uint32_t low = convert_bf16x2(four[0], four[1]);
      const std::uint32_t high = convert_bf16x2(four[4], four[5]);
      const std::uint32_t got = shuffle_xor(odd ? low : high, 1);
      const int at = column + 8 * (j + odd) + 2 * (pair - odd);
      if (exists && at < gemm.n) store8_bytes(to + at, odd ? got : low, odd ? high : got);
    }
  }
}
TENON_DEVICE void store_half(const GemmCall& gemm, int row, int end_row, int column,
                             const HalfSums& sums) {
  if (!gemm.out_is_f32 && gemm.n % 4 == 0 && gemm.out_stride % 4 == 0 &&
      reinterpret_cast<std::uintptr_t>(gemm.out) % 8 == 0) {
    store_in_fours(gemm, row, end_row, column, sums);
    return;
  }
  TENON_UNROLL
  for (int e = 0; e < 64; ++e) {
    const int of_row = row + 8 * (e / 2 % 2);
    const int at = column + 8 * (e / 4) + 2 * (thread_id() % 4) + e % 2;
    if (of_row < end_row && at < gemm.n) store_output(gemm, of_row, at, sums[e]);
  }
}

// rne(silu(gate) · up) of row g + 8 r, of 2 · kWords columns of a lane; the largest magnitude of
// four neighbouring lanes.
template <int kWords>
TENON_DEVICE std::uint32_t activate(const float* gate, const float* up, int r,
                                    std::uint32_t (&held)[kWords]) {
  std::uint32_t most = 0;
  TENON_UNROLL
  for (int j = 0; j < kWords; ++j) {
    const int e = 4 * j + 2 * r;
    const std::uint32_t g = convert_bf16x2(gate[e], gate[e + 1]);
    const std::uint32_t u = convert_bf16x2(up[e], up[e + 1]);
    held[j] = convert_bf16x2(silu_mul_f(low_half<bf16>(g), low_half<bf16>(u)),
                             silu_mul_f(high_half<bf16>(g), high_half<bf16>(u)));
    most = larger(most, larger(held[j] & 0x7fffu, held[j] >> 16 & 0x7fffu));
  }
  most = larger(most, shuffle_xor(most, 1));
  return larger(most, shuffle_xor(most, 2));
}

// Codes of them, to where the first column's belongs. All lanes, also those whose row does not
// exist.
template <int kWords>
TENON_DEVICE void store_codes(std::byte* to, bool exists, const std::uint32_t (&held)[kWords],
                              float multiplier) {
  const int pair = thread_id() % 4, odd = pair % 2;
  // Codes of two j: columns 2 p and 2 p + 1 of either. Then four columns of one, then eight.
  std::uint32_t fours[kWords / 2];
  TENON_UNROLL
  for (int i = 0; i < kWords / 2; ++i) {
    const std::uint32_t a = held[2 * i], b = held[2 * i + 1];
    const std::uint32_t codes =
        pack_fp8x4<DType::kE4M3>(low_half<bf16>(a) * multiplier, high_half<bf16>(a) * multiplier,
                                 low_half<bf16>(b) * multiplier, high_half<bf16>(b) * multiplier);
    const std::uint32_t got = shuffle_xor(odd ? codes & 0xffffu : codes >> 16, 1);
    fours[i] = odd ? got | (codes & 0xffff0000u) : (codes & 0xffffu) | got << 16;
  }
  TENON_UNROLL
  for (int i = 0; i < kWords / 2; i += 2) {
    const bool second = pair >= 2;
    const std::uint32_t got = shuffle_xor(second ? fours[i] : fours[i + 1], 2);
    const int column = 8 * (2 * i + 2 * second + odd);
    if (exists) store8_bytes(to + column, second ? got : fours[i], second ? fours[i + 1] : got);
  }
}

// Codes of gate and up, a group of 128 of each row in four lanes.
TENON_DEVICE void store_activated(const TilesCall& call, int row, int end_row, int group,
                                  const HalfSums& gate, const HalfSums& up) {
  TENON_UNROLL
  for (int r = 0; r < 2; ++r) {
    std::uint32_t held[16];
    const std::uint32_t most = activate(gate, up, r, held);
    const bool exists = row + 8 * r < end_row;
    const QuantSpec at = at_row(call.activated, row + 8 * r);
    const ChosenScale scale = choose_scale<bf16>(at, most);
    store_codes(at.codes + group * kTileSide, exists, held, scale.multiplier);
    if (exists && thread_id() % 4 == 0) store_scale(at, 0, group, scale.word);
  }
}

// What a warp knows of its part of the tiles, all of a block's being alike.
struct TileWarp {
  int group;                // of warps
  int row, column;          // of the tile: those of a lane's first sums
  std::uint64_t x, weight;  // descriptors in the first stage
  int lane, cluster;
};
template <class Grid>
TENON_DEVICE TileWarp tile_warp(const TilesRing<Grid>& ring, int cluster) {
  const int group = shuffle_from(thread_id() / 128, 0), lane = thread_id() % kWave;
  const int row = group * Grid::kRowsApart, column = group * Grid::kColumnsApart;
  return {group,
          row + thread_id() % 128 / kWave * 16 + lane / 4,
          column,
          tile_descriptor(ring.shared + row * kTileSide),
          tile_descriptor(ring.shared + Grid::kXBytes + column * kTileSide),
          lane,
          cluster};
}

// Of a tile with at least one row that exists; for rows that do not, those of the last one.
template <class Grid>
TENON_DEVICE ScalesOf<Grid> tile_scales(const TilesCall& call, const Grid& grid,
                                        const TilePlace& place, const TileWarp& warp) {
  ScalesOf<Grid> scales;
  scales.x_stride = call.scales.x_block_stride;
  scales.last = call.cut.num_blocks - 1;
  TENON_UNROLL
  for (int r = 0; r < 2; ++r) {
    const int row = place.first_row + warp.row + 8 * r;
    const std::int64_t token = token_of(call.gemm, row < place.end_row ? row : place.end_row - 1);
    scales.x[r] = call.scales.x + token * call.scales.x_row_stride;
  }
  TENON_UNROLL
  for (int i = 0; i < Grid::kHalves * Grid::kParts; ++i)
    scales.weight[i] =
        call.scales.weight + place.expert * call.scales.weight_expert_stride +
        grid.group_of(place, warp.group, i, call.gemm.n) * call.scales.weight_row_stride;
  ask_scales(scales, 0);
  return scales;
}

// The four products of a stage and a half, from zero or further.
template <class Grid>
TENON_DEVICE void add_products(const TilesRing<Grid>& ring, const TileWarp& warp, int stage,
                               int half, bool further, HalfSums& made) {
  const int at = stage * (ring.kBytes / 16);
  TENON_UNROLL
  for (int k = 0; k < 4; ++k)
    add_product<kTileSide, Grid::kBf16>(
        made, descriptor_at(warp.x, at + 2 * k),
        descriptor_at(warp.weight, at + half * (kTileSquare / 16) + 2 * k), further || k > 0);
}
// Those of a block of e4m3.
template <class Grid>
TENON_DEVICE void start_products(const TilesRing<Grid>& ring, const TileWarp& warp, int stage,
                                 int half, HalfSums& made) {
  wgmma_begin();
  add_products(ring, warp, stage, half, false, made);
  wgmma_commit();
}
template <class Grid>
TENON_DEVICE void release_stage(const TilesRing<Grid>& ring, const TileWarp& warp, int stage) {
  if (warp.cluster == 1) {
    if (warp.lane == 0) barrier_arrive(&ring.empty[stage]);
  } else if (warp.lane < 2) {
    barrier_arrive_at(&ring.empty[stage], static_cast<std::uint32_t>(warp.lane));
  }
}
// Of rows g and g + 8 and the parts of a half, for block `block` of k.
template <int kParts>
struct RowScales {
  float of[2][kParts];
};
template <class Grid>
TENON_DEVICE RowScales<Grid::kParts> row_scales(const ScalesOf<Grid>& scales, int half, int block) {
  const int from = thread_id() % kWave / 4 * 4 + block % 4;
  RowScales<Grid::kParts> found;
  TENON_UNROLL
  for (int r = 0; r < 2; ++r) {
    TENON_UNROLL
    for (int part = 0; part < Grid::kParts; ++part)
      found.of[r][part] = shuffle_from(scales.made[r][half * Grid::kParts + part], from);
  }
  return found;
}
template <int kParts>
TENON_DEVICE void add_scaled(HalfSums& sums, const HalfSums& made, const RowScales<kParts>& scale) {
  TENON_UNROLL
  for (int e = 0; e < 64; ++e)
    sums[e] = fma_f(made[e], scale.of[e / 2 % 2][e / (64 / kParts)], sums[e]);
}

// A warpgroup's halves of a tile.
template <int kHalves, bool kActivates, bool kBf16>
TENON_DEVICE void store_tile(const TilesCall& call, const TileGrid<kHalves, kActivates, kBf16>&,
                             const TilePlace& place, const TileWarp& warp, int,
                             const HalfSums* sums) {
  const int row = place.first_row + warp.row;
  if constexpr (kActivates) {
    store_activated(call, row, place.end_row, place.column_tile, sums[0], sums[1]);
  } else {
    TENON_UNROLL
    for (int h = 0; h < kHalves; ++h)
      store_half(call.gemm, row, place.end_row, (place.column_tile * kHalves + h) * kTileSide,
                 sums[h]);
  }
}

// One block of k after the other, the halves of each. A tile's first scales are asked for before
// the tile before it is stored.
template <bool kSegments, class Grid>
TENON_DEVICE void multiply_tiles(const TilesCall& call, const Grid& grid,
                                 const TilesRing<Grid>& ring) {
  static_assert(!kSegments || Grid::kHalves == 1);  // registers for a second set of sums
  if (grid.first >= grid.end) return;
  const TileWarp warp = tile_warp(ring, grid.cluster);
  RingPlace from;
  HalfSums made = {};
  TilePlace place = grid.place(grid.first);
  ScalesOf<Grid> scales = tile_scales(call, grid, place, warp);
  TENON_NO_UNROLL
  for (int t = grid.first; t < grid.end; t += grid.step) {
    HalfSums sums[Grid::kHalves] = {};
    HalfSums whole[1] = {};
    int b = 0;
    TENON_NO_UNROLL
    for (int segment = 0; segment < (kSegments ? call.cut.count : 1); ++segment) {
      const int end = call.cut.begin(segment + 1) / kProductBlock;
      TENON_NO_UNROLL
      for (; b < end; ++b) {
        advance_scales(scales, b);
        barrier_wait(&ring.full[from.stage], from.parity);
        TENON_UNROLL
        for (int h = 0; h < Grid::kHalves; ++h) {
          start_products(ring, warp, from.stage, h, made);
          const auto scale = row_scales<Grid>(scales, h, b);
          wgmma_wait_all();
          hold_sums(made);
          if (h == Grid::kHalves - 1) release_stage(ring, warp, from.stage);
          add_scaled(sums[h], made, scale);
        }
        from.next(ring.kStages);
      }
      if constexpr (kSegments) {
        TENON_UNROLL
        for (int e = 0; e < 64; ++e) {
          whole[0][e] = segment == 0 ? sums[0][e] : whole[0][e] + sums[0][e];
          sums[0][e] = 0.0f;
        }
      }
    }
    const TilePlace done = place;
    if (t + grid.step < grid.end) {
      place = grid.place(t + grid.step);
      scales = tile_scales(call, grid, place, warp);
    }
    store_tile(call, grid, done, warp, t, kSegments ? whole : sums);
  }
}

// One half and one segment: two sets of products, of which one is made while the other is scaled.
template <class Grid>
TENON_DEVICE void multiply_ahead(const TilesCall& call, const Grid& grid,
                                 const TilesRing<Grid>& ring) {
  static_assert(Grid::kHalves == 1 && !Grid::kActivates);
  if (grid.first >= grid.end) return;
  const TileWarp warp = tile_warp(ring, grid.cluster);
  RingPlace from, freed;
  HalfSums made[2] = {};
  const int blocks = call.cut.num_blocks;
  TilePlace place = grid.place(grid.first);
  ScalesOf<Grid> scales = tile_scales(call, grid, place, warp);
  TENON_NO_UNROLL
  for (int t = grid.first; t < grid.end; t += grid.step) {
    RowScales<Grid::kParts> scale[2];
    HalfSums sums[1] = {};
    const auto start = [&]<int kSet>(int b) {
      advance_scales(scales, b);
      barrier_wait(&ring.full[from.stage], from.parity);
      start_products(ring, warp, from.stage, 0, made[kSet]);
      scale[kSet] = row_scales<Grid>(scales, 0, b);
      from.next(ring.kStages);
    };
    const auto finish = [&]<int kSet>() {
      hold_sums(made[kSet]);
      release_stage(ring, warp, freed.stage);
      freed.next(ring.kStages);
      add_scaled(sums[0], made[kSet], scale[kSet]);
    };
    start.template operator()<0>(0);
    int b = 0;  // is in set 0
    TENON_NO_UNROLL
    for (; b + 2 < blocks; b += 2) {
      start.template operator()<1>(b + 1);
      wgmma_wait_all_but<1>();
      finish.template operator()<0>();
      start.template operator()<0>(b + 2);
      wgmma_wait_all_but<1>();
      finish.template operator()<1>();
    }
    if (b + 1 < blocks) {
      start.template operator()<1>(b + 1);
      wgmma_wait_all_but<1>();
      finish.template operator()<0>();
      wgmma_wait_all();
      finish.template operator()<1>();
    } else {
      wgmma_wait_all();
      finish.template operator()<0>();
    }
    const TilePlace done = place;
    if (t + grid.step < grid.end) {
      place = grid.place(t + grid.step);
      scales = tile_scales(call, grid, place, warp);
    }
    store_tile(call, grid, done, warp, t, sums);
  }
}

// Of bf16: a block is two stages, its sums are added as they are, segments in order.
template <class Grid>
TENON_DEVICE void multiply_bf16(const TilesCall& call, const Grid& grid,
                                const TilesRing<Grid>& ring) {
  static_assert(Grid::kBf16 && Grid::kHalves == 1);
  const TileWarp warp = tile_warp(ring, grid.cluster);
  RingPlace from;
  HalfSums made = {};
  TENON_NO_UNROLL
  for (int t = grid.first; t < grid.end; t += grid.step) {
    HalfSums whole[1] = {};
    int b = 0;
    TENON_NO_UNROLL
    for (int segment = 0; segment < call.cut.count; ++segment) {
      const int end = call.cut.begin(segment + 1) / kProductBlock;
      HalfSums sums = {};
      TENON_NO_UNROLL
      for (; b < end; ++b) {
        RingPlace second = from;
        second.next(ring.kStages);
        barrier_wait(&ring.full[from.stage], from.parity);
        barrier_wait(&ring.full[second.stage], second.parity);
        wgmma_begin();
        add_products(ring, warp, from.stage, 0, false, made);
        add_products(ring, warp, second.stage, 0, true, made);
        wgmma_commit();
        wgmma_wait_all();
        hold_sums(made);
        release_stage(ring, warp, from.stage);
        release_stage(ring, warp, second.stage);
        TENON_UNROLL
        for (int e = 0; e < 64; ++e) sums[e] = sums[e] + made[e];
        from = second;
        from.next(ring.kStages);
      }
      TENON_UNROLL
      for (int e = 0; e < 64; ++e) whole[0][e] = segment == 0 ? sums[e] : whole[0][e] + sums[e];
    }
    store_tile(call, grid, grid.place(t), warp, t, whole);
  }
}

template <class Grid, bool kSegments>
TENON_KERNEL_RESIDENT(kTilesThreads, 1)
sm90_tiles_kernel(TENON_ARGS(TilesCall) call) {
  static_assert(!Grid::kActivates || Grid::kHalves == 2);
  TENON_SHARED_TILES(shared);
  const Grid grid = tile_grid<Grid>(call);
  auto* barriers = reinterpret_cast<Mbarrier*>(shared + Grid::kStages * Grid::kBytes);
  const TilesRing<Grid> ring{shared, barriers, barriers + Grid::kStages};
  if (thread_id() == kTilesConsumers) open_ring(ring, call.cluster);
  sync_wave();
  sync_block();
  if (call.cluster > 1) {  // before anything is sent into the other block
    cluster_arrive();
    cluster_wait();
  }
  if (thread_id() >= kTilesConsumers) {
    give_registers<24>();
    if (thread_id() == kTilesConsumers) {
      fill_tiles(call, grid, ring);
    } else {
      wait_for_previous();
    }
  } else {
    take_registers<240>();
    wait_for_previous();
    if (thread_id() == 0) let_next_start();
    if constexpr (Grid::kBf16) {
      multiply_bf16(call, grid, ring);
    } else if constexpr (Grid::kHalves == 1 && !kSegments) {
      multiply_ahead(call, grid, ring);
    } else {
      multiply_tiles<kSegments>(call, grid, ring);
    }
  }
  sync_wave();
  if (call.cluster > 1) {  // the other block may write and arrive here until it ends
    cluster_arrive();
    cluster_wait();
  }
}

// --- plans ------------------------------------------------------------------------------------

inline constexpr std::string_view kTilesName = "sm90_tiles_kernel";

// Tiles of 128 × 128 · halves.
inline void plan_tiles(const GemmCall& gemm, int halves, const PlanContext& where, Recipe* recipe) {
  const int row_tiles = ceil_div(gemm.rows, kTileSide);
  const int cluster = row_tiles >= 16 ? 2 : 1;
  const std::int64_t work =
      std::int64_t{1} * ceil_div(row_tiles, cluster) * ceil_div(gemm.n, kTileSide * halves);
  const std::int64_t places = where.properties.num_units / cluster;
  LaunchShape shape;
  shape.blocks = static_cast<int>(work < places ? work : places) * cluster;
  shape.threads = kTilesThreads;
  shape.shared_bytes = static_cast<std::size_t>(tiles_shared_bytes(halves));
  shape.cluster = cluster;
  shape.early = where.may_start_early;
  recipe->launch(kTilesName, shape);
  recipe->set("halves", halves);
}

// The call of such a plan; element_bytes: 1 or 2. Without scales and activation.
inline Result<TilesCall> tiles_call(const GemmCall& gemm, int halves, int cluster,
                                    int element_bytes) {
  TilesCall call;
  call.gemm = gemm;
  call.cut = segments_of(gemm.n, gemm.k);
  call.cluster = cluster;
  const std::int64_t row = std::int64_t{1} * gemm.k * element_bytes;
  TENON_ASSIGN(call.x, sm90_map(gemm.x, gemm.rows, row, gemm.x_stride * element_bytes, kTileSide));
  TENON_ASSIGN(call.weight, sm90_map(gemm.weight, gemm.n, row, gemm.weight_stride * element_bytes,
                                     kTileSide / 2 * halves));
  return call;
}

}  // namespace tenon::TENON_TARGET
