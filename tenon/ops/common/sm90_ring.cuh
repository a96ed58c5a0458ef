// Dense products on Hopper, their first half: what a block of threads has to do, the ring of stages
// that its producer fills, and the scales. Which is used by sm90_product.cuh, where it is
// described.
#pragma once

#include "tenon/device/cuda_hip/sm90/thread_copy.cuh"
#include "tenon/device/cuda_hip/sm90/tma.cuh"
#include "tenon/ops/common/gemm_tile.cuh"
#include "tenon/ops/common/quantize.cuh"

namespace tenon::TENON_TARGET {

using namespace sm90;

// kBf16InOrder: a block makes all segments of its outputs itself, one after the other.
// kBf16ByWarps: the same, each segment by a warp; the ring has a stage for every block of k. Rows
// are few and not gathered.
enum class Sm90Kind { kE4m3, kActivated, kBf16, kBf16InOrder, kBf16ByWarps };
TENON_HD constexpr bool is_in_order(Sm90Kind kind) {
  return kind == Sm90Kind::kBf16InOrder || kind == Sm90Kind::kBf16ByWarps;
}
TENON_HD constexpr bool is_bf16(Sm90Kind kind) {
  return kind == Sm90Kind::kBf16 || is_in_order(kind);
}

inline constexpr int kWarpgroup = 128;
inline constexpr int kGroupColumns = 64;
inline constexpr int kTileBytes = 128;  // of each row of a tile
inline constexpr int kSm90Band = 16;    // tiles of rows that share the reading of a tile of columns
inline constexpr int kCopiedRows = 4;   // up to so many rows of x are copied by threads
inline constexpr int kRefills = 4;      // stages that are refilled at once
inline constexpr int kBesideColumns = 16;  // of a block that makes all segments of a product
inline constexpr int kTurnBatch = 4;       // blocks of k that a warpgroup multiplies in its turn
inline constexpr int kRun = 8;  // gathered rows that are copied at once if they follow each other

struct Sm90Call {
  TensorMap x;       // in tiles of a block's rows, or of one if they are gathered
  TensorMap x_runs;  // gathered: in tiles of kRun rows
  TensorMap weight;  // in tiles of a block's columns, or of half of them: sm90_parts()
  GemmCall gemm;
  GemmScales scales;
  QuantSpec activated;  // kActivated
  Segments cut;
  int columns = kGroupColumns;  // of a block: a multiple of 8
  int row_tiles = 1;            // of the grid
  int stages = 1;
};

constexpr int sm90_threads(int groups) { return kWarpgroup * groups + 32; }
// Blocks for which there are registers on a multiprocessor, and how many blocks of k a warpgroup
// then takes at once.
constexpr int sm90_most_resident(int groups) { return groups == 1 ? 3 : 2; }
constexpr int sm90_batch(int kn) { return kn <= 16 ? 4 : kn == 32 ? 2 : 1; }
// Tiles that a block of 128 of k consists of.
TENON_HD constexpr int sm90_tiles(Sm90Kind kind) { return is_bf16(kind) ? 2 : 1; }
// Parts of a block's columns that lie apart: gate and up.
TENON_HD constexpr int sm90_parts(Sm90Kind kind) { return kind == Sm90Kind::kActivated ? 2 : 1; }
// Sets of scales: gate and up, or two groups of 128 columns where a block may lie over their
// border.
TENON_HD constexpr int sm90_scale_sets(Sm90Kind kind, int columns) {
  if (is_bf16(kind)) return 0;
  return kind == Sm90Kind::kActivated || kProductBlock % columns != 0 ? 2 : 1;
}
// Blocks of a cluster: the segments, or those that share a group of 128 activated columns.
TENON_HD constexpr int sm90_cluster(Sm90Kind kind, int columns, const Segments& cut) {
  return kind == Sm90Kind::kActivated ? 2 * kProductBlock / columns
         : is_in_order(kind)          ? 1
                                      : cut.count;
}

// Where things lie in shared memory, in bytes. rows, columns: of a block.
struct Sm90Shared {
  int weight, stage, scales, inbox, barriers, bytes;
};
TENON_HD constexpr Sm90Shared sm90_shared(Sm90Kind kind, int columns, int rows, int stages,
                                          const Segments& cut, int turns = 1) {
  const bool in_order = is_in_order(kind);
  const int longest = in_order ? cut.num_blocks : (cut.num_blocks + cut.count - 1) / cut.count;
  const int groups = (columns + kGroupColumns - 1) / kGroupColumns;
  const int cluster = sm90_cluster(kind, columns, cut);
  const int items = (4 * groups * (rows / 8) + cluster - 1) / cluster;
  Sm90Shared at{};
  at.weight = columns * kTileBytes * sm90_tiles(kind);
  at.stage = at.weight + rows * kTileBytes * sm90_tiles(kind);
  at.inbox = stages * at.stage + (groups * kGroupColumns - columns) * kTileBytes;
  at.scales = at.inbox + (kind == Sm90Kind::kActivated ? cluster * rows * 16
                          : kind == Sm90Kind::kBf16ByWarps || (in_order && turns > 1)
                              ? cut.count * rows * columns * 4
                          : cluster > 1 ? items * cluster * 512
                          : turns > 1   ? rows / 8 * 4 * 512
                                        : 0);
  at.barriers = (at.scales + sm90_scale_sets(kind, columns) * longest * rows * 4 + 7) / 8 * 8;
  at.bytes = at.barriers + (2 * stages + 1 + (turns > 1 ? 4 : 0)) * 8;
  return at;
}

// A block's share, and its shared memory.
template <Sm90Kind kOf, int kColumnGroups, int kRowGroups, int kN, int kOfTurns = 1>
struct Sm90Tile {
  static_assert(kColumnGroups == 1 || kRowGroups == 1);
  static_assert(kOfTurns == 1 || (kColumnGroups == 1 && kRowGroups == 1));
  static constexpr Sm90Kind kKind = kOf;
  static constexpr int kTurns = kOfTurns, kGroups = kColumnGroups * kRowGroups;
  static constexpr int kConsumers = kWarpgroup * kGroups * kTurns;
  static constexpr int kWarps = 4 * kGroups, kColumnWarps = 4 * kColumnGroups;
  static constexpr int kRows = kN * kRowGroups, kSums = kN / 2;
  static constexpr int kTiles = sm90_tiles(kKind), kParts = sm90_parts(kKind);
  static constexpr bool kSplitsRows = kRowGroups > 1;
  static constexpr bool kIsScaled = !is_bf16(kKind);
  static constexpr bool kMayStraddle = kKind == Sm90Kind::kE4m3 && kColumnGroups == 1;

  const Sm90Call& call;
  int rank, cluster;            // the block in its cluster, and blocks of that
  int first_block, num_blocks;  // of k
  int first_row, num_rows, first_column;
  int weight_bytes, stage_bytes;
  std::byte* shared;
  float* scales;           // [num_sets, num_blocks, kRows]: xs · ws
  float4* inbox;           // what other blocks of the cluster, or warps, have sent
  Mbarrier *full, *empty;  // of each stage
  Mbarrier* received;      // all that belongs into the inbox
  Mbarrier* passed;        // kTurns > 1, for each warp of a warpgroup: sums that lie in the inbox

  // The column of n that a part begins with.
  TENON_HD int column_of(int part) const { return first_column + part * (call.gemm.n / 2); }
  TENON_HD int num_sets() const {
    return kParts > 1 || first_column % kProductBlock + call.columns > kProductBlock ? 2 : 1;
  }
  // The group of 128 columns of a set of scales.
  TENON_HD int scale_row(int set) const {
    if (kParts > 1) return column_of(set) / kProductBlock;
    const int row = first_column / kProductBlock + set;
    const int last = (call.gemm.n - 1) / kProductBlock;
    return row < last ? row : last;
  }
  TENON_HD bool gathers() const { return is_bf16(kKind) && call.gemm.row_map != nullptr; }
  // The consumers copy x into the stages of the first round: a copy of theirs takes less time than
  // one of the copy engine, and nothing hides it.
  TENON_HD bool copies_x() const {
    return kRows == 8 && call.gemm.rows <= kCopiedRows && !gathers();
  }
  // What arrives in a stage; in the first round without what consumers copy.
  TENON_HD std::uint32_t arriving_bytes() const {
    return static_cast<std::uint32_t>(weight_bytes +
                                      (gathers() ? num_rows : kRows) * kTileBytes * kTiles);
  }
  TENON_HD std::uint32_t first_bytes() const {
    return copies_x() ? static_cast<std::uint32_t>(weight_bytes) : arriving_bytes();
  }
};

// Every (16 columns, eight rows) is an item of 32 lanes · 4 sums. Item i is added by block i %
// segments of the cluster.
template <class Tile>
TENON_DEVICE int num_items(const Tile& tile) {
  const int eights = (tile.num_rows + 7) / 8;
  return (Tile::kColumnWarps * eights - tile.rank + tile.cluster - 1) / tile.cluster;
}

template <class Tile>
TENON_DEVICE int byte_of_block(const Tile& tile, int i) {
  return (tile.first_block + i) * Tile::kTiles * kTileBytes;
}
template <class Tile>
TENON_DEVICE void copy_weight(const Tile& tile, int i, int stage, std::uint64_t policy) {
  std::byte* const to = tile.shared + stage * tile.stage_bytes;
  const int columns = tile.call.columns, rows = columns / Tile::kParts;
  TENON_UNROLL
  for (int t = 0; t < Tile::kTiles; ++t) {
    TENON_UNROLL
    for (int part = 0; part < Tile::kParts; ++part)
      copy_tile(to + (t * columns + part * rows) * kTileBytes, &tile.call.weight,
                byte_of_block(tile, i) + t * kTileBytes, tile.column_of(part), &tile.full[stage],
                policy);
  }
}

// A weight is read once, or by every tile of rows.
template <class Tile>
TENON_DEVICE std::uint64_t weight_policy(const Tile& tile) {
  return tile.call.row_tiles > 1 ? policy_evict_last() : policy_evict_first();
}

// The producing warp, before it waits for the kernel before: barriers, and weights into the whole
// ring. Each lane asks for stages of its own.
template <class Tile>
TENON_DEVICE void start_ring(const Tile& tile, int ahead) {
  const int lane = thread_id() % kWave;
  if (lane == 0) {
    TENON_NO_UNROLL
    for (int stage = 0; stage < tile.call.stages; ++stage) {
      barrier_init(&tile.full[stage], 1);
      barrier_init(&tile.empty[stage], Tile::kWarps);
    }
    barrier_init(tile.received, 1);
    if constexpr (Tile::kTurns > 1)
      for (int warp = 0; warp < Tile::kWarps; ++warp) barrier_init(&tile.passed[warp], 1);
    publish_barriers();
    if (tile.cluster > 1)
      barrier_arrive_expect(tile.received,
                            static_cast<std::uint32_t>(Tile::kKind == Sm90Kind::kActivated
                                                           ? (tile.cluster - 1) * tile.num_rows * 16
                                                           : num_items(tile) * tile.cluster * 512));
  }
  sync_wave();
  const std::uint64_t policy = weight_policy(tile);
  TENON_NO_UNROLL
  for (int i = lane; i < ahead; i += kWave) {
    barrier_arrive_expect(&tile.full[i], tile.first_bytes());
    copy_weight(tile, i, i, policy);
  }
  if (lane == 0) prefetch_map(&tile.call.x);
}

// The rows of x that a lane asks for, where they are gathered.
template <int kN>
struct OwnRows {
  static constexpr int kCount = (kN + kWave - 1) / kWave;
  int token[kCount];  // negative: none
  bool run[kCount];   // kRun rows from this one on, a whole atom of the tile
};
template <class Tile>
TENON_DEVICE OwnRows<Tile::kRows> find_rows(const Tile& tile) {
  OwnRows<Tile::kRows> own;
  const int lane = thread_id() % kWave;
  TENON_UNROLL
  for (int u = 0; u < own.kCount; ++u) {
    const int row = lane + u * kWave;
    own.token[u] = row < tile.num_rows ? tile.call.gemm.row_map[tile.first_row + row] : -1;
    const int first = shuffle_from(own.token[u], lane / kRun * kRun);
    int follows = first >= 0 && own.token[u] == first + lane % kRun;
    TENON_UNROLL
    for (int mask = 1; mask < kRun; mask *= 2) follows &= shuffle_xor(follows, mask);
    own.run[u] = follows != 0;
    if (own.run[u] && lane % kRun != 0) own.token[u] = -1;
  }
  return own;
}

template <class Tile>
TENON_DEVICE void copy_x(const Tile& tile, const TensorMap& map, int i, int stage, int row,
                         int token, std::uint64_t policy) {
  std::byte* const to = tile.shared + stage * tile.stage_bytes + tile.weight_bytes;
  TENON_UNROLL
  for (int t = 0; t < Tile::kTiles; ++t)
    copy_tile(to + (t * Tile::kRows + row) * kTileBytes, &map,
              byte_of_block(tile, i) + t * kTileBytes, token, &tile.full[stage], policy);
}

// copies_x(): x for blocks [begin, end) of the tile into the stages of the same numbers, by `count`
// threads of which this is number `own`. Behind the end of k are zeros. Rows that do not exist keep
// what lies there, which reaches their own outputs only.
template <class Tile>
TENON_DEVICE void copy_x_by_threads(const Tile& tile, int begin, int end, int own, int count) {
  constexpr int kChunks = 8 * Tile::kTiles;  // of 16 bytes, of a block
  constexpr int kBytes = is_bf16(Tile::kKind) ? 2 : 1;
  const GemmCall& gemm = tile.call.gemm;
  const auto* x = static_cast<const std::byte*>(gemm.x) + tile.first_row * gemm.x_stride * kBytes;
  TENON_NO_UNROLL
  for (int row = 0; row < tile.num_rows; ++row, x += gemm.x_stride * kBytes) {
    TENON_NO_UNROLL
    for (int i = begin * kChunks + own; i < end * kChunks; i += count) {
      const int stage = i / kChunks, tile_of = i % kChunks / 8;
      std::byte* const to = tile.shared + stage * tile.stage_bytes + tile.weight_bytes +
                            tile_of * Tile::kRows * kTileBytes + tile_place(row, i % 8);
      const int from = byte_of_block(tile, 0) + i * 16;
      if (from < gemm.k * kBytes) {
        copy_async16(to, x + from);
      } else {
        store16(to, Word4{});
      }
    }
  }
}

// A stage that has been read becomes the one of block i: its weight is asked for.
template <class Tile>
TENON_DEVICE void refill(const Tile& tile, int i, const RingPlace& place, std::uint64_t policy) {
  barrier_wait(&tile.empty[place.stage], place.parity);
  barrier_arrive_expect(&tile.full[place.stage], tile.arriving_bytes());
  copy_weight(tile, i, place.stage, policy);
}

// The producing warp, after the wait for the kernel before; a few lanes once the ring is full: to
// ask for a stage is a chain of slow instructions, which they share. Each waits for a stage of its
// own, so there must be stages for the batch that is multiplied besides.
template <class Tile>
TENON_DEVICE void fill_ring(const Tile& tile, int ahead) {
  const int lane = thread_id() % kWave, stages = tile.call.stages;
  const std::uint64_t policy = weight_policy(tile), often = policy_evict_last();
  if (!tile.copies_x()) {
    TENON_NO_UNROLL
    for (int i = lane; i < ahead; i += kWave)
      copy_x(tile, tile.call.x, i, i, 0, tile.first_row, often);
  }
  const int lanes = stages >= 2 * kRefills ? kRefills : 1;
  if (lane >= lanes) return;
  RingPlace place;
  place.skip(lane, stages);
  TENON_NO_UNROLL
  for (int i = ahead + lane; i < tile.num_blocks; i += lanes) {
    refill(tile, i, place, policy);
    copy_x(tile, tile.call.x, i, place.stage, 0, tile.first_row, often);
    place.skip(lanes, stages);
  }
}

// The same of gathered rows, the producing warp together.
template <class Tile>
TENON_DEVICE void gather_ring(const Tile& tile, int ahead) {
  const int lane = thread_id() % kWave;
  const std::uint64_t policy = weight_policy(tile), often = policy_evict_last();
  const OwnRows<Tile::kRows> own = find_rows(tile);
  const auto ask = [&](int i, int stage) {
    TENON_UNROLL
    for (int u = 0; u < own.kCount; ++u)
      if (own.token[u] >= 0)
        copy_x(tile, own.run[u] ? tile.call.x_runs : tile.call.x, i, stage, lane + u * kWave,
               own.token[u], often);
  };
  TENON_NO_UNROLL
  for (int i = 0; i < ahead; ++i) ask(i, i);
  RingPlace place;
  TENON_NO_UNROLL
  for (int i = ahead; i < tile.num_blocks; ++i) {
    if (lane == 0) refill(tile, i, place, policy);
    sync_wave();
    ask(i, place.stage);
    place.next(tile.call.stages);
  }
}

// The weight's scales of a set, by block of k.
template <class Tile>
TENON_DEVICE const float* weight_scales(const Tile& tile, int set) {
  const GemmScales& scales = tile.call.scales;
  return scales.weight + tile.scale_row(set) * scales.weight_row_stride + tile.first_block;
}

// The products of scales of the rows that exist; what stands for the others reaches their own
// outputs only. No load waits for another: with few rows and blocks of k a thread has one product,
// else kLoads at once.
template <class Tile>
TENON_DEVICE void make_scales(const Tile& tile) {
  constexpr int kConsumers = Tile::kConsumers, kRows = Tile::kRows;
  constexpr int kSets = Tile::kParts > 1 || Tile::kMayStraddle ? 2 : 1;
  const GemmScales& scales = tile.call.scales;
  const float* const x =
      scales.x + tile.first_row * scales.x_row_stride + tile.first_block * scales.x_block_stride;
  const bool both = kSets > 1 && tile.num_sets() > 1;
  const float* const weight[2] = {weight_scales(tile, 0), weight_scales(tile, both ? 1 : 0)};
  int shift = 0;
  while (1 << shift < tile.num_rows) ++shift;
  const int total = tile.num_blocks << shift;
  const auto make = [&]<int kLoads>(int first) {
    float of_x[kLoads], of_weight[kSets][kLoads];
    TENON_UNROLL
    for (int u = 0; u < kLoads; ++u) {
      const int e = first + u * kConsumers, block = e < total ? e >> shift : 0;
      const int own = e - (block << shift), row = own < tile.num_rows ? own : tile.num_rows - 1;
      of_x[u] = x[row * scales.x_row_stride + block * scales.x_block_stride];
      TENON_UNROLL
      for (int set = 0; set < kSets; ++set) of_weight[set][u] = weight[set][block];
    }
    TENON_UNROLL
    for (int u = 0; u < kLoads; ++u) {
      const int e = first + u * kConsumers, block = e >> shift;
      float* const made = tile.scales + block * kRows + e - (block << shift);
      if (e >= total) continue;
      made[0] = of_x[u] * of_weight[0][u];
      if (both) made[tile.num_blocks * kRows] = of_x[u] * of_weight[kSets - 1][u];
    }
  };
  if (total <= kConsumers) {
    if (thread_id() < total) make.template operator()<1>(thread_id());
    return;
  }
  TENON_NO_UNROLL
  for (int first = thread_id(); first < total; first += 4 * kConsumers)
    make.template operator()<4>(first);
}

}  // namespace tenon::TENON_TARGET
