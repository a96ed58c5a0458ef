// fp8_gemm grouped by expert, for experts with many rows each, on Hopper (sm_90a): the tiles of
// ops/common/sm90_tiles.cuh, of which every one lies in one expert. The same bits.
//
// A cluster of two blocks of threads makes one unit of 128 rows of an expert and 256 columns after
// the other, each block 64 of the rows. Each asks for its own rows of x, which threads copy where
// row_of scatters them, and for half of the weight, which the copy engine writes to both. A
// warpgroup has 128 of the columns.
//
// kActivates: the unit is a group of 128 of the activation, gate and up. A warpgroup has 64 columns
// of gate and the same 64 of up, and the two tell each other how large theirs are.
#pragma once

#include "tenon/device/cuda_hip/sm90/lanes.cuh"
#include "tenon/device/cuda_hip/sm90/thread_copy.cuh"
#include "tenon/ops/common/sm90_tiles.cuh"

namespace tenon::TENON_TARGET::fp8_gemm {

inline constexpr int kUnitCluster = 2;
inline constexpr int kUnitProducers = kTilesThreads - kTilesConsumers;
inline constexpr int kUnitRows = 64 * kUnitCluster, kUnitColumns = 2 * kTileSide;

// What lies behind the ring in shared memory; then offsets and units of the experts, one more of
// each than there are experts.
struct UnitShared {
  std::uint32_t largest[2][kTilesConsumers / 128][kUnitRows / kUnitCluster];  // by turns
};

template <bool kActivatesOf>
struct UnitGrid {
  static constexpr int kHalves = 1;
  static constexpr bool kActivates = kActivatesOf, kBf16 = false;
  static constexpr int kParts = kActivates ? 2 : 1;
  static constexpr int kStages = 5;
  static constexpr int kXBytes = kUnitRows / kUnitCluster * kTileSide;
  static constexpr int kBytes = kXBytes + kUnitColumns * kTileSide;
  static constexpr int kRowsApart = 0, kColumnsApart = kTileSide;

  UnitShared* shared;
  const std::int32_t *offsets, *units;  // [experts + 1]; units: those of the experts before
  int experts, column_tiles, width;
  int cluster, rank;
  int first, step, end;

  // Units of an expert follow each other, the columns of each side by side.
  TENON_HD TilePlace place(int t) const {
    const int unit = t / column_tiles;
    int expert = 0;  // the last one with units[expert] <= unit
    for (int beyond = experts; beyond - expert > 1;) {
      const int middle = (expert + beyond) / 2;
      (units[middle] <= unit ? expert : beyond) = middle;
    }
    return {
        offsets[expert] + ((unit - units[expert]) * kUnitCluster + rank) * (kXBytes / kTileSide),
        offsets[expert + 1], t % column_tiles, expert};
  }
  // The column of the expert's n where 64 rows of the weight begin, for part 0 or 1 of a half.
  TENON_HD int column_of(const TilePlace& at, int half, int part) const {
    return kActivates ? part * width + at.column_tile * kTileSide + half * kTileSide / 2
                      : at.column_tile * kUnitColumns + half * kTileSide + part * kTileSide / 2;
  }
  TENON_HD int group_of(const TilePlace& at, int warpgroup, int part, int n) const {
    const int group = column_of(at, warpgroup, part) / kTileSide, last = (n - 1) / kTileSide;
    return group < last ? group : last;
  }
};

constexpr int unit_shared_bytes(int experts) {
  using Grid = UnitGrid<false>;
  return Grid::kStages * (Grid::kBytes + 16) + static_cast<int>(sizeof(UnitShared)) +
         2 * (experts + 1) * 4;
}

// By the first wave: how many units the experts before each one have.
TENON_DEVICE void count_units(int experts, const std::int32_t* offsets, std::int32_t* units) {
  const int lane = thread_id(), share = (experts + kWave - 1) / kWave;
  const int begin = lane * share < experts ? lane * share : experts;
  const int end = begin + share < experts ? begin + share : experts;
  const auto units_of = [&](int expert) {
    return (offsets[expert + 1] - offsets[expert] + kUnitRows - 1) / kUnitRows;
  };
  int own = 0;
  TENON_NO_UNROLL
  for (int expert = begin; expert < end; ++expert) own += units_of(expert);
  int before = sum_before(own);
  TENON_NO_UNROLL
  for (int expert = begin; expert < end; ++expert) {
    units[expert] = before;
    before += units_of(expert);
  }
  if (lane == kWave - 1) units[experts] = before;
}

// The rows of a block's tile that exist.
template <bool kActivates>
TENON_DEVICE int rows_of(const UnitGrid<kActivates>& grid, const TilePlace& at) {
  constexpr int kMost = grid.kXBytes / kTileSide;
  const int left = at.end_row - at.first_row;
  return left < 0 ? 0 : left < kMost ? left : kMost;
}

// One thread asks for a block's half of the weight. x_bytes: of x, that the copy engine will bring.
template <bool kActivates>
TENON_DEVICE void ask_unit(const TilesCall& call, const UnitGrid<kActivates>& grid,
                           const TilesRing<UnitGrid<kActivates>>& ring, const TilePlace& at,
                           int block, int stage, int x_bytes, std::uint64_t policy) {
  barrier_arrive_expect(&ring.full[stage],
                        static_cast<std::uint32_t>(grid.kBytes - grid.kXBytes + x_bytes));
  TENON_UNROLL
  for (int part = 0; part < 2; ++part)
    copy_tile_to(3,
                 ring.shared + stage * ring.kBytes + grid.kXBytes +
                     (2 * grid.rank + part) * (kTileSquare / 2),
                 &call.weight, block * kTileSide,
                 at.expert * call.gemm.n + grid.column_of(at, grid.rank, part), &ring.full[stage],
                 policy);
}

// By one thread, where an expert's rows of x lie together.
template <bool kActivates>
TENON_DEVICE void fill_units(const TilesCall& call, const UnitGrid<kActivates>& grid,
                             const TilesRing<UnitGrid<kActivates>>& ring) {
  const std::uint64_t once = policy_evict_first(), often = policy_evict_last();
  RingPlace to;
  TENON_NO_UNROLL
  for (int t = grid.first; t < grid.end; t += grid.step) {
    const TilePlace at = grid.place(t);
    const int x_bytes = rows_of(grid, at) > 0 ? grid.kXBytes : 0;
    TENON_NO_UNROLL
    for (int b = 0; b < call.cut.num_blocks; ++b) {
      barrier_wait_cluster(&ring.empty[to.stage], to.parity ^ 1);
      ask_unit(call, grid, ring, at, b, to.stage, x_bytes, once);
      if (x_bytes > 0)
        copy_tile(ring.shared + to.stage * ring.kBytes, &call.x, b * kTileSide, at.first_row,
                  &ring.full[to.stage], often);
      to.next(ring.kStages);
    }
  }
}

// By four waves, where the rows are scattered: the copy engine takes 40 ns for a row (H100,
// 2026-11-28), threads copy 32 of their chunks at once. A wave tells of a stage two stages later,
// so that nobody waits for a copy that was just asked for.
template <bool kActivates>
TENON_DEVICE void gather_units(const TilesCall& call, const UnitGrid<kActivates>& grid,
                               const TilesRing<UnitGrid<kActivates>>& ring) {
  constexpr int kLater = 2, kChunks = kTileSide / 16;
  constexpr int kEach = grid.kXBytes / 16 / kUnitProducers;
  const GemmCall& gemm = call.gemm;
  const int thread = thread_id() - kTilesConsumers, first_row = thread / kChunks;
  const std::uint64_t once = policy_evict_first();
  RingPlace to, told;
  int untold = 0;
  const auto tell = [&] {
    show_to_tensor_cores();
    sync_wave();
    if (thread % kWave == 0) barrier_arrive(&ring.full[told.stage]);
    told.next(ring.kStages);
  };
  TENON_NO_UNROLL
  for (int t = grid.first; t < grid.end; t += grid.step) {
    const TilePlace at = grid.place(t);
    const int rows = rows_of(grid, at);
    const std::byte* from[kEach];
    TENON_UNROLL
    for (int i = 0; i < kEach; ++i) {
      const int row = first_row + i * (kUnitProducers / kChunks);
      const std::int64_t token = row < rows ? gemm.row_map[at.first_row + row] : 0;
      from[i] =
          static_cast<const std::byte*>(gemm.x) + token * gemm.x_stride + thread % kChunks * 16;
    }
    TENON_NO_UNROLL
    for (int b = 0; b < call.cut.num_blocks; ++b) {
      barrier_wait_cluster(&ring.empty[to.stage], to.parity ^ 1);
      if (thread == 0) ask_unit(call, grid, ring, at, b, to.stage, 0, once);
      std::byte* const x = ring.shared + to.stage * ring.kBytes;
      TENON_UNROLL
      for (int i = 0; i < kEach; ++i) {
        const int row = first_row + i * (kUnitProducers / kChunks);
        if (row < rows)
          copy16_later(x + tile_place(row, thread % kChunks), from[i] + b * kTileSide, 16);
      }
      end_copies();
      to.next(ring.kStages);
      if (untold < kLater) {
        ++untold;
      } else {
        await_copies_but<kLater>();
        tell();
      }
    }
  }
  await_copies_but<0>();
  TENON_NO_UNROLL
  for (; untold > 0; --untold) tell();
}

// Every thread that multiplies calls this, whatever its rows.
template <bool kActivates>
TENON_DEVICE void store_tile(const TilesCall& call, const UnitGrid<kActivates>& grid,
                             const TilePlace& place, const TileWarp& warp, int t,
                             const HalfSums* sums) {
  const int row = place.first_row + warp.row;
  if constexpr (!kActivates) {
    store_half(call.gemm, row, place.end_row, place.column_tile * kUnitColumns + warp.column,
               sums[0]);
  } else {
    auto& largest = grid.shared->largest[t / grid.step % 2];
    std::uint32_t held[2][8];
    TENON_UNROLL
    for (int r = 0; r < 2; ++r) {
      const std::uint32_t most = activate(sums[0], sums[0] + 32, r, held[r]);
      if (thread_id() % 4 == 0) largest[warp.group][warp.row + 8 * r] = most;
    }
    sync_first_threads<kTilesConsumers>();
    TENON_UNROLL
    for (int r = 0; r < 2; ++r) {
      const bool exists = row + 8 * r < place.end_row;
      const QuantSpec at = at_row(call.activated, row + 8 * r);
      const ChosenScale scale = choose_scale<bf16>(
          at, larger(largest[0][warp.row + 8 * r], largest[1][warp.row + 8 * r]));
      store_codes(at.codes + place.column_tile * kTileSide + warp.column / 2, exists, held[r],
                  scale.multiplier);
      if (exists && warp.column + thread_id() % 4 == 0)
        store_scale(at, 0, place.column_tile, scale.word);
    }
  }
}

template <bool kActivates, bool kSegments>
TENON_KERNEL_RESIDENT(kTilesThreads, 1)
expert_tiles_kernel(TENON_ARGS(TilesCall) call) {
  static_assert(kSegments || !kActivates);  // an activation takes any number of segments
  using Grid = UnitGrid<kActivates>;
  TENON_SHARED_TILES(shared);
  auto* const barriers = reinterpret_cast<Mbarrier*>(shared + Grid::kStages * Grid::kBytes);
  auto* const behind = reinterpret_cast<UnitShared*>(barriers + 2 * Grid::kStages);
  auto* const offsets = reinterpret_cast<std::int32_t*>(behind + 1);
  const int experts = call.gemm.experts;
  auto* const units = offsets + experts + 1;
  const TilesRing<Grid> ring{shared, barriers, barriers + Grid::kStages};
  const bool scattered = call.gemm.row_map != nullptr;
  if (thread_id() == kTilesConsumers) {
    open_ring(ring, kUnitCluster, scattered ? 1 + kUnitProducers / kWave : 1);
    prefetch_map(&call.weight);
    if (!scattered) prefetch_map(&call.x);
  }
  wait_for_previous();
  if (thread_id() == 0) let_next_start();
  for (int i = thread_id(); i <= experts; i += kTilesThreads) offsets[i] = call.gemm.offsets[i];
  sync_block();
  if (thread_id() < kWave) count_units(experts, offsets, units);
  sync_wave();
  sync_block();
  cluster_arrive();  // before anything is sent into the other block
  cluster_wait();
  Grid grid{};
  grid.shared = behind;
  grid.offsets = offsets;
  grid.units = units;
  grid.experts = experts;
  grid.width = call.gemm.n / 2;
  grid.column_tiles = ceil_div(call.gemm.n, kUnitColumns);
  grid.cluster = kUnitCluster;
  grid.rank = block_id() % kUnitCluster;
  grid.first = block_id() / kUnitCluster;
  grid.step = grid_blocks() / kUnitCluster;
  grid.end = units[experts] * grid.column_tiles;
  if (thread_id() >= kTilesConsumers) {
    give_registers<40>();
    if (scattered) {
      gather_units(call, grid, ring);
    } else if (thread_id() == kTilesConsumers) {
      fill_units(call, grid, ring);
    }
  } else {
    take_registers<232>();
    if constexpr (kSegments) {
      multiply_tiles<true>(call, grid, ring);
    } else {
      multiply_ahead(call, grid, ring);
    }
  }
  sync_wave();
  cluster_arrive();  // the other block may write and arrive here until it ends
  cluster_wait();
}

}  // namespace tenon::TENON_TARGET::fp8_gemm
