// moe_experts on Hopper (sm_90a), two kernels.
//
// up_kernel: a unit is eight gate rows and the eight up rows of the same features, so that a thread
// has both values of a feature. All units of all experts lie in a row, and each block takes an
// equal part of it. Rows of x are gathered. Results are rne(silu(gate) · up) in bf16.
//
// down_kernel: a block takes 16 columns of the output and streams them through all experts, so it
// has every part of the weighted sum of its columns. A tile is four experts. Rows of the activation
// are quantised on the way: a block of k is a group.
#include "tenon/ops/moe_experts/sm90.cuh"

#include "tenon/device/variant.h"
#include "tenon/ops/moe_experts/moe_experts.h"

namespace tenon::TENON_TARGET::moe_experts {
namespace {

using Args = tenon::moe_experts::Args;
using Matrices = tenon::moe_experts::Matrices;
using tenon::moe_experts::kMaxTokens;

// --- up ---------------------------------------------------------------------------------------

struct UpCall {
  Weight weight;
  Routing routing;
  const std::byte* x;
  const float* x_scales;
  std::int64_t x_stride, scale_row_stride, scale_block_stride;
  bf16* activation;
  std::int64_t activation_stride;
  std::int32_t width, stages;
  // For the L2 cache. Numbers of bytes are 0 where they would not stay there.
  const std::byte* own_shared;  // this kernel's weight of the shared expert
  std::int64_t own_bytes;
  const std::byte *next_routed, *next_shared;  // of the next kernel, of an expert
  std::int64_t next_bytes;
};

// Up to four neighbouring units of one entry.
struct UpTile {
  int expert, first, rows, unit, units;
};

// All units of all experts lie in a row; where the part of a block begins. Parts cost the same: a
// unit costs kUnitCost and one for each of its rows, which the H100 showed. Where there are many
// units, parts begin with a whole tile.
constexpr int kUnitCost = 40;
TENON_DEVICE int part_begin(const Entries& entries, int of_entry, int part) {
  if (part == grid_blocks()) return entries.count * of_entry;
  const auto cost_before = [&](int entry) {
    return of_entry * (kUnitCost * entry + entries.first[entry]);
  };
  const unsigned total = static_cast<unsigned>(cost_before(entries.count));
  const auto at =
      static_cast<int>(total * static_cast<unsigned>(part) / static_cast<unsigned>(grid_blocks()));
  // The last entry that does not begin behind `at`: lanes look at equal steps, then at one of them.
  const int step = (entries.count + kWave - 1) / kWave, lane = thread_id() % kWave;
  const auto count_begun = [&](int entry, bool exists) {
    return count_ones(ballot(exists && entry < entries.count && cost_before(entry) <= at));
  };
  const int base = (count_begun(lane * step, true) - 1) * step;
  const int entry = base + count_begun(base + lane, lane < step) - 1;
  const int rows = entries.first[entry + 1] - entries.first[entry];
  int unit = (at - cost_before(entry)) / (kUnitCost + rows);
  if (entries.count * of_entry >= 4 * kUnits * grid_blocks()) unit -= unit % kUnits;
  return entry * of_entry + unit;
}

// The block's tiles in order; those of one entry are as equal as can be.
template <class Step>
TENON_DEVICE void for_up_tiles(const UpCall& call, const Entries& entries, Step step) {
  const int of_entry = call.width / 8;
  const int end = part_begin(entries, of_entry, block_id() + 1);
  TENON_NO_UNROLL
  for (int at = part_begin(entries, of_entry, block_id()); at < end;) {
    const int entry = at / of_entry, unit = at % of_entry;
    const int left = end - at < of_entry - unit ? end - at : of_entry - unit;
    const int tiles = (left + kUnits - 1) / kUnits, units = (left + tiles - 1) / tiles;
    const int first = entries.first[entry];
    step(UpTile{entries.expert[entry], first, entries.first[entry + 1] - first, unit, units});
    at += units;
  }
}

template <int kCap>
TENON_DEVICE void feed_x(const UpCall& call, const Entries& entries, const Ring<kCap>& ring,
                         const int* token_of) {
  const int feeder = thread_id() / kWave - kWeightWave - 1, lane = thread_id() % kWave;
  const int of_lane = lane / 8 % kChunk, chunk = lane % 8;  // of a row
  static_assert(kWave == 8 * kChunk * 2);
  RingPlace place;
  int number = 0;
  for_up_tiles(call, entries, [&](const UpTile& tile) {
    int token[2];  // of rows lane and 32 + lane
    TENON_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int row = lane + i * kWave;
      token[i] = row >= tile.rows               ? 0
                 : tile.expert == kSharedExpert ? row
                                                : token_of[tile.first + row];
    }
    for_chunks(call.weight.cut, [&](int block, int now) {
      if (number++ % kFeeders == feeder) {
        barrier_wait(&ring.empty[place.stage], place.parity ^ 1);
        const std::byte* const x = call.x + (block + of_lane) * kProductBlock + chunk * 16;
        TENON_NO_UNROLL
        for (int two = 0; two < tile.rows; two += 2) {
          const int row = two + lane / 16;
          const int from = shuffle_from(two < kWave ? token[0] : token[1], row % kWave);
          if (row < tile.rows && of_lane < now)
            copy_async16(ring.x(place.stage, of_lane) + tile_place(row, chunk),
                         x + from * call.x_stride);
        }
        TENON_UNROLL
        for (int u = 0; u < kChunk; ++u) {
          TENON_UNROLL
          for (int i = 0; i < 2; ++i)
            if (u < now && lane + i * kWave < tile.rows)
              copy4_later(ring.x_scales(place.stage, u) + lane + i * kWave,
                          call.x_scales + token[i] * call.scale_row_stride +
                              (block + u) * call.scale_block_stride);
        }
        const int u = lane / (2 * kUnits), unit = lane / 2 % kUnits, half = lane % 2;
        if (u < now && unit < tile.units)
          copy4_later(ring.weight_scales(place.stage) + lane,
                      weight_scale_at(call.weight, tile.expert,
                                      half * call.width + 8 * (tile.unit + unit), block + u));
        arrive_after_copies(&ring.full[place.stage]);
      }
      place.next(ring.stages);
    });
  });
  await_copies();
}

// Every lane of every block asks for a part of `bytes`, which are the matrices of `count` experts
// one after another, where matrix(i) lies.
template <class MatrixAt>
TENON_DEVICE void prefetch_matrices(int count, std::int64_t bytes, MatrixAt matrix) {
  constexpr std::int64_t kPiece = 8192;
  const auto pieces = static_cast<int>((bytes + kPiece - 1) / kPiece);
  for (int i = block_id() + grid_blocks() * (thread_id() % kWave); i < count * pieces;
       i += grid_blocks() * kWave) {
    const std::int64_t at = i % pieces * kPiece, left = bytes - at;
    prefetch_bytes(matrix(i / pieces) + at,
                   static_cast<std::uint32_t>(left < kPiece ? left : kPiece));
  }
}

template <int kCap>
TENON_DEVICE void make_activation(const UpCall& call, const Entries& entries,
                                  const Ring<kCap>& ring) {
  const int warp = thread_id() / kWave, lane = thread_id() % kWave;
  RingPlace place;
  for_up_tiles(call, entries, [&](const UpTile& tile) {
    with_rows<kCap>(tile.rows, [&]<int kN>() {
      float sums[kN / 2];
      multiply<kN, true>(ring, place, call.weight.cut, sums);
      if (warp >= tile.units) return;
      bf16* const to =
          call.activation + tile.first * call.activation_stride + 8 * (tile.unit + warp) + lane / 4;
      TENON_UNROLL
      for (int j = 0; j < kN / 8; ++j) {
        TENON_UNROLL
        for (int c = 0; c < 2; ++c) {
          const int row = 8 * j + 2 * (lane % 4) + c;
          if (row >= tile.rows) continue;
          const std::uint32_t both = pack_halves<bf16>(sums[4 * j + c], sums[4 * j + 2 + c]);
          const float value = silu_mul_f(low_half<bf16>(both), high_half<bf16>(both));
          to[row * call.activation_stride] =
              bf16{static_cast<std::uint16_t>(pack_halves<bf16>(value, 0.0f))};
        }
      }
    });
  });
}

template <int kCap>
TENON_KERNEL_RESIDENT(kThreads, kCap <= 8 ? 2 : 1)
up_kernel(TENON_ARGS(UpCall) call) {
  TENON_SHARED_TILES(shared);
  const Ring ring = Ring<kCap>::at(shared, call.stages);
  const Routing& routing = call.routing;
  const int wave = thread_id() / kWave, pairs = routing.tokens * routing.top_k;
  std::byte* const lists = ring.end();
  int* const token_of = reinterpret_cast<int*>(lists + entries_bytes(routing.experts));
  if (thread_id() == 0) start_ring(ring, call.weight, kWave);
  if (wave == kWeightWave && routing.has_shared)
    prefetch_matrices(1, call.own_bytes, [&](int) { return call.own_shared; });
  sync_wave();
  wait_for_previous();
  if (thread_id() == 0) let_next_start();
  copy_table(lists, routing.offsets, routing.experts + 1);
  copy_table(token_of, routing.token_of, pairs);
  await_copies();
  sync_block();
  const Entries entries = list_entries(routing, lists);
  if (wave > kWeightWave) {
    feed_x(call, entries, ring, token_of);
  } else if (wave < kWeightWave) {
    make_activation(call, entries, ring);
  } else {
    RingPlace place;
    for_up_tiles(call, entries, [&](const UpTile& tile) {
      bring_weight(ring, place, call.weight, tile.units, tile.expert,
                   8 * (tile.unit + thread_id() % kWave));
    });
    prefetch_matrices(entries.count, call.next_bytes, [&](int entry) {
      const int expert = entries.expert[entry];
      return expert == kSharedExpert ? call.next_shared
                                     : call.next_routed + expert * call.next_bytes;
    });
  }
}

// --- down -------------------------------------------------------------------------------------

struct DownCall {
  Weight weight;
  Routing routing;
  const bf16* activation;
  std::int64_t activation_stride;
  const float* shared_gate;
  std::int64_t gate_stride;
  bf16* out;
  std::int64_t out_stride;
  std::int32_t stages;
};

// Up to four neighbouring entries whose rows fit one instruction.
struct DownTile {
  int entry, units, first, rows;
};
template <int kCap, class Step>
TENON_DEVICE void for_down_tiles(const Entries& entries, Step step) {
  TENON_NO_UNROLL
  for (int entry = 0; entry < entries.count;) {
    const int first = entries.first[entry];
    int units = 1, end = entries.first[entry + 1];
    while (units < kUnits && entry + units < entries.count) {
      const int further = entries.first[entry + units + 1];
      if (further - first > kCap) break;
      ++units;
      end = further;
    }
    step(DownTile{entry, units, first, end - first});
    entry += units;
  }
}

// Quantises. A lane has eight elements of a row: a row has 16 lanes for each of two blocks of k.
template <int kCap>
TENON_DEVICE void feed_activation(const DownCall& call, const Entries& entries,
                                  const Ring<kCap>& ring) {
  constexpr int kRows = 8;  // whose loads wait for nothing
  const int feeder = thread_id() / kWave - kWeightWave - 1, lane = thread_id() % kWave;
  const int of_lane = lane / 16, eight = lane % 16;
  static_assert(kWave == 16 * kChunk);
  RingPlace place;
  int number = 0;
  for_down_tiles<kCap>(entries, [&](const DownTile& tile) {
    for_chunks(call.weight.cut, [&](int block, int now) {
      if (number++ % kFeeders == feeder) {
        const int u = lane / (2 * kUnits), unit = lane / 2 % kUnits;
        float of_weight = 0.0f;
        if (u < now && unit < tile.units)
          of_weight = *weight_scale_at(call.weight, entries.expert[tile.entry + unit],
                                       block_id() * kUnitRows, block + u);
        const bf16* const from = call.activation + tile.first * call.activation_stride +
                                 (block + of_lane) * kProductBlock + eight * 8;
        TENON_NO_UNROLL
        for (int row = 0; row < tile.rows; row += kRows) {
          Word4 held[kRows] = {};
          TENON_UNROLL
          for (int i = 0; i < kRows; ++i)
            if (row + i < tile.rows && of_lane < now)
              held[i] = load16(from + (row + i) * call.activation_stride);
          if (row == 0) barrier_wait(&ring.empty[place.stage], place.parity ^ 1);
          TENON_UNROLL
          for (int i = 0; i < kRows; ++i) {
            if (row + i >= tile.rows) continue;
            std::uint32_t most = absmax_bits<1>(&held[i]);
            TENON_UNROLL
            for (int mask = 1; mask < 16; mask *= 2) most = larger(most, shuffle_xor(most, mask));
            const GroupScale scale =
                group_scale(to_float(bf16{static_cast<std::uint16_t>(most)}), DType::kE4M3);
            encode<bf16, DType::kE4M3, 1>(
                &held[i], scale.multiplier,
                ring.x(place.stage, of_lane) + tile_place(row + i, eight / 2) + eight % 2 * 8);
            if (eight == 0) ring.x_scales(place.stage, of_lane)[row + i] = scale.scale;
          }
        }
        if (u < kChunk) ring.weight_scales(place.stage)[lane] = of_weight;
        show_to_tensor_cores();
        sync_wave();
        if (lane == 0) barrier_arrive(&ring.full[place.stage]);
      }
      place.next(ring.stages);
    });
  });
}

// What a block keeps beside the ring: results [pairs, 16] and the tables of the weighted sum.
struct Kept {
  bf16* results;
  float *weights, *gates;
  std::int32_t* slots;
};
TENON_HD constexpr int kept_bytes(int tokens, int top_k) {
  return tokens * (top_k + 1) * kUnitRows * 2 + 2 * table_bytes(tokens * top_k) +
         table_bytes(tokens);
}
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

template <int kCap>
TENON_DEVICE void make_results(const DownCall& call, const Entries& entries, const Ring<kCap>& ring,
                               bf16* results) {
  const int warp = thread_id() / kWave, lane = thread_id() % kWave;
  RingPlace place;
  for_down_tiles<kCap>(entries, [&](const DownTile& tile) {
    with_rows<kCap>(tile.rows, [&]<int kN>() {
      float sums[kN / 2];
      multiply<kN, false>(ring, place, call.weight.cut, sums);
      if (warp >= tile.units) return;
      const int begin = entries.first[tile.entry + warp] - tile.first;
      const int end = entries.first[tile.entry + warp + 1] - tile.first;
      TENON_UNROLL
      for (int j = 0; j < kN / 8; ++j) {
        TENON_UNROLL
        for (int c = 0; c < 2; ++c) {
          const int row = 8 * j + 2 * (lane % 4) + c;
          if (row < begin || row >= end) continue;
          const std::uint32_t both = pack_halves<bf16>(sums[4 * j + c], sums[4 * j + 2 + c]);
          bf16* const to = results + (tile.first + row) * kUnitRows + lane / 4;
          to[0] = bf16{static_cast<std::uint16_t>(both)};
          to[8] = bf16{static_cast<std::uint16_t>(both >> 16)};
        }
      }
    });
  });
}

// The order of moe_combine: choices in theirs, the shared expert last.
TENON_DEVICE void combine(const DownCall& call, const Entries& entries, const Kept& kept) {
  const Routing& routing = call.routing;
  const bf16* const shared =
      kept.results + entries.first[entries.count - 1] * kUnitRows;  // if there is one
  for (int task = thread_id(); task < 2 * routing.tokens; task += kConsumers) {
    const int token = task / 2, at = task % 2 * 8;
    float sum[8] = {}, values[8] = {};
    const auto add = [&](float weight) {
      TENON_UNROLL
      for (int i = 0; i < 8; ++i) sum[i] = sum[i] + weight * values[i];
    };
    for (int k = token * routing.top_k; k < (token + 1) * routing.top_k; ++k) {
      if (kept.slots[k] < 0) continue;  // another rank's expert
      load8(kept.results + kept.slots[k] * kUnitRows + at, values);
      add(kept.weights[k]);
    }
    TENON_UNROLL
    for (int i = 0; i < 8; ++i) values[i] = 0.0f;
    if (routing.has_shared) load8(shared + token * kUnitRows + at, values);
    add(sigmoid_f(kept.gates[token]));
    store8(call.out + token * call.out_stride + block_id() * kUnitRows + at, sum);
  }
}

template <int kCap>
TENON_KERNEL_RESIDENT(kThreads, kCap <= 32 ? 2 : 1)
down_kernel(TENON_ARGS(DownCall) call) {
  TENON_SHARED_TILES(shared);
  const Ring ring = Ring<kCap>::at(shared, call.stages);
  const Routing& routing = call.routing;
  const int pairs = routing.tokens * routing.top_k;
  const int wave = thread_id() / kWave, lane = thread_id() % kWave;
  const Kept kept = kept_at(routing, ring.end());
  std::byte* const lists = ring.end() + kept_bytes(routing.tokens, routing.top_k);
  // Before it waits: the routing was there when up_kernel let this kernel start, for that does so
  // behind its own wait, and is not the one that routes. So the stream of weights does not stop
  // between the two.
  copy_table(lists, routing.offsets, routing.experts + 1);
  copy_table(kept.weights, routing.weights, pairs);
  copy_table(kept.slots, routing.slot, pairs);
  if (thread_id() == 0) start_ring(ring, call.weight, 1);
  await_copies();
  sync_block();
  const Entries entries = list_entries(routing, lists);
  if (wave == kWeightWave) {
    RingPlace place;
    for_down_tiles<kCap>(entries, [&](const DownTile& tile) {
      const int entry = tile.entry + (lane < tile.units ? lane : 0);
      bring_weight(ring, place, call.weight, tile.units, entries.expert[entry],
                   block_id() * kUnitRows);
    });
    wait_for_previous();
    return;
  }
  wait_for_previous();
  if (thread_id() == 0) let_next_start();
  if (wave > kWeightWave) {
    feed_activation(call, entries, ring);
    return;
  }
  for (int i = thread_id(); i < routing.tokens; i += kConsumers)
    kept.gates[i] = call.shared_gate[i * call.gate_stride];
  make_results(call, entries, ring, kept.results);
  sync_first_threads<kConsumers>();
  combine(call, entries, kept);
}

// --- plan -------------------------------------------------------------------------------------

// Rows of x that a stage has room for: up, of one expert; down, of up to four.
int up_cap(std::int64_t tokens) { return tokens <= 8 ? 8 : 64; }
int down_cap(std::int64_t tokens) { return tokens <= 32 ? 32 : 64; }

template <int kCap>
int most_stages(int room) {
  constexpr int kMost = 32;
  int stages = 0;
  while (stages < kMost && Ring<kCap>::bytes(stages + 1) <= room) ++stages;
  return stages;
}
int stages_for(int cap, int room) {
  return cap == 8    ? most_stages<8>(room)
         : cap == 32 ? most_stages<32>(room)
                     : most_stages<64>(room);
}
int ring_bytes(int cap, int stages) {
  return cap == 8    ? Ring<8>::bytes(stages)
         : cap == 32 ? Ring<32>::bytes(stages)
                     : Ring<64>::bytes(stages);
}

// Why `weight` cannot be read as one matrix, or nothing.
Status check_stacked(const char* what, const TensorView& weight) {
  if (weight.shape[0] <= 1 || weight.stride[0] == weight.shape[1] * weight.stride[1])
    return Status::ok();
  return Status::error(
      Code::kUnsupported,
      std::string(what) + ": the matrices of the experts do not follow each other without a gap");
}

Status supports(const Args& args, const PlanContext& where, Recipe* recipe) {
  const auto no = [](std::string why) { return Status::error(Code::kUnsupported, std::move(why)); };
  const int found = where.properties.cuda_capability;
  const std::int64_t tokens = args.out.addend.shape[0], top_k = args.slot.shape[1];
  const std::int64_t experts = args.routed.down.shape[0], hidden = args.out.addend.shape[1];
  if (found != 90)
    return no("the device has compute capability " + std::to_string(found / 10) + "." +
              std::to_string(found % 10) + "; its instructions are those of 9.0");
  if (tokens > kMaxTokens)
    return no(std::to_string(tokens) + " tokens are over the limit of " +
              std::to_string(kMaxTokens) + "; many are faster by single ops");
  if (experts > kMostExperts)
    return no(std::to_string(experts) + " experts are over the limit of " +
              std::to_string(kMostExperts));
  TENON_TRY(check_stacked("gate_up", args.routed.gate_up));
  TENON_TRY(check_stacked("down", args.routed.down));
  const auto most = static_cast<int>(where.properties.max_shared_bytes);
  const int pairs = static_cast<int>(tokens * top_k);
  const int list = entries_bytes(static_cast<int>(experts));
  // One block on a multiprocessor, and no room for a second, which another one would then miss;
  // more than kMostRing does not help. Where there are more blocks, half of it.
  constexpr int kMostRing = 160 << 10;
  const auto add = [&](const char* kernel, const char* setting, std::int64_t blocks, int cap,
                       int besides) {
    const bool one = blocks <= where.properties.num_units || cap > 32;
    const int room = (one ? most : (most + 1024) / 2 - 1024) - besides;
    int stages = stages_for(cap, room < kMostRing ? room : kMostRing);
    if (stages < kFeeders) stages = stages_for(cap, most - besides);
    LaunchShape shape;
    shape.blocks = static_cast<int>(blocks);
    shape.threads = kThreads;
    shape.shared_bytes = static_cast<std::size_t>(ring_bytes(cap, stages) + besides);
    shape.early = where.may_start_early;
    recipe->launch(kernel, shape);
    recipe->set(setting, stages);
    return stages >= kFeeders;
  };
  const bool up = add("up_kernel", "up stages", where.properties.num_units, up_cap(tokens),
                      list + table_bytes(pairs));
  const bool down = add("down_kernel", "down stages", hidden / kUnitRows, down_cap(tokens),
                        list + kept_bytes(static_cast<int>(tokens), static_cast<int>(top_k)));
  if (!up || !down)
    return no("a block has too little shared memory for " + std::to_string(tokens) +
              " tokens with " + std::to_string(top_k) + " experts each");
  recipe->set("up rows", up_cap(tokens));
  recipe->set("down rows", down_cap(tokens));
  return Status::ok();
}

// second_rows: how far below the first eight rows of a unit its second eight lie.
Status fill_weight(const Args& args, TensorView Matrices::*matrix, TensorView Matrices::*scale,
                   std::int64_t second_rows, Weight* weight) {
  const TensorView& routed = args.routed.*matrix;
  const TensorView& routed_scale = args.routed.*scale;
  const Matrices& beside = args.shared ? *args.shared : args.routed;
  const TensorView& shared = beside.*matrix;
  const TensorView& shared_scale = beside.*scale;
  const auto last = [](const TensorView& view, int from_end) {
    return static_cast<std::size_t>(view.num_dims - from_end);
  };
  const std::int64_t rows = routed.shape[1], k = routed.shape[2];
  TENON_ASSIGN(weight->routed, ::tenon::sm90::box_map(routed.data, routed.shape[0] * rows, k,
                                                      routed.stride[1], second_rows, kChunk));
  TENON_ASSIGN(weight->shared,
               ::tenon::sm90::box_map(shared.data, rows, k, shared.stride[last(shared, 2)],
                                      second_rows, kChunk));
  weight->routed_scales = routed_scale.as<const float>();
  weight->shared_scales = shared_scale.as<const float>();
  weight->expert_stride = routed_scale.stride[0];
  weight->routed_stride = routed_scale.stride[1];
  weight->shared_stride = shared_scale.stride[last(shared_scale, 2)];
  weight->expert_rows = static_cast<std::int32_t>(rows);
  weight->cut = segments_of(static_cast<int>(rows), static_cast<int>(k));
  return Status::ok();
}

// What of the L2 cache the down weights of all experts with rows may take, so that they are still
// there when they are wanted.
constexpr std::int64_t kPrefetchLimit = 24 << 20;

Status launch(const Recipe& recipe, const Args& args, const ChannelView*, Stream& stream) {
  const std::int64_t tokens = args.out.addend.shape[0], top_k = args.slot.shape[1];
  if (tokens == 0) return Status::ok();
  const auto setting = [&](std::size_t i) { return static_cast<int>(recipe.settings[i].value); };
  const TensorView& down = args.routed.down;
  const std::int64_t width = down.shape[2];
  Routing routing;
  routing.offsets = args.offsets.as<const std::int32_t>();
  routing.token_of = args.token_of.as<const std::int32_t>();
  routing.slot = args.slot.as<const std::int32_t>();
  routing.weights = args.weights.as<const float>();
  routing.tokens = static_cast<std::int32_t>(tokens);
  routing.top_k = static_cast<std::int32_t>(top_k);
  routing.experts = static_cast<std::int32_t>(down.shape[0]);
  routing.has_shared = args.shared.has_value();

  const bool by_row = args.x.layout == ScaleLayout::kRow;
  UpCall up;
  TENON_TRY(fill_weight(args, &Matrices::gate_up, &Matrices::gate_up_scale, width, &up.weight));
  up.routing = routing;
  up.x = args.x.data.as<const std::byte>();
  up.x_scales = args.x.scale.as<const float>();
  up.x_stride = args.x.data.stride[0];
  up.scale_row_stride = by_row ? args.x.scale.stride[0] : 1;
  up.scale_block_stride = by_row ? 1 : args.x.scale.stride[0];
  up.activation = args.activation.as<bf16>();
  up.activation_stride = args.activation.stride[0];
  up.width = static_cast<std::int32_t>(width);
  up.stages = setting(0);
  up.next_routed = down.as<const std::byte>();
  up.next_shared = args.shared ? args.shared->down.as<const std::byte>() : nullptr;
  const bool whole = down.contiguous() && (!args.shared || args.shared->down.contiguous());
  const std::int64_t of_expert = down.shape[1] * width;
  const bool own_whole = args.shared && args.shared->gate_up.contiguous();
  up.own_shared = own_whole ? args.shared->gate_up.as<const std::byte>() : nullptr;
  up.own_bytes = own_whole ? 2 * width * down.shape[1] : 0;
  up.next_bytes = whole && (tokens * top_k + 1) * of_expert <= kPrefetchLimit ? of_expert : 0;

  DownCall call;
  TENON_TRY(fill_weight(args, &Matrices::down, &Matrices::down_scale, 8, &call.weight));
  call.routing = routing;
  call.activation = up.activation;
  call.activation_stride = up.activation_stride;
  call.shared_gate = args.shared_gate.as<const float>();
  call.gate_stride = args.shared_gate.stride[0];
  call.out = args.out.addend.as<bf16>();
  call.out_stride = args.out.addend.stride[0];
  call.stages = setting(1);

  TENON_TRY(tenon::launch(stream, recipe.launches[0].shape,
                          setting(2) == 8 ? up_kernel<8> : up_kernel<64>, up));
  return tenon::launch(stream, recipe.launches[1].shape,
                       setting(3) == 32 ? down_kernel<32> : down_kernel<64>, call);
}

}  // namespace

TENON_DEFINE_VARIANT(sm90, Args, supports, launch);

}  // namespace tenon::TENON_TARGET::moe_experts
