// The first kernel of moe_experts on Hopper for one token, whose experts it chooses on the way.
//
// Units, tiles and sums are those of sm90_few.cuh. What is different:
//   - Every block makes the choice, the whole of moe_route, from the logits; every wave that needs
//     it makes it for itself, so that it waits for no other.
//   - Where it pays (apart_of()) the shared expert's units are dealt by themselves. A block asks
//     for its own before it waits and multiplies them while the choice is made. So what it asks for
//     behind the choice is a tile less where blocks would have had a few units more than a tile.
//   - The token lies once in shared memory: block 4 n + u of k is row n of atom u. So rows of the
//     instruction's other operand, which has eight places of eight rows, need not belong to the
//     same chunk of four blocks of k. Pairs (chunk, unit) of a tile lie in its stages one after
//     another, chunk by chunk; of a place with chunk c the products in column c count. They meet in
//     shared memory, where a thread for each row scales and adds them.
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
  std::int32_t chunks;        // of k
  std::uint32_t last_blocks;  // bit b: block b of k is the last one of its segment
  bool has_shared, is_apart;  // the shared expert, dealt by itself
};

TENON_HD constexpr int one_chunks(int blocks) { return (blocks + kFewChunk - 1) / kFewChunk; }
// Whether the shared expert is dealt by itself: the fullest block's part of it is a tile of a stage
// or two.
constexpr bool apart_of(int of_entry, int grid, int chunks) {
  const int units = (of_entry + grid - 1) / grid;
  return units <= kFewUnits && units * chunks <= 2 * kFewUnits;
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
  float *products, *pair_scales;  // [pairs, 8 rows, kFewChunk], [pairs, gate and up, kFewChunk]
  int *lists, *count;             // count: of chosen experts that are this rank's
  std::uint32_t* bits;            // of the wave that leaves the choice
  void* memory;                   // the same
  int stages;

  TENON_HD std::byte* weight(int stage) const { return tiles + stage * kStageBytes; }
  // [2, places of units, kFewChunk]: of gate, of up.
  TENON_HD float* weight_scales(int stage) const { return scales + stage * kScales; }

  TENON_HD static constexpr int bytes(int stages, int chunks) {
    return stages * (kStageBytes + kScales * 4 + 2 * static_cast<int>(sizeof(Mbarrier))) + kXBytes +
           16 + kFewUnits * chunks * (8 + 2) * kFewChunk * 4 +
           (kOneBlocks + (kFeeders + 1) * kList + kMostChoiceSlices + kChoiceWords) * 4;
  }
  TENON_HD static OneRing at(std::byte* memory, int stages, int chunks) {
    OneRing ring;
    ring.tiles = memory;
    ring.x = memory + stages * kStageBytes;
    ring.full = reinterpret_cast<Mbarrier*>(ring.x + kXBytes);
    ring.empty = ring.full + stages;
    ring.chosen = ring.empty + stages;
    ring.count = reinterpret_cast<int*>(ring.chosen + 1);
    ring.scales = reinterpret_cast<float*>(ring.chosen + 2);
    ring.x_scales = ring.scales + stages * kScales;
    ring.products = ring.x_scales + kOneBlocks;
    ring.pair_scales = ring.products + kFewUnits * chunks * 8 * kFewChunk;
    ring.lists = reinterpret_cast<int*>(ring.pair_scales + kFewUnits * chunks * 2 * kFewChunk);
    ring.bits = reinterpret_cast<std::uint32_t*>(ring.lists + (kFeeders + 1) * kList);
    ring.memory = ring.bits + kMostChoiceSlices;
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
template <int kSlices>
TENON_DEVICE int list_chosen(const OneUpCall& call, std::uint32_t chosen, int* list) {
  const int lane = thread_id() % kWave;
  const LaneSum sum = sum_small<kSlices>(count_ones(chosen));
  int* to = list + sum.before;
  TENON_NO_UNROLL
  for (std::uint32_t left = chosen; left != 0; left &= left - 1u)
    *to++ = kSlices * lane + lowest_one(left) - call.first_expert;
  if (lane >= sum.all && lane < OneRing::kList) list[lane] = kSharedExpert;
  sync_wave();
  return sum.all;
}

// --- feeding ----------------------------------------------------------------------------------

// p / units for a number p of a pair: p · inverse / 256, rounded down. Without units: anything.
TENON_DEVICE int inverse_of(int units) {
  constexpr std::uint64_t kTable = 0x1f242a333f557fffu;  // 256 / units, rounded up, less one
  return static_cast<int>(kTable >> (8 * (units - 1) & 63) & 0xffu) + 1;
}
static_assert(kFewUnits == 8 && kOneChunks * kFewUnits <= 64);

// A feeder has two places of each stage: lanes 0 to 7 the first one, 8 to 15 the second. Four of
// these lanes bring scales of gate, four those of up, a block of k each.
struct FeedPair {
  bool exists;
  int chunk, entry, feature;
};
TENON_DEVICE FeedPair feed_pair(const OneUpCall& call, const OneTile& tile, int inverse,
                                int first) {
  const int of_entry = call.width / kFewFeatures, lane = thread_id() % kWave;
  const int pair = first + 2 * (thread_id() / kWave - kWeightWave - 1) + lane / 8 % 2;
  const int chunk = pair * inverse >> 8, unit = tile.unit + pair - chunk * tile.units;
  const bool beyond = unit >= of_entry;
  return {lane < 16 && pair < tile.units * call.chunks, chunk, tile.entry + (beyond ? 1 : 0),
          kFewFeatures * (unit - (beyond ? of_entry : 0))};
}
// One tile. list: of the experts of its entries. pair: feed_pair() of its first stage.
TENON_DEVICE void feed_tile(const OneUpCall& call, const OneRing& ring, const OneTile& tile,
                            int inverse, FeedPair pair, const int* list, RingPlace& place) {
  const int lane = thread_id() % kWave, feeder = thread_id() / kWave - kWeightWave - 1;
  const int own = 2 * feeder + lane / 8 % 2, part = lane / 4 % 2;
  const int pairs = tile.units * call.chunks;
  const std::uint64_t once = policy_evict_first();
  TENON_NO_UNROLL
  for (int first = 0; first < pairs; first += kFewUnits) {
    Mbarrier* const full = &ring.full[place.stage];
    const int expert = list[pair.entry];
    barrier_wait(&ring.empty[place.stage], place.parity ^ 1);
    const int left = pairs - first - 2 * feeder;
    if (lane == 0)
      barrier_arrive_expect(full, static_cast<std::uint32_t>((left < 0   ? 0
                                                              : left < 2 ? left
                                                                         : 2) *
                                                             kFewUnitBytes));
    sync_wave();
    if (pair.exists && lane % 8 == 0)
      copy_box<kFewFeatures>(
          ring.weight(place.stage) + own * kFewUnitBytes,
          expert == kSharedExpert ? &call.weight.shared : &call.weight.routed,
          pair.feature + (expert == kSharedExpert ? 0 : expert * call.weight.expert_rows),
          pair.chunk * kFewChunk, full, once);
    const int block = pair.chunk * kFewChunk + lane % kFewChunk;
    if (pair.exists && block < call.weight.cut.num_blocks)
      copy4_later(
          ring.weight_scales(place.stage) + (part * kFewUnits + own) * kFewChunk + lane % kFewChunk,
          weight_scale_at(call.weight, expert, part * call.width + pair.feature, block));
    arrive_after_copies(full);
    place.next(ring.stages);
    pair = feed_pair(call, tile, inverse, first + kFewUnits);
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

// The products of a tile, [pair, 8 rows, kFewChunk], and their scales, [pair, 2, kFewChunk].
TENON_DEVICE void multiply_tile(const OneUpCall& call, const OneRing& ring, int units,
                                RingPlace& place) {
  constexpr int kStageUnits = OneRing::kStageBytes / 16;
  const int lane = thread_id() % kWave, warp = thread_id() / kWave, part = lane / 16;
  const int pairs = units * call.chunks, inverse = inverse_of(units);
  const std::uint64_t weight = tile_descriptor<kFewUnitBytes>(ring.tiles);
  const std::uint64_t x = tile_descriptor(ring.x);
  const auto four_at = [](float* at) -> float4& { return *reinterpret_cast<float4*>(at); };
  TENON_NO_UNROLL
  for (int first = 0; first < pairs; first += kFewUnits) {
    // A value that the whole warp has: see sm90/wgmma.cuh.
    const int at = shuffle_from(place.stage * kStageUnits, 0);
    int pair[2], chunk[2];  // of the upper and the lower eight of the warp's rows
    TENON_UNROLL
    for (int h = 0; h < 2; ++h) {
      pair[h] = first + 2 * warp + h;
      chunk[h] = pair[h] * inverse >> 8;
    }
    barrier_wait(&ring.full[place.stage], place.parity);
    // Neighbouring instructions belong to different chains, so none waits for the one before it.
    float products[kFewChunk][4] = {};
    wgmma_begin();
    const std::uint64_t of_stage = descriptor_at(weight, at);
    TENON_UNROLL
    for (int k = 0; k < 4; ++k) {
      TENON_UNROLL
      for (int u = 0; u < kFewChunk; ++u)
        add_product<8>(products[u], descriptor_step(of_stage, u * 64 + 2 * k),
                       descriptor_step(x, u * 64 + 2 * k), k > 0);
    }
    wgmma_commit();
    TENON_UNROLL
    for (int h = 0; h < 2; ++h) {
      if (lane % 16 != 0 || pair[h] >= pairs) continue;
      const float4 xs = four_at(ring.x_scales + chunk[h] * kFewChunk);
      const float4 ws =
          four_at(ring.weight_scales(place.stage) + (part * kFewUnits + 2 * warp + h) * kFewChunk);
      four_at(ring.pair_scales + (2 * pair[h] + part) * kFewChunk) = {xs.x * ws.x, xs.y * ws.y,
                                                                      xs.z * ws.z, xs.w * ws.w};
    }
    wgmma_wait_all();
    TENON_UNROLL
    for (int u = 0; u < kFewChunk; ++u) hold_sums(products[u]);
    TENON_UNROLL
    for (int h = 0; h < 2; ++h) {
      const bool is_odd = chunk[h] % 2 != 0;
      const auto own = [&](int u) { return is_odd ? products[u][2 * h + 1] : products[u][2 * h]; };
      if (lane % 4 == chunk[h] / 2 && pair[h] < pairs)
        four_at(ring.products + (pair[h] * 8 + lane / 4) * kFewChunk) = {own(0), own(1), own(2),
                                                                         own(3)};
    }
    sync_wave();
    if (lane == 0) barrier_arrive(&ring.empty[place.stage]);
    place.next(ring.stages);
  }
}

// Of a row of a unit, gate in the first four lanes of eight, then up: the sum over k.
TENON_DEVICE float add_row(const OneUpCall& call, const OneRing& ring, int units) {
  const int row = thread_id() % 8;
  const int unit = thread_id() / 8 < units ? thread_id() / 8 : 0;
  const float* products = ring.products + (unit * 8 + row) * kFewChunk;
  const float* scales = ring.pair_scales + (2 * unit + row / kFewFeatures) * kFewChunk;
  float sum = 0.0f, own = 0.0f;
  bool is_first = true;  // segment
  std::uint32_t last_blocks = call.last_blocks;
  TENON_NO_UNROLL
  for (int first = 0; first < call.weight.cut.num_blocks; first += kFewChunk) {
    const float4 four = *reinterpret_cast<const float4*>(products);
    const float4 scale = *reinterpret_cast<const float4*>(scales);
    const float product_of[kFewChunk] = {four.x, four.y, four.z, four.w};
    const float scale_of[kFewChunk] = {scale.x, scale.y, scale.z, scale.w};
    // Mostly chunks are whole, and a segment ends with one or does not end in it.
    const std::uint32_t ends = last_blocks & 0xfu;
    last_blocks >>= kFewChunk;
    const auto end_segment = [&] {
      sum = is_first ? own : sum + own;
      own = 0.0f;
      is_first = false;
    };
    const bool is_whole = first + kFewChunk <= call.weight.cut.num_blocks;
    if (is_whole && (ends & 7u) == 0) {
      TENON_UNROLL
      for (int u = 0; u < kFewChunk; ++u) own = fma_f(product_of[u], scale_of[u], own);
      if (ends != 0) end_segment();
    } else {
      TENON_UNROLL
      for (int u = 0; u < kFewChunk; ++u) {
        if (first + u >= call.weight.cut.num_blocks) break;
        own = fma_f(product_of[u], scale_of[u], own);
        if ((ends >> u & 1u) != 0) end_segment();
      }
    }
    products += units * 8 * kFewChunk;
    scales += units * 2 * kFewChunk;
  }
  return sum;
}
// By two warps, what multiply_tile() has left: a thread for each row.
TENON_DEVICE void activate_tile(const OneUpCall& call, const OneRing& ring, const OneTile& tile) {
  static_assert(8 * kFewUnits == 2 * kWave);
  const int of_entry = call.width / kFewFeatures, row = thread_id() % 8;
  const int own = thread_id() / 8, unit = tile.unit + own;
  const float sum = add_row(call, ring, tile.units);
  const float other = shuffle_xor(sum, kFewFeatures);
  if (own >= tile.units || row >= kFewFeatures) return;
  const std::uint32_t both = pack_halves<bf16>(sum, other);
  const float value = silu_mul_f(low_half<bf16>(both), high_half<bf16>(both));
  const bool beyond = unit >= of_entry;
  bf16* const to = call.activation + (tile.entry + (beyond ? 1 : 0)) * call.activation_stride +
                   kFewFeatures * (unit - (beyond ? of_entry : 0));
  to[row] = bf16{static_cast<std::uint16_t>(pack_halves<bf16>(value, 0.0f))};
}

// By the threads that multiply: the shared expert's units first, where they are apart. next: the
// first tile of the chosen experts, if all are this rank's, rest: what is behind it.
TENON_DEVICE void multiply_all(const OneUpCall& call, const OneRing& ring, OneTile next,
                               ChosenPart rest) {
  const int of_entry = call.width / kFewFeatures;
  const UnitPart apart = shared_part(call);
  OneTile tile{0, apart.begin, apart.end - apart.begin};
  RingPlace place;
  bool knows = false;  // how many are chosen
  TENON_NO_UNROLL
  while (true) {
    multiply_tile(call, ring, tile.units, place);
    if (!knows) {
      barrier_wait(ring.chosen, 0);
      tile.entry = *ring.count;
      if (tile.entry != call.top_k) {
        rest = chosen_part(call, tile.entry);
        next = next_tile(rest, of_entry);
      }
      knows = true;
    }
    sync_first_threads<kConsumers>();
    if (thread_id() < 8 * kFewUnits && tile.units > 0) activate_tile(call, ring, tile);
    if (next.units == 0) return;
    sync_first_threads<kConsumers>();  // before products are written again
    tile = next;
    next = next_tile(rest, of_entry);
  }
}

// --- the kernel -------------------------------------------------------------------------------

// A wave of one block: what the next kernel reads before it waits, which then may start; and what
// it reads later.
template <int kSlices>
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
  put_bits<kSlices, true>(bits, chosen);
  sync_wave();
  const WeighedExpert own =
      weigh_chosen<kSlices>(call.all_experts, call.top_k, call.logits, memory, bits);
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

// kSlices: of experts, for the choice.
template <int kSlices>
TENON_KERNEL_RESIDENT(kThreads, 1)
up_one_kernel(TENON_ARGS(OneUpCall) call) {
  TENON_SHARED_TILES(shared);
  const OneRing ring = OneRing::at(shared, call.stages, call.chunks);
  const int wave = thread_id() / kWave, lane = thread_id() % kWave;
  const int of_entry = call.width / kFewFeatures;
  if (thread_id() == 0) {
    barrier_init(ring.chosen, 1);
    start_ring(ring, call.weight, kFeeders * (kWave + 1) - 1);
  }
  int* const list = ring.lists + (wave < kWeightWave ? 0 : wave - kWeightWave) * OneRing::kList;
  if (wave >= kWeightWave && lane < OneRing::kList) list[lane] = kSharedExpert;
  // Where all choices are this rank's, what a block has, and what a feeder begins with.
  ChosenPart rest = chosen_part(call, call.top_k);
  OneTile tile = next_tile(rest, of_entry);
  int inverse = inverse_of(tile.units);
  FeedPair pair = feed_pair(call, tile, inverse, 0);
  std::uint32_t own = own_experts<kSlices>(call.first_expert, call.experts);
  hold(rest.at), hold(rest.end), hold(rest.entry);
  hold(tile.units), hold(tile.entry), hold(tile.unit), hold(inverse);
  hold(pair.chunk), hold(pair.entry), hold(pair.feature), hold(own);
  sync_block();
  RingPlace place;
  if (wave > kWeightWave) {
    const UnitPart apart = shared_part(call);
    const OneTile of_shared{0, apart.begin, apart.end - apart.begin};
    if (of_shared.units > 0) {
      const int by = inverse_of(of_shared.units);
      feed_tile(call, ring, of_shared, by, feed_pair(call, of_shared, by, 0), list, place);
    }
  }
  wait_for_previous();
  if (thread_id() == 0 && block_id() != 0) let_next_start();
  if (wave < kWeightWave) {
    load_token(call, ring);
    multiply_all(call, ring, tile, rest);
    return;
  }
  const bool leaves = wave == kWeightWave;
  if (leaves && block_id() != 0) return;
  const std::uint32_t chosen =
      choose_experts<kSlices, true>(call.all_experts, call.top_k, call.logits);
  const int count = list_chosen<kSlices>(call, chosen & own, list);
  if (leaves) {
    leave_choice<kSlices>(call, chosen, list, count, ring.bits, choice_memory(ring.memory));
    return;
  }
  if (wave == kWeightWave + 1 && lane == 0) {
    *ring.count = count;
    barrier_arrive(ring.chosen);
  }
  if (count != call.top_k) {
    rest = chosen_part(call, count);
    tile = next_tile(rest, of_entry);
    inverse = inverse_of(tile.units);
    pair = feed_pair(call, tile, inverse, 0);
  }
  TENON_NO_UNROLL
  while (tile.units > 0) {
    feed_tile(call, ring, tile, inverse, pair, list, place);
    tile = next_tile(rest, of_entry);
    inverse = inverse_of(tile.units);
    pair = feed_pair(call, tile, inverse, 0);
  }
  if (wave == kWeightWave + 1 && call.next_bytes > 0) prefetch_chosen(call, list, count);
  await_copies();
}

}  // namespace tenon::TENON_TARGET::moe_experts
