// up_kernel of moe_experts on Hopper for up to eight tokens.
//
// A decode step of few tokens waits for latencies and for the block that has most: so a unit is
// four gate rows and the four up rows of the same features, an atom of the operand, and a tile is
// eight of them, which may lie in two experts. Blocks have equal numbers of units. A stage has
// kFewChunk blocks of k, whose chains of products run side by side. Each of the feeders asks for
// all of a stage: the units of the weight, by the copy engine, and rows of x.
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

// Of `total` units in a row, the part of block `place`: as equal as can be.
struct UnitPart {
  int begin, end;
};
TENON_DEVICE UnitPart part_of(int total, int place) {
  const auto all = static_cast<unsigned>(total), blocks = static_cast<unsigned>(grid_blocks());
  const auto at = static_cast<unsigned>(place);
  const unsigned each = all / blocks, more = all - each * blocks;  // blocks that have one more
  const unsigned begin = each * at + (at < more ? at : more);
  return {static_cast<int>(begin), static_cast<int>(begin + each + (at < more ? 1 : 0))};
}
// Of the units that are left, those of the next tile: tiles are as equal as can be, too.
template <class Int>
TENON_DEVICE Int next_units(Int left) {
  const Int tiles = (left + kFewUnits - 1) / kFewUnits;
  return left <= kFewUnits ? left : (left + tiles - 1) / tiles;
}

// The block's tiles in order.
template <class Step>
TENON_DEVICE void for_few_tiles(int width, const Entries& entries, Step step) {
  const auto of_entry = static_cast<unsigned>(width / kFewFeatures);
  const UnitPart part = part_of(entries.count * static_cast<int>(of_entry), block_id());
  auto at = static_cast<unsigned>(part.begin);
  const auto end = static_cast<unsigned>(part.end);
  TENON_NO_UNROLL
  while (at < end) {
    const unsigned entry = at / of_entry, unit = at - entry * of_entry;
    const int first = entries.first[entry];
    unsigned left = end - at;
    if (left > of_entry - unit && entries.first[entry + 2] - first > kFewRows)
      left = of_entry - unit;
    const unsigned units = next_units(left);
    const int beyond = entries.first[unit + units > of_entry ? entry + 2 : entry + 1];
    step(FewTile{static_cast<int>(entry), static_cast<int>(unit), static_cast<int>(units),
                 static_cast<int>(of_entry), first, beyond - first});
    at += units;
  }
}

struct FewX {
  const std::byte* codes;
  const float* scales;
  std::int64_t stride, scale_row_stride, scale_block_stride;
};

TENON_DEVICE void feed_few(const Weight& weight, const FewX& x, int width, const Entries& entries,
                           const FewRing& ring, const int* token_of) {
  static_assert(kFewChunk * 8 == kWave && kFewRows * kFewChunk == kWave);
  const int feeder = thread_id() / kWave - kWeightWave - 1, lane = thread_id() % kWave;
  const int of_lane = lane / 8, chunk = lane % 8;  // of a row; or row `chunk` of its scales
  const std::uint64_t once = policy_evict_first();
  RingPlace place;
  int number = 0;
  for_few_tiles(width, entries, [&](const FewTile& tile) {
    const int unit = lane < tile.units ? lane : 0;
    const int expert = entries.expert[tile.entry_of(unit)];
    const int row =
        tile.feature_of(unit) + (expert == kSharedExpert ? 0 : expert * weight.expert_rows);
    const int pair = tile.first + chunk;
    const int token = chunk >= tile.rows      ? 0
                      : pair < entries.routed ? token_of[pair]
                                              : pair - entries.routed;
    TENON_NO_UNROLL
    for (int block = 0; block < weight.cut.num_blocks; block += kFewChunk) {
      if (number++ % kFeeders == feeder) {
        Mbarrier* const full = &ring.full[place.stage];
        barrier_wait(&ring.empty[place.stage], place.parity ^ 1);
        if (lane == 0)
          barrier_arrive_expect(full, static_cast<std::uint32_t>(tile.units * kFewUnitBytes));
        sync_wave();
        if (lane < tile.units)
          copy_box<kFewFeatures>(ring.weight(place.stage) + lane * kFewUnitBytes,
                                 expert == kSharedExpert ? &weight.shared : &weight.routed, row,
                                 block, full, once);
        const bool exists = block + of_lane < weight.cut.num_blocks;
        const std::byte* const from = x.codes + (block + of_lane) * kProductBlock + chunk * 16;
        TENON_NO_UNROLL
        for (int r = 0; r < tile.rows; ++r) {
          const int of_row = shuffle_from(token, r);
          if (exists)
            copy_async16(ring.x(place.stage, of_lane) + tile_place(r, chunk),
                         from + of_row * x.stride);
        }
        if (exists && chunk < tile.rows)
          copy4_later(
              ring.x_scales(place.stage, of_lane) + chunk,
              x.scales + token * x.scale_row_stride + (block + of_lane) * x.scale_block_stride);
        TENON_UNROLL
        for (int part = 0; part < 2; ++part)  // gate and up; a unit for each eighth lane
          if (exists && chunk < tile.units)
            copy4_later(ring.weight_scales(place.stage) + (of_lane * 2 + part) * kFewUnits + chunk,
                        weight_scale_at(weight, entries.expert[tile.entry_of(chunk)],
                                        part * width + tile.feature_of(chunk), block + of_lane));
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
    // A value that the whole warp has: see sm90/wgmma.cuh.
    const int at = shuffle_from(place.stage * kStageUnits, 0);
    barrier_wait(&ring.full[place.stage], place.parity);
    show_to_tensor_cores();
    // All blocks of the stage, for products must not stand under a condition. Neighbouring
    // instructions belong to different chains, so none waits for the one before it.
    wgmma_begin();
    const std::uint64_t weight_at = descriptor_at(weight, at), x_at = descriptor_at(x, at);
    TENON_UNROLL
    for (int k = 0; k < 4; ++k) {
      TENON_UNROLL
      for (int u = 0; u < kFewChunk; ++u)
        add_product<kFewRows>(products[u], descriptor_step(weight_at, u * 64 + 2 * k),
                              descriptor_step(x_at, u * kFewRows * 8 + 2 * k), k > 0);
    }
    wgmma_commit();
    // Its division in the shadow of the products; a stage has at most one end of a segment.
    static_assert(kFewChunk * kProductBlock <= kMinSegmentSize);
    int next_end = cut.begin(segment + 2) / kProductBlock;
    hold(next_end);
    wgmma_wait_all();
    TENON_UNROLL
    for (int u = 0; u < kFewChunk; ++u) hold_sums(products[u]);
    TENON_UNROLL
    for (int u = 0; u < kFewChunk; ++u) {
      if (block + u >= cut.num_blocks) continue;
      const float2 ws = *reinterpret_cast<const float2*>(ring.weight_scales(place.stage) +
                                                         u * 2 * kFewUnits + of_weight);
      const float2 xs =
          *reinterpret_cast<const float2*>(ring.x_scales(place.stage, u) + 2 * (lane % 4));
      own[0] = fma_f(products[u][0], xs.x * ws.x, own[0]);
      own[1] = fma_f(products[u][1], xs.y * ws.x, own[1]);
      own[2] = fma_f(products[u][2], xs.x * ws.y, own[2]);
      own[3] = fma_f(products[u][3], xs.y * ws.y, own[3]);
      if (block + u + 1 < end) continue;
      TENON_UNROLL
      for (int e = 0; e < 4; ++e) {
        sums[e] = segment == 0 ? own[e] : sums[e] + own[e];
        own[e] = 0.0f;
      }
      ++segment;
      end = next_end;
    }
    sync_wave();
    if (lane == 0) barrier_arrive(&ring.empty[place.stage]);
    place.next(ring.stages);
  }
}

// The two lanes of a feature exchange values, and each has one unit then.
TENON_DEVICE void activate_few(const Segments& cut, int width, const Entries& entries,
                               const FewRing& ring, bf16* activation, std::int64_t stride) {
  const int lane = thread_id() % kWave;
  const bool has_up = lane >= kWave / 2;
  const int unit = 2 * (thread_id() / kWave) + (has_up ? 1 : 0);
  RingPlace place;
  for_few_tiles(width, entries, [&](const FewTile& tile) {
    float sums[4];
    multiply_few(ring, place, cut, sums);
    const int entry = tile.entry_of(unit);
    const bool exists = unit < tile.units;
    const int begin = exists ? entries.first[entry] - tile.first : tile.rows;
    const int end = exists ? entries.first[entry + 1] - tile.first : tile.rows;
    bf16* const to =
        activation + tile.first * stride + tile.feature_of(unit) + lane / 4 % kFewFeatures;
    TENON_UNROLL
    for (int c = 0; c < 2; ++c) {
      const float other = shuffle_xor(has_up ? sums[c] : sums[2 + c], kWave / 2);
      const int row = 2 * (lane % 4) + c;
      if (row < begin || row >= end) continue;
      const std::uint32_t both =
          has_up ? pack_halves<bf16>(other, sums[2 + c]) : pack_halves<bf16>(sums[c], other);
      const float value = silu_mul_f(low_half<bf16>(both), high_half<bf16>(both));
      to[row * stride] = bf16{static_cast<std::uint16_t>(pack_halves<bf16>(value, 0.0f))};
    }
  });
}

}  // namespace tenon::TENON_TARGET::moe_experts
