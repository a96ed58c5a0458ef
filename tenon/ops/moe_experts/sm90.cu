// moe_experts on Hopper (sm_90a): up_kernel here, down_kernel and what may stand between the two in
// sm90_down.cuh, and the plan. One token that chooses its experts on the way has kernels of its
// own, sm90_one_up.cuh and, where it fits, sm90_one_down.cuh.
//
// up_kernel: a unit is eight gate rows and the eight up rows of the same features, so that a thread
// has both values of a feature. All units of all experts lie in a row, and each block takes an
// equal part of it. Rows of x are gathered. Results are rne(silu(gate) · up) in bf16. For up to
// eight tokens it works otherwise: sm90_few.cuh.
#include "tenon/ops/moe_experts/sm90_down.cuh"
#include "tenon/ops/moe_experts/sm90_few.cuh"
#include "tenon/ops/moe_experts/sm90_few_choice.cuh"
#include "tenon/ops/moe_experts/sm90_one_down.cuh"
#include "tenon/ops/moe_experts/sm90_one_up.cuh"

#include <algorithm>
#include <type_traits>

#include "tenon/device/variant.h"
#include "tenon/ops/moe_experts/moe_experts.h"

namespace tenon::TENON_TARGET::moe_experts {
namespace {

using Args = tenon::moe_experts::Args;
using Matrices = tenon::moe_experts::Matrices;
using tenon::moe_experts::kMaxChosenTokens;
static_assert(kMaxChosenTokens <= kMostChosen);
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
  // For the L2 cache. Numbers of bytes are 0 where they are not known.
  const std::byte* own_shared;  // this kernel's weight of the shared expert
  std::int64_t own_bytes;
  const std::byte *next_routed, *next_shared;  // of the next kernel, of an expert
  std::int64_t next_bytes;
  std::int32_t next_entries;  // for so many there is room
  Chooser chooser;
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
  if (part == grid_blocks() || entries.count == 0) return entries.count * of_entry;
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

TENON_DEVICE void feed_x(const UpCall& call, const Entries& entries, const UpRing& ring,
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

TENON_DEVICE void make_activation(const UpCall& call, const Entries& entries, const UpRing& ring) {
  const int warp = thread_id() / kWave, lane = thread_id() % kWave;
  const RingOperands of = operands_of(ring);
  RingPlace place;
  for_up_tiles(call, entries, [&](const UpTile& tile) {
    with_rows<kUpRows>(tile.rows, [&]<int kN>() {
      float sums[kN / 2];
      multiply<kN, true>(of, place, call.weight.cut, sums);
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

// By one wave: what the next kernel reads first.
TENON_DEVICE void prefetch_next(const UpCall& call, const Entries& entries) {
  const int most = call.next_entries;
  prefetch_matrices(entries.count < most ? entries.count : most, call.next_bytes, [&](int entry) {
    const int expert = entries.expert[entry];
    return expert == kSharedExpert ? call.next_shared : call.next_routed + expert * call.next_bytes;
  });
}

// kSlices: of experts that it chooses from; 0: they are chosen. Which wave leaves the choice for
// the next kernel: with many rows that which brings the weight has no time for it, so there is one
// more.
constexpr int leaving_wave(bool few) { return few ? kWeightWave : kWeightWave + kFeeders + 1; }
constexpr int up_threads(bool few, int slices) {
  return kThreads + (!few && slices > 0 ? kWave : 0);
}
template <bool kFew, int kSlices>
TENON_KERNEL_RESIDENT(up_threads(kFew, kSlices), kFew ? 2 : 1)
up_kernel(TENON_ARGS(UpCall) call) {
  using AnyRing = std::conditional_t<kFew, FewRing, UpRing>;
  TENON_SHARED_TILES(shared);
  const AnyRing ring = AnyRing::at(shared, call.stages);
  const Routing& routing = call.routing;
  const int wave = thread_id() / kWave, pairs = routing.tokens * routing.top_k;
  std::byte* const lists = ring.end();
  if (thread_id() == 0) start_ring(ring, call.weight, kWave);
  if (wave == kWeightWave && routing.has_shared)
    prefetch_matrices(1, call.own_bytes, [&](int) { return call.own_shared; });
  sync_wave();
  wait_for_previous();
  if (thread_id() == 0 && !(kSlices > 0 && block_id() == 0)) let_next_start();
  int* const token_of = reinterpret_cast<int*>(lists + entries_bytes(routing.experts));
  Entries entries;
  if constexpr (kSlices > 0) {
    const FewChoice choice = few_choice_at(
        reinterpret_cast<std::byte*>(token_of) + table_bytes(pairs), routing.tokens, kSlices);
    entries = choose_few<kSlices>(call.chooser, routing, choice, lists, token_of);
    if (wave == leaving_wave(kFew))
      leave_few<kSlices>(call.chooser, routing, choice, reinterpret_cast<const int*>(lists));
  } else {
    copy_table(lists, routing.offsets, routing.experts + 1);
    copy_table(token_of, routing.token_of, pairs);
    await_copies();
    sync_block();
    entries = list_entries(routing, lists);
  }
  if constexpr (kFew) {
    if (wave > kWeightWave) {
      feed_few(call.weight,
               FewX{call.x, call.x_scales, call.x_stride, call.scale_row_stride,
                    call.scale_block_stride},
               call.width, entries, ring, token_of);
      if (wave == kWeightWave + 1) prefetch_next(call, entries);
    } else if (wave < kWeightWave) {
      activate_few(call.weight.cut, call.width, entries, ring, call.activation,
                   call.activation_stride);
    }
  } else if (wave > kWeightWave + kFeeders) {
    return;
  } else if (wave > kWeightWave) {
    feed_x(call, entries, ring, token_of);
  } else if (wave < kWeightWave) {
    make_activation(call, entries, ring);
  } else {
    RingPlace place;
    for_up_tiles(call, entries, [&](const UpTile& tile) {
      bring_weight(ring, place, call.weight, tile.units, tile.expert,
                   8 * (tile.unit + thread_id() % kWave));
    });
    prefetch_next(call, entries);
  }
}

template <bool kFew>
auto up_kernel_of(int slices) -> void (*)(UpCall) {
  return slices == 0 ? up_kernel<kFew, 0> : slices == 8 ? up_kernel<kFew, 8> : up_kernel<kFew, 16>;
}

// --- plan -------------------------------------------------------------------------------------

// Rows of x that a stage of up_kernel has room for, all of one expert.
int up_cap(std::int64_t tokens) { return tokens <= kFewRows ? kFewRows : kUpRows; }
int up_bytes(int cap, int stages) {
  return cap == kFewRows ? FewRing::bytes(stages) : UpRing::bytes(stages);
}
// Up to so many tokens every block of down_kernel quantises all rows, if they take no more bytes.
constexpr int kFewTokens = 16, kMostOwnBytes = 80 << 10;

// The most stages of a ring whose block takes no more than `room` bytes.
template <class Bytes>
int most_stages(int room, const Bytes& bytes_of) {
  constexpr int kMost = 32;
  int stages = 0;
  while (stages < kMost && bytes_of(stages + 1) <= room) ++stages;
  return stages;
}

// Why `weight` cannot be read as one matrix, or nothing.
Status check_stacked(const char* what, const TensorView& weight) {
  if (weight.shape[0] <= 1 || weight.stride[0] == weight.shape[1] * weight.stride[1])
    return Status::ok();
  return Status::error(
      Code::kUnsupported,
      std::string(what) + ": the matrices of the experts do not follow each other without a gap");
}

Routing routing_of(const Args& args) {
  Routing routing;
  routing.offsets = args.offsets.as<const std::int32_t>();
  routing.token_of = args.token_of.as<const std::int32_t>();
  routing.slot = args.slot.as<const std::int32_t>();
  routing.weights = args.weights.as<const float>();
  routing.tokens = static_cast<std::int32_t>(args.slot.shape[0]);
  routing.top_k = static_cast<std::int32_t>(args.slot.shape[1]);
  routing.experts = static_cast<std::int32_t>(args.routed.down.shape[0]);
  routing.has_shared = args.shared.has_value();
  return routing;
}

// Of the experts to choose from; 0: they are chosen.
int slices_of(const Args& args) { return args.logits ? choice_slices(args.logits->shape[1]) : 0; }
std::string text_of_slices(int slices) {
  return slices == 0   ? "no logits"
         : slices == 8 ? "logits of up to " + std::to_string(8 * kChoiceLanes) + " experts"
                       : "logits of more experts";
}

// Experts that may have rows, and the shared one.
int most_entries(const Routing& routing) {
  return std::min(routing.tokens * routing.top_k, routing.experts) + (routing.has_shared ? 1 : 0);
}

// Why experts cannot be chosen on the way, or nothing.
Status check_choice(const Args& args) {
  const auto no = [](std::string why) { return Status::error(Code::kUnsupported, std::move(why)); };
  const std::int64_t tokens = args.slot.shape[0], top_k = args.slot.shape[1];
  const std::int64_t all = args.logits->shape[1], experts = args.routed.down.shape[0];
  if (tokens > kMaxChosenTokens)
    return no(std::to_string(tokens) + " tokens; experts are chosen on the way for up to " +
              std::to_string(kMaxChosenTokens));
  if (all > kMostChoiceExperts || top_k > kMostChoices)
    return no(std::to_string(top_k) + " of " + std::to_string(all) +
              " experts; on the way are chosen up to " + std::to_string(kMostChoices) + " of " +
              std::to_string(kMostChoiceExperts));
  if (tokens > 1) return Status::ok();
  if (list_words(static_cast<int>(top_k)) > experts + 1)
    return no("offsets of " + std::to_string(experts) + " experts cannot hold the list of " +
              std::to_string(top_k) + " chosen ones");
  if (args.out.addend.shape[1] > kOneBlocks * kProductBlock)
    return no("hidden is " + std::to_string(args.out.addend.shape[1]) +
              "; on the way experts are chosen for up to " +
              std::to_string(kOneBlocks * kProductBlock));
  return Status::ok();
}

void add_launch(const PlanContext& where, const char* kernel, int blocks, int threads, int bytes,
                Recipe* recipe) {
  LaunchShape shape;
  shape.blocks = blocks;
  shape.threads = threads;
  shape.shared_bytes = static_cast<std::size_t>(bytes);
  shape.early = where.may_start_early;
  recipe->launch(kernel, shape);
}

// Kernels that launch() asks for, and the settings that its calls go by.
constexpr const char *kUpOne = "up_one_kernel", *kDownOne = "down_one_kernel";
constexpr const char *kUpStages = "up stages", *kUpRows = "up rows", *kApart = "apart",
                     *kDownStages = "down stages", *kDownRows = "down rows",
                     *kSlices = "slices of experts";

// A kernel with a ring. One block on a multiprocessor, and no room for a second, which another one
// would then miss; more than kMostRing does not help. Where there are more blocks, half of it, if
// registers let two be resident. False: there is no room for the least number of stages.
struct RingKernel {
  const char *kernel, *setting;
  int blocks, threads, resident, least;
  int most_room;  // bytes that the whole block may take
};
template <class Bytes>
bool add_ring(const PlanContext& where, const RingKernel& of, const Bytes& bytes_of,
              Recipe* recipe) {
  constexpr int kMostRing = 160 << 10;
  const auto most = static_cast<int>(where.properties.max_shared_bytes);
  const bool one = of.blocks <= where.properties.num_units || of.resident == 1;
  const int room = std::min(one ? most : (most + 1024) / 2 - 1024, bytes_of(0) + kMostRing);
  int stages = most_stages(std::min(room, of.most_room), bytes_of);
  if (stages < of.least) stages = most_stages(most, bytes_of);
  add_launch(where, of.kernel, of.blocks, of.threads, bytes_of(stages), recipe);
  recipe->set(of.setting, stages);
  return stages >= of.least;
}

bool add_down(const PlanContext& where, const Routing& routing, int hidden, int width, int rows,
              bool coded, bool chosen, int most_room, Recipe* recipe) {
  const auto bytes_of = [&](int stages) {
    return down_shared(coded, chosen, stages, rows, routing, width).bytes;
  };
  const bool fits = add_ring(where,
                             {"down_kernel", kDownStages, hidden / kUnitRows, kDownThreads,
                              down_resident(coded), 1, most_room},
                             bytes_of, recipe);
  recipe->set(kDownRows, rows);
  return fits;
}

// The plan for one token that chooses. Where the output has at most as many pieces of 16 columns as
// there are multiprocessors, the two kernels have room beside each other on one, for which the
// first one's ring has the least number of stages; two of the first have not.
Status plan_choosing(const Args& args, const PlanContext& where, Recipe* recipe) {
  const Routing routing = routing_of(args);
  const auto width = static_cast<int>(args.activation.shape[1]);
  const auto hidden = static_cast<int>(args.out.addend.shape[1]);
  const auto most = static_cast<int>(where.properties.max_shared_bytes);
  const int units = where.properties.num_units, top_k = routing.top_k;
  const bool beside = hidden / kUnitRows <= units;
  const int chunks = one_chunks(hidden / kProductBlock);
  const auto up_bytes_of = [&](int stages) { return OneRing::bytes(stages, chunks); };
  bool fits = add_ring(
      where,
      {kUpOne, kUpStages, units, kThreads, 1, kFeeders, beside ? up_bytes_of(kFeeders) : most},
      up_bytes_of, recipe);
  const bool apart = apart_of(width / kFewFeatures, units, chunks);
  recipe->set(kApart, routing.has_shared && apart ? 1 : 0);
  recipe->set(kSlices, slices_of(args));
  const int left = most - 1024 - static_cast<int>(recipe->launches.front().shape.shared_bytes);
  const int blocks = width / kProductBlock;
  const OneDownShared down = one_down_shared(most_entries(routing), blocks, top_k);
  if (beside && down.bytes <= left && blocks <= kOneDownBlocks && (blocks & (blocks - 1)) == 0) {
    add_launch(where, kDownOne, hidden / kUnitRows, kOneDownThreads, down.bytes, recipe);
  } else {
    const int room = beside ? left : most, rows = beside ? kFewRows : 32;
    fits = add_down(where, routing, hidden, width, rows, false, true, room, recipe) && fits;
  }
  if (fits) return Status::ok();
  return Status::error(Code::kUnsupported,
                       "a block has too little shared memory for a token with " +
                           std::to_string(top_k) + " experts");
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
  const std::int64_t width = args.activation.shape[1];
  const Routing routing = routing_of(args);
  const int pairs = routing.tokens * routing.top_k, rows = pairs + routing.tokens;
  const bool coded = tokens > kFewTokens || rows * width > kMostOwnBytes;
  if (coded && width > kMostCodedWidth)
    return no("width is " + std::to_string(width) + "; over " + std::to_string(kMostCodedWidth) +
              " only a few rows fit");
  if (args.logits) TENON_TRY(check_choice(args));
  if (args.logits && tokens <= 1) {
    if (coded)
      return no(
          "width is " + std::to_string(width) +
          "; where one token's experts are chosen on the way, no kernel quantises between the "
          "two");
    return plan_choosing(args, where, recipe);
  }
  const int cap = up_cap(tokens), tile_rows = tokens <= 32 ? 32 : 64;
  const int slices = slices_of(args);
  const int lists = entries_bytes(routing.experts) + table_bytes(pairs) +
                    (slices > 0 ? few_choice_bytes(routing.tokens, slices) : 0);
  const int threads = up_threads(cap == kFewRows, slices);
  const bool up = add_ring(
      where, {"up_kernel", kUpStages, where.properties.num_units, threads, 1, kFeeders, most},
      [&](int stages) { return up_bytes(cap, stages) + lists; }, recipe);
  recipe->set(kUpRows, cap);
  recipe->set(kSlices, slices);
  constexpr int kWaves = kQuantizeThreads / kWave;
  if (coded)
    add_launch(where, "quantize_kernel", (rows + kWaves - 1) / kWaves, kQuantizeThreads, 0, recipe);
  const bool down = add_down(where, routing, static_cast<int>(hidden), static_cast<int>(width),
                             tile_rows, coded, false, most, recipe);
  if (!up || !down)
    return no("a block has too little shared memory for " + std::to_string(tokens) +
              " tokens with " + std::to_string(top_k) + " experts each");
  return Status::ok();
}

// In boxes of two times `box_rows` rows that lie second_rows apart, `chunk` blocks of k of each.
Status fill_weight(const Args& args, TensorView Matrices::*matrix, TensorView Matrices::*scale,
                   std::int64_t second_rows, int box_rows, int chunk, Weight* weight) {
  const TensorView& routed = args.routed.*matrix;
  const TensorView& routed_scale = args.routed.*scale;
  const Matrices& beside = args.shared ? *args.shared : args.routed;
  const TensorView& shared = beside.*matrix;
  const TensorView& shared_scale = beside.*scale;
  const auto last = [](const TensorView& view, int from_end) {
    return static_cast<std::size_t>(view.num_dims - from_end);
  };
  const std::int64_t rows = routed.shape[1], k = routed.shape[2];
  TENON_ASSIGN(weight->routed,
               ::tenon::sm90::box_map(routed.data, routed.shape[0] * rows, k, routed.stride[1],
                                      second_rows, box_rows, chunk));
  TENON_ASSIGN(weight->shared,
               ::tenon::sm90::box_map(shared.data, rows, k, shared.stride[last(shared, 2)],
                                      second_rows, box_rows, chunk));
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
constexpr std::int64_t kPrefetchLimit = 24 << 20, kPrefetchAhead = 6 << 20;

// Bit b: block b of k is the last one of its segment. For up to 32 of them.
std::uint32_t last_blocks(const Segments& cut) {
  std::uint32_t bits = 0;
  for (int segment = 1; segment <= cut.count; ++segment)
    bits |= std::uint32_t{1} << (cut.begin(segment) / kProductBlock - 1);
  return bits;
}

// The weights of down, as up_kernel and up_one_kernel ask for them. Bytes are 0 where they do not
// follow each other.
template <class Call>
void set_next(const Args& args, Call* call) {
  const TensorView& down = args.routed.down;
  const bool whole = down.contiguous() && (!args.shared || args.shared->down.contiguous());
  call->next_routed = down.as<const std::byte>();
  call->next_shared = args.shared ? args.shared->down.as<const std::byte>() : nullptr;
  call->next_bytes = whole ? down.shape[1] * down.shape[2] : 0;
}

Result<DownCall> down_call(const Args& args, const Recipe& recipe, bool chosen) {
  DownCall call;
  TENON_TRY(fill_weight(args, &Matrices::down, &Matrices::down_scale, 8, 8, kChunk, &call.weight));
  call.routing = routing_of(args);
  call.activation = args.activation.as<bf16>();
  call.activation_stride = args.activation.stride[0];
  call.shared_gate = args.shared_gate.as<const float>();
  call.gate_stride = args.shared_gate.stride[0];
  call.out = args.out.addend.as<bf16>();
  call.out_stride = args.out.addend.stride[0];
  call.width = static_cast<std::int32_t>(args.activation.shape[1]);
  call.stages = recipe.setting(kDownStages);
  call.rows = recipe.setting(kDownRows);
  call.chosen = chosen;
  return call;
}

Status launch_down_one(const LaunchShape& shape, const Args& args, Stream& stream) {
  const Routing routing = routing_of(args);
  const auto blocks = static_cast<int>(args.activation.shape[1] / kProductBlock);
  OneDownCall call;
  TENON_TRY(fill_weight(args, &Matrices::down, &Matrices::down_scale, 8, 8, blocks, &call.weight));
  call.list = routing.offsets;
  call.slot = routing.slot;
  call.weights = routing.weights;
  call.shared_gate = args.shared_gate.as<const float>();
  call.activation = args.activation.as<const bf16>();
  call.activation_stride = args.activation.stride[0];
  call.out = args.out.addend.as<bf16>();
  call.top_k = routing.top_k;
  call.entries = most_entries(routing);
  call.block_shift = 0;
  while (1 << call.block_shift < blocks) ++call.block_shift;
  call.last_blocks = last_blocks(call.weight.cut);
  call.has_shared = routing.has_shared;
  return tenon::launch(stream, shape, down_one_kernel, call);
}

Status launch_choosing(const Recipe& recipe, const Args& args, Stream& stream) {
  const Routing routing = routing_of(args);
  OneUpCall call;
  call.width = static_cast<std::int32_t>(args.activation.shape[1]);
  TENON_TRY(fill_weight(args, &Matrices::gate_up, &Matrices::gate_up_scale, call.width,
                        kFewFeatures, kFewChunk, &call.weight));
  call.x = args.x.data.as<const std::byte>();
  call.x_scales = args.x.scale.as<const float>();
  call.logits = args.logits->as<const float>();
  call.scale_block_stride = args.x.layout == ScaleLayout::kRow ? 1 : args.x.scale.stride[0];
  call.activation = args.activation.as<bf16>();
  call.activation_stride = args.activation.stride[0];
  call.weights = args.weights.as<float>();
  call.slot = args.slot.as<std::int32_t>();
  call.list = args.offsets.as<std::int32_t>();
  call.stages = recipe.setting(kUpStages);
  call.top_k = routing.top_k;
  call.experts = routing.experts;
  call.all_experts = static_cast<std::int32_t>(args.logits->shape[1]);
  call.first_expert = args.first_expert;
  call.chunks = one_chunks(call.weight.cut.num_blocks);
  call.last_blocks = last_blocks(call.weight.cut);
  call.has_shared = routing.has_shared;
  call.is_apart = recipe.setting(kApart) != 0;
  set_next(args, &call);
  // It asks for all of its weights at once.
  const bool down_one = recipe.launches[1].kernel == kDownOne;
  if (down_one || call.next_bytes * most_entries(routing) > kPrefetchLimit) call.next_bytes = 0;
  const bool narrow = recipe.setting(kSlices) == 8;
  TENON_TRY(tenon::launch(stream, recipe.launches[0].shape,
                          narrow ? up_one_kernel<8> : up_one_kernel<16>, call));
  const LaunchShape& shape = recipe.launches[1].shape;
  if (down_one) return launch_down_one(shape, args, stream);
  TENON_ASSIGN(const DownCall down, down_call(args, recipe, true));
  return tenon::launch(stream, shape, down_kernel<false>, down);
}

Status launch(const Recipe& recipe, const Args& args, const ChannelView*, Stream& stream) {
  if (args.out.addend.shape[0] == 0) return Status::ok();
  const int slices = slices_of(args), planned = recipe.setting(kSlices);
  if (slices != planned)
    return Status::error(Code::kInvalidArgument,
                         "moe_experts: the plan is for " + text_of_slices(planned) +
                             ", but the call has " + text_of_slices(slices));
  if (recipe.launches[0].kernel == kUpOne) return launch_choosing(recipe, args, stream);
  const Routing routing = routing_of(args);
  const bool by_row = args.x.layout == ScaleLayout::kRow, few = recipe.setting(kUpRows) == kFewRows;
  UpCall up;
  up.width = static_cast<std::int32_t>(args.activation.shape[1]);
  TENON_TRY(fill_weight(args, &Matrices::gate_up, &Matrices::gate_up_scale, up.width,
                        few ? kFewFeatures : 8, few ? kFewChunk : kChunk, &up.weight));
  up.routing = routing;
  up.x = args.x.data.as<const std::byte>();
  up.x_scales = args.x.scale.as<const float>();
  up.x_stride = args.x.data.stride[0];
  up.scale_row_stride = by_row ? args.x.scale.stride[0] : 1;
  up.scale_block_stride = by_row ? 1 : args.x.scale.stride[0];
  up.activation = args.activation.as<bf16>();
  up.activation_stride = args.activation.stride[0];
  up.stages = recipe.setting(kUpStages);
  const bool own_whole = args.shared && args.shared->gate_up.contiguous();
  up.own_shared = own_whole ? args.shared->gate_up.as<const std::byte>() : nullptr;
  up.own_bytes =
      own_whole ? static_cast<std::int64_t>(args.shared->gate_up.bytes()) : std::int64_t{0};
  if (args.logits)
    up.chooser = {args.logits->as<const float>(),
                  args.logits->stride[0],
                  static_cast<std::int32_t>(args.logits->shape[1]),
                  args.first_expert,
                  args.weights.as<float>(),
                  args.slot.as<std::int32_t>(),
                  args.offsets.as<std::int32_t>()};
  set_next(args, &up);
  // Of many, those that the next kernel begins with: what is asked for besides delays this one.
  const int entries = most_entries(routing);
  const std::int64_t ahead =
      entries * up.next_bytes <= kPrefetchLimit ? entries * up.next_bytes : kPrefetchAhead;
  up.next_entries = up.next_bytes > 0 ? static_cast<std::int32_t>(ahead / up.next_bytes) : 0;

  TENON_ASSIGN(DownCall down, down_call(args, recipe, false));
  const bool coded = recipe.launches.size() == 3;
  TENON_TRY(tenon::launch(stream, recipe.launches[0].shape,
                          few ? up_kernel_of<true>(slices) : up_kernel_of<false>(slices), up));
  if (!coded) return tenon::launch(stream, recipe.launches[1].shape, down_kernel<false>, down);
  TENON_ASSIGN(down.codes, ::tenon::sm90::tile_map(down.activation, args.activation.shape[0],
                                                   up.width, 2 * down.activation_stride, 8));
  TENON_TRY(tenon::launch(
      stream, recipe.launches[1].shape, quantize_kernel,
      QuantizeCall{up.activation, up.activation_stride, routing.offsets + routing.experts, up.width,
                   routing.has_shared ? routing.tokens : 0}));
  return tenon::launch(stream, recipe.launches[2].shape, down_kernel<true>, down);
}

}  // namespace

TENON_DEFINE_VARIANT(sm90, Args, supports, launch);

}  // namespace tenon::TENON_TARGET::moe_experts
