// What both kernels of moe_experts on Hopper are made of: the list of experts with rows, the ring
// of stages, and the products of a tile.
//
// Memory is what a decode step waits for: every expert with a row is read once, from as many
// multiprocessors as there are. A unit is 16 rows of a weight and all of k; a tile is four units,
// the operand with 64 rows of the instruction, so each warp of the warpgroup has a unit and they
// may belong to different experts. The other operand is rows of x, at most kCap, and of a product
// only rows of the unit's own expert are used. A stage holds kChunk blocks of k of a tile and its
// rows of x, with their scales. Stages are filled by a wave that asks the copy engine for the
// weight and, in up_kernel, by kFeeders waves that bring x, each a stage in turn. Sums are those of
// fp8_gemm:
//   block = four products of 32 of k, a chain from zero; segment = fma(block, xs · ws, segment)
//   ((segment 0 + segment 1) + …)
#pragma once

#include "tenon/device/cuda_hip/sm90/lanes.cuh"
#include "tenon/device/cuda_hip/sm90/thread_copy.cuh"
#include "tenon/device/cuda_hip/sm90/tma.cuh"
#include "tenon/device/cuda_hip/sm90/wgmma.cuh"
#include "tenon/device/math.cuh"
#include "tenon/ops/common/quantize.cuh"
#include "tenon/ops/common/segments.h"
#include "tenon/ops/common/silu_mul.cuh"

namespace tenon::TENON_TARGET::moe_experts {

using namespace sm90;

inline constexpr int kUnitRows = 16, kUnits = 4, kChunk = 2;
inline constexpr int kUnitBytes = kUnitRows * kChunk * kProductBlock;
inline constexpr int kTileBytes = kUnits * kUnitBytes;
// Feeders may be a round of the ring ahead of each other, never two, for a barrier tells only odd
// rounds from even ones: a ring has at least kFeeders stages.
inline constexpr int kFeeders = 4;
inline constexpr int kConsumers = kUnits * kWave;  // one warpgroup
inline constexpr int kWeightWave = kUnits;         // the waves behind it are the feeders
inline constexpr int kThreads = kConsumers + kWave + kFeeders * kWave;
inline constexpr int kMostExperts = 1000;

// A weight of the routed experts, and that of the shared one.
struct Weight {
  TensorMap routed, shared;  // boxes of a unit
  const float *routed_scales, *shared_scales;
  std::int64_t expert_stride, routed_stride, shared_stride;  // of scales; of 128 rows of the weight
  std::int32_t expert_rows;
  Segments cut;
};

// What moe_route has made, or up_kernel: see sm90_chosen.cuh.
struct Routing {
  const std::int32_t *offsets, *token_of, *slot;
  const float* weights;
  std::int32_t tokens, top_k, experts;
  bool has_shared;
};

// A table of four-byte words into shared memory, by all threads of the block, past the L1 cache.
// Both sides are multiples of 16 bytes; it is there after await_copies() and sync_block().
TENON_HD constexpr int table_bytes(int words) { return (words * 4 + 15) / 16 * 16; }
TENON_DEVICE void copy_table(void* to, const void* from, int words) {
  for (int at = thread_id() * 16; at < words * 4; at += block_threads() * 16) {
    const int left = words * 4 - at;
    copy16_later(static_cast<std::byte*>(to) + at, static_cast<const std::byte*>(from) + at,
                 left < 16 ? left : 16);
  }
}

// The experts that have rows, in order, the shared one last; entry i has the pairs
// [first[i], first[i + 1]). The pairs of the shared expert, one a token, follow the others.
inline constexpr int kSharedExpert = -1;
struct Entries {
  int count;
  const int *expert, *first;
  int routed;  // pairs of all but the shared one
};
// Its memory: the offsets, a word for every 32 experts, the two lists.
TENON_HD constexpr int entries_bytes(int experts) {
  return table_bytes(experts + 1) + table_bytes(kWave) + table_bytes(2 * (experts + 2));
}

// All threads of the block. The table of offsets is at the beginning of `memory`.
TENON_DEVICE Entries list_entries(const Routing& routing, std::byte* memory) {
  const int experts = routing.experts, slices = (experts + kWave - 1) / kWave;
  const int* const offsets = reinterpret_cast<const int*>(memory);
  auto* const found = reinterpret_cast<std::uint32_t*>(memory + table_bytes(experts + 1));
  int* const expert = reinterpret_cast<int*>(found + kWave);
  int* const first = expert + experts + 2;
  const int lane = thread_id() % kWave, wave = thread_id() / kWave;
  const int waves = block_threads() / kWave;
  for (int slice = wave; slice < slices; slice += waves) {
    const int e = slice * kWave + lane;
    const std::uint32_t have = ballot(e < experts && offsets[e < experts ? e + 1 : e] > offsets[e]);
    if (lane == 0) found[slice] = have;
  }
  sync_block();
  const int of_slice = lane < slices ? count_ones(found[lane]) : 0;
  const int before = sum_before(of_slice), total = sum_lanes(of_slice);
  for (int slice = wave; slice < slices; slice += waves) {
    const int base = shuffle_from(before, slice);
    const std::uint32_t have = found[slice];
    if ((have >> lane & 1u) == 0) continue;
    const int at = base + count_ones(have & ((1u << lane) - 1u));
    expert[at] = slice * kWave + lane;
    first[at] = offsets[slice * kWave + lane];
  }
  if (thread_id() == 0) {
    first[total] = offsets[experts];
    expert[total] = kSharedExpert;
    first[total + 1] = offsets[experts] + routing.tokens;
  }
  sync_block();
  return {total + (routing.has_shared ? 1 : 0), expert, first, offsets[experts]};
}

template <int kCap, int kOfChunk = kChunk, int kScaleRows = 2 * kUnits>
struct Ring {
  static constexpr int kChunk = kOfChunk;
  static constexpr int kTileBytes = kUnits * kUnitRows * kChunk * kProductBlock;
  static constexpr int kXBytes = kChunk * kCap * kProductBlock;
  static constexpr int kStageBytes = kTileBytes + kXBytes;
  static constexpr int kScales = kChunk * (kCap + kScaleRows);  // floats of a stage

  std::byte* tiles;
  float* scales;
  Mbarrier *full, *empty;
  int stages;

  TENON_HD std::byte* weight(int stage) const { return tiles + stage * kStageBytes; }
  TENON_HD std::byte* x(int stage, int block) const {
    return weight(stage) + kTileBytes + block * kCap * kProductBlock;
  }
  TENON_HD float* x_scales(int stage, int block) const {
    return scales + stage * kScales + block * kCap;
  }
  // [kChunk, kScaleRows]; in general of the first and of the second eight rows of each unit.
  TENON_HD float* weight_scales(int stage) const {
    return scales + stage * kScales + kChunk * kCap;
  }

  static constexpr int bytes(int stages) {
    return stages * (kStageBytes + kScales * 4 + 2 * static_cast<int>(sizeof(Mbarrier)));
  }
  TENON_HD static Ring at(std::byte* memory, int stages) {
    std::byte* const barriers = memory + stages * kStageBytes;
    auto* const full = reinterpret_cast<Mbarrier*>(barriers);
    return {memory, reinterpret_cast<float*>(full + 2 * stages), full, full + stages, stages};
  }
  TENON_HD std::byte* end() const {
    return reinterpret_cast<std::byte*>(scales + stages * kScales);
  }
};

// Of up_kernel where it has many rows.
inline constexpr int kUpRows = 64;
using UpRing = Ring<kUpRows>;

// What follows takes any ring that has `stages`, `full`, `empty` and weight(stage).
//
// One thread. A stage is full after `feeds` arrivals besides that of the weight.
template <class AnyRing>
TENON_DEVICE void start_ring(const AnyRing& ring, const Weight& weight, std::uint32_t feeds) {
  TENON_NO_UNROLL
  for (int stage = 0; stage < ring.stages; ++stage) {
    barrier_init(&ring.full[stage], 1 + feeds);
    barrier_init(&ring.empty[stage], kUnits);
  }
  publish_barriers();
  prefetch_map(&weight.routed);
  prefetch_map(&weight.shared);
}

// step(block, now): the chunks of k of a tile in order, none across the end of a segment.
template <class Step>
TENON_DEVICE void for_chunks(const Segments& cut, Step step) {
  TENON_NO_UNROLL
  for (int segment = 0; segment < cut.count; ++segment) {
    const int end = cut.begin(segment + 1) / kProductBlock;
    TENON_NO_UNROLL
    for (int block = cut.begin(segment) / kProductBlock; block < end; block += kChunk)
      step(block, end - block < kChunk ? end - block : kChunk);
  }
}

// The wave that asks for the weight, for one tile: lane l for unit l, which begins at row
// `first_row` of the expert's matrix.
template <class AnyRing>
TENON_DEVICE void bring_weight(const AnyRing& ring, RingPlace& place, const Weight& weight,
                               int units, int expert, int first_row) {
  const int lane = thread_id() % kWave;
  const std::uint64_t once = policy_evict_first();
  const TensorMap* const map = expert == kSharedExpert ? &weight.shared : &weight.routed;
  const int row = (expert == kSharedExpert ? 0 : expert * weight.expert_rows) + first_row;
  for_chunks(weight.cut, [&](int block, int) {
    Mbarrier* const full = &ring.full[place.stage];
    barrier_wait(&ring.empty[place.stage], place.parity ^ 1);
    if (lane == 0) barrier_arrive_expect(full, static_cast<std::uint32_t>(units * kUnitBytes));
    sync_wave();
    if (lane < units)
      copy_box<8>(ring.weight(place.stage) + lane * kUnitBytes, map, row, block, full, once);
    place.next(ring.stages);
  });
}

// The scale of a weight's row `row` and block `block` of k.
TENON_DEVICE const float* weight_scale_at(const Weight& weight, int expert, int row, int block) {
  const int tile = row / kProductBlock;
  return expert == kSharedExpert ? weight.shared_scales + tile * weight.shared_stride + block
                                 : weight.routed_scales + expert * weight.expert_stride +
                                       tile * weight.routed_stride + block;
}

// Operands in a ring, scales too.
struct RingOperands {
  UpRing ring;
  std::uint64_t weight, x;  // descriptors of the first stage's
  int warp;

  TENON_HD int weight_at(int stage, int u) const {
    return stage * (UpRing::kStageBytes / 16) + u * 64;
  }
  TENON_HD int x_at(int stage, int u, int) const {
    return stage * (UpRing::kStageBytes / 16) + u * kUpRows * 8;
  }
  TENON_HD float2 weight_scales(int stage, int u, int) const {
    return *reinterpret_cast<const float2*>(ring.weight_scales(stage) + (u * kUnits + warp) * 2);
  }
  TENON_HD float2 x_scales(int stage, int u, int, int row) const {
    return *reinterpret_cast<const float2*>(ring.x_scales(stage, u) + row);
  }
};
TENON_DEVICE RingOperands operands_of(const UpRing& ring) {
  // The warp's index as a value that all of it has, in a uniform register: see sm90/wgmma.cuh.
  return {ring, tile_descriptor<kChunk * 1024>(ring.tiles),
          tile_descriptor(ring.tiles + kTileBytes), shuffle_from(thread_id() / kWave, 0)};
}

// The products of a tile, by a warpgroup: sums[4 j + 2 h + c] belongs to row g + 8 h of the unit
// of this warp and row 8 j + 2 p + c of x, for lane 4 g + p.
// of: a ring, where in it operands lie, in units of 16 bytes behind its descriptors and as values
// that the whole warp has, and scales: of the unit's first and second eight rows, of two rows of x.
// Block `block` of k is number u of its stage.
// kShows: threads that do not say so themselves have brought x.
template <int kN, bool kShows, class Operands>
TENON_DEVICE void multiply(const Operands& of, RingPlace& place, const Segments& cut,
                           float (&sums)[kN / 2]) {
  constexpr int kNow = kN <= 32 ? kChunk : 1;  // blocks of k at once
  const int lane = thread_id() % kWave;
  float whole[kN / 2] = {}, products[kNow][kN / 2] = {};
  TENON_NO_UNROLL
  for (int segment = 0; segment < cut.count; ++segment) {
    const int end = cut.begin(segment + 1) / kProductBlock;
    TENON_UNROLL
    for (int e = 0; e < kN / 2; ++e) sums[e] = 0.0f;
    TENON_NO_UNROLL
    for (int block = cut.begin(segment) / kProductBlock; block < end; block += kChunk) {
      // A value that the whole warp has: see sm90/wgmma.cuh.
      const int stage = shuffle_from(place.stage, 0);
      barrier_wait(&of.ring.full[stage], place.parity);
      if constexpr (kShows) show_to_tensor_cores();
      TENON_UNROLL
      for (int first = 0; first < kChunk; first += kNow) {
        // All blocks of the stage, for products must not stand under a condition. What comes of one
        // that the chunk does not have is left alone.
        wgmma_begin();
        TENON_UNROLL
        for (int u = 0; u < kNow; ++u) {
          const std::uint64_t weight = descriptor_at(of.weight, of.weight_at(stage, first + u));
          const std::uint64_t x = descriptor_at(of.x, of.x_at(stage, first + u, block + first + u));
          TENON_UNROLL
          for (int k = 0; k < 4; ++k)
            add_product<kN>(products[u], descriptor_step(weight, 2 * k), descriptor_step(x, 2 * k),
                            k > 0);
        }
        wgmma_commit();
        wgmma_wait_all();
        TENON_UNROLL
        for (int u = 0; u < kNow; ++u) hold_sums(products[u]);
        TENON_UNROLL
        for (int u = 0; u < kNow; ++u) {
          if (block + first + u >= end) continue;
          const float2 of_weight = of.weight_scales(stage, first + u, block + first + u);
          TENON_UNROLL
          for (int j = 0; j < kN / 8; ++j) {
            const float2 of_x =
                of.x_scales(stage, first + u, block + first + u, 8 * j + 2 * (lane % 4));
            float* const to = sums + 4 * j;
            const float* const from = products[u] + 4 * j;
            to[0] = fma_f(from[0], of_x.x * of_weight.x, to[0]);
            to[1] = fma_f(from[1], of_x.y * of_weight.x, to[1]);
            to[2] = fma_f(from[2], of_x.x * of_weight.y, to[2]);
            to[3] = fma_f(from[3], of_x.y * of_weight.y, to[3]);
          }
        }
      }
      sync_wave();
      if (lane == 0) barrier_arrive(&of.ring.empty[stage]);
      place.next(of.ring.stages);
    }
    TENON_UNROLL
    for (int e = 0; e < kN / 2; ++e) whole[e] = segment == 0 ? sums[e] : whole[e] + sums[e];
  }
  TENON_UNROLL
  for (int e = 0; e < kN / 2; ++e) sums[e] = whole[e];
}

// run.operator()<kN>() for the narrowest instruction that has `rows` rows of x, at most kCap.
template <int kCap, class Run>
TENON_DEVICE void with_rows(int rows, Run run) {
  if (rows <= 8) {
    run.template operator()<8>();
  } else if (rows <= 16) {
    run.template operator()<16>();
  } else if (rows <= 32) {
    run.template operator()<32>();
  } else if constexpr (kCap > 32) {
    run.template operator()<64>();
  }
}

}  // namespace tenon::TENON_TARGET::moe_experts
