// fp8_gemm, dense, by the tensor cores of Hopper (sm_90a). For few rows it is bound by reading the
// weight once; the same kernel serves any number of rows, so a row has the same bits in all.
//
// The weight is the operand with 64 rows of the instruction, rows of x are its N side: in what
// follows a "column" is one of n, as in the op. Blocks of threads take 64 · kGroups columns, kN
// rows and one segment; the blocks of a cluster take the segments of the same outputs. In a block
// one thread, the producer, fills a ring of stages: a tile of the weight and one of x, 128 bytes of
// k each. Its first copies of the weight, which no kernel of a step writes, are asked for before it
// waits for the kernel before; x after that. kGroups warpgroups multiply:
//   block = four products of 32 of k, a chain from zero; sums = fma(block, xs · ws, sums)
// and with several segments each sends its sums to the block of the cluster that adds them in
// order.
#pragma once

#include "tenon/device/cuda_hip/sm90/tma.cuh"
#include "tenon/device/cuda_hip/sm90/wgmma.cuh"
#include "tenon/device/math.cuh"
#include "tenon/ops/fp8_gemm/call.cuh"

namespace tenon::TENON_TARGET::fp8_gemm {

using namespace sm90;

inline constexpr int kWarpgroup = 128;
inline constexpr int kGroupColumns = 64;
inline constexpr int kSm90Band = 16;  // tiles of rows that share the reading of a tile of columns

struct Sm90Call {
  TensorMap x, weight;  // in tiles of kN rows, of 64 · kGroups columns
  GemmCall gemm;
  GemmScales scales;
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

// Where things lie in shared memory, in bytes. Rows of scales are two floats longer than kN, so
// that threads that write a column of them meet few bank conflicts.
struct Sm90Shared {
  int stage, scales, inbox, barriers, bytes;
};
TENON_HD constexpr Sm90Shared sm90_shared(int groups, int kn, int stages, const Segments& cut) {
  const int longest = (cut.num_blocks + cut.count - 1) / cut.count;
  const int items = (4 * groups * (kn / 8) + cut.count - 1) / cut.count;
  Sm90Shared at{};
  at.stage = (kGroupColumns * groups + kn) * kProductBlock;
  at.inbox = stages * at.stage;
  at.scales = at.inbox + (cut.count > 1 ? items * cut.count * 512 : 0);
  at.barriers = (at.scales + longest * kn * 4 + 7) / 8 * 8;
  at.bytes = at.barriers + (2 * stages + 1) * 8;
  return at;
}

// A block's share, and its shared memory.
template <int kGroups, int kN>
struct Sm90Tile {
  static constexpr int kColumns = kGroupColumns * kGroups, kWarps = 4 * kGroups;
  static constexpr int kConsumers = kWarpgroup * kGroups, kSums = kN / 2;
  static constexpr int kWeightBytes = kColumns * kProductBlock;
  static constexpr int kStageBytes = kWeightBytes + kN * kProductBlock;

  const Sm90Call& call;
  int segment, first_block, num_blocks;  // of k
  int first_row, num_rows, first_column;
  std::byte* shared;
  float* scales;           // [num_blocks, kN]: xs · ws
  float4* inbox;           // sums that other blocks of the cluster have sent
  Mbarrier *full, *empty;  // of each stage
  Mbarrier* received;      // all that belongs into the inbox
};

// Every (warp, eight rows) is an item of 32 lanes · 4 sums. Item i is added by block i % segments
// of the cluster.
template <class Tile>
TENON_DEVICE int num_items(const Tile& tile) {
  const int eights = (tile.num_rows + 7) / 8;
  return (Tile::kWarps * eights - tile.segment + tile.call.cut.count - 1) / tile.call.cut.count;
}

template <class Tile>
TENON_DEVICE void copy_weight(const Tile& tile, int i, int stage, std::uint64_t policy) {
  copy_tile(tile.shared + stage * Tile::kStageBytes, &tile.call.weight,
            (tile.first_block + i) * kProductBlock, tile.first_column, &tile.full[stage], policy);
}
template <class Tile>
TENON_DEVICE void copy_x(const Tile& tile, int i, int stage, std::uint64_t policy) {
  copy_tile(tile.shared + stage * Tile::kStageBytes + Tile::kWeightBytes, &tile.call.x,
            (tile.first_block + i) * kProductBlock, tile.first_row, &tile.full[stage], policy);
}

// A weight is read once, or by every tile of rows.
template <class Tile>
TENON_DEVICE std::uint64_t weight_policy(const Tile& tile) {
  return tile.call.row_tiles > 1 ? policy_evict_last() : policy_evict_first();
}

// The producer, before it waits for the kernel before: barriers, and weights into the whole ring.
template <class Tile>
TENON_DEVICE void start_ring(const Tile& tile, int ahead) {
  TENON_NO_UNROLL
  for (int stage = 0; stage < tile.call.stages; ++stage) {
    barrier_init(&tile.full[stage], 1);
    barrier_init(&tile.empty[stage], Tile::kWarps);
  }
  barrier_init(tile.received, 1);
  publish_barriers();
  if (tile.call.cut.count > 1)
    barrier_arrive_expect(tile.received,
                          static_cast<std::uint32_t>(num_items(tile) * tile.call.cut.count * 512));
  const std::uint64_t policy = weight_policy(tile);
  TENON_NO_UNROLL
  for (int i = 0; i < ahead; ++i) {
    barrier_arrive_expect(&tile.full[i], Tile::kStageBytes);
    copy_weight(tile, i, i, policy);
  }
  prefetch_map(&tile.call.x);
}

// The producer, after it.
template <class Tile>
TENON_DEVICE void fill_ring(const Tile& tile, int ahead) {
  const std::uint64_t policy = weight_policy(tile), often = policy_evict_last();
  TENON_NO_UNROLL
  for (int i = 0; i < ahead; ++i) copy_x(tile, i, i, often);
  RingPlace place;
  TENON_NO_UNROLL
  for (int i = ahead; i < tile.num_blocks; ++i) {
    barrier_wait(&tile.empty[place.stage], place.parity);
    barrier_arrive_expect(&tile.full[place.stage], Tile::kStageBytes);
    copy_weight(tile, i, place.stage, policy);
    copy_x(tile, i, place.stage, often);
    place.next(tile.call.stages);
  }
}

// The weight's scales of the block's columns, by block of k.
template <class Tile>
TENON_DEVICE const float* weight_scales(const Tile& tile) {
  const GemmScales& scales = tile.call.scales;
  return scales.weight + tile.first_column / kProductBlock * scales.weight_row_stride +
         tile.first_block;
}

// The products of scales, of kLoads elements at once: no load waits for another. Rows that do not
// exist get those of the last one.
template <int kGroups, int kN>
TENON_DEVICE void make_scales(const Sm90Tile<kGroups, kN>& tile) {
  constexpr int kLoads = 4, kConsumers = Sm90Tile<kGroups, kN>::kConsumers;
  const GemmScales& scales = tile.call.scales;
  const float* weight = weight_scales(tile);
  const float* x =
      scales.x + tile.first_row * scales.x_row_stride + tile.first_block * scales.x_block_stride;
  const int total = tile.num_blocks * kN;
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
      if (first + u * kConsumers < total)
        tile.scales[first + u * kConsumers] = of_x[u] * of_weight[u];
  }
}

// Sums of a segment as the instruction lays them out: sums[4 j + 2 h + c] belongs to column
// 16 w + g + 8 h of the tile and row 8 j + 2 p + c, for lane 4 g + p of warp w.
// kMost: so many blocks of k at once where the ring has stages for twice as many.
template <int kMost, int kGroups, int kN>
TENON_DEVICE void multiply(const Sm90Tile<kGroups, kN>& tile, float (&sums)[kN / 2]) {
  using Tile = Sm90Tile<kGroups, kN>;
  // Descriptors of a value that the whole warp has stay in uniform registers, where the instruction
  // wants them; otherwise every product waits for a move.
  const int group = shuffle_from(thread_id() / kWarpgroup, 0);
  const int lane = thread_id() % kWave, pair = lane % 4, stages = tile.call.stages;
  const std::uint64_t weight = tile_descriptor(tile.shared + group * kGroupColumns * kProductBlock);
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
      for (int k = 0; k < 4; ++k)
        add_product<kN>(blocks[u], descriptor_at(weight, stage + 2 * k),
                        descriptor_at(x, stage + 2 * k), k > 0);
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
      const float* scales = tile.scales + (i + u) * kN + 2 * pair;
      TENON_UNROLL
      for (int j = 0; j < kN / 8; ++j) {
        const float2 scale = *reinterpret_cast<const float2*>(scales + 8 * j);
        TENON_UNROLL
        for (int e = 4 * j; e < 4 * j + 4; ++e)
          sums[e] = fma_f(blocks[u][e], e % 2 == 0 ? scale.x : scale.y, sums[e]);
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

// Item (warp, j) of the outputs, from all lanes of a warp. Lanes exchange halves first, so that a
// lane has two neighbouring columns of a row.
template <class Tile>
TENON_DEVICE void store_item(const Tile& tile, int warp, int j, float4 sums) {
  const GemmCall& gemm = tile.call.gemm;
  const int lane = thread_id() % kWave, g = lane / 4, odd = g % 2;
  const float from_low = shuffle_xor(odd ? sums.x : sums.z, 4);
  const float from_high = shuffle_xor(odd ? sums.y : sums.w, 4);
  const int column = tile.first_column + 16 * warp + g - odd + 8 * odd;
  const float left[2] = {odd ? from_low : sums.x, odd ? from_high : sums.y};
  const float right[2] = {odd ? sums.z : from_low, odd ? sums.w : from_high};
  TENON_UNROLL
  for (int c = 0; c < 2; ++c) {
    const int row = 8 * j + 2 * (lane % 4) + c;
    if (row >= tile.num_rows || column >= gemm.n) continue;
    bf16* to = static_cast<bf16*>(gemm.out) + (tile.first_row + row) * gemm.out_stride + column;
    if (!gemm.out_is_f32 && column + 1 < gemm.n && reinterpret_cast<std::uintptr_t>(to) % 4 == 0) {
      *reinterpret_cast<std::uint32_t*>(to) = convert_bf16x2(left[c], right[c]);
    } else {
      store_output(gemm, tile.first_row + row, column, left[c]);
      if (column + 1 < gemm.n) store_output(gemm, tile.first_row + row, column + 1, right[c]);
    }
  }
}

// Segments meet: ((segment 0 + segment 1) + segment 2) + …, each item in one block of the cluster.
template <int kGroups, int kN>
TENON_DEVICE void add_segments(const Sm90Tile<kGroups, kN>& tile, const float (&sums)[kN / 2]) {
  using Tile = Sm90Tile<kGroups, kN>;
  const int warp = thread_id() / kWave, lane = thread_id() % kWave;
  const int segments = tile.call.cut.count, eights = (tile.num_rows + 7) / 8;
  TENON_UNROLL
  for (int j = 0; j < kN / 8; ++j) {
    if (j >= eights) continue;
    const int item = warp * eights + j;
    send_cluster(tile.inbox + (item / segments * segments + tile.segment) * 32 + lane,
                 tile.received, static_cast<std::uint32_t>(item % segments), sums[4 * j],
                 sums[4 * j + 1], sums[4 * j + 2], sums[4 * j + 3]);
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
    const int item = i * segments + tile.segment;
    store_item(tile, item / eights, item % eights, sum);
  }
}

template <int kGroups, int kN, int kResident>
TENON_KERNEL_RESIDENT(sm90_threads(kGroups), kResident)
sm90_kernel(TENON_ARGS(Sm90Call) call) {
  using Tile = Sm90Tile<kGroups, kN>;
  TENON_SHARED_TILES(shared);
  const Sm90Shared at = sm90_shared(kGroups, kN, call.stages, call.cut);
  auto* barriers = reinterpret_cast<Mbarrier*>(shared + at.barriers);
  // Tiles of rows, in bands, go first: neighbouring blocks read the same part of the weight.
  const int number = block_id() / call.cut.count;
  const int column_tiles = ceil_div(call.gemm.n, Tile::kColumns);
  const int band = number / (kSm90Band * column_tiles) * kSm90Band;
  const int in_band = call.row_tiles - band < kSm90Band ? call.row_tiles - band : kSm90Band;
  const int place = number - band * column_tiles;
  const int first_row = (band + place % in_band) * kN, left = call.gemm.rows - first_row;
  if (left <= 0) {  // a plan may be for more rows than a call has
    wait_for_previous();
    return;
  }
  const int segment = block_id() % call.cut.count;
  const int first_block = call.cut.begin(segment) / kProductBlock;
  const Tile tile{.call = call,
                  .segment = segment,
                  .first_block = first_block,
                  .num_blocks = call.cut.begin(segment + 1) / kProductBlock - first_block,
                  .first_row = first_row,
                  .num_rows = left < kN ? left : kN,
                  .first_column = place / in_band * Tile::kColumns,
                  .shared = shared,
                  .scales = reinterpret_cast<float*>(shared + at.scales),
                  .inbox = reinterpret_cast<float4*>(shared + at.inbox),
                  .full = barriers,
                  .empty = barriers + call.stages,
                  .received = barriers + 2 * call.stages};
  const int ahead = tile.num_blocks < call.stages ? tile.num_blocks : call.stages;
  const bool several = call.cut.count > 1;
  if (thread_id() == Tile::kConsumers) {
    start_ring(tile, ahead);
  } else if (thread_id() * 32 < tile.num_blocks) {  // a line of cache
    prefetch(weight_scales(tile) + thread_id() * 32);
  }
  sync_wave();
  sync_block();
  if (several) cluster_arrive();
  wait_for_previous();
  if (thread_id() == 0) let_next_start();
  if (thread_id() >= Tile::kConsumers) {
    if (thread_id() == Tile::kConsumers) fill_ring(tile, ahead);
    sync_wave();
    if (several) cluster_wait();
    return;
  }
  make_scales(tile);
  sync_first_threads<Tile::kConsumers>();
  float sums[kN / 2] = {};
  multiply<sm90_batch(kN, kResident)>(tile, sums);
  if (several) {
    cluster_wait();  // all have started and set their barriers
    add_segments(tile, sums);
  } else {
    TENON_UNROLL
    for (int j = 0; j < kN / 8; ++j)
      store_item(tile, thread_id() / kWave, j,
                 {sums[4 * j], sums[4 * j + 1], sums[4 * j + 2], sums[4 * j + 3]});
  }
}

}  // namespace tenon::TENON_TARGET::fp8_gemm
