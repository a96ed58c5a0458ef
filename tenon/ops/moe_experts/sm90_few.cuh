// up_kernel of moe_experts on Hopper for up to eight tokens.
//
// A decode step of few tokens waits for latencies and for the block that has most: so a unit is
// four gate rows and the four up rows of the same features, an atom of the operand, and a tile is
// eight of them, which may lie in two experts. Blocks have equal numbers of units. A stage has
// kFewChunk blocks of k, whose chains of products run side by side. Each of the feeders asks for
// all of a stage: the units of the weight, by the copy engine, as many neighbouring ones at once as
// there are, for it takes its time for every request; and rows of x.
#pragma once

#include "tenon/ops/moe_experts/sm90_chosen.cuh"

namespace tenon::TENON_TARGET::moe_experts {

inline constexpr int kFewRows = 8, kFewChunk = 4;
inline constexpr int kFewFeatures = 4, kFewUnits = 8;  // of a unit, of a tile
inline constexpr int kFewUnitBytes = 2 * kFewFeatures * kFewChunk * kProductBlock;
using FewRing = Ring<kFewRows, kFewChunk, 2 * kFewUnits>;

// Up to kFewUnits neighbouring units, of one entry or of two whose rows fit the instruction.
struct FewTile {
  int entry, unit, units;  // the first unit, of `entry`
  int of_entry;            // units that an entry has
  int first, rows;

  // Where unit u of the tile lies.
  TENON_HD int entry_of(int u) const { return unit + u < of_entry ? entry : entry + 1; }
  TENON_HD int feature_of(int u) const {
    return kFewFeatures * (unit + u < of_entry ? unit + u : unit + u - of_entry);
  }
};

// The units of a block, [begin, end) of all units of all entries; unit `unit` of `entry` is the
// first.
struct FewPart {
  int count, of_entry;  // entries that it was made for; units of each
  unsigned begin, end;
  int entry, unit;
};
TENON_DEVICE FewPart few_part(int width, int count) {
  const auto of_entry = static_cast<unsigned>(width / kFewFeatures);
  const auto blocks = static_cast<unsigned>(grid_blocks()),
             block = static_cast<unsigned>(block_id());
  const unsigned total = static_cast<unsigned>(count) * of_entry, each = total / blocks;
  const unsigned more = total - each * blocks;  // blocks that have one more
  const unsigned begin = each * block + (block < more ? block : more);
  const unsigned entry = begin / of_entry;
  return {count,
          static_cast<int>(of_entry),
          begin,
          begin + each + (block < more ? 1 : 0),
          static_cast<int>(entry),
          static_cast<int>(begin - entry * of_entry)};
}

// The block's tiles in order, as equal as can be.
template <class Step>
TENON_DEVICE void for_few_tiles(const FewPart& part, const Entries& entries, Step step) {
  int entry = part.entry, unit = part.unit;
  TENON_NO_UNROLL
  for (int all = static_cast<int>(part.end - part.begin); all > 0;) {
    const int first = entries.first[entry];
    int left = all;
    if (left > part.of_entry - unit && entries.first[entry + 2] - first > kFewRows)
      left = part.of_entry - unit;
    int units = left;
    if (left > kFewUnits) {
      const int tiles = (left + kFewUnits - 1) / kFewUnits;
      units = (left + tiles - 1) / tiles;
    }
    const int beyond = entries.first[unit + units > part.of_entry ? entry + 2 : entry + 1];
    step(FewTile{entry, unit, units, part.of_entry, first, beyond - first});
    all -= units;
    unit += units;
    if (unit >= part.of_entry) {
      unit -= part.of_entry;
      ++entry;
    }
  }
}

// Boxes of 1, 2, 4 and 8 units.
inline constexpr int kFewBoxes = 4;
struct FewWeight : WeightScales {
  TensorMap routed[kFewBoxes], shared[kFewBoxes];
};
struct FewCall : UpWork {
  FewWeight weight;
  Chooser chooser;
};

// token(pair): of a pair of a routed expert.
template <class TokenOf>
TENON_DEVICE void feed_few(const FewCall& call, const FewPart& part, const Entries& entries,
                           const FewRing& ring, TokenOf token_of) {
  static_assert(kFewChunk * 8 == kWave && kFewRows * kFewChunk == kWave);
  static_assert(1 << (kFewBoxes - 1) == kFewUnits);
  const FewWeight& weight = call.weight;
  const int feeder = thread_id() / kWave - kWeightWave - 1, lane = thread_id() % kWave;
  const int of_lane = lane / 8, chunk = lane % 8;  // of a row; or row `chunk` of its scales
  const int box = lane % kFewBoxes, box_units = 1 << box, of_second = lane / kFewBoxes % 2;
  const std::uint64_t once = policy_evict_first();
  RingPlace place;
  int number = 0;
  for_few_tiles(part, entries, [&](const FewTile& tile) {
    // The units of each entry in boxes, larger ones first, each asked for by a lane.
    const int in_first =
        tile.of_entry - tile.unit < tile.units ? tile.of_entry - tile.unit : tile.units;
    const int in_own = of_second == 0 ? in_first : tile.units - in_first;
    const bool asks = lane < 2 * kFewBoxes && (in_own & box_units) != 0;
    const int before = in_own & ~(2 * box_units - 1);
    const int expert = entries.expert[tile.entry + (asks ? of_second : 0)];
    const TensorMap* const map = (expert == kSharedExpert ? weight.shared : weight.routed) + box;
    const int unit = (expert == kSharedExpert ? 0 : expert * (weight.expert_rows / kFewFeatures)) +
                     (of_second == 0 ? tile.unit : 0) + before;
    const int to = ((of_second == 0 ? 0 : in_first) + before) * kFewUnitBytes;
    const int pair = tile.first + chunk;
    const int token = chunk >= tile.rows      ? 0
                      : pair < entries.routed ? token_of(pair)
                                              : pair - entries.routed;
    const int scaled = chunk < tile.units ? chunk : 0;  // unit whose scales this lane brings
    const int of_expert = entries.expert[tile.entry_of(scaled)];
    const float* const gate_scale =
        weight_scale_at(weight, of_expert, tile.feature_of(scaled), of_lane);
    const float* const up_scale =
        weight_scale_at(weight, of_expert, call.width + tile.feature_of(scaled), of_lane);
    const float* const x_scale =
        call.x_scales + token * call.scale_row_stride + of_lane * call.scale_block_stride;
    const std::byte* const x = call.x + of_lane * kProductBlock + chunk * 16;
    TENON_NO_UNROLL
    for (int block = 0; block < weight.cut.num_blocks; block += kFewChunk) {
      if (number++ % kFeeders == feeder) {
        Mbarrier* const full = &ring.full[place.stage];
        barrier_wait(&ring.empty[place.stage], place.parity ^ 1);
        if (lane == 0)
          barrier_arrive_expect(full, static_cast<std::uint32_t>(tile.units * kFewUnitBytes));
        sync_wave();
        if (asks) copy_units(ring.weight(place.stage) + to, map, unit, block, full, once);
        sync_wave();
        if (block + of_lane < weight.cut.num_blocks) {
          float* const scales = ring.weight_scales(place.stage) + of_lane * 2 * kFewUnits + chunk;
          if (chunk < tile.units) {
            copy4_later(scales, gate_scale + block);
            copy4_later(scales + kFewUnits, up_scale + block);
          }
          if (chunk < tile.rows)
            copy4_later(ring.x_scales(place.stage, of_lane) + chunk,
                        x_scale + block * call.scale_block_stride);
        }
        sync_wave();
        TENON_NO_UNROLL
        for (int r = 0; r < tile.rows; ++r) {
          const int of_row = shuffle_from(token, r);
          if (block + of_lane < weight.cut.num_blocks)
            copy_async16(ring.x(place.stage, of_lane) + tile_place(r, chunk),
                         x + block * kProductBlock + of_row * call.x_stride);
        }
        arrive_after_copies(full);
      }
      place.next(ring.stages);
    }
  });
  await_copies();
}

// The products of a tile: sums[2 h + c] belongs to unit 2 w + h of the tile, its row g of eight
// (gate below 4, then up), and row 2 p + c of x, for lane 4 g + p of warp w.
TENON_DEVICE void multiply_few(const FewRing& ring, RingPlace& place, const Segments& cut,
                               float (&sums)[4]) {
  constexpr int kStageUnits = FewRing::kStageBytes / 16;
  const int lane = thread_id() % kWave, warp = thread_id() / kWave;
  const std::uint64_t weight = tile_descriptor<kFewChunk * 1024>(ring.tiles);
  const std::uint64_t x = tile_descriptor(ring.tiles + FewRing::kTileBytes);
  const int of_weight = lane / 16 * kFewUnits + 2 * warp;  // its scales
  float own[4] = {}, products[kFewChunk][4] = {};
  int segment = 0, end = cut.begin(1) / kProductBlock;
  TENON_NO_UNROLL
  for (int block = 0; block < cut.num_blocks; block += kFewChunk) {
    const int at = place.stage * kStageUnits;
    barrier_wait(&ring.full[place.stage], place.parity);
    show_to_tensor_cores();
    // All blocks of the stage, for products must not stand under a condition. Neighbouring
    // instructions belong to different chains, so none waits for the one before it.
    wgmma_begin();
    TENON_UNROLL
    for (int k = 0; k < 4; ++k) {
      TENON_UNROLL
      for (int u = 0; u < kFewChunk; ++u)
        add_product<kFewRows>(products[u], descriptor_at(weight, at + u * 64 + 2 * k),
                              descriptor_at(x, at + u * kFewRows * 8 + 2 * k), k > 0);
    }
    wgmma_commit();
    float scales[kFewChunk][4];
    TENON_UNROLL
    for (int u = 0; u < kFewChunk; ++u) {
      const float2 ws = *reinterpret_cast<const float2*>(ring.weight_scales(place.stage) +
                                                         u * 2 * kFewUnits + of_weight);
      const float2 xs =
          *reinterpret_cast<const float2*>(ring.x_scales(place.stage, u) + 2 * (lane % 4));
      scales[u][0] = xs.x * ws.x;
      scales[u][1] = xs.y * ws.x;
      scales[u][2] = xs.x * ws.y;
      scales[u][3] = xs.y * ws.y;
    }
    wgmma_wait_all();
    TENON_UNROLL
    for (int u = 0; u < kFewChunk; ++u) hold_sums(products[u]);
    TENON_UNROLL
    for (int u = 0; u < kFewChunk; ++u) {
      if (block + u >= cut.num_blocks) continue;
      TENON_UNROLL
      for (int e = 0; e < 4; ++e) own[e] = fma_f(products[u][e], scales[u][e], own[e]);
      if (block + u + 1 < end) continue;
      TENON_UNROLL
      for (int e = 0; e < 4; ++e) {
        sums[e] = segment == 0 ? own[e] : sums[e] + own[e];
        own[e] = 0.0f;
      }
      end = cut.begin(++segment + 1) / kProductBlock;
    }
    sync_wave();
    if (lane == 0) barrier_arrive(&ring.empty[place.stage]);
    place.next(ring.stages);
  }
}

// The two lanes of a feature exchange values, and each has one unit then.
TENON_DEVICE void activate_few(const Segments& cut, const FewPart& part, const Entries& entries,
                               const FewRing& ring, bf16* activation, std::int64_t stride) {
  const int lane = thread_id() % kWave;
  const bool has_up = lane >= kWave / 2;
  const int unit = 2 * (thread_id() / kWave) + (has_up ? 1 : 0);
  RingPlace place;
  for_few_tiles(part, entries, [&](const FewTile& tile) {
    float sums[4];
    multiply_few(ring, place, cut, sums);
    const int entry = tile.entry_of(unit);
    const bool exists = unit < tile.units;
    const int begin = exists ? entries.first[entry] - tile.first : tile.rows;
    const int end = exists ? entries.first[entry + 1] - tile.first : tile.rows;
    bf16* const to =
        activation + tile.first * stride + tile.feature_of(unit) + lane / 4 % kFewFeatures;
    float values[2];
    TENON_UNROLL
    for (int c = 0; c < 2; ++c) {
      const float other = shuffle_xor(has_up ? sums[c] : sums[2 + c], kWave / 2);
      const std::uint32_t both =
          has_up ? pack_halves<bf16>(other, sums[2 + c]) : pack_halves<bf16>(sums[c], other);
      values[c] = silu_mul_f(low_half<bf16>(both), high_half<bf16>(both));
    }
    const std::uint32_t both = pack_halves<bf16>(values[0], values[1]);
    const int row = 2 * (lane % 4);
    if (row >= begin && row < end) to[row * stride] = bf16{static_cast<std::uint16_t>(both)};
    if (row + 1 >= begin && row + 1 < end)
      to[(row + 1) * stride] = bf16{static_cast<std::uint16_t>(both >> 16)};
  });
}

// kChooses: the experts are chosen here, for one token.
template <bool kChooses>
TENON_KERNEL_RESIDENT(kThreads, 2)
up_few_kernel(TENON_ARGS(FewCall) call) {
  TENON_SHARED_TILES(shared);
  const FewRing ring = FewRing::at(shared, call.stages);
  const Routing& routing = call.routing;
  const int wave = thread_id() / kWave, lane = thread_id() % kWave;
  if (thread_id() == 0) start_ring(ring, kWave);
  if (wave == kWeightWave) {
    if (lane < 2 * kFewBoxes)
      prefetch_map((lane < kFewBoxes ? call.weight.routed : call.weight.shared) + lane % kFewBoxes);
    if (routing.has_shared)
      prefetch_matrices(1, call.own_bytes, [&](int) { return call.own_shared; });
  }
  sync_wave();
  // As it will be if all experts with rows are this rank's.
  const int most = kChooses ? routing.top_k + (routing.has_shared ? 1 : 0) : 0;
  FewPart part = few_part(call.width, most);
  Entries entries;
  const int* token_of = nullptr;
  if constexpr (kChooses) {
    const int top_k = routing.top_k;
    std::byte* const memory = ring.end();
    const Chosen chosen =
        chosen_at(memory, memory + 4 * choosing_words(kThreads, top_k), kThreads, top_k);
    TENON_NO_UNROLL
    for (int tries = 0; tries < 2; ++tries) {
      if (tries == 1) {
        wait_for_previous();
        if (thread_id() == 0) let_next_start();
        copy_logits(call.chooser, chosen);
        await_copies();
        sync_block();
      }
      entries = choose_entries(call.chooser, chosen, routing.has_shared);
    }
  } else {
    wait_for_previous();
    if (thread_id() == 0) let_next_start();
    std::byte* const lists = ring.end();
    auto* const copied = reinterpret_cast<int*>(lists + entries_bytes(routing.experts));
    copy_table(lists, routing.offsets, routing.experts + 1);
    copy_table(copied, routing.token_of, routing.tokens * routing.top_k);
    await_copies();
    sync_block();
    entries = list_entries(routing, lists);
    token_of = copied;
  }
  if (entries.count != part.count) part = few_part(call.width, entries.count);
  if (wave > kWeightWave) {
    feed_few(call, part, entries, ring, [&](int pair) { return kChooses ? 0 : token_of[pair]; });
    if (wave == kWeightWave + 1) prefetch_next(call, entries);
  } else if (wave < kWeightWave) {
    activate_few(call.weight.cut, part, entries, ring, call.activation, call.activation_stride);
  }
}

}  // namespace tenon::TENON_TARGET::moe_experts
