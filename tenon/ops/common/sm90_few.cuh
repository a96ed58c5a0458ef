// Products of e4m3 with a decode step's few rows on Hopper (sm_90a). The weight of a block of
// threads lies whole in its shared memory before the kernel before has ended; so what is left to do
// behind the wait is the latency of one short chain, and everything here serves to shorten that. Up
// to 8 rows, and up to 16.
// Its bits are those of sm90_product.cuh.
//
// The weight is the operand with 64 rows of the instruction. A block has some columns of the output
// and all of k: row columns · s + c of the operand is column c in segment s, and the other operand
// has the rows of x in segment s as its rows 8 s + r, or 16 s + r. So one instruction makes the
// products of all segments, of which a warp keeps those of its own: none of its columns needs
// another segment's x. Segments meet in shared memory instead of over a cluster. Rows of the
// operand that are no column of the block are whatever lies there; nobody looks at their products.
//
//   before the wait    one warp asks for the weight; the others take its scales and do not wait
//                      until all is asked for
//   behind it          x and its scales: 128 threads copy up to 8 rows, more are asked for by the
//                      one warp, on the barriers of the weight; products of two batches of blocks
//                      of 128 of k at once, the first is scaled and added while the second runs;
//                      segments are added in order; one rounding
#pragma once

#include "tenon/device/copy.cuh"
#include "tenon/ops/common/sm90_product.cuh"

namespace tenon::TENON_TARGET {

inline constexpr int kFewMostBlocks = 64;                                 // of k
inline constexpr int kMostFewRows = 16;                                   // of x
TENON_HD constexpr int few_rows(int rows) { return rows <= 8 ? 8 : 16; }  // that a tile has

struct FewCall {
  TensorMap weight;  // in tiles of a block's columns
  TensorMap x;       // in tiles of 16 rows, where there are more than 8
  GemmCall gemm;
  GemmScales scales;
  int blocks = 0;      // of k in a segment
  int columns = 0;     // of a block of threads: a multiple of 8, with several segments of 16
  bool packs = false;  // two neighbouring outputs from an even column on are one aligned word
};

// Blocks of k that are multiplied at once, for which there are registers. A segment has a multiple
// of them.
TENON_HD constexpr int few_batch(int segments) { return 8 / segments; }

// Sets of scales: with one segment a block may lie over the border of two groups of 128 columns.
TENON_HD constexpr int few_sets(int segments) { return segments == 1 ? 2 : 1; }

// Where things lie in shared memory, in bytes. blocks: of k in a segment. rows: of a tile.
struct FewShared {
  int x, inbox, scales, barriers, bytes;
};
TENON_HD constexpr FewShared few_shared(int segments, int blocks, int columns, int rows) {
  FewShared at{};
  at.x = blocks * segments * columns * kTileBytes;
  at.inbox = at.x + blocks * segments * rows * kTileBytes;
  at.scales = at.inbox + (segments > 1 ? kWarpgroup * 2 * rows : 0);
  at.barriers = at.scales + few_sets(segments) * segments * blocks * rows * 4;
  at.bytes = at.barriers + blocks / few_batch(segments) * 8;
  const int read = (blocks - 1) * segments * columns * kTileBytes + kGroupColumns * kTileBytes;
  if (at.bytes < read) at.bytes = read;
  return at;
}

template <int kOfSegments, int kOfRows>
struct FewTile {
  static constexpr int kSegments = kOfSegments, kRows = kOfRows, kEights = kRows / 8;
  static constexpr int kN = kSegments * kRows, kSums = kN / 2;
  static constexpr bool kAsksForX = kRows > 8;
  static constexpr int kBatch = few_batch(kSegments), kSets = few_sets(kSegments);
  static constexpr int kXBytes = kN * kTileBytes;

  const FewCall& call;
  int blocks, first_column;
  int weight_bytes;  // of a block of k
  std::byte *weight, *x;
  float4* inbox;
  float* scales;  // [num_sets, segments · blocks, kRows]: xs · ws
  Mbarrier* full;

  TENON_HD int num_sets() const {
    return kSets > 1 && first_column % kProductBlock + call.columns > kProductBlock &&
                   first_column / kProductBlock * kProductBlock + kProductBlock < call.gemm.n
               ? 2
               : 1;
  }
};

// The warp that asks for the weight. It says when barriers are set, for which the others wait once
// they have what they take themselves, and goes on.
template <class Tile>
TENON_DEVICE void few_ask(const Tile& tile) {
  const int lane = thread_id() % kWave, batches = tile.blocks / Tile::kBatch;
  TENON_NO_UNROLL
  for (int i = lane; i < batches; i += kWave) barrier_init(&tile.full[i], Tile::kAsksForX ? 2 : 1);
  publish_barriers();
  TENON_NO_UNROLL
  for (int i = lane; i < batches; i += kWave)
    barrier_arrive_expect(&tile.full[i],
                          static_cast<std::uint32_t>(Tile::kBatch * tile.weight_bytes));
  sync_wave();
  tell_meeting<sm90_threads(1)>();
  const std::uint64_t policy = policy_evict_first();
  TENON_NO_UNROLL
  for (int i = lane; i < tile.blocks * Tile::kSegments; i += kWave) {
    const int block = i / Tile::kSegments, segment = i % Tile::kSegments;
    copy_tile(tile.weight + block * tile.weight_bytes + segment * tile.call.columns * kTileBytes,
              &tile.call.weight, (segment * tile.blocks + block) * kTileBytes, tile.first_column,
              &tile.full[block / Tile::kBatch], policy);
  }
}

// The same warp, behind the wait, for x. Its bytes are announced here: with those of the weight,
// before the wait, a product of 16 rows took 0.05 µs longer.
template <class Tile>
TENON_DEVICE void few_ask_for_x(const Tile& tile) {
  const int lane = thread_id() % kWave, batches = tile.blocks / Tile::kBatch;
  TENON_NO_UNROLL
  for (int i = lane; i < batches; i += kWave)
    barrier_arrive_expect(&tile.full[i], Tile::kBatch * Tile::kXBytes);
  sync_wave();
  const std::uint64_t policy = policy_evict_last();
  TENON_NO_UNROLL
  for (int i = lane; i < tile.blocks * Tile::kSegments; i += kWave) {
    const int block = i / Tile::kSegments, segment = i % Tile::kSegments;
    copy_tile(tile.x + block * Tile::kXBytes + segment * Tile::kRows * kTileBytes, &tile.call.x,
              (segment * tile.blocks + block) * kTileBytes, 0, &tile.full[block / Tile::kBatch],
              policy);
  }
}

// A thread's part of x and of the scales, worked out before the wait.
template <class Tile>
struct FewShare {
  static constexpr int kMost = kFewMostBlocks * 8 / kWarpgroup;  // chunks of a row
  static constexpr int kScales = kFewMostBlocks * Tile::kRows / kWarpgroup;

  int sets;       // of scales
  int count;      // of chunks
  int to[kMost];  // of row 0, in bytes from tile.x; the place of a chunk in its row apart
  int num_scales;
  std::int64_t scale_at[kScales];  // of x
  float of_weight[Tile::kSets][kScales];
};
template <class Tile>
TENON_DEVICE FewShare<Tile> find_share(const Tile& tile) {
  FewShare<Tile> share{};
  const int sets = tile.num_sets();
  share.sets = sets;
  hold(share.sets);
  const GemmScales& scales = tile.call.scales;
  const int total = Tile::kSegments * tile.blocks, thread = thread_id();
  const float* const weight =
      scales.weight + tile.first_column / kProductBlock * scales.weight_row_stride;
  // Rows that do not exist get the scales of the last one.
  const int last = tile.call.gemm.rows - 1, own = thread % Tile::kRows,
            row = own < last ? own : last;
  share.num_scales = 0;
  TENON_UNROLL
  for (int u = 0; u < share.kScales; ++u) {
    const int block = (thread + u * kWarpgroup) / Tile::kRows;
    share.scale_at[u] = row * scales.x_row_stride + block * scales.x_block_stride;
    hold(share.scale_at[u]);
    if (block >= total) continue;
    TENON_UNROLL
    for (int set = 0; set < Tile::kSets; ++set)
      if (set < sets)
        share.of_weight[set][u] = load_constant(weight + set * scales.weight_row_stride + block);
    share.num_scales = u + 1;
  }
  share.count = 0;
  if constexpr (!Tile::kAsksForX) {
    TENON_UNROLL
    for (int u = 0; u < share.kMost; ++u) {
      const int block = thread / 8 + u * (kWarpgroup / 8);
      int segment = 0;
      TENON_UNROLL
      for (int s = 1; s < Tile::kSegments; ++s) segment += block >= s * tile.blocks;
      share.to[u] =
          (block - segment * tile.blocks) * Tile::kXBytes + segment * Tile::kRows * kTileBytes;
      if (block < total) share.count = u + 1;
    }
  }
  return share;
}

// Behind the wait. Rows that do not exist keep what lies there, or are zeros; that reaches their
// own outputs only. The number of sets is worked out again, behind the copies: where it is known
// earlier, ptxas puts a product of scales in front of them, which waits for a load.
template <class Tile>
TENON_DEVICE void load_share(const Tile& tile, const FewShare<Tile>& share) {
  const GemmCall& gemm = tile.call.gemm;
  const int thread = thread_id(), chunk = thread % 8;
  float of_x[share.kScales];
  TENON_UNROLL
  for (int u = 0; u < share.kScales; ++u)
    if (u < share.num_scales) of_x[u] = tile.call.scales.x[share.scale_at[u]];
  if constexpr (!Tile::kAsksForX) {
    const auto* from = static_cast<const std::byte*>(gemm.x) + thread * 16;
    TENON_NO_UNROLL
    for (int row = 0; row < gemm.rows; ++row, from += gemm.x_stride) {
      std::byte* const own = tile.x + tile_place(row, chunk);
      TENON_UNROLL
      for (int u = 0; u < share.kMost; ++u)
        if (u < share.count) copy_async16(own + share.to[u], from + u * kWarpgroup * 16);
    }
  }
  const int sets = tile.num_sets();
  TENON_UNROLL
  for (int set = 0; set < Tile::kSets; ++set) {
    float* const made = tile.scales + set * Tile::kSegments * tile.blocks * Tile::kRows + thread;
    TENON_UNROLL
    for (int u = 0; u < share.kScales; ++u)
      if (set < sets && u < share.num_scales)
        made[u * kWarpgroup] = of_x[u] * share.of_weight[set][u];
  }
  if constexpr (!Tile::kAsksForX) {
    await_copies();
    show_to_tensor_cores();
  }
  meet_told<sm90_threads(1)>();
}

// Starts the products of a batch of blocks, each a chain of four from zero.
template <class Tile>
TENON_DEVICE void few_start(const Tile& tile, std::uint64_t weight, std::uint64_t x, int batch,
                            float (&products)[Tile::kBatch][Tile::kSums]) {
  barrier_wait(&tile.full[batch], 0);
  const int units = tile.weight_bytes / 16, of_weight = batch * Tile::kBatch * units;
  const int of_x = batch * Tile::kBatch * (Tile::kXBytes / 16);
  wgmma_begin();
  TENON_UNROLL
  for (int k = 0; k < 4; ++k) {
    TENON_UNROLL
    for (int u = 0; u < Tile::kBatch; ++u)
      add_product<Tile::kN>(products[u], descriptor_at(weight, of_weight + u * units + k * 2),
                            descriptor_at(x, of_x + u * (Tile::kXBytes / 16) + k * 2), k > 0);
  }
  wgmma_commit();
}

// Waits for them, while kBehind later batches may run, and adds what this warp's segment has.
// scales: of columns g and of columns g + 8.
template <int kBehind, class Tile>
TENON_DEVICE void few_add(int segment, const float* const (&scales)[2], int batch,
                          float (&products)[Tile::kBatch][Tile::kSums],
                          float (&sums)[Tile::kEights][4]) {
  float2 scale[2][Tile::kBatch][Tile::kEights];
  TENON_UNROLL
  for (int u = 0; u < Tile::kBatch; ++u) {
    TENON_UNROLL
    for (int i = 0; i < Tile::kEights; ++i) {
      const int at = (batch * Tile::kBatch + u) * Tile::kRows + 8 * i;
      scale[0][u][i] = *reinterpret_cast<const float2*>(scales[0] + at);
      scale[1][u][i] =
          Tile::kSets > 1 ? *reinterpret_cast<const float2*>(scales[1] + at) : scale[0][u][i];
    }
  }
  wgmma_wait_all_but<kBehind>();
  TENON_UNROLL
  for (int u = 0; u < Tile::kBatch; ++u) {
    hold_sums(products[u]);
    TENON_UNROLL
    for (int i = 0; i < Tile::kEights; ++i) {
      TENON_UNROLL
      for (int e = 0; e < 4; ++e) {
        float product = products[u][4 * i + e];
        TENON_UNROLL
        for (int s = 1; s < Tile::kSegments; ++s)
          product = segment == s ? products[u][4 * (Tile::kEights * s + i) + e] : product;
        const float2 of_rows = scale[e / 2][u][i];
        sums[i][e] = fma_f(product, e % 2 == 0 ? of_rows.x : of_rows.y, sums[i][e]);
      }
    }
  }
}

// Where a lane stores of the warp's 16 columns, of eight rows: two neighbours of rows 2 p and
// 2 p + 1, lanes being 4 g + p.
struct FewOutputs {
  int column;          // of the first of the two
  std::int64_t at[2];  // in elements; negative: nowhere
};
TENON_DEVICE FewOutputs few_outputs(const GemmCall& gemm, int first_row, int first_column,
                                    int end) {
  FewOutputs found{first_column + pair_columns({}).column, {}};
  hold(found.column);
  TENON_UNROLL
  for (int c = 0; c < 2; ++c) {
    const int row = first_row + 2 * (thread_id() % 4) + c;
    found.at[c] = row < gemm.rows && found.column < end ? row * gemm.out_stride + found.column : -1;
    hold(found.at[c]);
  }
  return found;
}
TENON_DEVICE void few_store(const FewCall& call, const FewOutputs& to, int end,
                            const float (&sums)[4]) {
  const GemmCall& gemm = call.gemm;
  const ColumnPairs pairs = pair_columns(four_of(sums, 0));
  TENON_UNROLL
  for (int c = 0; c < 2; ++c) {
    if (to.at[c] < 0) continue;
    const bool both = to.column + 1 < end;
    if (call.packs && both) {
      *reinterpret_cast<std::uint32_t*>(static_cast<bf16*>(gemm.out) + to.at[c]) =
          convert_bf16x2(pairs.left[c], pairs.right[c]);
    } else {
      store_output_at(gemm, to.at[c], pairs.left[c]);
      if (both) store_output_at(gemm, to.at[c] + 1, pairs.right[c]);
    }
  }
}

// Share number `block` of a product.
template <int kSegments, int kRows>
TENON_DEVICE void run_few(const FewCall& call, int block) {
  using Tile = FewTile<kSegments, kRows>;
  TENON_SHARED_TILES(shared);
  const int columns = call.columns;
  const FewShared at = few_shared(kSegments, call.blocks, columns, kRows);
  const Tile tile{.call = call,
                  .blocks = call.blocks,
                  .first_column = block * columns,
                  .weight_bytes = kSegments * columns * kTileBytes,
                  .weight = shared,
                  .x = shared + at.x,
                  .inbox = reinterpret_cast<float4*>(shared + at.inbox),
                  .scales = reinterpret_cast<float*>(shared + at.scales),
                  .full = reinterpret_cast<Mbarrier*>(shared + at.barriers)};
  // A warp has 16 columns of one segment, or nothing: those of segment 0 come first.
  const int warp = shuffle_from(thread_id() / kWave, 0), lane = thread_id() % kWave;
  const int warps = kSegments == 1 ? 4 : columns / 16;  // of a segment
  const int own_end = tile.first_column + columns;
  const int end = own_end < call.gemm.n ? own_end : call.gemm.n;
  FewShare<Tile> share{};
  FewOutputs outputs[Tile::kEights] = {};
  int segment = 0, scale_at[2] = {};
  // What is worked out in this branch, and held, does not slip behind the wait.
  if (thread_id() >= kWarpgroup) {
    few_ask(tile);
  } else {
    share = find_share(tile);
    TENON_UNROLL
    for (int s = 1; s < kSegments; ++s) segment += warp >= s * warps;
    hold(segment);
    TENON_UNROLL
    for (int i = 0; i < Tile::kEights; ++i)
      outputs[i] = few_outputs(call.gemm, 8 * i, tile.first_column + 16 * warp, end);
    const int own_column = tile.first_column % kProductBlock + 16 * warp + lane / 4;
    TENON_UNROLL
    for (int h = 0; h < 2; ++h) {
      const bool other = share.sets > 1 && own_column + 8 * h >= kProductBlock;
      scale_at[h] = ((other ? tile.blocks : 0) + segment * tile.blocks) * kRows + lane % 4 * 2;
      hold(scale_at[h]);
    }
  }
  wait_for_previous();
  if (thread_id() >= kWarpgroup) {
    if constexpr (Tile::kAsksForX) few_ask_for_x(tile);
    return;
  }
  if (thread_id() == 0) let_next_start();
  load_share(tile, share);

  const std::uint64_t weight = tile_descriptor(tile.weight), x = tile_descriptor(tile.x);
  const float* const scales[2] = {tile.scales + scale_at[0], tile.scales + scale_at[1]};
  float sums[Tile::kEights][4] = {};
  float even[Tile::kBatch][Tile::kSums] = {}, odd[Tile::kBatch][Tile::kSums] = {};
  const int batches = tile.blocks / Tile::kBatch;
  int batch = 0;
  TENON_NO_UNROLL
  for (; batch + 2 <= batches; batch += 2) {
    few_start(tile, weight, x, batch, even);
    few_start(tile, weight, x, batch + 1, odd);
    few_add<1, Tile>(segment, scales, batch, even, sums);
    few_add<0, Tile>(segment, scales, batch + 1, odd, sums);
  }
  if (batch < batches) {
    few_start(tile, weight, x, batch, even);
    few_add<0, Tile>(segment, scales, batch, even, sums);
  }

  if constexpr (kSegments > 1) {
    const int place = warp * kWave + lane;
    TENON_UNROLL
    for (int i = 0; i < Tile::kEights; ++i)
      if (warp >= warps) tile.inbox[i * kWarpgroup + place] = four_of(sums[i], 0);
    sync_first_threads<kWarpgroup>();
    if (warp >= warps) return;
    TENON_UNROLL
    for (int i = 0; i < Tile::kEights; ++i) {
      TENON_UNROLL
      for (int s = 1; s < kSegments; ++s) {
        const float4 other = tile.inbox[i * kWarpgroup + place + s * warps * kWave];
        sums[i][0] = sums[i][0] + other.x;
        sums[i][1] = sums[i][1] + other.y;
        sums[i][2] = sums[i][2] + other.z;
        sums[i][3] = sums[i][3] + other.w;
      }
    }
  }
  TENON_UNROLL
  for (int i = 0; i < Tile::kEights; ++i) few_store(call, outputs[i], end, sums[i]);
}

template <int kSegments, int kRows>
TENON_KERNEL_RESIDENT(sm90_threads(1), 1)
sm90_few_kernel(TENON_ARGS(FewCall) call) {
  run_few<kSegments, kRows>(call, block_id());
}

// A product of e4m3 in one segment and, in the first blocks, which have most to do, one of bf16.
struct FewPair {
  FewCall main;
  Sm90Call beside;
  int beside_blocks = 0;
};
template <Sm90Kind kBeside, int kRows>
TENON_KERNEL_RESIDENT(sm90_threads(1), 1)
sm90_few_pair_kernel(TENON_ARGS(FewPair) call) {
  if (block_id() < call.beside_blocks) {
    run_share<kBeside, 1, 1, kRows>(call.beside, block_id());
  } else {
    run_few<1, kRows>(call.main, block_id() - call.beside_blocks);
  }
}

}  // namespace tenon::TENON_TARGET
