// The first kernel of moe_experts on Hopper for one token, whose experts it chooses on the way.
//
// Units, tiles and sums are those of sm90_few.cuh. What is different:
//   - Every block makes the choice, the whole of moe_route, from the logits.
//   - Where it pays (apart_of()) the shared expert's units are dealt by themselves. A block asks
//     for its own before it waits, into stages of their own, of which each holds units with all of
//     k, and multiplies them while the chosen experts are under way. So what it asks for behind the
//     choice is a tile less where blocks would have had a few units more than a tile.
//   - The token lies once in shared memory: block 4 n + u of k is row n of atom u. That row is the
//     column of the products that counts, in the lanes of which the sum then has to be.
#pragma once

#include "tenon/ops/common/choice.cuh"
#include "tenon/ops/moe_experts/sm90_chosen.cuh"
#include "tenon/ops/moe_experts/sm90_few.cuh"

namespace tenon::TENON_TARGET::moe_experts {

inline constexpr int kOneChunks = 8;  // of kFewChunk blocks of k: rows of an atom
inline constexpr int kOneBlocks = kOneChunks * kFewChunk;
static_assert(8 * kOneBlocks <= kThreads);  // a thread takes 16 bytes of the token

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

  std::byte *tiles, *x;
  Mbarrier *full, *empty;
  float *scales, *x_scales;
  std::uint32_t* choice;
  int stages;

  TENON_HD std::byte* weight(int stage) const { return tiles + stage * kStageBytes; }
  // [2, places of units, kFewChunk]: of gate, of up.
  TENON_HD float* weight_scales(int stage) const { return scales + stage * kScales; }

  TENON_HD static constexpr int bytes(int stages, int top_k) {
    return stages * (kStageBytes + kScales * 4 + 2 * static_cast<int>(sizeof(Mbarrier))) + kXBytes +
           kOneBlocks * 4 + choice_words(top_k) * 4;
  }
  TENON_HD static OneRing at(std::byte* memory, int stages) {
    OneRing ring;
    ring.tiles = memory;
    ring.x = memory + stages * kStageBytes;
    ring.full = reinterpret_cast<Mbarrier*>(ring.x + kXBytes);
    ring.empty = ring.full + stages;
    ring.scales = reinterpret_cast<float*>(ring.empty + stages);
    ring.x_scales = ring.scales + stages * kScales;
    ring.choice = reinterpret_cast<std::uint32_t*>(ring.x_scales + kOneBlocks);
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

// What a wave knows of the choice: lane l has choice l. Entries are the chosen experts of this rank
// in order, and the shared one.
struct OneChoice {
  int local, place;  // the expert as this rank counts, and which entry it is
  bool is_own;
  int count;
};
// By the whole wave. The shared expert is no lane's.
TENON_DEVICE int expert_of(const OneChoice& choice, int entry) {
  const std::uint32_t found = ballot(choice.is_own && choice.place == entry);
  const int expert = shuffle_from(choice.local, found != 0 ? lowest_one(found) : 0);
  return found != 0 ? expert : kSharedExpert;
}
// has_places: or only how many there are.
TENON_DEVICE OneChoice find_entries(const OneUpCall& call, const ChoiceMemory& memory,
                                    bool has_places) {
  const int lane = thread_id() % kWave;
  OneChoice choice;
  choice.local = lane < call.top_k ? memory.expert[lane] - call.first_expert : -1;
  choice.is_own = choice.local >= 0 && choice.local < call.experts;
  choice.count = count_ones(ballot(choice.is_own));
  choice.place = 0;
  if (!has_places) return choice;
  const int order = choice.is_own ? choice.local : kMostExperts;
  TENON_UNROLL
  for (int other = 0; other < kMostChoices; ++other) {
    if (other >= call.top_k) break;
    choice.place += shuffle_from(order, other) < order ? 1 : 0;
  }
  return choice;
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

TENON_DEVICE void feed_one(const OneUpCall& call, const OneRing& ring, const OneChoice& choice,
                           ChosenPart part, FeedPlace& place) {
  const int of_entry = call.width / kFewFeatures, blocks = call.weight.cut.num_blocks;
  const int lane = thread_id() % kWave, own = lane % kFewUnits;
  const std::uint64_t once = policy_evict_first();
  TENON_NO_UNROLL
  while (part.at < part.end) {
    const OneTile tile = next_tile(part, of_entry);
    const int first = expert_of(choice, tile.entry), second = expert_of(choice, tile.entry + 1);
    const bool beyond = tile.unit + own >= of_entry;
    const int expert = beyond ? second : first;
    const int feature = kFewFeatures * (tile.unit + own - (beyond ? of_entry : 0));
    const int row = feature + (expert == kSharedExpert ? 0 : expert * call.weight.expert_rows);
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
          copy_unit_scales(call, expert, feature, block, ring.weight_scales(place.ring.stage));
        arrive_after_copies(full);
      }
      place.ring.next(ring.stages);
    }
  }
}

// --- products ---------------------------------------------------------------------------------

// How a tile's units lie in its stages.
struct OneLayout {
  bool is_packed;       // with all of k in one stage
  std::uint64_t first;  // the descriptor of the ring's first stage
  int scales, second;   // where those of the warp's first unit lie in a stage, and of the second
};
TENON_DEVICE OneLayout one_layout(const OneUpCall& call, const OneRing& ring, bool is_packed) {
  const int apart = is_packed && call.packed > 1 ? call.chunks : 1;  // neighbouring units
  const int warp = thread_id() / kWave, part = thread_id() % kWave / 16 * kFewUnits;
  const auto scales_of = [&](int unit) {  // that does not exist: anywhere
    return (part + unit * apart % kFewUnits) * kFewChunk;
  };
  return {is_packed, tile_descriptor(ring.tiles, apart * kFewUnitBytes), scales_of(2 * warp),
          scales_of(2 * warp + 1)};
}

// The products of a tile: sums[h] belongs to unit 2 w + h, its row g of eight (gate below 4, then
// up), in the lanes 4 g + p of warp w.
TENON_DEVICE void multiply_one(const OneUpCall& call, const OneRing& ring, RingPlace& place,
                               const OneLayout& layout, float (&sums)[2]) {
  constexpr int kStageUnits = OneRing::kStageBytes / 16;
  const int lane = thread_id() % kWave;
  const std::uint64_t x = tile_descriptor(ring.x);
  float own[2] = {}, products[kFewChunk][4] = {};
  bool is_first = true;  // segment
  TENON_NO_UNROLL
  for (int chunk = 0; chunk < call.chunks; ++chunk) {
    if (!layout.is_packed || chunk == 0) barrier_wait(&ring.full[place.stage], place.parity);
    const int at =
        place.stage * kStageUnits + (layout.is_packed ? chunk * (kFewUnitBytes / 16) : 0);
    // All blocks of the chunk, for products must not stand under a condition. Neighbouring
    // instructions belong to different chains, so none waits for the one before it.
    wgmma_begin();
    TENON_UNROLL
    for (int k = 0; k < 4; ++k) {
      TENON_UNROLL
      for (int u = 0; u < kFewChunk; ++u)
        add_product<8>(products[u], descriptor_at(layout.first, at + u * 64 + 2 * k),
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
TENON_DEVICE void multiply_all(const OneUpCall& call, const OneRing& ring, int count,
                               ChosenPart part) {
  const OneLayout packed = one_layout(call, ring, true), plain = one_layout(call, ring, false);
  UnitPart apart = shared_part(call);
  RingPlace place;
  TENON_NO_UNROLL
  while (apart.begin < apart.end || part.at < part.end) {
    const bool is_packed = apart.begin < apart.end;
    OneTile tile;
    if (is_packed) {
      const int left = apart.end - apart.begin;
      tile = {count, apart.begin, left < call.packed ? left : call.packed};
      apart.begin += tile.units;
    } else {
      tile = next_tile(part, call.width / kFewFeatures);
    }
    const OneLayout layout{is_packed, is_packed ? packed.first : plain.first,
                           is_packed ? packed.scales : plain.scales,
                           is_packed ? packed.second : plain.second};
    float sums[2];
    multiply_one(call, ring, place, layout, sums);
    activate_one(call, tile, sums);
  }
}

// --- the kernel -------------------------------------------------------------------------------

// A wave of one block: what the next kernel reads, which then may start.
TENON_DEVICE void leave_choice(const OneUpCall& call, const ChoiceMemory& memory,
                               const OneChoice& choice, const Logits& logits) {
  const int lane = thread_id() % kWave, count = choice.count;
  int* const expert = call.list + list_experts(call.top_k);
  if (choice.is_own) expert[choice.place] = choice.local;
  if (lane <= count + 1) call.list[2 + lane] = lane;
  if (lane == 0) {
    expert[count] = kSharedExpert;
    call.list[0] = count + (call.has_shared ? 1 : 0);
    call.list[1] = count;
  }
  const float of_all = sum_values(call.all_experts, memory, logits);
  const int chosen = lane < call.top_k ? memory.expert[lane] : 0;
  const WeightedChoice own = weigh(call.top_k, chosen, memory.values[chosen] / of_all, memory.p);
  if (lane < call.top_k) {
    call.weights[own.choice] = own.weight;
    call.slot[own.choice] = choice.is_own ? choice.place : -1;
  }
  fence_system();
  sync_wave();
  if (lane == 0) let_next_start();
}

// By a wave of every block: the matrices that the next kernel reads.
TENON_DEVICE void prefetch_chosen(const OneUpCall& call, const OneChoice& choice) {
  constexpr int kPiece = 8192;
  const auto pieces = static_cast<int>((call.next_bytes + kPiece - 1) / kPiece);
  const int entries = choice.count + (call.has_shared ? 1 : 0), lane = thread_id() % kWave;
  TENON_NO_UNROLL
  for (int entry = 0; entry < entries; ++entry) {
    const int expert = expert_of(choice, entry);
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
  const ChoiceMemory memory = choice_memory(ring.choice, call.top_k);
  const int thread = thread_id(), wave = thread / kWave, blocks = call.weight.cut.num_blocks;
  if (thread == 0) start_ring(ring, call.weight, kWave);
  // Where this thread's 16 bytes of the token lie, and its part where all choices are this rank's.
  const int block = thread / 8;
  std::byte* const to =
      ring.x + block % kFewChunk * 1024 + tile_place(block / kFewChunk, thread % 8);
  const std::byte* const from = call.x + thread * 16;
  ChosenPart part = chosen_part(call, call.top_k);
  hold(part.at), hold(part.end), hold(part.entry);
  sync_block();
  FeedPlace place{{}, wave - kWeightWave - 1};
  if (wave > kWeightWave) feed_apart(call, ring, place);
  wait_for_previous();
  if (thread == 0 && block_id() != 0) let_next_start();
  if (block < blocks) copy_async16(to, from);
  if (thread < blocks)
    copy4_later(ring.x_scales + thread, call.x_scales + thread * call.scale_block_stride);
  const auto logit = [&](int expert) { return call.logits[expert]; };
  Logits logits{};
  const bool leaves = block_id() == 0 && wave == kWeightWave;
  rank_logits(call.all_experts, memory, logit);
  if (leaves) logits = load_logits(call.all_experts, logit);
  await_copies();
  show_to_tensor_cores();
  sync_block();
  meet_slices(call.top_k, memory);
  if (!are_apart(call.top_k, memory)) {
    sync_block();
    rank_p(call.all_experts, memory, logit);
    sync_block();
    meet_slices(call.top_k, memory);
  }
  const OneChoice choice = find_entries(call, memory, wave >= kWeightWave);
  if (choice.count != call.top_k) part = chosen_part(call, choice.count);
  if (wave > kWeightWave) {
    feed_one(call, ring, choice, part, place);
    if (wave == kWeightWave + 1 && call.next_bytes > 0) prefetch_chosen(call, choice);
    await_copies();
  } else if (wave < kWeightWave) {
    multiply_all(call, ring, choice.count, part);
  } else if (leaves) {
    leave_choice(call, memory, choice, logits);
  }
}

}  // namespace tenon::TENON_TARGET::moe_experts
