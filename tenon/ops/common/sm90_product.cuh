// Dense products by the tensor cores of Hopper (sm_90a), of e4m3 with scales and of bf16. For few rows
// they are bound by reading the weight once; the same kernel serves any number of rows, so a row has
// the same bits in all.
//
// The weight is the operand with 64 rows of the instruction, rows of x are its N side: in what
// follows a "column" is one of n, as in the ops. Blocks of threads take 64 · kGroups columns, kN
// rows and one segment; the blocks of a cluster take the segments of the same outputs. In a block
// one warp, the producer, fills a ring of stages: a tile of the weight and one of x, a block of 128
// of k each. Its first copies of the weight, which no kernel of a step writes, are asked for before
// it waits for the kernel before; x after that. kGroups warpgroups multiply:
//   block = products of 32 (e4m3) or 16 (bf16) of k, a chain from zero
//   sums = fma(block, xs · ws, sums) (e4m3), sums + block (bf16)
// and with several segments each sends its sums to the block of the cluster that adds them in
// order.
//
// kActivated: the columns are gate|up, and out = quantise(rne(SiLU(gate) · up)) with gate and up
// rounded to bf16 first. One warpgroup takes 64 columns of gate, the other the same ones of up; the
// two blocks of a cluster have the halves of a group of 128 and tell each other its largest
// magnitudes.
#pragma once

#include "tenon/device/cuda_hip/sm90/tma.cuh"
#include "tenon/device/cuda_hip/sm90/wgmma.cuh"
#include "tenon/device/math.cuh"
#include "tenon/device/variant.h"
#include "tenon/ops/common/gemm_tile.cuh"
#include "tenon/ops/common/quantize.cuh"
#include "tenon/ops/common/silu_mul.cuh"

namespace tenon::TENON_TARGET {

using namespace sm90;

enum class Sm90Kind { kE4m3, kActivated, kBf16 };

inline constexpr int kWarpgroup = 128;
inline constexpr int kGroupColumns = 64;
inline constexpr int kTileBytes = 128;       // of each row of a tile
inline constexpr int kSm90Band = 16;         // tiles of rows that share the reading of a tile of columns
inline constexpr int kActivatedPitch = 144;  // bytes between rows of gate or up in shared memory

struct Sm90Call {
  TensorMap x, weight;  // in tiles of kN rows, or of one if they are gathered; of sm90_weight_rows()
  GemmCall gemm;
  GemmScales scales;
  QuantSpec activated;  // kActivated
  Segments cut;
  int row_tiles = 1;  // of the grid
  int stages = 1;
};

constexpr int sm90_threads(int groups) { return kWarpgroup * groups + 32; }
// How many blocks of k a warpgroup takes at once, so that so many blocks of threads find registers
// on a multiprocessor.
constexpr int sm90_batch(int kn, int resident) {
  return kn <= 16 ? 4 : (kn == 32 ? 2 : 1) * (resident == 1 ? 2 : 1);
}
// Tiles that a block of 128 of k consists of, and the bytes of an element.
TENON_HD constexpr int sm90_tiles(Sm90Kind kind) { return kind == Sm90Kind::kBf16 ? 2 : 1; }
// Sets of scales: a warpgroup has its own where it has other columns than its neighbour's.
TENON_HD constexpr int sm90_scale_sets(Sm90Kind kind, int groups) {
  return kind == Sm90Kind::kBf16 ? 0 : kind == Sm90Kind::kActivated ? groups : 1;
}
// Rows of the weight that one copy takes.
TENON_HD constexpr int sm90_weight_rows(Sm90Kind kind, int groups) {
  return kind == Sm90Kind::kActivated ? kGroupColumns : kGroupColumns * groups;
}

// Where things lie in shared memory, in bytes.
struct Sm90Shared {
  int stage, scales, inbox, barriers, bytes;
};
TENON_HD constexpr Sm90Shared sm90_shared(Sm90Kind kind, int groups, int kn, int stages,
                                          const Segments& cut) {
  const int longest = (cut.num_blocks + cut.count - 1) / cut.count;
  const int items = (4 * groups * (kn / 8) + cut.count - 1) / cut.count;
  Sm90Shared at{};
  at.stage = (kGroupColumns * groups + kn) * kTileBytes * sm90_tiles(kind);
  at.inbox = stages * at.stage;
  at.scales = at.inbox + (kind == Sm90Kind::kActivated ? kn * 16
                          : cut.count > 1              ? items * cut.count * 512
                                                       : 0);
  at.barriers = (at.scales + sm90_scale_sets(kind, groups) * longest * kn * 4 + 7) / 8 * 8;
  at.bytes = at.barriers + (2 * stages + 1) * 8;
  return at;
}

// A block's share, and its shared memory.
template <Sm90Kind kOf, int kGroups, int kN>
struct Sm90Tile {
  static constexpr Sm90Kind kKind = kOf;
  static constexpr int kColumns = kGroupColumns * kGroups, kWarps = 4 * kGroups;
  static constexpr int kConsumers = kWarpgroup * kGroups, kSums = kN / 2, kRows = kN;
  static constexpr int kTiles = sm90_tiles(kKind), kScaleSets = sm90_scale_sets(kKind, kGroups);
  static constexpr int kWeightRows = sm90_weight_rows(kKind, kGroups);
  static constexpr int kWeightBytes = kColumns * kTileBytes * kTiles;
  static constexpr int kStageBytes = kWeightBytes + kN * kTileBytes * kTiles;

  const Sm90Call& call;
  int rank;                     // in the cluster
  int first_block, num_blocks;  // of k
  int first_row, num_rows, first_column;
  std::byte* shared;
  float* scales;           // [kScaleSets, num_blocks, kN]: xs · ws
  float4* inbox;           // what other blocks of the cluster have sent
  Mbarrier *full, *empty;  // of each stage
  Mbarrier* received;      // all that belongs into the inbox

  // The column of n that warpgroup `group` begins with.
  TENON_HD int column_of(int group) const {
    return first_column + group * (kKind == Sm90Kind::kActivated ? call.gemm.n / 2 : kGroupColumns);
  }
  TENON_HD bool gathers() const {
    return kKind == Sm90Kind::kBf16 && call.gemm.row_map != nullptr;
  }
  // What arrives in a stage.
  TENON_HD std::uint32_t arriving_bytes() const {
    return static_cast<std::uint32_t>(kWeightBytes +
                                      (gathers() ? num_rows : kN) * kTileBytes * kTiles);
  }
};

// Every (warp, eight rows) is an item of 32 lanes · 4 sums. Item i is added by block i % segments
// of the cluster.
template <class Tile>
TENON_DEVICE int num_items(const Tile& tile) {
  const int eights = (tile.num_rows + 7) / 8;
  return (Tile::kWarps * eights - tile.rank + tile.call.cut.count - 1) / tile.call.cut.count;
}

template <class Tile>
TENON_DEVICE int byte_of_block(const Tile& tile, int i) {
  return (tile.first_block + i) * Tile::kTiles * kTileBytes;
}
template <class Tile>
TENON_DEVICE void copy_weight(const Tile& tile, int i, int stage, std::uint64_t policy) {
  std::byte* const to = tile.shared + stage * Tile::kStageBytes;
  TENON_UNROLL
  for (int t = 0; t < Tile::kTiles; ++t)
    TENON_UNROLL
  for (int row = 0; row < Tile::kColumns; row += Tile::kWeightRows)
    copy_tile(to + (t * Tile::kColumns + row) * kTileBytes, &tile.call.weight,
              byte_of_block(tile, i) + t * kTileBytes, tile.column_of(row / kGroupColumns),
              &tile.full[stage], policy);
}

// A weight is read once, or by every tile of rows.
template <class Tile>
TENON_DEVICE std::uint64_t weight_policy(const Tile& tile) {
  return tile.call.row_tiles > 1 ? policy_evict_last() : policy_evict_first();
}

// One thread, before it waits for the kernel before: barriers, and weights into the whole ring.
template <class Tile>
TENON_DEVICE void start_ring(const Tile& tile, int ahead) {
  TENON_NO_UNROLL
  for (int stage = 0; stage < tile.call.stages; ++stage) {
    barrier_init(&tile.full[stage], 1);
    barrier_init(&tile.empty[stage], Tile::kWarps);
  }
  barrier_init(tile.received, 1);
  publish_barriers();
  if (Tile::kKind == Sm90Kind::kActivated) {
    barrier_arrive_expect(tile.received, static_cast<std::uint32_t>(tile.num_rows * 16));
  } else if (tile.call.cut.count > 1) {
    barrier_arrive_expect(tile.received,
                          static_cast<std::uint32_t>(num_items(tile) * tile.call.cut.count * 512));
  }
  const std::uint64_t policy = weight_policy(tile);
  TENON_NO_UNROLL
  for (int i = 0; i < ahead; ++i) {
    barrier_arrive_expect(&tile.full[i], tile.arriving_bytes());
    copy_weight(tile, i, i, policy);
  }
  prefetch_map(&tile.call.x);
}

// The producing warp, after it. Rows that lie together are asked for by one lane, gathered ones by
// a lane each.
template <class Tile>
TENON_DEVICE void fill_ring(const Tile& tile, int ahead) {
  constexpr int kOwn = (Tile::kRows + kWave - 1) / kWave;
  const int lane = thread_id() % kWave;
  const std::uint64_t policy = weight_policy(tile), often = policy_evict_last();
  const bool gathers = tile.gathers();
  int tokens[kOwn];
  TENON_UNROLL
  for (int u = 0; u < kOwn; ++u) {
    const int row = lane + u * kWave;
    tokens[u] = !gathers              ? (row == 0 ? tile.first_row : -1)
                : row < tile.num_rows ? tile.call.gemm.row_map[tile.first_row + row]
                                      : -1;
  }
  const auto copy_x = [&](int i, int stage) {
    std::byte* const to = tile.shared + stage * Tile::kStageBytes + Tile::kWeightBytes;
    TENON_UNROLL
    for (int u = 0; u < kOwn; ++u) {
      if (tokens[u] < 0) continue;
      TENON_UNROLL
      for (int t = 0; t < Tile::kTiles; ++t)
        copy_tile(to + (t * Tile::kRows + lane + u * kWave) * kTileBytes, &tile.call.x,
                  byte_of_block(tile, i) + t * kTileBytes, tokens[u], &tile.full[stage], often);
    }
  };
  TENON_NO_UNROLL
  for (int i = 0; i < ahead; ++i) copy_x(i, i);
  RingPlace place;
  TENON_NO_UNROLL
  for (int i = ahead; i < tile.num_blocks; ++i) {
    if (lane == 0) {
      barrier_wait(&tile.empty[place.stage], place.parity);
      barrier_arrive_expect(&tile.full[place.stage], tile.arriving_bytes());
      copy_weight(tile, i, place.stage, policy);
    }
    sync_wave();
    copy_x(i, place.stage);
    place.next(tile.call.stages);
  }
}

// The weight's scales of the columns of set `set`, by block of k.
template <class Tile>
TENON_DEVICE const float* weight_scales(const Tile& tile, int set) {
  const GemmScales& scales = tile.call.scales;
  return scales.weight + tile.column_of(set) / kProductBlock * scales.weight_row_stride +
         tile.first_block;
}

// The products of scales, of kLoads elements at once: no load waits for another. Rows that do not
// exist get those of the last one.
template <class Tile>
TENON_DEVICE void make_scales(const Tile& tile) {
  constexpr int kLoads = 4, kConsumers = Tile::kConsumers, kN = Tile::kRows;
  const GemmScales& scales = tile.call.scales;
  const float* x =
      scales.x + tile.first_row * scales.x_row_stride + tile.first_block * scales.x_block_stride;
  const int total = tile.num_blocks * kN;
  TENON_UNROLL
  for (int set = 0; set < Tile::kScaleSets; ++set) {
    const float* weight = weight_scales(tile, set);
    float* const made = tile.scales + set * total;
    TENON_NO_UNROLL
    for (int first = thread_id(); first < total; first += kLoads * kConsumers) {
      float of_x[kLoads], of_weight[kLoads];
      TENON_UNROLL
      for (int u = 0; u < kLoads; ++u) {
        const int e = first + u * kConsumers, block = e < total ? e / kN : 0;
        const int row = e % kN < tile.num_rows ? e % kN : tile.num_rows - 1;
        of_x[u] = x[row * scales.x_row_stride + block * scales.x_block_stride];
        of_weight[u] = weight[block];
      }
      TENON_UNROLL
      for (int u = 0; u < kLoads; ++u)
        if (first + u * kConsumers < total) made[first + u * kConsumers] = of_x[u] * of_weight[u];
    }
  }
}

// Sums of a segment as the instruction lays them out: sums[4 j + 2 h + c] belongs to column
// 16 w + g + 8 h of the warpgroup and row 8 j + 2 p + c, for lane 4 g + p of its warp w.
// kMost: so many blocks of k at once where the ring has stages for twice as many.
template <int kMost, Sm90Kind kKind, int kGroups, int kN>
TENON_DEVICE void multiply(const Sm90Tile<kKind, kGroups, kN>& tile, float (&sums)[kN / 2]) {
  using Tile = Sm90Tile<kKind, kGroups, kN>;
  // Descriptors of a value that the whole warp has stay in uniform registers, where the instruction
  // wants them; otherwise every product waits for a move.
  const int group = shuffle_from(thread_id() / kWarpgroup, 0);
  const int lane = thread_id() % kWave, pair = lane % 4, stages = tile.call.stages;
  const std::uint64_t weight = tile_descriptor(tile.shared + group * kGroupColumns * kTileBytes);
  const std::uint64_t x = tile_descriptor(tile.shared + Tile::kWeightBytes);
  RingPlace arrived, used, freed;
  // For kNow blocks of k the latency of a chain is paid once.
  const auto step = [&]<int kNow>(float(&blocks)[kNow][kN / 2], int i) {
    TENON_UNROLL
    for (int u = 0; u < kNow; ++u) {
      barrier_wait(&tile.full[arrived.stage], arrived.parity);
      arrived.next(stages);
    }
    wgmma_begin();
    TENON_UNROLL
    for (int u = 0; u < kNow; ++u) {
      const int stage = used.stage * (Tile::kStageBytes / 16);
      TENON_UNROLL
      for (int k = 0; k < 4 * Tile::kTiles; ++k) {
        const int of_weight = k / 4 * Tile::kColumns * (kTileBytes / 16) + k % 4 * 2;
        const int of_x = k / 4 * kN * (kTileBytes / 16) + k % 4 * 2;
        add_product<kN, kKind == Sm90Kind::kBf16>(blocks[u],
                                                  descriptor_at(weight, stage + of_weight),
                                                  descriptor_at(x, stage + of_x), k > 0);
      }
      used.next(stages);
    }
    wgmma_commit();
    wgmma_wait_all();
    TENON_UNROLL
    for (int u = 0; u < kNow; ++u) {
      hold_sums(blocks[u]);
      if (lane == 0) barrier_arrive(&tile.empty[freed.stage]);
      freed.next(stages);
    }
    TENON_UNROLL
    for (int u = 0; u < kNow; ++u) {
      if constexpr (kKind == Sm90Kind::kBf16) {
        TENON_UNROLL
        for (int e = 0; e < kN / 2; ++e) sums[e] = sums[e] + blocks[u][e];
      } else {
        const int set = Tile::kScaleSets > 1 ? group * tile.num_blocks : 0;
        const float* scales = tile.scales + (set + i + u) * kN + 2 * pair;
        TENON_UNROLL
        for (int j = 0; j < kN / 8; ++j) {
          const float2 scale = *reinterpret_cast<const float2*>(scales + 8 * j);
          TENON_UNROLL
          for (int e = 4 * j; e < 4 * j + 4; ++e)
            sums[e] = fma_f(blocks[u][e], e % 2 == 0 ? scale.x : scale.y, sums[e]);
        }
      }
    }
  };
  int i = 0;
  const auto run = [&]<int kNow>() {
    if (kNow > 1 && stages < 2 * kNow && (stages < kNow || stages < tile.num_blocks)) return;
    float blocks[kNow][kN / 2] = {};
    TENON_NO_UNROLL
    for (; i + kNow <= tile.num_blocks; i += kNow) step.template operator()<kNow>(blocks, i);
  };
  if constexpr (kMost >= 4) run.template operator()<4>();
  if constexpr (kMost >= 2) run.template operator()<2>();
  run.template operator()<1>();
}

// Four sums of a lane, (columns g and g + 8, rows c = 0 and 1), as two neighbouring columns of each
// row: lanes g and g ^ 1 exchange halves. All lanes of a warp.
struct ColumnPairs {
  int column;  // of the warp's 16
  float left[2], right[2];
};
TENON_DEVICE ColumnPairs pair_columns(float4 sums) {
  const int g = thread_id() % kWave / 4, odd = g % 2;
  const float from_low = shuffle_xor(odd ? sums.x : sums.z, 4);
  const float from_high = shuffle_xor(odd ? sums.y : sums.w, 4);
  return {g - odd + 8 * odd,
          {odd ? from_low : sums.x, odd ? from_high : sums.y},
          {odd ? sums.z : from_low, odd ? sums.w : from_high}};
}
template <int kCount>
TENON_DEVICE float4 four_of(const float (&sums)[kCount], int j) {
  return {sums[4 * j], sums[4 * j + 1], sums[4 * j + 2], sums[4 * j + 3]};
}

// Item (warp, j) of the outputs, from all lanes of a warp.
template <class Tile>
TENON_DEVICE void store_item(const Tile& tile, int warp, int j, float4 sums) {
  const GemmCall& gemm = tile.call.gemm;
  const ColumnPairs pairs = pair_columns(sums);
  const int column = tile.first_column + 16 * warp + pairs.column;
  TENON_UNROLL
  for (int c = 0; c < 2; ++c) {
    const int row = 8 * j + 2 * (thread_id() % 4) + c;
    if (row >= tile.num_rows || column >= gemm.n) continue;
    bf16* to = static_cast<bf16*>(gemm.out) + (tile.first_row + row) * gemm.out_stride + column;
    if (!gemm.out_is_f32 && column + 1 < gemm.n && reinterpret_cast<std::uintptr_t>(to) % 4 == 0) {
      *reinterpret_cast<std::uint32_t*>(to) = convert_bf16x2(pairs.left[c], pairs.right[c]);
    } else {
      store_output(gemm, tile.first_row + row, column, pairs.left[c]);
      if (column + 1 < gemm.n)
        store_output(gemm, tile.first_row + row, column + 1, pairs.right[c]);
    }
  }
}

// Segments meet: ((segment 0 + segment 1) + segment 2) + …, each item in one block of the cluster.
template <class Tile>
TENON_DEVICE void add_segments(const Tile& tile, const float (&sums)[Tile::kSums]) {
  const int warp = thread_id() / kWave, lane = thread_id() % kWave;
  const int segments = tile.call.cut.count, eights = (tile.num_rows + 7) / 8;
  TENON_UNROLL
  for (int j = 0; j < Tile::kRows / 8; ++j) {
    if (j >= eights) continue;
    const int item = warp * eights + j;
    send_cluster(tile.inbox + (item / segments * segments + tile.rank) * 32 + lane, tile.received,
                 static_cast<std::uint32_t>(item % segments), sums[4 * j], sums[4 * j + 1],
                 sums[4 * j + 2], sums[4 * j + 3]);
  }
  barrier_wait_cluster(tile.received, 0);
  TENON_NO_UNROLL
  for (int i = warp; i < num_items(tile); i += Tile::kWarps) {
    const float4* parts = tile.inbox + i * segments * 32 + lane;
    float4 sum = parts[0];
    TENON_NO_UNROLL
    for (int s = 1; s < segments; ++s) {
      const float4 part = parts[s * 32];
      sum = {sum.x + part.x, sum.y + part.y, sum.z + part.z, sum.w + part.w};
    }
    const int item = i * segments + tile.rank;
    store_item(tile, item / eights, item % eights, sum);
  }
}

// Gate and up meet in shared memory, where the ring was, and leave as codes: eight lanes have the 64
// columns of a row.
template <class Tile>
TENON_DEVICE void activate(const Tile& tile, const float (&sums)[Tile::kSums]) {
  constexpr int kHalf = Tile::kRows * kActivatedPitch, kLanes = kGroupColumns / kVector;
  constexpr int kItems = Tile::kRows * kLanes;
  constexpr int kOwn = (kItems + Tile::kConsumers - 1) / Tile::kConsumers;
  const int group = thread_id() / kWarpgroup, warp = thread_id() % kWarpgroup / kWave;
  sync_first_threads<Tile::kConsumers>();  // nobody reads the ring any more
  TENON_UNROLL
  for (int j = 0; j < Tile::kRows / 8; ++j) {
    const ColumnPairs pairs = pair_columns(four_of(sums, j));
    TENON_UNROLL
    for (int c = 0; c < 2; ++c)
      *reinterpret_cast<std::uint32_t*>(tile.shared + group * kHalf +
                                        (8 * j + 2 * (thread_id() % 4) + c) * kActivatedPitch +
                                        (16 * warp + pairs.column) * 2) =
          convert_bf16x2(pairs.left[c], pairs.right[c]);
  }
  sync_first_threads<Tile::kConsumers>();
  Word4 held[kOwn];
  std::uint32_t most[kOwn];
  TENON_UNROLL
  for (int u = 0; u < kOwn; ++u) {
    const int item = thread_id() + u * Tile::kConsumers, row = item / kLanes;
    if (item >= kItems) continue;  // whole warps
    const std::byte* gate = tile.shared + row * kActivatedPitch + item % kLanes * 16;
    silu_mul<bf16, 1>(gate, gate + kHalf, &held[u]);
    most[u] = absmax_bits<1>(&held[u]);
    TENON_UNROLL
    for (int mask = 1; mask < kLanes; mask *= 2)
      most[u] = larger(most[u], shuffle_xor(most[u], mask));
    if (item % kLanes == 0 && row < tile.num_rows)
      send_cluster(tile.inbox + row, tile.received, static_cast<std::uint32_t>(tile.rank ^ 1),
                   bits_float(most[u]), 0.0f, 0.0f, 0.0f);
  }
  barrier_wait_cluster(tile.received, 0);
  const QuantSpec& spec = tile.call.activated;
  TENON_UNROLL
  for (int u = 0; u < kOwn; ++u) {
    const int item = thread_id() + u * Tile::kConsumers, row = item / kLanes;
    if (item >= kItems || row >= tile.num_rows) continue;
    const QuantSpec at = at_row(spec, tile.first_row + row);
    const ChosenScale scale =
        choose_scale<bf16>(at, larger(most[u], float_bits(tile.inbox[row].x)));
    encode<bf16, DType::kE4M3, 1>(&held[u], scale.multiplier,
                                  at.codes + tile.first_column + item % kLanes * kVector);
    if (item % kLanes == 0 && tile.rank == 0)
      store_scale(at, 0, tile.first_column / kProductBlock, scale.word);
  }
}

template <Sm90Kind kKind, int kGroups, int kN, int kResident>
TENON_KERNEL_RESIDENT(sm90_threads(kGroups), kResident)
sm90_kernel(TENON_ARGS(Sm90Call) call) {
  using Tile = Sm90Tile<kKind, kGroups, kN>;
  constexpr bool kActivates = kKind == Sm90Kind::kActivated;
  static_assert(!kActivates || kGroups == 2);
  TENON_SHARED_TILES(shared);
  const Sm90Shared at = sm90_shared(kKind, kGroups, kN, call.stages, call.cut);
  auto* barriers = reinterpret_cast<Mbarrier*>(shared + at.barriers);
  // Tiles of rows, in bands, go first: neighbouring clusters read the same part of the weight.
  const int cluster = kActivates ? 2 : call.cut.count;
  const int number = block_id() / cluster, rank = block_id() % cluster;
  const int column_tiles =
      kActivates ? call.gemm.n / (2 * kProductBlock) : ceil_div(call.gemm.n, Tile::kColumns);
  const int band = number / (kSm90Band * column_tiles) * kSm90Band;
  const int in_band = call.row_tiles - band < kSm90Band ? call.row_tiles - band : kSm90Band;
  const int place = number - band * column_tiles;
  const int first_row = (band + place % in_band) * kN, left = call.gemm.rows - first_row;
  if (left <= 0) {  // a plan may be for more rows than a call has
    wait_for_previous();
    return;
  }
  const int segment = kActivates ? 0 : rank;
  const int first_block = call.cut.begin(segment) / kProductBlock;
  const int column_tile = place / in_band;
  const Tile tile{.call = call,
                  .rank = rank,
                  .first_block = first_block,
                  .num_blocks = call.cut.begin(segment + 1) / kProductBlock - first_block,
                  .first_row = first_row,
                  .num_rows = left < kN ? left : kN,
                  .first_column = kActivates ? column_tile * kProductBlock + rank * kGroupColumns
                                             : column_tile * Tile::kColumns,
                  .shared = shared,
                  .scales = reinterpret_cast<float*>(shared + at.scales),
                  .inbox = reinterpret_cast<float4*>(shared + at.inbox),
                  .full = barriers,
                  .empty = barriers + call.stages,
                  .received = barriers + 2 * call.stages};
  const int ahead = tile.num_blocks < call.stages ? tile.num_blocks : call.stages;
  const bool several = kActivates || call.cut.count > 1;
  if (thread_id() == Tile::kConsumers) {
    start_ring(tile, ahead);
  } else if (thread_id() * 32 < tile.num_blocks) {  // a line of cache
    TENON_UNROLL
    for (int set = 0; set < Tile::kScaleSets; ++set)
      prefetch(weight_scales(tile, set) + thread_id() * 32);
  }
  sync_wave();
  sync_block();
  if (several) cluster_arrive();
  wait_for_previous();
  if (thread_id() == 0) let_next_start();
  if (thread_id() >= Tile::kConsumers) {
    fill_ring(tile, ahead);
    sync_wave();
    if (several) cluster_wait();
    return;
  }
  if constexpr (Tile::kScaleSets > 0) {
    make_scales(tile);
    sync_first_threads<Tile::kConsumers>();
  }
  float sums[kN / 2] = {};
  multiply<sm90_batch(kN, kResident)>(tile, sums);
  if (several) cluster_wait();  // all have started and set their barriers
  if constexpr (kActivates) {
    activate(tile, sums);
  } else if (several) {
    add_segments(tile, sums);
  } else {
    TENON_UNROLL
    for (int j = 0; j < kN / 8; ++j)
      store_item(tile, thread_id() / kWave, j, four_of(sums, j));
  }
}

// --- Host side ------------------------------------------------------------------------------

// The widest scales that leave a ring of two stages to 64 rows.
inline constexpr int kSm90MostK = 65536;

// What of a kernel was chosen for a plan. It changes no bit.
struct Sm90Form {
  int groups, rows;  // of a block: 64 · groups columns
  int resident;      // blocks on a multiprocessor
  int stages;
};

// Bytes that a block may take if so many are to fit on a multiprocessor: each has 1 KiB besides.
inline int sm90_fair_share(std::size_t most, int resident) {
  return (static_cast<int>(most) + 1024) / resident - 1024;
}
inline int sm90_stages(Sm90Kind kind, int groups, int rows, const Segments& cut, int bytes) {
  constexpr int kMost = 32;
  int stages = 0;
  while (stages < kMost && sm90_shared(kind, groups, rows, stages + 1, cut).bytes <= bytes)
    ++stages;
  const int longest = (cut.num_blocks + cut.count - 1) / cut.count;
  return stages < longest ? stages : longest;
}

// Measured on an H100 with the products of two models, 1 to 8192 rows: up to 16 rows narrow blocks
// are best, above wide ones; and one on a multiprocessor with a long ring, unless there are more
// blocks than that.
inline Sm90Form sm90_form(Sm90Kind kind, const GemmCall& gemm, const Segments& cut,
                          const DeviceProperties& device) {
  const bool activates = kind == Sm90Kind::kActivated;
  const int rows = gemm.rows <= 8 ? 8 : gemm.rows <= 16 ? 16 : gemm.rows <= 32 ? 32 : 64;
  const int groups = rows <= 16 && !activates ? 1 : 2;
  const std::int64_t blocks = std::int64_t{1} * ceil_div(gemm.rows, rows) *
                              ceil_div(gemm.n, kGroupColumns * groups) * cut.count;
  int resident = blocks <= device.num_units ? 1 : groups == 1 ? 3 : 2;
  const auto stages_of = [&](int number) {
    return sm90_stages(kind, groups, rows, cut, sm90_fair_share(device.max_shared_bytes, number));
  };
  int stages = stages_of(resident);
  while (stages < 2 && resident > 1) stages = stages_of(--resident);
  return {groups, rows, resident, stages};
}

// Ok and fills the recipe; or why the device or the product is not for these kernels. Every answer
// but the form depends on the weight and on the device alone: the bits of a row must not change with
// the number of rows.
inline Status sm90_plan(Sm90Kind kind, const GemmCall& gemm, const PlanContext& where,
                        Recipe* recipe) {
  const auto no = [](std::string why) { return Status::error(Code::kUnsupported, std::move(why)); };
  const int found = where.properties.cuda_capability;
  if (found != 90)
    return no("the device has compute capability " + std::to_string(found / 10) + "." +
              std::to_string(found % 10) + "; its instructions are those of 9.0");
  if (gemm.offsets != nullptr) return no("weight has experts; it is for one matrix");
  if (kind != Sm90Kind::kBf16 && gemm.k > kSm90MostK)
    return no("k is " + std::to_string(gemm.k) + "; at most " + std::to_string(kSm90MostK) +
              " leave room for the scales");
  const Segments cut = segments_of(gemm.n, gemm.k);
  if (kind == Sm90Kind::kActivated && cut.count > 1)
    return no("the sum over k has " + std::to_string(cut.count) +
              " segments; an activation is for products of one");
  const Sm90Form form = sm90_form(kind, gemm, cut, where.properties);
  if (form.stages < 1) return no("a block has too little shared memory");
  LaunchShape shape;
  shape.blocks = ceil_div(gemm.rows, form.rows) * ceil_div(gemm.n, kGroupColumns * form.groups) *
                 cut.count;
  shape.threads = sm90_threads(form.groups);
  shape.shared_bytes = static_cast<std::size_t>(
      sm90_shared(kind, form.groups, form.rows, form.stages, cut).bytes);
  shape.cluster = kind == Sm90Kind::kActivated ? 2 : cut.count;
  shape.early = where.may_start_early;
  recipe->launch("sm90_kernel", shape);
  recipe->set("columns", kGroupColumns * form.groups);
  recipe->set("rows", form.rows);
  recipe->set("resident", form.resident);
  recipe->set("stages", form.stages);
  return Status::ok();
}

template <Sm90Kind kKind>
auto sm90_kernel_of(int rows, int resident) -> void (*)(Sm90Call) {
  constexpr bool kActivates = kKind == Sm90Kind::kActivated;
  constexpr int kFew = kActivates ? 2 : 1, kMost = kActivates ? 2 : 3;
  switch (rows) {
    case 8: return sm90_kernel<kKind, kFew, 8, kMost>;
    case 16: return sm90_kernel<kKind, kFew, 16, kMost>;
  }
  if constexpr (!kActivates)
    if (resident == 1) return rows == 32 ? sm90_kernel<kKind, 2, 32, 1> : sm90_kernel<kKind, 2, 64, 1>;
  return rows == 32 ? sm90_kernel<kKind, 2, 32, 2> : sm90_kernel<kKind, 2, 64, 2>;
}

// A matrix in tiles; the stride of a single row may be any number. stride, row: in bytes.
inline Result<TensorMap> sm90_map(const void* data, std::int64_t rows, std::int64_t row,
                                  std::int64_t stride, int tile_rows) {
  return ::tenon::sm90::tile_map(data, rows, row, rows > 1 ? stride : row, tile_rows);
}

// tokens: rows of x.
template <Sm90Kind kKind>
Status sm90_launch(const Recipe& recipe, const GemmCall& gemm, const GemmScales& scales,
                   const QuantSpec& activated, std::int64_t tokens, Stream& stream) {
  if (gemm.rows == 0) return Status::ok();
  const LaunchShape& shape = recipe.launches.front().shape;
  const auto setting = [&](std::size_t i) { return static_cast<int>(recipe.settings[i].value); };
  const int columns = setting(0), rows = setting(1), resident = setting(2);
  constexpr std::int64_t kBytes = kKind == Sm90Kind::kBf16 ? 2 : 1;  // of an element
  Sm90Call call;
  call.gemm = gemm;
  call.scales = scales;
  call.activated = activated;
  call.cut = segments_of(gemm.n, gemm.k);
  call.row_tiles = shape.blocks / call.cut.count / ceil_div(gemm.n, columns);
  call.stages = setting(3);
  TENON_ASSIGN(call.x, sm90_map(gemm.x, tokens, gemm.k * kBytes, gemm.x_stride * kBytes,
                                gemm.row_map != nullptr ? 1 : rows));
  TENON_ASSIGN(call.weight,
               sm90_map(gemm.weight, gemm.n, gemm.k * kBytes, gemm.weight_stride * kBytes,
                        sm90_weight_rows(kKind, columns / kGroupColumns)));
  return tenon::launch(stream, shape, sm90_kernel_of<kKind>(rows, resident), call);
}

}  // namespace tenon::TENON_TARGET
