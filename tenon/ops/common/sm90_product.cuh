// Dense products by the tensor cores of Hopper (sm_90a), of e4m3 with scales and of bf16. For few
// rows they are bound by reading the weight once; the same kernel serves any number of rows, so a
// row has the same bits in all.
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
// rounded to bf16 first. Half of a block's columns are of gate, half the same ones of up; the
// blocks of a cluster have a group of 128 together and tell each other its largest magnitudes.
#pragma once

#include "tenon/device/cuda_hip/sm90/tma.cuh"
#include "tenon/device/cuda_hip/sm90/wgmma.cuh"
#include "tenon/device/math.cuh"
#include "tenon/ops/common/gemm_tile.cuh"
#include "tenon/ops/common/quantize.cuh"
#include "tenon/ops/common/silu_mul.cuh"

namespace tenon::TENON_TARGET {

using namespace sm90;

enum class Sm90Kind { kE4m3, kActivated, kBf16 };

inline constexpr int kWarpgroup = 128;
inline constexpr int kGroupColumns = 64;
inline constexpr int kTileBytes = 128;  // of each row of a tile
inline constexpr int kSm90Band = 16;    // tiles of rows that share the reading of a tile of columns
inline constexpr int kRun = 8;  // gathered rows that are copied at once if they follow each other

struct Sm90Call {
  TensorMap x;       // in tiles of kN rows, or of one if they are gathered
  TensorMap x_runs;  // gathered: in tiles of kRun rows
  TensorMap weight;  // in tiles of sm90_weight_rows()
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
// Parts of a block's columns that lie apart: gate and up.
TENON_HD constexpr int sm90_parts(Sm90Kind kind) { return kind == Sm90Kind::kActivated ? 2 : 1; }
TENON_HD constexpr int sm90_scale_sets(Sm90Kind kind) {
  return kind == Sm90Kind::kBf16 ? 0 : sm90_parts(kind);
}
// Rows of the weight that one copy takes.
TENON_HD constexpr int sm90_weight_rows(Sm90Kind kind, int groups) {
  return kGroupColumns * groups / sm90_parts(kind);
}
// Blocks of a cluster: the segments, or those that share a group of 128 activated columns.
TENON_HD constexpr int sm90_cluster(Sm90Kind kind, int groups, const Segments& cut) {
  return kind == Sm90Kind::kActivated ? kProductBlock / sm90_weight_rows(kind, groups) : cut.count;
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
  at.scales = at.inbox + (kind == Sm90Kind::kActivated ? sm90_cluster(kind, groups, cut) * kn * 16
                          : cut.count > 1              ? items * cut.count * 512
                                                       : 0);
  at.barriers = (at.scales + sm90_scale_sets(kind) * longest * kn * 4 + 7) / 8 * 8;
  at.bytes = at.barriers + (2 * stages + 1) * 8;
  return at;
}

// A block's share, and its shared memory.
template <Sm90Kind kOf, int kGroups, int kN>
struct Sm90Tile {
  static constexpr Sm90Kind kKind = kOf;
  static constexpr int kGroupsOf = kGroups;
  static constexpr int kColumns = kGroupColumns * kGroups, kWarps = 4 * kGroups;
  static constexpr int kConsumers = kWarpgroup * kGroups, kSums = kN / 2, kRows = kN;
  static constexpr int kTiles = sm90_tiles(kKind), kScaleSets = sm90_scale_sets(kKind);
  static constexpr int kParts = sm90_parts(kKind);
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

  // The column of n that a part begins with.
  TENON_HD int column_of(int part) const { return first_column + part * (call.gemm.n / 2); }
  TENON_HD bool gathers() const { return kKind == Sm90Kind::kBf16 && call.gemm.row_map != nullptr; }
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
  for (int t = 0; t < Tile::kTiles; ++t) TENON_UNROLL
  for (int part = 0; part < Tile::kParts; ++part)
    copy_tile(to + (t * Tile::kColumns + part * Tile::kWeightRows) * kTileBytes, &tile.call.weight,
              byte_of_block(tile, i) + t * kTileBytes, tile.column_of(part), &tile.full[stage],
              policy);
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
    const int others = sm90_cluster(Tile::kKind, Tile::kGroupsOf, tile.call.cut) - 1;
    barrier_arrive_expect(tile.received, static_cast<std::uint32_t>(others * tile.num_rows * 16));
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
  std::byte* const to = tile.shared + stage * Tile::kStageBytes + Tile::kWeightBytes;
  TENON_UNROLL
  for (int t = 0; t < Tile::kTiles; ++t)
    copy_tile(to + (t * Tile::kRows + row) * kTileBytes, &map,
              byte_of_block(tile, i) + t * kTileBytes, token, &tile.full[stage], policy);
}

// The producing warp, after it. ask(i, stage): all lanes ask for block i of x.
template <class Tile, class Ask>
TENON_DEVICE void fill_ring(const Tile& tile, int ahead, Ask ask) {
  const int lane = thread_id() % kWave;
  const std::uint64_t policy = weight_policy(tile);
  TENON_NO_UNROLL
  for (int i = 0; i < ahead; ++i) ask(i, i);
  RingPlace place;
  TENON_NO_UNROLL
  for (int i = ahead; i < tile.num_blocks; ++i) {
    if (lane == 0) {
      barrier_wait(&tile.empty[place.stage], place.parity);
      barrier_arrive_expect(&tile.full[place.stage], tile.arriving_bytes());
      copy_weight(tile, i, place.stage, policy);
    }
    sync_wave();
    ask(i, place.stage);
    place.next(tile.call.stages);
  }
}
template <class Tile>
TENON_DEVICE void fill_ring(const Tile& tile, int ahead) {
  const int lane = thread_id() % kWave;
  const std::uint64_t often = policy_evict_last();
  if (Tile::kKind == Sm90Kind::kBf16 && tile.gathers()) {
    const OwnRows<Tile::kRows> own = find_rows(tile);
    fill_ring(tile, ahead, [&](int i, int stage) {
      TENON_UNROLL
      for (int u = 0; u < own.kCount; ++u)
        if (own.token[u] >= 0)
          copy_x(tile, own.run[u] ? tile.call.x_runs : tile.call.x, i, stage, lane + u * kWave,
                 own.token[u], often);
    });
  } else {
    fill_ring(tile, ahead, [&](int i, int stage) {
      if (lane == 0) copy_x(tile, tile.call.x, i, stage, 0, tile.first_row, often);
    });
  }
}

// The weight's scales of a part's columns, by block of k.
template <class Tile>
TENON_DEVICE const float* weight_scales(const Tile& tile, int part) {
  const GemmScales& scales = tile.call.scales;
  return scales.weight + tile.column_of(part) / kProductBlock * scales.weight_row_stride +
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
  const int part =
      thread_id() / (Tile::kConsumers / Tile::kParts);  // that the warp's columns are of
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
        const float* scales = tile.scales + (part * tile.num_blocks + i + u) * kN + 2 * pair;
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
      if (column + 1 < gemm.n) store_output(gemm, tile.first_row + row, column + 1, pairs.right[c]);
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

// Gate and up meet in shared memory, where the ring was, and leave as codes: kLanes lanes have the
// block's columns of a row.
template <class Tile>
TENON_DEVICE void activate(const Tile& tile, const float (&sums)[Tile::kSums]) {
  constexpr int kPitch = Tile::kWeightRows * 2 + 16;  // bytes between rows of gate or up
  constexpr int kPart = Tile::kRows * kPitch, kPartWarps = Tile::kWarps / 2;
  constexpr int kLanes = Tile::kWeightRows / kVector, kItems = Tile::kRows * kLanes;
  constexpr int kOwn = (kItems + Tile::kConsumers - 1) / Tile::kConsumers;
  const int warp = thread_id() / kWave;
  const int cluster = sm90_cluster(Tile::kKind, Tile::kGroupsOf, tile.call.cut);
  sync_first_threads<Tile::kConsumers>();  // nobody reads the ring any more
  TENON_UNROLL
  for (int j = 0; j < Tile::kRows / 8; ++j) {
    const ColumnPairs pairs = pair_columns(four_of(sums, j));
    TENON_UNROLL
    for (int c = 0; c < 2; ++c)
      *reinterpret_cast<std::uint32_t*>(tile.shared + warp / kPartWarps * kPart +
                                        (8 * j + 2 * (thread_id() % 4) + c) * kPitch +
                                        (16 * (warp % kPartWarps) + pairs.column) * 2) =
          convert_bf16x2(pairs.left[c], pairs.right[c]);
  }
  sync_first_threads<Tile::kConsumers>();
  Word4 held[kOwn];
  std::uint32_t most[kOwn];
  TENON_UNROLL
  for (int u = 0; u < kOwn; ++u) {
    const int item = thread_id() + u * Tile::kConsumers, row = item / kLanes;
    if (item >= kItems) continue;  // whole warps
    const std::byte* gate = tile.shared + row * kPitch + item % kLanes * 16;
    silu_mul<bf16, 1>(gate, gate + kPart, &held[u]);
    most[u] = absmax_bits<1>(&held[u]);
    TENON_UNROLL
    for (int mask = 1; mask < kLanes; mask *= 2)
      most[u] = larger(most[u], shuffle_xor(most[u], mask));
    const int to = item % kLanes;  // a lane for each of the other blocks
    if (to < cluster && to != tile.rank && row < tile.num_rows)
      send_cluster(tile.inbox + tile.rank * Tile::kRows + row, tile.received,
                   static_cast<std::uint32_t>(to), bits_float(most[u]), 0.0f, 0.0f, 0.0f);
  }
  barrier_wait_cluster(tile.received, 0);
  TENON_UNROLL
  for (int u = 0; u < kOwn; ++u) {
    const int item = thread_id() + u * Tile::kConsumers, row = item / kLanes;
    if (item >= kItems || row >= tile.num_rows) continue;
    TENON_UNROLL
    for (int from = 0; from < cluster; ++from)
      if (from != tile.rank)
        most[u] = larger(most[u], float_bits(tile.inbox[from * Tile::kRows + row].x));
    const QuantSpec at = at_row(tile.call.activated, tile.first_row + row);
    const ChosenScale scale = choose_scale<bf16>(at, most[u]);
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
  TENON_SHARED_TILES(shared);
  const Sm90Shared at = sm90_shared(kKind, kGroups, kN, call.stages, call.cut);
  auto* barriers = reinterpret_cast<Mbarrier*>(shared + at.barriers);
  // Tiles of rows, in bands, go first: neighbouring clusters read the same part of the weight.
  const int cluster = sm90_cluster(kKind, kGroups, call.cut);
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
                  .first_column = kActivates
                                      ? column_tile * kProductBlock + rank * Tile::kWeightRows
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
    for (int part = 0; part < Tile::kScaleSets; ++part)
      prefetch(weight_scales(tile, part) + thread_id() * 32);
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
    for (int j = 0; j < kN / 8; ++j) store_item(tile, thread_id() / kWave, j, four_of(sums, j));
  }
}

}  // namespace tenon::TENON_TARGET
