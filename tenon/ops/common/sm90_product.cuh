// Dense products by the tensor cores of Hopper (sm_90a), of e4m3 with scales and of bf16. For few
// rows they are bound by reading the weight once; the same kernel serves any number of rows, so a
// row has the same bits in all.
//
// The weight is the operand with 64 rows of the instruction, rows of x are its N side: in what
// follows a "column" is one of n, as in the ops. A block of threads takes some columns, some rows
// and one segment; the blocks of a cluster take the segments of the same outputs. In a block one
// warp, the producer, fills a ring of stages: a tile of the weight and one of x, a block of 128 of
// k each. Its first copies of the weight, which no kernel of a step writes, are asked for before it
// waits for the kernel before; x after that, by the consumers where it has few rows. One or two
// warpgroups multiply kN rows by up to 64 columns each:
//   block = products of 32 (e4m3) or 16 (bf16) of k, a chain from zero
//   sums = fma(block, xs · ws, sums) (e4m3), sums + block (bf16)
// and with several segments each sends its sums to the block of the cluster that adds them in
// order. Two warpgroups have other columns of the same rows (kColumnGroups 2) or other rows of the
// same columns (kRowGroups 2). A warpgroup that has fewer than 64 columns multiplies what lies
// behind them in shared memory too; nobody looks at that.
//
// kTurns 2: two warpgroups have the same columns and rows and take batches of blocks of k in turn.
// Products of the next batch are made while those of the last are scaled and added: sums go from
// one warpgroup to the other and back, so that the order of adding is that of a single one.
//
// kBf16ByWarps: a block has 16 columns, which would leave three quarters of that operand empty, and
// all of k. So its warps multiply by themselves (mma.sync, which has the bits of wgmma for bf16),
// each a segment at a time, and the segments meet in shared memory.
//
// kActivated: the columns are gate|up, and out = quantise(rne(SiLU(gate) · up)) with gate and up
// rounded to bf16 first. Half of a block's columns are of gate, half the same ones of up; the
// blocks of a cluster have a group of 128 together and tell each other its largest magnitudes.
#pragma once

#include "tenon/device/cuda_hip/sm90/mma.cuh"
#include "tenon/device/cuda_hip/sm90/thread_copy.cuh"
#include "tenon/device/cuda_hip/sm90/wgmma.cuh"
#include "tenon/device/math.cuh"
#include "tenon/ops/common/silu_mul.cuh"
#include "tenon/ops/common/sm90_ring.cuh"

namespace tenon::TENON_TARGET {

// Where a warp's sums belong.
struct WarpPlace {
  int column_warp;  // of 16 columns
  int row_eight;    // its first eight rows
};
template <class Tile>
TENON_DEVICE WarpPlace warp_place() {
  const int warp = thread_id() / kWave;
  return {warp % Tile::kColumnWarps,
          Tile::kSplitsRows ? warp / Tile::kColumnWarps * (Tile::kSums / 4) : 0};
}

// The scales of rows 2 p and 2 p + 1 of a warpgroup's first eight, for columns g and g + 8.
struct ScalePlaces {
  const float* of[2];
};
template <class Tile>
TENON_DEVICE ScalePlaces scale_places(const Tile& tile) {
  const WarpPlace place = warp_place<Tile>();
  const float* rows = tile.scales + place.row_eight * 8 + thread_id() % 4 * 2;
  const int of_set = tile.num_blocks * Tile::kRows, last = tile.num_sets() - 1;
  ScalePlaces found;
  TENON_UNROLL
  for (int h = 0; h < 2; ++h) {
    const int column = tile.first_column % kProductBlock + 16 * place.column_warp + 8 * h;
    const int set = Tile::kParts > 1     ? place.column_warp / (Tile::kColumnWarps / 2)
                    : Tile::kMayStraddle ? column / kProductBlock
                                         : 0;
    found.of[h] = rows + (set < last ? set : last) * of_set;
  }
  return found;
}

template <int kCount>
TENON_DEVICE float4 four_of(const float (&sums)[kCount], int j) {
  return {sums[4 * j], sums[4 * j + 1], sums[4 * j + 2], sums[4 * j + 3]};
}

// What a warpgroup has read of the ring.
struct RingReader {
  RingPlace place;
  int block = 0;  // of the tile, the next one

  // Leaves out blocks, which others read; no more than the ring has stages.
  TENON_HD void skip(int blocks, int stages) {
    place.skip(blocks, stages);
    block += blocks;
  }
};

// Sums of a segment as the instruction lays them out: sums[4 j + 2 h + c] belongs to column
// 16 w + g + 8 h of the warpgroup and row 8 j + 2 p + c, for lane 4 g + p of its warp w. Blocks of
// k up to `end` join them. kMost: so many blocks of k at once where the ring has stages for twice
// as many.
template <int kMost, class Tile>
TENON_DEVICE void multiply(const Tile& tile, RingReader& from, int end,
                           float (&sums)[Tile::kSums]) {
  constexpr int kSums = Tile::kSums, kN = 2 * kSums;
  // Descriptors of a value that the whole warp has stay in uniform registers, where the instruction
  // wants them; otherwise every product waits for a move.
  const int group = shuffle_from(thread_id() / kWarpgroup, 0);
  const int lane = thread_id() % kWave, stages = tile.call.stages;
  const bool own_columns = !Tile::kSplitsRows && Tile::kTurns == 1;
  const std::uint64_t weight =
      tile_descriptor(tile.shared + (own_columns ? group * kGroupColumns * kTileBytes : 0));
  const std::uint64_t x = tile_descriptor(tile.shared + tile.weight_bytes +
                                          (Tile::kSplitsRows ? group * kN * kTileBytes : 0));
  const int stage_units = tile.stage_bytes / 16;
  const int columns = Tile::kKind == Sm90Kind::kBf16InOrder ? kBesideColumns : tile.call.columns;
  const int tile_units = columns * (kTileBytes / 16);  // of the weight
  ScalePlaces scales{};
  if constexpr (Tile::kIsScaled) scales = scale_places(tile);
  RingPlace& place = from.place;
  int& i = from.block;
  // For kNow blocks of k, neighbours in the ring, the latency of a chain is paid once. Their
  // descriptors differ from one value by what the whole grid knows, so they need no moves.
  const auto step = [&]<int kNow>(float(&blocks)[kNow][kSums]) {
    TENON_UNROLL
    for (int u = 0; u < kNow; ++u) barrier_wait(&tile.full[place.stage + u], place.parity);
    const int first = shuffle_from(place.stage * stage_units, 0);
    // Neighbouring instructions belong to different chains, so none waits for the one before it.
    wgmma_begin();
    TENON_UNROLL
    for (int k = 0; k < 4 * Tile::kTiles; ++k) {
      const int of_weight = k / 4 * tile_units + k % 4 * 2;
      const int of_x = k / 4 * Tile::kRows * (kTileBytes / 16) + k % 4 * 2;
      TENON_UNROLL
      for (int u = 0; u < kNow; ++u) {
        const int stage = first + u * stage_units;
        add_product<kN, !Tile::kIsScaled>(blocks[u], descriptor_at(weight, stage + of_weight),
                                          descriptor_at(x, stage + of_x), k > 0);
      }
    }
    wgmma_commit();
    wgmma_wait_all();
    TENON_UNROLL
    for (int u = 0; u < kNow; ++u) {
      hold_sums(blocks[u]);
      if (lane == 0) barrier_arrive(&tile.empty[place.stage + u]);
    }
    TENON_UNROLL
    for (int u = 0; u < kNow; ++u) {
      if constexpr (!Tile::kIsScaled) {
        TENON_UNROLL
        for (int e = 0; e < kSums; ++e) sums[e] = sums[e] + blocks[u][e];
      } else {
        TENON_UNROLL
        for (int j = 0; j < kN / 8; ++j) {
          const int at = (i + u) * Tile::kRows + 8 * j;
          const float2 low = *reinterpret_cast<const float2*>(scales.of[0] + at);
          const float2 high =
              Tile::kMayStraddle ? *reinterpret_cast<const float2*>(scales.of[1] + at) : low;
          sums[4 * j] = fma_f(blocks[u][4 * j], low.x, sums[4 * j]);
          sums[4 * j + 1] = fma_f(blocks[u][4 * j + 1], low.y, sums[4 * j + 1]);
          sums[4 * j + 2] = fma_f(blocks[u][4 * j + 2], high.x, sums[4 * j + 2]);
          sums[4 * j + 3] = fma_f(blocks[u][4 * j + 3], high.y, sums[4 * j + 3]);
        }
      }
    }
    place.skip(kNow, stages);
    i += kNow;
  };
  // Where stages are refilled, half of them are left to the producer.
  const bool refills = stages < tile.num_blocks;
  const auto run = [&]<int kNow>() {
    const auto takes = [&] {
      return i + kNow <= end && place.stage + kNow <= stages && !(refills && stages < 2 * kNow);
    };
    if (kNow > 1 && !takes()) return false;
    float blocks[kNow][kSums] = {};
    TENON_NO_UNROLL
    do step.template operator()<kNow>(blocks);
    while (kNow == kMost && takes());
    return true;
  };
  TENON_NO_UNROLL
  while (i < end) {
    if constexpr (kMost >= 4)
      if (run.template operator()<4>()) continue;
    if constexpr (kMost >= 2)
      if (run.template operator()<2>()) continue;
    run.template operator()<1>();
  }
}

// kTurns > 1: the sums of all blocks of k, laid out as multiply() says. True: they are in this
// warpgroup. The ring has a multiple of kTurnBatch stages, at least one batch for each turn.
template <class Tile>
TENON_DEVICE bool multiply_in_turns(const Tile& tile, float (&sums)[Tile::kSums]) {
  constexpr int kSums = Tile::kSums, kN = 2 * kSums, kNow = kTurnBatch;
  const int turn = shuffle_from(thread_id() / kWarpgroup, 0);
  const int lane = thread_id() % kWave, warp = warp_place<Tile>().column_warp;
  const std::uint64_t weight = tile_descriptor(tile.shared);
  const std::uint64_t x = tile_descriptor(tile.shared + tile.weight_bytes);
  const int stage_units = tile.stage_bytes / 16;
  const ScalePlaces scales = scale_places(tile);
  const int batches = (tile.num_blocks + kNow - 1) / kNow, places = tile.call.stages / kNow;
  float4* const held = tile.inbox + warp * kWave + lane;
  RingPlace place;
  place.skip(turn, places);
  TENON_NO_UNROLL
  for (int batch = turn; batch < batches; batch += Tile::kTurns) {
    const int first = place.stage * kNow, left = tile.num_blocks - batch * kNow;
    // The last batch may be short: its first block stands for those that do not exist.
    TENON_UNROLL
    for (int u = 0; u < kNow; ++u)
      barrier_wait(&tile.full[first + (u < left ? u : 0)], place.parity);
    const int units = shuffle_from(first * stage_units, 0);
    float products[kNow][kSums] = {};
    wgmma_begin();
    TENON_UNROLL
    for (int k = 0; k < 4; ++k) {
      TENON_UNROLL
      for (int u = 0; u < kNow; ++u) {
        const int at = units + u * stage_units + k * 2;
        add_product<kN>(products[u], descriptor_at(weight, at), descriptor_at(x, at), k > 0);
      }
    }
    wgmma_commit();
    float2 scale[2][kNow][kN / 8];
    TENON_UNROLL
    for (int u = 0; u < kNow; ++u) {
      TENON_UNROLL
      for (int j = 0; j < kN / 8; ++j) {
        const int at = (batch * kNow + (u < left ? u : 0)) * Tile::kRows + 8 * j;
        scale[0][u][j] = *reinterpret_cast<const float2*>(scales.of[0] + at);
        scale[1][u][j] = *reinterpret_cast<const float2*>(scales.of[1] + at);
      }
    }
    wgmma_wait_all();
    TENON_UNROLL
    for (int u = 0; u < kNow; ++u) {
      hold_sums(products[u]);
      if (lane == 0 && u < left) barrier_arrive(&tile.empty[first + u]);
    }
    if (batch > 0) {
      barrier_wait(&tile.passed[warp], (batch - 1) % 2);
      TENON_UNROLL
      for (int j = 0; j < kN / 8; ++j) {
        const float4 so_far = held[j * kWarpgroup];
        sums[4 * j] = so_far.x, sums[4 * j + 1] = so_far.y;
        sums[4 * j + 2] = so_far.z, sums[4 * j + 3] = so_far.w;
      }
    }
    TENON_UNROLL
    for (int u = 0; u < kNow; ++u) {
      if (u >= left) continue;
      TENON_UNROLL
      for (int e = 0; e < kSums; ++e) {
        const float2 of_rows = scale[e / 2 % 2][u][e / 4];
        sums[e] = fma_f(products[u][e], e % 2 == 0 ? of_rows.x : of_rows.y, sums[e]);
      }
    }
    if (batch + 1 < batches) {
      TENON_UNROLL
      for (int j = 0; j < kN / 8; ++j) held[j * kWarpgroup] = four_of(sums, j);
      sync_wave();
      if (lane == 0) barrier_arrive(&tile.passed[warp]);
    }
    place.skip(Tile::kTurns, places);
  }
  return (batches - 1) % Tile::kTurns == turn;
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

// Item (16 columns, eight rows) of the outputs, from all lanes of a warp.
template <class Tile>
TENON_DEVICE void store_item(const Tile& tile, int column_warp, int eight, float4 sums) {
  const GemmCall& gemm = tile.call.gemm;
  const ColumnPairs pairs = pair_columns(sums);
  const int column = tile.first_column + 16 * column_warp + pairs.column;
  const int own_end = tile.first_column + tile.call.columns;
  const int end = own_end < gemm.n ? own_end : gemm.n;
  TENON_UNROLL
  for (int c = 0; c < 2; ++c) {
    const int row = 8 * eight + 2 * (thread_id() % 4) + c;
    if (row >= tile.num_rows || column >= end) continue;
    bf16* to = static_cast<bf16*>(gemm.out) + (tile.first_row + row) * gemm.out_stride + column;
    if (!gemm.out_is_f32 && column + 1 < end && reinterpret_cast<std::uintptr_t>(to) % 4 == 0) {
      *reinterpret_cast<std::uint32_t*>(to) = convert_bf16x2(pairs.left[c], pairs.right[c]);
    } else {
      store_output(gemm, tile.first_row + row, column, pairs.left[c]);
      if (column + 1 < end) store_output(gemm, tile.first_row + row, column + 1, pairs.right[c]);
    }
  }
}

TENON_DEVICE float4 add(float4 a, float4 b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }

// ((segment 0 + segment 1) + segment 2) + …, of this lane; parts of a segment lie `stride` apart.
TENON_DEVICE float4 sum_segments(const float4* parts, int segments, int stride) {
  float4 sum = parts[0];
  TENON_NO_UNROLL
  for (int s = 1; s < segments; ++s) sum = add(sum, parts[s * stride]);
  return sum;
}

// Segments of 16 columns that lie in the inbox meet: ((segment 0 + segment 1) + segment 2) + …
template <class Tile>
TENON_DEVICE void add_own_segments(const Tile& tile) {
  constexpr int kEights = Tile::kRows / 8;
  const int lane = thread_id() % kWave;
  sync_first_threads<Tile::kConsumers>();
  TENON_NO_UNROLL
  for (int eight = thread_id() / kWave; eight < kEights; eight += Tile::kConsumers / kWave)
    store_item(
        tile, 0, eight,
        sum_segments(tile.inbox + eight * kWave + lane, tile.call.cut.count, kEights * kWave));
}

// kBf16ByWarps: of `warps` warps warp w has segments w, w + warps, …
template <class Tile>
TENON_DEVICE void multiply_by_segments(const Tile& tile) {
  constexpr int kEights = Tile::kSums / 4;  // of rows of x, of this warp
  constexpr int kNow = 4 / kEights;         // blocks of k at once
  constexpr int kHalves = kTileBytes / 64, kAllEights = Tile::kRows / 8;
  const Sm90Call& call = tile.call;
  constexpr int kStep = 4 * Tile::kTurns;  // warps that have the same rows
  const int lane = thread_id() % kWave, first = thread_id() / kWave % kStep;
  const WarpPlace place = warp_place<Tile>();
  // Of the operands' 8 × 8 parts: the row of a lane and which 16 bytes. Columns: eight and eight.
  const int row = lane % 8, column = row + lane / 8 % 2 * 8;
  if (tile.copies_x()) {
    TENON_NO_UNROLL
    for (int segment = first; segment < call.cut.count; segment += kStep)
      copy_x_by_threads(tile, call.cut.begin(segment) / kProductBlock,
                        call.cut.begin(segment + 1) / kProductBlock, lane, kWave);
    await_copies();
    sync_wave();
  }
  TENON_NO_UNROLL
  for (int segment = first; segment < call.cut.count; segment += kStep) {
    const int begin = call.cut.begin(segment) / kProductBlock;
    const int end = call.cut.begin(segment + 1) / kProductBlock;
    float sums[kEights][4] = {};
    TENON_NO_UNROLL
    for (int block = begin; block < end; block += kNow) {
      const std::byte* stage[kNow];
      TENON_UNROLL
      for (int u = 0; u < kNow; ++u) {
        const int own = block + u < end ? block + u : block;  // again, where there is no other
        stage[u] = tile.shared + own * tile.stage_bytes;
        barrier_wait(&tile.full[own], 0);
      }
      float products[kNow][kEights][4] = {};
      TENON_UNROLL
      for (int two = 0; two < kProductBlock / 32; ++two) {  // products of 16 of k
        const int part = two / kHalves, chunk = two % kHalves * 4;
        std::uint32_t x[kNow][kEights][4];
        TENON_UNROLL
        for (int u = 0; u < kNow; ++u) {
          const std::byte* const of_x =
              stage[u] + tile.weight_bytes + part * Tile::kRows * kTileBytes;
          TENON_UNROLL
          for (int j = 0; j < kEights; ++j)
            load_matrices(x[u][j], shared_address(of_x + tile_place(8 * (place.row_eight + j) + row,
                                                                    chunk + lane / 8)));
        }
        TENON_UNROLL
        for (int k = 0; k < 2; ++k) {
          std::uint32_t weight[kNow][4];
          TENON_UNROLL
          for (int u = 0; u < kNow; ++u)
            load_matrices(weight[u], shared_address(stage[u] + part * call.columns * kTileBytes +
                                                    tile_place(column, chunk + 2 * k + lane / 16)));
          TENON_UNROLL
          for (int u = 0; u < kNow; ++u) {
            TENON_UNROLL
            for (int j = 0; j < kEights; ++j)
              add_product_16x8(products[u][j], weight[u], x[u][j][2 * k], x[u][j][2 * k + 1]);
          }
        }
      }
      TENON_UNROLL
      for (int u = 0; u < kNow; ++u) {
        if (block + u >= end) continue;
        TENON_UNROLL
        for (int j = 0; j < kEights; ++j) {
          TENON_UNROLL
          for (int i = 0; i < 4; ++i) sums[j][i] = sums[j][i] + products[u][j][i];
        }
      }
    }
    TENON_UNROLL
    for (int j = 0; j < kEights; ++j)
      tile.inbox[(segment * kAllEights + place.row_eight + j) * kWave + lane] = {
          sums[j][0], sums[j][1], sums[j][2], sums[j][3]};
  }
  add_own_segments(tile);
}

// kBf16InOrder in turns: each warpgroup makes whole segments. The ring has stages for the longest
// one of each.
template <class Tile>
TENON_DEVICE void multiply_segments_in_turns(const Tile& tile) {
  const Segments& cut = tile.call.cut;
  const int turn = shuffle_from(thread_id() / kWarpgroup, 0), lane = thread_id() % kWave;
  RingReader reader;
  TENON_NO_UNROLL
  for (int segment = turn; segment < cut.count; segment += Tile::kTurns) {
    const int begin = cut.begin(segment) / kProductBlock;
    reader.skip(begin - reader.block, tile.call.stages);
    float own[Tile::kSums] = {};
    multiply<4>(tile, reader, cut.begin(segment + 1) / kProductBlock, own);
    if (warp_place<Tile>().column_warp > 0) continue;
    TENON_UNROLL
    for (int j = 0; j < Tile::kSums / 4; ++j)
      tile.inbox[(segment * (Tile::kSums / 4) + j) * kWave + lane] = four_of(own, j);
  }
  add_own_segments(tile);
}

// Segments meet: ((segment 0 + segment 1) + segment 2) + …, each item in one block of the cluster.
template <class Tile>
TENON_DEVICE void add_segments(const Tile& tile, const float (&sums)[Tile::kSums]) {
  const int warp = thread_id() / kWave, lane = thread_id() % kWave;
  const int segments = tile.cluster, eights = (tile.num_rows + 7) / 8;
  const WarpPlace place = warp_place<Tile>();
  TENON_UNROLL
  for (int j = 0; j < Tile::kSums / 4; ++j) {
    if (place.row_eight + j >= eights) continue;
    const int item = place.column_warp * eights + place.row_eight + j;
    send_cluster(tile.inbox + (item / segments * segments + tile.rank) * 32 + lane, tile.received,
                 static_cast<std::uint32_t>(item % segments), sums[4 * j], sums[4 * j + 1],
                 sums[4 * j + 2], sums[4 * j + 3]);
  }
  barrier_wait_cluster(tile.received, 0);
  TENON_NO_UNROLL
  for (int i = warp; i < num_items(tile); i += Tile::kWarps) {
    const int item = i * segments + tile.rank;
    store_item(tile, item / eights, item % eights,
               sum_segments(tile.inbox + i * segments * kWave + lane, segments, kWave));
  }
}

// Gate and up meet in shared memory, where the ring was, and leave as codes: kLanes lanes have the
// block's columns of a row.
template <class Tile>
TENON_DEVICE void activate(const Tile& tile, const float (&sums)[Tile::kSums]) {
  constexpr int kColumns = 16 * Tile::kColumnWarps / 2;  // of gate or up
  constexpr int kPitch = kColumns * 2 + 16;              // bytes between rows of either
  constexpr int kPart = Tile::kRows * kPitch, kPartWarps = Tile::kWarps / 2;
  constexpr int kLanes = kColumns / kVector, kItems = Tile::kRows * kLanes;
  constexpr int kOwn = (kItems + Tile::kConsumers - 1) / Tile::kConsumers;
  const int warp = thread_id() / kWave, cluster = tile.cluster;
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

// Share number `block` of a product.
template <Sm90Kind kKind, int kColumnGroups, int kRowGroups, int kN, int kTurns = 1>
TENON_DEVICE void run_share(const Sm90Call& call, int block) {
  using Tile = Sm90Tile<kKind, kColumnGroups, kRowGroups, kN, kTurns>;
  constexpr bool kActivates = kKind == Sm90Kind::kActivated;
  constexpr bool kAllSegments = kActivates || is_in_order(kKind);
  TENON_SHARED_TILES(shared);
  const Sm90Shared at =
      sm90_shared(kKind, call.columns, Tile::kRows, call.stages, call.cut, kTurns);
  auto* barriers = reinterpret_cast<Mbarrier*>(shared + at.barriers);
  // Tiles of rows, in bands, go first: neighbouring clusters read the same part of the weight.
  const int cluster = sm90_cluster(kKind, call.columns, call.cut);
  const int number = block / cluster, rank = block % cluster;
  const int column_tiles =
      kActivates ? call.gemm.n / (2 * kProductBlock) : ceil_div(call.gemm.n, call.columns);
  const int band = number / (kSm90Band * column_tiles) * kSm90Band;
  const int in_band = call.row_tiles - band < kSm90Band ? call.row_tiles - band : kSm90Band;
  const int place = number - band * column_tiles, column_tile = place / in_band;
  const int first_row = (band + place % in_band) * Tile::kRows;
  const int left = call.gemm.rows - first_row;
  if (left <= 0) {  // a plan may be for more rows than a call has
    wait_for_previous();
    return;
  }
  const int first_block = kAllSegments ? 0 : call.cut.begin(rank) / kProductBlock;
  const int end_block =
      kAllSegments ? call.cut.num_blocks : call.cut.begin(rank + 1) / kProductBlock;
  const Tile tile{.call = call,
                  .rank = rank,
                  .cluster = cluster,
                  .first_block = first_block,
                  .num_blocks = end_block - first_block,
                  .first_row = first_row,
                  .num_rows = left < Tile::kRows ? left : Tile::kRows,
                  .first_column = kActivates
                                      ? column_tile * kProductBlock + rank * (call.columns / 2)
                                      : column_tile * call.columns,
                  .weight_bytes = at.weight,
                  .stage_bytes = at.stage,
                  .shared = shared,
                  .scales = reinterpret_cast<float*>(shared + at.scales),
                  .inbox = reinterpret_cast<float4*>(shared + at.inbox),
                  .full = barriers,
                  .empty = barriers + call.stages,
                  .received = barriers + 2 * call.stages,
                  .passed = barriers + 2 * call.stages + 1};
  const int ahead = tile.num_blocks < call.stages ? tile.num_blocks : call.stages;
  if (thread_id() >= Tile::kConsumers) {
    start_ring(tile, ahead);
  } else if (Tile::kIsScaled && thread_id() * 32 < tile.num_blocks) {  // a line of cache
    const int sets = tile.num_sets();
    TENON_NO_UNROLL
    for (int set = 0; set < sets; ++set) prefetch(weight_scales(tile, set) + thread_id() * 32);
  }
  sync_wave();
  sync_block();
  if (cluster > 1) cluster_arrive();
  wait_for_previous();
  if (thread_id() == 0) let_next_start();
  if (thread_id() >= Tile::kConsumers) {
    if (is_bf16(kKind) && tile.gathers()) {
      gather_ring(tile, ahead);
    } else {
      fill_ring(tile, ahead);
    }
    sync_wave();
    if (cluster > 1) cluster_wait();
    return;
  }
  if constexpr (kKind == Sm90Kind::kBf16ByWarps) {
    multiply_by_segments(tile);
    return;
  }
  if (tile.copies_x()) copy_x_by_threads(tile, 0, ahead, thread_id(), Tile::kConsumers);
  if constexpr (Tile::kIsScaled) make_scales(tile);
  if (tile.copies_x()) {
    await_copies();
    show_to_tensor_cores();
  }
  if (Tile::kIsScaled || tile.copies_x()) sync_first_threads<Tile::kConsumers>();
  RingReader reader;
  float sums[Tile::kSums] = {};
  if constexpr (kTurns > 1 && kKind == Sm90Kind::kBf16InOrder) {
    multiply_segments_in_turns(tile);
    return;
  } else if constexpr (kTurns > 1) {
    if (!multiply_in_turns(tile, sums)) return;
  } else if constexpr (kKind == Sm90Kind::kBf16InOrder) {
    TENON_NO_UNROLL
    for (int segment = 0; segment < call.cut.count; ++segment) {
      float own[Tile::kSums] = {};
      multiply<kN <= 16 ? 4 : 1>(tile, reader, call.cut.begin(segment + 1) / kProductBlock, own);
      TENON_UNROLL
      for (int e = 0; e < Tile::kSums; ++e) sums[e] = segment == 0 ? own[e] : sums[e] + own[e];
    }
  } else {
    multiply<sm90_batch(kN)>(tile, reader, tile.num_blocks, sums);
  }
  if (cluster > 1) cluster_wait();  // all have started and set their barriers
  if constexpr (kActivates) {
    activate(tile, sums);
  } else if (cluster > 1) {
    add_segments(tile, sums);
  } else {
    const WarpPlace own = warp_place<Tile>();
    TENON_UNROLL
    for (int j = 0; j < Tile::kSums / 4; ++j)
      store_item(tile, own.column_warp, own.row_eight + j, four_of(sums, j));
  }
}

template <Sm90Kind kKind, int kColumnGroups, int kRowGroups, int kN, int kTurns = 1>
TENON_KERNEL_RESIDENT(sm90_threads(kColumnGroups* kRowGroups* kTurns),
                      sm90_most_resident(kColumnGroups* kRowGroups* kTurns))
sm90_kernel(TENON_ARGS(Sm90Call) call) {
  run_share<kKind, kColumnGroups, kRowGroups, kN, kTurns>(call, block_id());
}

// Two products of the same rows: one of e4m3 and, in the first blocks, which have most to do, one
// of bf16.
struct Sm90Pair {
  Sm90Call main, beside;
  int beside_blocks = 0;
};
template <int kRowGroups, int kN, Sm90Kind kBeside = Sm90Kind::kBf16InOrder, int kTurns = 1>
TENON_KERNEL_RESIDENT(sm90_threads(kRowGroups* kTurns), sm90_most_resident(kRowGroups* kTurns))
sm90_pair_kernel(TENON_ARGS(Sm90Pair) call) {
  if (block_id() < call.beside_blocks) {
    run_share<kBeside, 1, kRowGroups, kN, kTurns>(call.beside, block_id());
  } else {
    run_share<Sm90Kind::kE4m3, 1, kRowGroups, kN, kTurns>(call.main,
                                                          block_id() - call.beside_blocks);
  }
}

}  // namespace tenon::TENON_TARGET
