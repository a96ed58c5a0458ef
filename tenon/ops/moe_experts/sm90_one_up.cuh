// The first kernel of moe_experts on Hopper for one token, whose experts it chooses on the way.
//
// Units, tiles and sums are those of sm90_few.cuh. What is different:
//   - Every block makes the choice, the whole of moe_route, from the logits; every wave that needs
//     it makes it for itself, so that it waits for no other.
//   - Where it pays (apart_of()) the shared expert's units are dealt by themselves. A block asks
//     for its own before it waits, into stages of their own, of which each holds units with all of
//     k, and multiplies them while the choice is made. So what it asks for behind the choice is a
//     tile less where blocks would have had a few units more than a tile.
//   - The token lies once in shared memory: block 4 n + u of k is row n of atom u. That row is the
//     column of the products that counts, in the lanes of which the sum then has to be.
#pragma once

#include "tenon/ops/moe_experts/sm90_choice.cuh"
#include "tenon/ops/moe_experts/sm90_chosen.cuh"
#include "tenon/ops/moe_experts/sm90_few.cuh"

namespace tenon::TENON_TARGET::moe_experts {

inline constexpr int kOneChunks = 8;  // of kFewChunk blocks of k: rows of an atom
inline constexpr int kOneBlocks = kOneChunks * kFewChunk;

struct OneUpCall {
  Weight weight;
  const std::byte* x;
  const float *x_scales, *logits;
  std::int64_t scale_block_stride;
  bf16* activation;
  std::int64_t activation_stride;
  float* weights;             // what moe_route makes
  std::int32_t *slot, *list;  // the list of entries
  // For the L2 cache. Bytes of an expert are 0 where the next kernel asks early enough itself.
  const std::byte *next_routed, *next_shared;
  std::int64_t next_bytes;
  std::int32_t width, stages, top_k, experts, all_experts, first_expert;
  std::int32_t chunks, packed;  // of k; units that a stage holds with all of k
  std::uint32_t last_blocks;    // bit b: block b of k is the last one of its segment
  bool has_shared, is_apart;    // the shared expert, dealt by itself
};

// Units of the shared expert that lie in a stage of their own, as chunks of k: unit j has chunk c
// in place j · chunks + c.
TENON_HD constexpr int one_chunks(int blocks) { return (blocks + kFewChunk - 1) / kFewChunk; }
TENON_HD constexpr int one_packed(int chunks) {
  return kFewUnits / chunks > 1 ? kFewUnits / chunks : 1;
}
// Stages that the fullest block needs for its part of the shared expert. 0: too many, or several
// whose operands would reach past the ring.
constexpr int apart_of(int of_entry, int grid, int chunks) {
  constexpr int kMost = 2;
  const int units = (of_entry + grid - 1) / grid, packed = one_packed(chunks);
  const int stages = (units + packed - 1) / packed;
  return stages <= kMost && (stages == 1 || packed == 1) ? stages : 0;
}

struct OneRing {
  static constexpr int kStageBytes = kFewUnits * kFewUnitBytes;
  static constexpr int kScales = 2 * kFewUnits * kFewChunk;  // floats of a stage
  static constexpr int kXBytes = kFewChunk * 1024;
  // Of a wave that chooses: the expert of each entry, kSharedExpert in all places behind them.
  static constexpr int kList = kMostChoices + 4;

  std::byte *tiles, *x;
  Mbarrier *full, *empty, *chosen;  // chosen: `count` is known
  float *scales, *x_scales;
  int *lists, *count;  // count: of chosen experts that are this rank's
  std::uint32_t* bits;  // of the wave that leaves the choice
  void* memory;         // the same
  int stages;

  TENON_HD std::byte* weight(int stage) const { return tiles + stage * kStageBytes; }
  // [2, places of units, kFewChunk]: of gate, of up.
  TENON_HD float* weight_scales(int stage) const { return scales + stage * kScales; }

  TENON_HD static constexpr int bytes(int stages) {
    return stages * (kStageBytes + kScales * 4 + 2 * static_cast<int>(sizeof(Mbarrier))) + kXBytes +
           16 + (kOneBlocks + (kFeeders + 1) * kList + kChoiceSlices + kChoiceWords) * 4;
  }
  TENON_HD static OneRing at(std::byte* memory, int stages) {
    OneRing ring;
    ring.tiles = memory;
    ring.x = memory + stages * kStageBytes;
    ring.full = reinterpret_cast<Mbarrier*>(ring.x + kXBytes);
    ring.empty = ring.full + stages;
    ring.chosen = ring.empty + stages;
    ring.count = reinterpret_cast<int*>(ring.chosen + 1);
    ring.scales = reinterpret_cast<float*>(ring.chosen + 2);
    ring.x_scales = ring.scales + stages * kScales;
    ring.lists = reinterpret_cast<int*>(ring.x_scales + kOneBlocks);
    ring.bits = reinterpret_cast<std::uint32_t*>(ring.lists + (kFeeders + 1) * kList);
    ring.memory = ring.bits + kChoiceSlices;
    ring.stages = stages;
    return ring;
  }
};

// --- who does what ----------------------------------------------------------------------------

// The first blocks have a unit more of the chosen experts, the last ones of the shared one.
TENON_DEVICE UnitPart shared_part(const OneUpCall& call) {
  if (!call.is_apart) return {0, 0};
  return part_of(call.width / kFewFeatures, grid_blocks() - 1 - block_id());
}

// The rest of the block's part of the chosen experts, which begins in entry `entry`.
struct ChosenPart {
  int at, end, entry;
};
TENON_DEVICE ChosenPart chosen_part(const OneUpCall& call, int count) {
  const int of_entry = call.width / kFewFeatures;
  const int entries = count + (call.has_shared && !call.is_apart ? 1 : 0);
  const UnitPart part = part_of(entries * of_entry, block_id());
  return {part.begin, part.end,
          static_cast<int>(static_cast<unsigned>(part.begin) / static_cast<unsigned>(of_entry))};
}
// Neighbouring units, the first of them in `entry`; perhaps with some of the next one.
struct OneTile {
  int entry, unit, units;
};
TENON_DEVICE OneTile next_tile(ChosenPart& part, int of_entry) {
  const int units = next_units(part.end - part.at);
  const OneTile tile{part.entry, part.at - part.entry * of_entry, units};
  part.at += units;
  if (tile.unit + units >= of_entry) ++part.entry;
  return tile;
}

// By a wave: the entries, which are the chosen experts of this rank in order, and the shared one,
// as a list. Returns how many are chosen. chosen: of this rank.
TENON_DEVICE int list_chosen(const OneUpCall& call, std::uint32_t chosen, int* list) {
  const int lane = thread_id() % kWave;
  const LaneSum sum = sum_small(count_ones(chosen));
  int* to = list + sum.before;
  TENON_NO_UNROLL
  for (std::uint32_t left = chosen; left != 0; left &= left - 1u)
    *to++ = kLaneExperts * lane + lowest_one(left) - call.first_expert;
  if (lane >= sum.all && lane < OneRing::kList) list[lane] = kSharedExpert;
  sync_wave();
  return sum.all;
}

// --- feeding ----------------------------------------------------------------------------------

// A feeder's place among the stages: each takes one in turn.
struct FeedPlace {
  RingPlace ring;
  int turn;  // 0: the next stage is this feeder's
};
TENON_DEVICE bool take_turn(FeedPlace& place) {
  const bool own = place.turn == 0;
  place.turn = own ? kFeeders - 1 : place.turn - 1;
  return own;
}

// Lane 8 u + place: of the unit in this place of a stage, for block `block` of k, the stage's u.
TENON_DEVICE void copy_unit_scales(const OneUpCall& call, int expert, int feature, int block,
                                   float* to) {
  const int lane = thread_id() % kWave, at = lane % kFewUnits * kFewChunk + lane / kFewUnits;
  TENON_UNROLL
  for (int part = 0; part < 2; ++part)  // gate and up
    copy4_later(to + part * kFewUnits * kFewChunk + at,
                weight_scale_at(call.weight, expert, part * call.width + feature, block));
}

// Before the wait: the shared expert's units of this block, with all of k. Constants.
TENON_DEVICE void feed_apart(const OneUpCall& call, const OneRing& ring, FeedPlace& place) {
  static_assert(kFewUnits * kFewChunk == kWave);
  const UnitPart part = shared_part(call);
  const int lane = thread_id() % kWave, slot = lane % kFewUnits;
  const int unit = slot / call.chunks, first_block = slot % call.chunks * kFewChunk;
  const std::uint64_t once = policy_evict_first();
  TENON_NO_UNROLL
  for (int at = part.begin; at < part.end; at += call.packed) {
    const int units = part.end - at < call.packed ? part.end - at : call.packed;
    if (take_turn(place)) {
      Mbarrier* const full = &ring.full[place.ring.stage];
      const int feature = kFewFeatures * (at + unit);
      if (lane == 0)
        barrier_arrive_expect(full,
                              static_cast<std::uint32_t>(units * call.chunks * kFewUnitBytes));
      sync_wave();
      if (lane < kFewUnits && unit < units)
        copy_box<kFewFeatures>(ring.weight(place.ring.stage) + slot * kFewUnitBytes,
                               &call.weight.shared, feature, first_block, full, once);
      const int block = first_block + lane / kFewUnits;
      if (unit < units && block < call.weight.cut.num_blocks)
        copy_unit_scales(call, kSharedExpert, feature, block, ring.weight_scales(place.ring.stage));
      arrive_after_copies(full);
    }
    place.ring.next(ring.stages);
  }
}

// A tile as a feeder sees it: the unit of this lane.
struct FeedTile {
  int units, entry, feature;
};
TENON_DEVICE FeedTile feed_tile(ChosenPart& part, int of_entry) {
  const OneTile tile = next_tile(part, of_entry);
  const int unit = tile.unit + thread_id() % kWave % kFewUnits;
  const bool beyond = unit >= of_entry;
  return {tile.units, tile.entry + (beyond ? 1 : 0),
          kFewFeatures * (unit - (beyond ? of_entry : 0))};
}

// tile: the first one, part: what is behind it.
TENON_DEVICE void feed_one(const OneUpCall& call, const OneRing& ring, const int* list,
                           FeedTile tile, ChosenPart part, FeedPlace& place) {
  const int of_entry = call.width / kFewFeatures, blocks = call.weight.cut.num_blocks;
  const int lane = thread_id() % kWave, own = lane % kFewUnits;
  const std::uint64_t once = policy_evict_first();
  TENON_NO_UNROLL
  while (tile.units > 0) {
    const int expert = list[tile.entry];
    const int row = tile.feature + (expert == kSharedExpert ? 0 : expert * call.weight.expert_rows);
    TENON_NO_UNROLL
    for (int first_block = 0; first_block < blocks; first_block += kFewChunk) {
      if (take_turn(place)) {
        Mbarrier* const full = &ring.full[place.ring.stage];
        barrier_wait(&ring.empty[place.ring.stage], place.ring.parity ^ 1);
        if (lane == 0)
          barrier_arrive_expect(full, static_cast<std::uint32_t>(tile.units * kFewUnitBytes));
        sync_wave();
        if (lane < tile.units)
          copy_box<kFewFeatures>(
              ring.weight(place.ring.stage) + own * kFewUnitBytes,
              expert == kSharedExpert ? &call.weight.shared : &call.weight.routed, row, first_block,
              full, once);
        const int block = first_block + lane / kFewUnits;
        if (own < tile.units && block < blocks)
          copy_unit_scales(call, expert, tile.feature, block, ring.weight_scales(place.ring.stage));
        arrive_after_copies(full);
      }
      place.ring.next(ring.stages);
    }
    tile = feed_tile(part, of_entry);
  }
}

// --- products ---------------------------------------------------------------------------------

// By the threads that multiply: the token into shared memory.
TENON_DEVICE void load_token(const OneUpCall& call, const OneRing& ring) {
  const int blocks = call.weight.cut.num_blocks;
  TENON_UNROLL
  for (int i = thread_id(); i < 8 * kOneBlocks; i += kConsumers) {
    const int block = i / 8;  // 16 bytes a thread
    if (block < blocks)
      copy_async16(ring.x + block % kFewChunk * 1024 + tile_place(block / kFewChunk, i % 8),
                   call.x + i * 16);
  }
  static_assert(kOneBlocks <= kConsumers);
  if (thread_id() < blocks)
    copy4_later(ring.x_scales + thread_id(), call.x_scales + thread_id() * call.scale_block_stride);
  await_copies();
  show_to_tensor_cores();
  sync_first_threads<kConsumers>();
}

// How a tile's units lie in its stages.
struct OneLayout {
  bool is_packed;      // with all of k in one stage
  int apart;           // places from a unit to the next one; a value that the whole warp has
  int scales, second;  // where those of the warp's first unit lie in a stage, and of the second
};
TENON_DEVICE OneLayout one_layout(const OneUpCall& call, bool is_packed) {
  const int apart = shuffle_from(is_packed && call.packed > 1 ? call.chunks : 1, 0);
  const int warp = thread_id() / kWave, part = thread_id() % kWave / 16 * kFewUnits;
  const auto scales_of = [&](int unit) {  // that does not exist: anywhere
    return (part + unit * apart % kFewUnits) * kFewChunk;
  };
  return {is_packed, apart, scales_of(2 * warp), scales_of(2 * warp + 1)};
}

// The products of a tile: sums[h] belongs to unit 2 w + h, its row g of eight (gate below 4, then
// up), in the lanes 4 g + p of warp w.
TENON_DEVICE void multiply_one(const OneUpCall& call, const OneRing& ring, RingPlace& place,
                               const OneLayout& layout, float (&sums)[2]) {
  constexpr int kStageUnits = OneRing::kStageBytes / 16;
  const int lane = thread_id() % kWave;
  const std::uint64_t x = tile_descriptor(ring.x);
  const std::uint64_t weight = tile_descriptor(ring.tiles, layout.apart * kFewUnitBytes);
  float own[2] = {}, products[kFewChunk][4] = {};
  bool is_first = true;  // segment
  TENON_NO_UNROLL
  for (int chunk = 0; chunk < call.chunks; ++chunk) {
    // A value that the whole warp has: see sm90/wgmma.cuh.
    const int at = shuffle_from(
        place.stage * kStageUnits + (layout.is_packed ? chunk * (kFewUnitBytes / 16) : 0), 0);
    if (!layout.is_packed || chunk == 0) barrier_wait(&ring.full[place.stage], place.parity);
    // All blocks of the chunk, for products must not stand under a condition. Neighbouring
    // instructions belong to different chains, so none waits for the one before it.
    wgmma_begin();
    TENON_UNROLL
    for (int k = 0; k < 4; ++k) {
      TENON_UNROLL
      for (int u = 0; u < kFewChunk; ++u)
        add_product<8>(products[u], descriptor_at(weight, at + u * 64 + 2 * k),
                       descriptor_at(x, u * 64 + 2 * k), k > 0);
    }
    wgmma_commit();
    const float* const scales =
        ring.weight_scales(place.stage) + (layout.is_packed ? chunk * kFewChunk : 0);
    const auto four_at = [](const float* from) { return *reinterpret_cast<const float4*>(from); };
    const float4 xs = four_at(ring.x_scales + chunk * kFewChunk);
    const float4 of_unit[2] = {four_at(scales + layout.scales), four_at(scales + layout.second)};
    const float scale[2][kFewChunk] = {
        {xs.x * of_unit[0].x, xs.y * of_unit[0].y, xs.z * of_unit[0].z, xs.w * of_unit[0].w},
        {xs.x * of_unit[1].x, xs.y * of_unit[1].y, xs.z * of_unit[1].z, xs.w * of_unit[1].w}};
    wgmma_wait_all();
    TENON_UNROLL
    for (int u = 0; u < kFewChunk; ++u) hold_sums(products[u]);
    const bool is_odd = chunk % 2 != 0;  // the column of the token's row
    TENON_UNROLL
    for (int u = 0; u < kFewChunk; ++u) {
      const int block = chunk * kFewChunk + u;
      if (block >= call.weight.cut.num_blocks) continue;
      TENON_UNROLL
      for (int h = 0; h < 2; ++h)
        own[h] = fma_f(is_odd ? products[u][2 * h + 1] : products[u][2 * h], scale[h][u], own[h]);
      if ((call.last_blocks >> block & 1u) == 0) continue;
      TENON_UNROLL
      for (int h = 0; h < 2; ++h) {
        sums[h] = is_first ? own[h] : sums[h] + own[h];
        own[h] = 0.0f;
      }
      is_first = false;
    }
    if (is_odd || chunk + 1 == call.chunks) {
      const int from = lane / 4 * 4 + chunk / 2;  // the lane whose columns those were
      TENON_UNROLL
      for (int h = 0; h < 2; ++h) {
        sums[h] = shuffle_from(sums[h], from);
        own[h] = shuffle_from(own[h], from);
      }
    }
    if (layout.is_packed && chunk + 1 < call.chunks) continue;
    sync_wave();
    if (lane == 0) barrier_arrive(&ring.empty[place.stage]);
    place.next(ring.stages);
  }
}

// The two lanes of a feature exchange values, and each has one unit then.
TENON_DEVICE void activate_one(const OneUpCall& call, const OneTile& tile, const float (&sums)[2]) {
  const int lane = thread_id() % kWave, of_entry = call.width / kFewFeatures;
  const bool has_up = lane >= kWave / 2;
  const int own = 2 * (thread_id() / kWave) + (has_up ? 1 : 0), unit = tile.unit + own;
  const float other = shuffle_xor(has_up ? sums[0] : sums[1], kWave / 2);
  if (own >= tile.units || lane % 4 != 0) return;
  const std::uint32_t both =
      has_up ? pack_halves<bf16>(other, sums[1]) : pack_halves<bf16>(sums[0], other);
  const float value = silu_mul_f(low_half<bf16>(both), high_half<bf16>(both));
  const bool beyond = unit >= of_entry;
  bf16* const to = call.activation + (tile.entry + (beyond ? 1 : 0)) * call.activation_stride +
                   kFewFeatures * (unit - (beyond ? of_entry : 0));
  to[lane / 4 % kFewFeatures] = bf16{static_cast<std::uint16_t>(pack_halves<bf16>(value, 0.0f))};
}

// The shared expert's units first, where they are apart.
TENON_DEVICE void multiply_all(const OneUpCall& call, const OneRing& ring) {
  UnitPart apart = shared_part(call);
  ChosenPart part{};
  RingPlace place;
  int count = -1;
  const auto learn_count = [&] {
    barrier_wait(ring.chosen, 0);
    count = *ring.count;
    part = chosen_part(call, count);
  };
  if (apart.begin == apart.end) learn_count();
  TENON_NO_UNROLL
  while (apart.begin < apart.end || part.at < part.end) {
    const bool is_packed = apart.begin < apart.end;
    OneTile tile;
    if (is_packed) {
      const int left = apart.end - apart.begin;
      tile = {0, apart.begin, left < call.packed ? left : call.packed};
      apart.begin += tile.units;
    } else {
      tile = next_tile(part, call.width / kFewFeatures);
    }
    float sums[2];
    multiply_one(call, ring, place, one_layout(call, is_packed), sums);
    if (count < 0) learn_count();
    if (is_packed) tile.entry = count;
    activate_one(call, tile, sums);
  }
}

// --- the kernel -------------------------------------------------------------------------------

// A wave of one block: what the next kernel reads before it waits, which then may start; and what
// it reads later.
TENON_DEVICE void leave_choice(const OneUpCall& call, std::uint32_t chosen, const int* list,
                               int count, std::uint32_t* bits, const ChoiceMemory& memory) {
  const int lane = thread_id() % kWave;
  int* const expert = call.list + list_experts(call.top_k);
  if (lane <= count) expert[lane] = list[lane];
  if (lane <= count + 1) call.list[2 + lane] = lane;
  if (lane == 0) {
    call.list[0] = count + (call.has_shared ? 1 : 0);
    call.list[1] = count;
  }
  fence_device();
  sync_wave();
  if (lane == 0) let_next_start();
  put_bits(bits, chosen);
  sync_wave();
  const WeighedExpert own = weigh_chosen(call.all_experts, call.top_k, call.logits, memory, bits);
  const int local = own.expert - call.first_expert;
  const int before = count_ones(ballot(lane < call.top_k && local < 0));  // of other ranks
  if (lane >= call.top_k) return;
  call.weights[own.choice] = own.weight;
  call.slot[own.choice] = local >= 0 && local < call.experts ? lane - before : -1;
}

// By a wave of every block: the matrices that the next kernel reads.
TENON_DEVICE void prefetch_chosen(const OneUpCall& call, const int* list, int count) {
  constexpr int kPiece = 8192;
  const auto pieces = static_cast<int>((call.next_bytes + kPiece - 1) / kPiece);
  const int entries = count + (call.has_shared ? 1 : 0), lane = thread_id() % kWave;
  TENON_NO_UNROLL
  for (int entry = 0; entry < entries; ++entry) {
    const int expert = list[entry];
    const std::byte* const matrix =
        expert == kSharedExpert ? call.next_shared : call.next_routed + expert * call.next_bytes;
    for (int i = block_id() + grid_blocks() * lane; i < pieces; i += grid_blocks() * kWave) {
      const std::int64_t at = std::int64_t{i} * kPiece, left = call.next_bytes - at;
      prefetch_bytes(matrix + at, static_cast<std::uint32_t>(left < kPiece ? left : kPiece));
    }
  }
}

TENON_KERNEL_RESIDENT(kThreads, 1)
up_one_kernel(TENON_ARGS(OneUpCall) call) {
  TENON_SHARED_TILES(shared);
  const OneRing ring = OneRing::at(shared, call.stages);
  const int wave = thread_id() / kWave, lane = thread_id() % kWave;
  const int of_entry = call.width / kFewFeatures;
  if (thread_id() == 0) {
    barrier_init(ring.chosen, 1);
    start_ring(ring, call.weight, kWave);
  }
  // What a feeder begins with where all choices are this rank's.
  ChosenPart part = chosen_part(call, call.top_k);
  FeedTile tile = feed_tile(part, of_entry);
  std::uint32_t own = own_experts(call.first_expert, call.experts);
  const float* from = call.logits + kLaneExperts * lane;
  hold(part.at), hold(part.end), hold(part.entry), hold(from);
  hold(tile.units), hold(tile.entry), hold(tile.feature), hold(own);
  sync_block();
  FeedPlace place{{}, wave - kWeightWave - 1};
  if (wave > kWeightWave) feed_apart(call, ring, place);
  wait_for_previous();
  if (thread_id() == 0 && block_id() != 0) let_next_start();
  if (wave < kWeightWave) {
    load_token(call, ring);
    multiply_all(call, ring);
    return;
  }
  const bool leaves = wave == kWeightWave;
  if (leaves && block_id() != 0) return;
  int* const list = ring.lists + (wave - kWeightWave) * OneRing::kList;
  const std::uint32_t chosen = choose_experts(call.all_experts, call.top_k, from);
  const int count = list_chosen(call, chosen & own, list);
  if (leaves) {
    leave_choice(call, chosen, list, count, ring.bits, choice_memory(ring.memory));
    return;
  }
  if (wave == kWeightWave + 1 && lane == 0) {
    *ring.count = count;
    barrier_arrive(ring.chosen);
  }
  if (count != call.top_k) {
    part = chosen_part(call, count);
    tile = feed_tile(part, of_entry);
  }
  feed_one(call, ring, list, tile, part, place);
  if (wave == kWeightWave + 1 && call.next_bytes > 0) prefetch_chosen(call, list, count);
  await_copies();
}

}  // namespace tenon::TENON_TARGET::moe_experts
