// The second product of moe_experts on Hopper, with the weighted sum.
//
// A block of down_kernel takes 16 columns of the output and streams them through all experts, so it
// has every part of the weighted sum of its columns. A tile is up to four neighbouring experts. A
// tile of a narrow expert is a stage or two of the ring, so the chain from its arrival to its
// results is long beside the time that its bytes take: two warpgroups take tiles in turn, each from
// a ring of its own.
//
// The activation comes in bf16 and is multiplied as codes, a block of k being a group. A few rows
// are quantised by every block, which then has all of them in shared memory; the weights arrive
// meanwhile. Many are quantised once, where they lie, by quantize_kernel, and come through the
// ring.
#pragma once

#include "tenon/ops/moe_experts/sm90_chosen.cuh"

namespace tenon::TENON_TARGET::moe_experts {

// Of the group of 128 that 16 neighbouring lanes hold, eight elements each. All lanes of a warp.
TENON_DEVICE GroupScale group_scale_of(const Word4& held) {
  std::uint32_t most = absmax_bits<1>(&held);
  TENON_UNROLL
  for (int mask = 1; mask < 16; mask *= 2) most = larger(most, shuffle_xor(most, mask));
  return group_scale(to_float(bf16{static_cast<std::uint16_t>(most)}), DType::kE4M3);
}

// --- quantisation ahead -----------------------------------------------------------------------

constexpr int kMostVectors = 8;  // of eight elements, that a lane of quantize_kernel holds
constexpr int kMostCodedWidth = kMostVectors * kWave * 8;
constexpr int kQuantizeThreads = 256;

struct QuantizeCall {
  bf16* activation;
  std::int64_t stride;
  const std::int32_t* num_pairs;
  std::int32_t width, beside;  // rows behind those of the pairs
};

// A wave takes a row, all of it into registers; then its codes lie where it began, and the scales
// behind them.
TENON_KERNEL_MAX(kQuantizeThreads) quantize_kernel(TENON_ARGS(QuantizeCall) call) {
  wait_for_previous();
  if (thread_id() == 0) let_next_start();
  const int lane = thread_id() % kWave, vectors = call.width / 8;
  const int waves = kQuantizeThreads / kWave, rows = *call.num_pairs + call.beside;
  for (int row = block_id() * waves + thread_id() / kWave; row < rows;
       row += grid_blocks() * waves) {
    auto* const at = reinterpret_cast<std::byte*>(call.activation + row * call.stride);
    auto* const scales = reinterpret_cast<float*>(at + call.width);
    Word4 held[kMostVectors] = {};
    TENON_UNROLL
    for (int i = 0; i < kMostVectors; ++i)
      if (lane + i * kWave < vectors) held[i] = load16(at + (lane + i * kWave) * 16);
    sync_wave();
    TENON_UNROLL
    for (int i = 0; i < kMostVectors; ++i) {
      const int vector = lane + i * kWave;
      if (i * kWave >= vectors) break;
      const GroupScale scale = group_scale_of(held[i]);
      if (vector >= vectors) continue;
      encode<bf16, DType::kE4M3, 1>(&held[i], scale.multiplier, at + vector * 8);
      if (vector % 16 == 0) scales[vector / 16] = scale.scale;
    }
  }
}

// --- down -------------------------------------------------------------------------------------

constexpr int kDownGroups = 2;
constexpr int kDownConsumers = kDownGroups * kConsumers;
constexpr int kDownWeightWave = kDownConsumers / kWave;  // the one behind it brings codes
constexpr int kDownThreads = kDownConsumers + 2 * kWave;

struct DownCall {
  Weight weight;
  TensorMap codes;  // of quantize_kernel, in tiles of eight rows
  Routing routing;
  const bf16* activation;
  std::int64_t activation_stride;
  const float* shared_gate;
  std::int64_t gate_stride;
  bf16* out;
  std::int64_t out_stride;
  std::int32_t width;
  std::int32_t rows;    // that a tile may have, at most 64; of one that was not quantised ahead, 32
  std::int32_t stages;  // of each ring
  bool chosen;          // by the kernel before, which has left the list of entries
};

// coded: the activation was quantised ahead.
TENON_HD constexpr int down_stage_bytes(bool coded, int rows) {
  return kTileBytes + (coded ? kChunk * rows * kProductBlock : 0);
}

// Where things lie in shared memory, in bytes, behind the rings.
struct DownShared {
  int x, barriers, weight_scales, x_scales, kept, lists, bytes;
  int x_rows, scale_rows;  // rows between blocks of k
};
TENON_HD constexpr int kept_bytes(int tokens, int top_k) {
  return tokens * (top_k + 1) * kUnitRows * 2 + 2 * table_bytes(tokens * top_k) +
         table_bytes(tokens);
}
TENON_HD constexpr DownShared down_shared(bool coded, bool chosen, int stages, int rows,
                                          const Routing& routing, int width) {
  const int tokens = routing.tokens, pairs = tokens * routing.top_k;
  const int blocks = width / kProductBlock;
  const int entries = (pairs < routing.experts ? pairs : routing.experts) + 1;
  DownShared at{};
  at.x_rows = (pairs + tokens + 7) / 8 * 8;
  at.scale_rows = at.x_rows + rows;  // an instruction looks at more than there are
  at.x = kDownGroups * stages * down_stage_bytes(coded, rows);
  at.barriers = at.x + (coded ? 0 : (blocks * at.x_rows + rows) * kProductBlock);
  at.weight_scales = at.barriers + kDownGroups * table_bytes(4 * stages);
  at.x_scales = at.weight_scales + table_bytes(entries * blocks);
  at.kept = at.x_scales + table_bytes(blocks * at.scale_rows);
  at.lists = at.kept + kept_bytes(tokens, routing.top_k);
  at.bytes =
      at.lists + (chosen ? table_bytes(list_words(routing.top_k)) : entries_bytes(routing.experts));
  return at;
}

struct DownRing {
  std::byte* tiles;
  Mbarrier *full, *empty;
  int stages, stage_bytes, code_rows;
  TENON_HD std::byte* weight(int stage) const { return tiles + stage * stage_bytes; }
  TENON_HD std::byte* codes(int stage, int u) const {
    return weight(stage) + kTileBytes + u * code_rows * kProductBlock;
  }
};
TENON_DEVICE DownRing down_ring(const DownCall& call, bool coded, int group, std::byte* shared,
                                const DownShared& at) {
  const int bytes = down_stage_bytes(coded, call.rows);
  auto* const barriers =
      reinterpret_cast<Mbarrier*>(shared + at.barriers) + group * 2 * call.stages;
  return {shared + group * call.stages * bytes,
          barriers,
          barriers + call.stages,
          call.stages,
          bytes,
          call.rows};
}

// Up to four neighbouring entries whose rows fit one instruction, which begins at row `base` of all
// rows: at that of the first entry, or, where all rows lie in shared memory, at the atom with it.
struct DownTile {
  int entry, units, base, rows;
};
// step(tile, group): the group whose turn it is.
template <bool kCoded, class Step>
TENON_DEVICE void for_down_tiles(const Entries& entries, int rows, Step step) {
  int group = 0;
  TENON_NO_UNROLL
  for (int entry = 0; entry < entries.count; group = (group + 1) % kDownGroups) {
    const int first = entries.first[entry], base = kCoded ? first : first / 8 * 8;
    int ends[kUnits], units = 1;
    TENON_UNROLL
    for (int u = 0; u < kUnits; ++u)
      ends[u] = entries.first[entry + u < entries.count ? entry + u + 1 : entries.count];
    int end = ends[0];
    TENON_UNROLL
    for (int u = 1; u < kUnits; ++u) {
      if (entry + u >= entries.count || ends[u] - base > rows) continue;
      units = u + 1;
      end = ends[u];
    }
    step(DownTile{entry, units, base, end - base}, group);
    entry += units;
  }
}

// A rank without pairs and without a shared expert has no entries.
TENON_DEVICE int num_rows(const Entries& entries) {
  return entries.count > 0 ? entries.first[entries.count] : 0;
}

// All rows, into shared memory, by the threads that multiply: 16 of them to a group.
TENON_DEVICE void quantize_rows(const DownCall& call, int rows, const DownShared& at,
                                std::byte* shared) {
  constexpr int kAtOnce = 4, kTeams = kDownConsumers / 16;  // loads that wait for nothing
  const int blocks = call.weight.cut.num_blocks, groups = rows * blocks;
  const int team = thread_id() / 16, eight = thread_id() % 16;
  auto* const scales = reinterpret_cast<float*>(shared + at.x_scales);
  TENON_NO_UNROLL
  for (int first = 0; first < groups; first += kAtOnce * kTeams) {
    Word4 held[kAtOnce] = {};
    TENON_UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      const int group = first + i * kTeams + team;
      if (group < groups)
        held[i] = load16(call.activation + group / blocks * call.activation_stride +
                         group % blocks * kProductBlock + eight * 8);
    }
    TENON_UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      const int group = first + i * kTeams + team, row = group / blocks, block = group % blocks;
      const GroupScale scale = group_scale_of(held[i]);
      if (group >= groups) continue;
      encode<bf16, DType::kE4M3, 1>(&held[i], scale.multiplier,
                                    shared + at.x + block * at.x_rows * kProductBlock +
                                        tile_place(row, eight / 2) + eight % 2 * 8);
      if (eight == 0) scales[block * at.scale_rows + row] = scale.scale;
    }
  }
  show_to_tensor_cores();
}

// The waves that fill the rings of both groups. step(ring, place, tile): a tile, into the ring
// whose place `place` is.
template <bool kCoded, class Step>
TENON_DEVICE void fill_rings(const DownCall& call, const Entries& entries, const DownShared& at,
                             std::byte* shared, Step step) {
  static_assert(kDownGroups == 2);
  RingPlace own, other;
  for_down_tiles<kCoded>(entries, call.rows, [&](const DownTile& tile, int group) {
    step(down_ring(call, kCoded, group, shared, at), own, tile);
    const RingPlace after = own;
    own = other;
    other = after;
  });
}

// Rows that quantize_kernel has left, for one tile.
TENON_DEVICE void bring_codes(const DownCall& call, const DownRing& ring, RingPlace& place,
                              const DownTile& tile) {
  const int lane = thread_id() % kWave, u = lane / 8, eight = lane % 8;
  const int eights = (tile.rows + 7) / 8;
  const std::uint64_t often = policy_evict_last();
  for_chunks(call.weight.cut, [&](int block, int now) {
    Mbarrier* const full = &ring.full[place.stage];
    barrier_wait(&ring.empty[place.stage], place.parity ^ 1);
    if (lane == 0) barrier_arrive_expect(full, static_cast<std::uint32_t>(eights * now * 1024));
    sync_wave();
    if (u < now && eight < eights)
      copy_tile(ring.codes(place.stage, u) + eight * 1024, &call.codes, (block + u) * kProductBlock,
                tile.base + eight * 8, full, often);
    place.next(ring.stages);
  });
}

// The scales of what a block multiplies, by the threads that do: of the weight, constants; and,
// where it was quantised ahead, of the activation.
TENON_DEVICE void copy_weight_scales(const DownCall& call, const Entries& entries, float* to) {
  const int blocks = call.weight.cut.num_blocks;
  for (int i = thread_id(); i < entries.count * blocks; i += kDownConsumers)
    to[i] = load_constant(weight_scale_at(call.weight, entries.expert[i / blocks],
                                          block_id() * kUnitRows, i % blocks));
}
TENON_DEVICE void copy_x_scales(const DownCall& call, int rows, int scale_rows, float* to) {
  const int blocks = call.weight.cut.num_blocks;
  for (int i = thread_id(); i < rows * blocks; i += kDownConsumers) {
    const int row = i / blocks, block = i % blocks;
    const auto* const at =
        reinterpret_cast<const std::byte*>(call.activation + row * call.activation_stride);
    to[block * scale_rows + row] = reinterpret_cast<const float*>(at + call.width)[block];
  }
}

// See multiply(). All 16 rows of a unit lie in one group of 128 of the weight.
template <bool kCoded>
struct DownOperands {
  DownRing ring;
  std::uint64_t weight, x;
  int blocks, x_rows, scale_rows;
  int base;                       // of the tile
  const float *of_weight, *of_x;  // from the warp's entry and from row `base` on

  TENON_HD int weight_at(int stage, int u) const {
    return stage * (ring.stage_bytes / 16) + u * 64;
  }
  TENON_HD int x_at(int stage, int u, int block) const {
    if constexpr (kCoded) {
      return stage * (ring.stage_bytes / 16) + u * ring.code_rows * 8;
    } else {
      return shuffle_from(((block < blocks ? block : 0) * x_rows + base) * 8, 0);
    }
  }
  TENON_HD float2 weight_scales(int, int, int block) const {
    return {of_weight[block], of_weight[block]};
  }
  TENON_HD float2 x_scales(int, int, int block, int row) const {
    const float* const at = of_x + block * scale_rows + row;
    return {at[0], at[1]};
  }
};

// What a block keeps beside the ring: results [pairs, 16] and the tables of the weighted sum.
struct Kept {
  bf16* results;
  float *weights, *gates;
  std::int32_t* slots;
};
TENON_DEVICE Kept kept_at(const Routing& routing, std::byte* memory) {
  const int tokens = routing.tokens, pairs = tokens * routing.top_k;
  Kept kept;
  kept.results = reinterpret_cast<bf16*>(memory);
  std::byte* const tables = memory + (pairs + tokens) * kUnitRows * 2;
  kept.weights = reinterpret_cast<float*>(tables);
  kept.slots = reinterpret_cast<std::int32_t*>(tables + table_bytes(pairs));
  kept.gates = reinterpret_cast<float*>(tables + 2 * table_bytes(pairs));
  return kept;
}

template <bool kCoded>
TENON_DEVICE void make_results(const DownCall& call, const Entries& entries, const DownShared& at,
                               std::byte* shared, bf16* results) {
  // A value that the whole warp has, in a uniform register: see sm90/wgmma.cuh.
  const int own = shuffle_from(thread_id() / kConsumers, 0);
  const int warp = thread_id() / kWave % kUnits, lane = thread_id() % kWave;
  const auto* const weight_scales = reinterpret_cast<const float*>(shared + at.weight_scales);
  const auto* const x_scales = reinterpret_cast<const float*>(shared + at.x_scales);
  const DownRing ring = down_ring(call, kCoded, own, shared, at);
  DownOperands<kCoded> of{ring,
                          tile_descriptor<kChunk * 1024>(ring.tiles),
                          tile_descriptor(kCoded ? ring.tiles + kTileBytes : shared + at.x),
                          call.weight.cut.num_blocks,
                          at.x_rows,
                          at.scale_rows,
                          0,
                          nullptr,
                          nullptr};
  RingPlace place;
  for_down_tiles<kCoded>(entries, call.rows, [&](const DownTile& tile, int group) {
    if (group != own) return;
    of.base = tile.base;
    of.of_weight = weight_scales + (tile.entry + (warp < tile.units ? warp : 0)) * of.blocks;
    of.of_x = x_scales + tile.base;
    with_rows<kCoded ? 64 : 32>(tile.rows, [&]<int kN>() {
      float sums[kN / 2];
      multiply<kN, false>(of, place, call.weight.cut, sums);
      if (warp >= tile.units) return;
      const int begin = entries.first[tile.entry + warp] - tile.base;
      const int end = entries.first[tile.entry + warp + 1] - tile.base;
      TENON_UNROLL
      for (int j = 0; j < kN / 8; ++j) {
        if (8 * j + 8 <= begin || 8 * j >= end) continue;
        TENON_UNROLL
        for (int c = 0; c < 2; ++c) {
          const int row = 8 * j + 2 * (lane % 4) + c;
          if (row < begin || row >= end) continue;
          const std::uint32_t both = pack_halves<bf16>(sums[4 * j + c], sums[4 * j + 2 + c]);
          bf16* const to = results + (tile.base + row) * kUnitRows + lane / 4;
          to[0] = bf16{static_cast<std::uint16_t>(both)};
          to[8] = bf16{static_cast<std::uint16_t>(both >> 16)};
        }
      }
    });
  });
}

// The order of moe_combine: choices in theirs, the shared expert last. A thread has two columns of
// a token.
TENON_DEVICE void combine(const DownCall& call, const Entries& entries, const Kept& kept) {
  constexpr int kPairs = kUnitRows / 2, kAtOnce = 4;
  const Routing& routing = call.routing;
  const int shared = entries.count > 0 ? entries.first[entries.count - 1] : 0;  // if there is one
  const auto two_at = [&](int row, int column) {
    return *reinterpret_cast<const std::uint32_t*>(kept.results + row * kUnitRows + column);
  };
  for (int task = thread_id(); task < kPairs * routing.tokens; task += kDownConsumers) {
    const int token = task / kPairs, column = task % kPairs * 2;
    float low = 0.0f, high = 0.0f;
    const auto add = [&](float weight, std::uint32_t two) {
      low = low + weight * low_half<bf16>(two);
      high = high + weight * high_half<bf16>(two);
    };
    const int end = (token + 1) * routing.top_k;
    TENON_NO_UNROLL
    for (int first = token * routing.top_k; first < end; first += kAtOnce) {
      int slot[kAtOnce];  // negative: another rank's expert
      std::uint32_t two[kAtOnce];
      TENON_UNROLL
      for (int i = 0; i < kAtOnce; ++i) slot[i] = first + i < end ? kept.slots[first + i] : -1;
      TENON_UNROLL
      for (int i = 0; i < kAtOnce; ++i) two[i] = slot[i] >= 0 ? two_at(slot[i], column) : 0u;
      TENON_UNROLL
      for (int i = 0; i < kAtOnce; ++i)
        if (slot[i] >= 0) add(kept.weights[first + i], two[i]);
    }
    add(sigmoid_f(kept.gates[token]), routing.has_shared ? two_at(shared + token, column) : 0u);
    *reinterpret_cast<std::uint32_t*>(call.out + token * call.out_stride + block_id() * kUnitRows +
                                      column) = pack_halves<bf16>(low, high);
  }
}

// Blocks for which there are registers on a multiprocessor.
constexpr int down_resident(bool coded) { return coded ? 1 : 2; }

template <bool kCoded>
TENON_KERNEL_RESIDENT(kDownThreads, down_resident(kCoded))
down_kernel(TENON_ARGS(DownCall) call) {
  TENON_SHARED_TILES(shared);
  const Routing& routing = call.routing;
  const DownShared at =
      down_shared(kCoded, call.chosen, call.stages, call.rows, routing, call.width);
  const int pairs = routing.tokens * routing.top_k;
  const int wave = thread_id() / kWave, lane = thread_id() % kWave;
  const Kept kept = kept_at(routing, shared + at.kept);
  std::byte* const lists = shared + at.lists;
  // Before it waits: the offsets were there when up_kernel let the next kernel start, for that does
  // so behind its own wait, and leaves them before where it routes itself. So the stream of weights
  // does not stop between the two.
  copy_table(lists, routing.offsets, call.chosen ? list_words(routing.top_k) : routing.experts + 1);
  if (thread_id() % kConsumers == 0 && wave < kDownWeightWave)
    start_ring(down_ring(call, kCoded, thread_id() / kConsumers, shared, at), call.weight,
               kCoded ? 1 : 0);
  await_copies();
  sync_block();
  const Entries entries = call.chosen
                              ? listed_entries(reinterpret_cast<const int*>(lists), routing.top_k)
                              : list_entries(routing, lists);
  if (wave == kDownWeightWave) {
    fill_rings<kCoded>(call, entries, at, shared,
                       [&](const DownRing& ring, RingPlace& place, const DownTile& tile) {
                         const int entry = tile.entry + (lane < tile.units ? lane : 0);
                         bring_weight(ring, place, call.weight, tile.units, entries.expert[entry],
                                      block_id() * kUnitRows);
                       });
    wait_for_previous();
    return;
  }
  if (wave > kDownWeightWave) {
    wait_for_previous();
    if constexpr (kCoded)
      fill_rings<kCoded>(call, entries, at, shared,
                         [&](const DownRing& ring, RingPlace& place, const DownTile& tile) {
                           bring_codes(call, ring, place, tile);
                         });
    return;
  }
  copy_weight_scales(call, entries, reinterpret_cast<float*>(shared + at.weight_scales));
  wait_for_previous();
  if (thread_id() == 0) let_next_start();
  const int rows = num_rows(entries);
  for (int i = thread_id(); i < routing.tokens; i += kDownConsumers)
    copy4_later(&kept.gates[i], call.shared_gate + i * call.gate_stride);
  for (int i = thread_id(); i < pairs; i += kDownConsumers) {
    copy4_later(&kept.weights[i], routing.weights + i);
    copy4_later(&kept.slots[i], routing.slot + i);
  }
  if constexpr (kCoded)
    copy_x_scales(call, rows, at.scale_rows, reinterpret_cast<float*>(shared + at.x_scales));
  else
    quantize_rows(call, rows, at, shared);
  await_copies();
  sync_first_threads<kDownConsumers>();
  make_results<kCoded>(call, entries, at, shared, kept.results);
  sync_first_threads<kDownConsumers>();
  combine(call, entries, kept);
}

}  // namespace tenon::TENON_TARGET::moe_experts
