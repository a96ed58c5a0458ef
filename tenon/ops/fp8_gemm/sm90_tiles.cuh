// fp8_gemm, dense, for many rows on Hopper (sm_90a): bound by the tensor cores. The same bits as
// the kernels for few rows (ops/common/sm90_product.cuh): wgmma gives the same sums whichever
// operand has its 64 rows, and here those are rows of x.
//
// A block of threads, one on a multiprocessor, makes one tile after another of 128 rows and 128 ·
// kHalves columns. One thread fills a ring of stages with a block of 128 of k each: a tile of x and
// kHalves tiles of the weight. In a cluster of two, which have the same columns, each asks for half
// of the weight and the copy engine writes it to both. Two warpgroups multiply 64 rows each, a half
// of the columns at a time. A warpgroup that has registers for it (one half, one segment) starts
// the products of a block of k before it scales those of the block before: the tensor cores always
// have something to do. Else the other warpgroup has to fill the gaps.
//
// kActivates: the halves are gate and up, so a thread has both of an output, and four neighbouring
// lanes have a group of 128 of a row.
#pragma once

#include "tenon/device/cuda_hip/sm90/tma.cuh"
#include "tenon/device/cuda_hip/sm90/wgmma.cuh"
#include "tenon/device/variant.h"
#include "tenon/ops/common/quantize.cuh"
#include "tenon/ops/common/silu_mul.cuh"
#include "tenon/ops/fp8_gemm/call.cuh"

namespace tenon::TENON_TARGET::fp8_gemm {

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
  int first_row, column_tile;
};
template <int kHalves, bool kActivates>
struct TileGrid {
  int row_units, column_tiles, width;  // a unit: rows of a cluster
  int cluster, rank;
  int first, step, end;

  // Bands of units of rows: a part of the weight is read by all of a band at about one time.
  TENON_HD TilePlace place(int t) const {
    const int band = t / (kTilesBand * column_tiles) * kTilesBand;
    const int in_band = row_units - band < kTilesBand ? row_units - band : kTilesBand;
    const int rest = t - band * column_tiles;
    return {((band + rest % in_band) * cluster + rank) * kTileSide, rest / in_band};
  }
  // The column of n where part 0 or 1 of a tile's weight begins.
  TENON_HD int column_of(const TilePlace& at, int part) const {
    return kActivates ? part * width + at.column_tile * kTileSide
                      : (2 * at.column_tile + part) * (kTileSide / 2) * kHalves;
  }
  // The scales' group of columns of a half; of the last one where it does not exist.
  TENON_HD int group_of(const TilePlace& at, int half, int n) const {
    const int group =
        kActivates ? column_of(at, half) / kTileSide : at.column_tile * kHalves + half;
    const int last = (n - 1) / kTileSide;
    return group < last ? group : last;
  }
};
template <int kHalves, bool kActivates>
TENON_DEVICE TileGrid<kHalves, kActivates> tile_grid(const TilesCall& call) {
  TileGrid<kHalves, kActivates> grid{};
  grid.cluster = call.cluster;
  grid.rank = block_id() % call.cluster;
  grid.row_units = ceil_div(call.gemm.rows, kTileSide * call.cluster);
  grid.column_tiles = ceil_div(call.gemm.n, kTileSide * kHalves);
  grid.width = call.gemm.n / 2;
  grid.first = block_id() / call.cluster;
  grid.step = grid_blocks() / call.cluster;
  grid.end = grid.row_units * grid.column_tiles;
  return grid;
}

template <int kHalves>
struct TilesRing {
  static constexpr int kStages = tiles_stages(kHalves);
  static constexpr int kBytes = tiles_stage_bytes(kHalves);
  std::byte* shared;
  Mbarrier *full, *empty;
};

template <int kHalves, bool kActivates>
TENON_DEVICE void ask_weight(const TilesCall& call, const TileGrid<kHalves, kActivates>& grid,
                             const TilesRing<kHalves>& ring, const TilePlace& at, int block,
                             int stage, std::uint64_t policy) {
  TENON_UNROLL
  for (int part = 0; part < 2; ++part) {
    std::byte* const to =
        ring.shared + stage * ring.kBytes + kTileSquare + part * (kHalves * kTileSquare / 2);
    const int column = grid.column_of(at, part);
    if (grid.cluster == 1) {
      copy_tile(to, &call.weight, block * kTileSide, column, &ring.full[stage], policy);
    } else if (part == grid.rank) {
      copy_tile_to(3, to, &call.weight, block * kTileSide, column, &ring.full[stage], policy);
    }
  }
}

// One thread. The weights of the first stages are asked for before the wait for the kernel before.
template <int kHalves, bool kActivates>
TENON_DEVICE void fill_tiles(const TilesCall& call, const TileGrid<kHalves, kActivates>& grid,
                             const TilesRing<kHalves>& ring) {
  const std::uint64_t policy = policy_evict_last();
  const int blocks = call.cut.num_blocks;
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

// Scales of a thread's two rows and kHalves groups of columns. Each of four neighbouring lanes
// holds the products of one of four blocks of k, and has asked for those of the next four.
template <int kHalves>
struct TileScales {
  const float* x[2];
  const float* weight[kHalves];
  std::int64_t x_stride;
  int last;  // block of k
  float made[2][kHalves], next_x[2], next_weight[kHalves];
};
template <int kHalves>
TENON_DEVICE void ask_scales(TileScales<kHalves>& scales, int block) {
  const int own = block + thread_id() % 4, at = own < scales.last ? own : scales.last;
  TENON_UNROLL
  for (int r = 0; r < 2; ++r) scales.next_x[r] = scales.x[r][at * scales.x_stride];
  TENON_UNROLL
  for (int h = 0; h < kHalves; ++h) scales.next_weight[h] = scales.weight[h][at];
}
// Before block `block` of k; blocks ascend from 0.
template <int kHalves>
TENON_DEVICE void advance_scales(TileScales<kHalves>& scales, int block) {
  if (block % 4 != 0) return;
  TENON_UNROLL
  for (int r = 0; r < 2; ++r) {
    TENON_UNROLL
    for (int h = 0; h < kHalves; ++h) scales.made[r][h] = scales.next_x[r] * scales.next_weight[h];
  }
  ask_scales(scales, block + 4);
}

// sums[4 j + 2 r + c] belongs to row g + 8 r of the warp's 16 and column 8 j + 2 p + c of the half,
// for lane 4 g + p.
using HalfSums = float[64];

// `row`: of a lane's first sums; `column`: of the half's first. Lanes exchange, so that four
// neighbours write 32 bytes in a row.
TENON_DEVICE void store_in_fours(const GemmCall& gemm, int row, int column, const HalfSums& sums) {
  const int pair = thread_id() % 4, odd = pair % 2;
  TENON_UNROLL
  for (int r = 0; r < 2; ++r) {
    const bool exists = row + 8 * r < gemm.rows;
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
TENON_DEVICE void store_half(const GemmCall& gemm, int row, int column, const HalfSums& sums) {
  if (!gemm.out_is_f32 && gemm.n % 4 == 0 && gemm.out_stride % 4 == 0 &&
      reinterpret_cast<std::uintptr_t>(gemm.out) % 8 == 0) {
    store_in_fours(gemm, row, column, sums);
    return;
  }
  TENON_UNROLL
  for (int e = 0; e < 64; ++e) {
    const int of_row = row + 8 * (e / 2 % 2);
    const int at = column + 8 * (e / 4) + 2 * (thread_id() % 4) + e % 2;
    if (of_row < gemm.rows && at < gemm.n) store_output(gemm, of_row, at, sums[e]);
  }
}

// Codes of gate and up, a group of 128 of each row in four lanes.
TENON_DEVICE void store_activated(const TilesCall& call, int row, int group, const HalfSums& gate,
                                  const HalfSums& up) {
  const int pair = thread_id() % 4, odd = pair % 2;
  TENON_UNROLL
  for (int r = 0; r < 2; ++r) {
    std::uint32_t held[16], most = 0;
    TENON_UNROLL
    for (int j = 0; j < 16; ++j) {
      const int e = 4 * j + 2 * r;
      const std::uint32_t g = convert_bf16x2(gate[e], gate[e + 1]);
      const std::uint32_t u = convert_bf16x2(up[e], up[e + 1]);
      held[j] = convert_bf16x2(silu_mul_f(low_half<bf16>(g), low_half<bf16>(u)),
                               silu_mul_f(high_half<bf16>(g), high_half<bf16>(u)));
      most = larger(most, larger(held[j] & 0x7fffu, held[j] >> 16 & 0x7fffu));
    }
    most = larger(most, shuffle_xor(most, 1));
    most = larger(most, shuffle_xor(most, 2));
    const bool exists = row + 8 * r < call.gemm.rows;
    const QuantSpec at = at_row(call.activated, row + 8 * r);
    const ChosenScale scale = choose_scale<bf16>(at, most);
    // Codes of two j: columns 2 p and 2 p + 1 of either. Then four columns of one, then eight.
    std::uint32_t fours[8];
    TENON_UNROLL
    for (int i = 0; i < 8; ++i) {
      const std::uint32_t a = held[2 * i], b = held[2 * i + 1];
      const std::uint32_t codes = pack_fp8x4<DType::kE4M3>(
          low_half<bf16>(a) * scale.multiplier, high_half<bf16>(a) * scale.multiplier,
          low_half<bf16>(b) * scale.multiplier, high_half<bf16>(b) * scale.multiplier);
      const std::uint32_t got = shuffle_xor(odd ? codes & 0xffffu : codes >> 16, 1);
      fours[i] = odd ? got | (codes & 0xffff0000u) : (codes & 0xffffu) | got << 16;
    }
    TENON_UNROLL
    for (int i = 0; i < 8; i += 2) {
      const bool second = pair >= 2;
      const std::uint32_t got = shuffle_xor(second ? fours[i] : fours[i + 1], 2);
      const int column = group * kTileSide + 8 * (2 * i + 2 * second + odd);
      if (exists)
        store8_bytes(at.codes + column, second ? got : fours[i], second ? fours[i + 1] : got);
    }
    if (exists && pair == 0) store_scale(at, 0, group, scale.word);
  }
}

template <int kHalves, bool kActivates>
TENON_DEVICE TileScales<kHalves> tile_scales(const TilesCall& call,
                                             const TileGrid<kHalves, kActivates>& grid,
                                             const TilePlace& place, int row) {
  TileScales<kHalves> scales;
  scales.x_stride = call.scales.x_block_stride;
  scales.last = call.cut.num_blocks - 1;
  TENON_UNROLL
  for (int r = 0; r < 2; ++r) {
    const int exists = row + 8 * r < call.gemm.rows ? row + 8 * r : call.gemm.rows - 1;
    scales.x[r] = call.scales.x + exists * call.scales.x_row_stride;
  }
  TENON_UNROLL
  for (int h = 0; h < kHalves; ++h)
    scales.weight[h] =
        call.scales.weight + grid.group_of(place, h, call.gemm.n) * call.scales.weight_row_stride;
  ask_scales(scales, 0);
  return scales;
}

// What a warp knows of its part of the tiles, all of a block's being alike.
struct TileWarp {
  int row;                  // of the tile: that of a lane's first sums
  std::uint64_t x, weight;  // descriptors in the first stage
  int lane, cluster;
};
template <int kHalves>
TENON_DEVICE TileWarp tile_warp(const TilesRing<kHalves>& ring, int cluster) {
  const int group = shuffle_from(thread_id() / 128, 0), lane = thread_id() % kWave;
  return {group * 64 + thread_id() % 128 / kWave * 16 + lane / 4,
          tile_descriptor(ring.shared + group * kTileSquare / 2),
          tile_descriptor(ring.shared + kTileSquare), lane, cluster};
}
// The four products of a block of k and a half, from zero.
template <int kHalves>
TENON_DEVICE void start_products(const TilesRing<kHalves>& ring, const TileWarp& warp, int stage,
                                 int half, HalfSums& made) {
  const int at = stage * (ring.kBytes / 16);
  wgmma_begin();
  TENON_UNROLL
  for (int k = 0; k < 4; ++k)
    add_product<kTileSide>(made, descriptor_at(warp.x, at + 2 * k),
                           descriptor_at(warp.weight, at + half * (kTileSquare / 16) + 2 * k),
                           k > 0);
  wgmma_commit();
}
template <int kHalves>
TENON_DEVICE void release_stage(const TilesRing<kHalves>& ring, const TileWarp& warp, int stage) {
  if (warp.cluster == 1) {
    if (warp.lane == 0) barrier_arrive(&ring.empty[stage]);
  } else if (warp.lane < 2) {
    barrier_arrive_at(&ring.empty[stage], static_cast<std::uint32_t>(warp.lane));
  }
}
// Of rows g and g + 8, for block `block` of k.
struct RowScales {
  float of[2];
};
template <int kHalves>
TENON_DEVICE RowScales row_scales(const TileScales<kHalves>& scales, int half, int block) {
  const int from = thread_id() % kWave / 4 * 4 + block % 4;
  return {shuffle_from(scales.made[0][half], from), shuffle_from(scales.made[1][half], from)};
}
TENON_DEVICE void add_scaled(HalfSums& sums, const HalfSums& made, const RowScales& scale) {
  TENON_UNROLL
  for (int e = 0; e < 64; ++e) sums[e] = fma_f(made[e], scale.of[e / 2 % 2], sums[e]);
}

// One block of k after the other, kHalves halves of each.
template <int kHalves, bool kActivates, bool kSegments>
TENON_DEVICE void multiply_tiles(const TilesCall& call, const TileGrid<kHalves, kActivates>& grid,
                                 const TilesRing<kHalves>& ring) {
  const GemmCall& gemm = call.gemm;
  const TileWarp warp = tile_warp(ring, grid.cluster);
  RingPlace from;
  HalfSums made = {};
  TENON_NO_UNROLL
  for (int t = grid.first; t < grid.end; t += grid.step) {
    const TilePlace place = grid.place(t);
    const int row = place.first_row + warp.row;
    TileScales<kHalves> scales = tile_scales(call, grid, place, row);
    float sums[kHalves][64] = {};
    float whole[kSegments ? 64 : 1] = {};
    int b = 0;
    TENON_NO_UNROLL
    for (int segment = 0; segment < (kSegments ? call.cut.count : 1); ++segment) {
      const int end = call.cut.begin(segment + 1) / kProductBlock;
      TENON_NO_UNROLL
      for (; b < end; ++b) {
        advance_scales(scales, b);
        barrier_wait(&ring.full[from.stage], from.parity);
        TENON_UNROLL
        for (int h = 0; h < kHalves; ++h) {
          start_products(ring, warp, from.stage, h, made);
          const RowScales scale = row_scales(scales, h, b);
          wgmma_wait_all();
          hold_sums(made);
          if (h == kHalves - 1) release_stage(ring, warp, from.stage);
          add_scaled(sums[h], made, scale);
        }
        from.next(ring.kStages);
      }
      if constexpr (kSegments) {
        TENON_UNROLL
        for (int e = 0; e < 64; ++e) {
          whole[e] = segment == 0 ? sums[0][e] : whole[e] + sums[0][e];
          sums[0][e] = 0.0f;
        }
      }
    }
    if constexpr (kActivates) {
      store_activated(call, row, place.column_tile, sums[0], sums[1]);
    } else if constexpr (kSegments) {
      store_half(gemm, row, place.column_tile * kTileSide, whole);
    } else {
      TENON_UNROLL
      for (int h = 0; h < kHalves; ++h)
        store_half(gemm, row, (place.column_tile * kHalves + h) * kTileSide, sums[h]);
    }
  }
}

// One half and one segment: two sets of products, of which one is made while the other is scaled.
TENON_DEVICE void multiply_ahead(const TilesCall& call, const TileGrid<1, false>& grid,
                                 const TilesRing<1>& ring) {
  const TileWarp warp = tile_warp(ring, grid.cluster);
  RingPlace from, freed;
  HalfSums made[2] = {};
  TENON_NO_UNROLL
  for (int t = grid.first; t < grid.end; t += grid.step) {
    const TilePlace place = grid.place(t);
    const int row = place.first_row + warp.row, blocks = call.cut.num_blocks;
    TileScales<1> scales = tile_scales(call, grid, place, row);
    RowScales scale[2];
    HalfSums sums = {};
    const auto start = [&]<int kSet>(int b) {
      advance_scales(scales, b);
      barrier_wait(&ring.full[from.stage], from.parity);
      start_products(ring, warp, from.stage, 0, made[kSet]);
      scale[kSet] = row_scales(scales, 0, b);
      from.next(ring.kStages);
    };
    const auto finish = [&]<int kSet>() {
      hold_sums(made[kSet]);
      release_stage(ring, warp, freed.stage);
      freed.next(ring.kStages);
      add_scaled(sums, made[kSet], scale[kSet]);
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
    store_half(call.gemm, row, place.column_tile * kTileSide, sums);
  }
}

template <int kHalves, bool kActivates, bool kSegments>
TENON_KERNEL_RESIDENT(kTilesThreads, 1)
sm90_tiles_kernel(TENON_ARGS(TilesCall) call) {
  static_assert(!kActivates || kHalves == 2);
  static_assert(!kSegments || kHalves == 1);  // registers for a second set of sums
  TENON_SHARED_TILES(shared);
  constexpr int kStages = tiles_stages(kHalves);
  const auto grid = tile_grid<kHalves, kActivates>(call);
  auto* barriers = reinterpret_cast<Mbarrier*>(shared + kStages * tiles_stage_bytes(kHalves));
  const TilesRing<kHalves> ring{shared, barriers, barriers + kStages};
  if (thread_id() == kTilesConsumers) {
    TENON_NO_UNROLL
    for (int stage = 0; stage < kStages; ++stage) {
      barrier_init(&ring.full[stage], 1);
      barrier_init(&ring.empty[stage],
                   static_cast<std::uint32_t>(kTilesConsumers / kWave * call.cluster));
    }
    publish_barriers();
  }
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
    if constexpr (kHalves == 1 && !kSegments) {
      multiply_ahead(call, grid, ring);
    } else {
      multiply_tiles<kHalves, kActivates, kSegments>(call, grid, ring);
    }
  }
  sync_wave();
  if (call.cluster > 1) {  // the other block may write and arrive here until it ends
    cluster_arrive();
    cluster_wait();
  }
}

}  // namespace tenon::TENON_TARGET::fp8_gemm
