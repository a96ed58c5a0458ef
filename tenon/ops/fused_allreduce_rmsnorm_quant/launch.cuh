// The host side of every variant: for which calls it is fastest, its blocks, its launch.
#pragma once

#include <array>
#include <utility>

#include "tenon/device/variant.h"
#include "tenon/ops/fused_allreduce_rmsnorm_quant/fused_allreduce_rmsnorm_quant.h"
#include "tenon/ops/fused_allreduce_rmsnorm_quant/mailbox_layout.h"
#include "tenon/ops/fused_allreduce_rmsnorm_quant/one_shot.cuh"
#include "tenon/ops/fused_allreduce_rmsnorm_quant/two_shot.cuh"

namespace tenon::TENON_TARGET::fused_allreduce_rmsnorm_quant {

using tenon::fused_allreduce_rmsnorm_quant::Args;
using tenon::fused_allreduce_rmsnorm_quant::blocks_of_long_calls;
using tenon::fused_allreduce_rmsnorm_quant::blocks_of_split;
using tenon::fused_allreduce_rmsnorm_quant::kUnit;
using tenon::fused_allreduce_rmsnorm_quant::most_blocks_of_split;
using tenon::fused_allreduce_rmsnorm_quant::most_rows_each;
using tenon::fused_allreduce_rmsnorm_quant::result_bytes;
using tenon::fused_allreduce_rmsnorm_quant::row_bytes;
using tenon::fused_allreduce_rmsnorm_quant::rows_each;
using tenon::fused_allreduce_rmsnorm_quant::slot_units;
using tenon::fused_allreduce_rmsnorm_quant::split_of;
using tenon::fused_allreduce_rmsnorm_quant::stripe_units;
using tenon::fused_allreduce_rmsnorm_quant::StripeUnits;
using tenon::fused_allreduce_rmsnorm_quant::working_blocks;

// One shot sends each row to everybody and does each row everywhere. Above these bytes of one
// rank's part that costs more than a second trip: on devices by link time, on the cpu by
// arithmetic. For callers that have not measured: PlanContext::preferred.
inline std::int64_t one_shot_limit(int team_size) {
  if constexpr (kWave == 1) return 32 << 10;
  if (team_size == 2) return 1 << 20;
  return team_size <= 4 ? 384 << 10 : 128 << 10;
}

enum class Shots : std::uint8_t { kOne, kTwo, kOneSplit };
constexpr std::string_view name_of(Shots shots, bool packs) {
  if (shots == Shots::kOneSplit) return "one_shot_split";
  if (shots == Shots::kOne) return packs ? "one_shot_packed" : "one_shot";
  return packs ? "two_shot_packed" : "two_shot";
}

// Many rows travel packed: that costs a few instructions and saves a link a quarter of its bytes.
// Host targets have no link.
inline std::string_view default_choice(std::int64_t bytes, const PlanContext& where) {
  if (bytes <= one_shot_limit(where.team_size)) return name_of(Shots::kOne, false);
  return name_of(Shots::kTwo, !is_host(where.device.target));
}

// A choice that packs, for rows that cannot be packed.
inline std::string_view unpacked(std::string_view choice) {
  return choice.substr(0, choice.find("_packed"));
}

// Why rows of a call do not travel packed: elements without bits to spare, or lanes of a wave
// without a vector.
inline Status can_pack(const Args& args, const PlanContext& where) {
  const std::int64_t hidden = args.residual.shape[1];
  const int threads = row_threads(static_cast<int>(hidden), where.properties.max_threads_per_block);
  if (args.residual.dtype != DType::kBF16)
    return Status::error(Code::kUnsupported, "only bf16 can be packed");
  if (kWave > 1 && hidden != std::int64_t{threads} * kVector)
    return Status::error(Code::kUnsupported, "rows of " + std::to_string(hidden) +
                                                 " are not packed: there is not one vector for " +
                                                 "every lane of a block's waves");
  return Status::ok();
}

// How many blocks of a cluster share a row of the call, or why none do.
inline Result<int> split_for(const Args& args, const PlanContext& where) {
  const auto refuse = [](const std::string& why) { return Status::error(Code::kUnsupported, why); };
  const Target target = where.device.target;
#if defined(TENON_HAS_CLUSTERS)
  const std::int64_t rows = args.residual.shape[0], hidden = args.residual.shape[1];
  if (args.residual.dtype != DType::kBF16) return refuse("only rows of bf16 are split");
  if (where.team_size == 1) return refuse("one rank sends nothing");
  if (most_blocks_of_split(hidden, is_host(target)) == 0)
    return refuse("rows of " + std::to_string(hidden) +
                  " are not split: 2, 4 or 8 blocks would not have a vector for every lane");
  const std::int64_t most = where.properties.max_cooperative_blocks;
  const int split = split_of(hidden, rows, most, is_host(target));
  if (split > 0) return split;
  return refuse(std::to_string(rows) + " rows of " + std::to_string(hidden) + " want " +
                std::to_string(blocks_of_split(rows, 2)) +
                " blocks that run together, and there are " + std::to_string(most));
#else
  static_cast<void>(args);
  return refuse("target " + std::string(name(target)) + " has no clusters");
#endif
}

// Whether a variant is to be taken for its speed. A forced one is, and one rank sends nothing.
inline Status is_fastest(const Args& args, const PlanContext& where, std::string_view variant) {
  if (where.forced || where.team_size == 1) return Status::ok();
  const std::int64_t rows = args.residual.shape[0], hidden = args.residual.shape[1];
  const std::int64_t bytes = rows * hidden * 2;
  const bool knows = !where.preferred.empty();
  std::string_view choice = knows ? where.preferred : default_choice(bytes, where);
  if (choice == name_of(Shots::kOneSplit, false) && !split_for(args, where))
    choice = name_of(Shots::kOne, false);
  if (!can_pack(args, where)) choice = unpacked(choice);
  if (choice == variant) return Status::ok();
  return Status::error(Code::kUnsupported,
                       std::to_string(rows) + " rows of " + std::to_string(hidden) + " on " +
                           std::to_string(where.team_size) + " ranks: " + std::string(choice) +
                           " " +
                           (knows ? where.why_preferred : std::string("is taken to be faster")));
}

// Multiprocessors, and blocks of `threads` that are resident together on each. Host targets run the
// blocks of a signalling kernel on one thread: more blocks serve no purpose on cpu, and a few are
// enough to show what blocks of emu do to each other.
struct Room {
  int units, resident;
};
inline Room room_for(const PlanContext& where, int threads) {
  if (kWave == 1) return {1, 1};
  const int units = std::max(where.properties.max_cooperative_blocks, 1);
  if (is_host(where.device.target)) return {std::min(units, 3), 1};
  return {units, std::min(std::max(kRowThreads / threads, 1), kMaxBlocksPerUnit)};
}

// Blocks on each multiprocessor for so many stripes. Half of those that are resident move nearly as
// much as all, so fewer do where all would leave many without work in the last round.
inline int even_blocks(std::int64_t stripes, Room room, int team_size) {
  if (stripes > std::int64_t{room.units} * room.resident && team_size > 2)
    return static_cast<int>(blocks_of_long_calls(room.resident, team_size));
  const auto time = [&](int each) {
    const std::int64_t at_once = std::int64_t{room.units} * each;
    return (stripes + at_once - 1) / at_once * each;
  };
  int best = room.resident;
  for (int each = room.resident - 1; 2 * each >= room.resident; --each)
    if (time(each) < time(best)) best = each;
  return best;
}

// What stripes of a call take of a slot.
inline StripeUnits units_of(const Args& args, bool packs, int team_size) {
  const std::int64_t hidden = args.residual.shape[1];
  const std::int64_t groups = args.out.fp8 ? hidden / args.out.fp8->group : 0;
  return stripe_units(hidden, packs, !args.out.bf16, groups, args.spread_residual, team_size);
}

// The vectors of a thread, of rows on blocks of `threads`.
inline int span_of(std::int64_t hidden, int threads) {
  if constexpr (kWave == 1) return kMaxVectors;
  const auto vectors = static_cast<int>(hidden / kVector);
  // One where each thread has a vector and no vector is left, and no other row.
  if (vectors == threads) return 1;
  return vectors <= 2 * threads ? 2 : (vectors + threads - 1) / threads;
}

// Whether calls of such rows have two_shot_long_kernel, and whether so many stripes on so many
// blocks take it: steps enough that what each of them waits for is what counts.
inline bool has_long(int team_size, std::int64_t hidden, int threads) {
  return team_size > 2 && team_size <= 4 && threads <= kLongThreads && kWave > 1 &&
         span_of(hidden, threads) == 1;
}
constexpr bool is_long(std::int64_t stripes, std::int64_t blocks) { return stripes > 2 * blocks; }

struct Ranks {
  int size;
  std::size_t mailbox_bytes;  // 0: not known
};
inline std::int64_t stripes_of(const Args& args, int team_size) {
  return (args.residual.shape[0] + team_size - 1) / team_size;
}
// Of how many stripes a slot has room; of all, where the mailbox is not known or nothing is sent.
inline std::int64_t stripes_that_fit(const Args& args, Ranks team, bool packs) {
  const std::int64_t units = units_of(args, packs, team.size).all();
  const bool knows = units > 0 && team.mailbox_bytes > 0;
  return knows ? slot_units(team.mailbox_bytes) / units : stripes_of(args, team.size);
}

// How many blocks do a call of these rows. A plan may be for more rows, so each call asks anew:
// 513 rows are not run in the way of 1024.
inline int blocks_of_call(const Args& args, Ranks team, Room room, int threads, Shots shots,
                          bool packs) {
  const std::int64_t rows = args.residual.shape[0];
  const std::int64_t most = std::min<std::int64_t>(
      most_data_blocks(std::int64_t{room.units} * room.resident, team.size), kMaxWaitingBlocks - 1);
  if (shots != Shots::kTwo) return static_cast<int>(std::min(rows, most));
  const std::int64_t stripes = stripes_of(args, team.size);
  const std::int64_t fit = stripes_that_fit(args, team, packs);
  const std::int64_t few = rows_each(rows, most);  // rows of a block
  if (stripes <= fit && few <= most_rows_each(team.size))
    return static_cast<int>(rows_each(rows, few));
  const int each = even_blocks(stripes, room, team.size);
  std::int64_t blocks = std::min({stripes, most, std::int64_t{room.units} * each});
  if (has_long(team.size, args.residual.shape[1], threads) && is_long(stripes, room.units - 1))
    blocks = std::max(std::min<std::int64_t>(blocks, room.units - 1), std::int64_t{1});
  return static_cast<int>(working_blocks(blocks, stripes, fit));
}

// Which kernel of two_shot does a call. `at_once`: in one generation; `most_blocks`: of the device.
enum class TwoShotForm : std::uint8_t { kRow, kRows, kStripes, kLong };
inline TwoShotForm two_shot_form(const Args& args, int team_size, const LaunchShape& shape,
                                 bool at_once, int most_blocks) {
  const std::int64_t rows = args.residual.shape[0];
  if (at_once && rows <= shape.blocks) return TwoShotForm::kRow;
  if (at_once && rows_each(rows, shape.blocks) <= most_rows_each(team_size))
    return TwoShotForm::kRows;
  const bool is_long_call = has_long(team_size, args.residual.shape[1], shape.threads) &&
                            shape.blocks < most_blocks &&
                            is_long(stripes_of(args, team_size), shape.blocks);
  return is_long_call ? TwoShotForm::kLong : TwoShotForm::kStripes;
}
constexpr std::string_view kernel_of(TwoShotForm form) {
  switch (form) {
    case TwoShotForm::kRow: return "two_shot_row_kernel";
    case TwoShotForm::kRows: return "two_shot_rows_kernel";
    case TwoShotForm::kLong: return "two_shot_long_kernel";
    default: return "two_shot_kernel";
  }
}

inline Status shape_for(const Args& args, const PlanContext& where, Shots shots, bool packs,
                        LaunchShape* shape) {
  if (where.team_size > 1 && !where.peer_pointers)
    return Status::error(Code::kUnsupported, "the ranks cannot address each other's mailboxes");
  if (where.team_size > kMaxRanks)
    return Status::error(Code::kUnsupported, std::to_string(where.team_size) +
                                                 " ranks are over the limit of " +
                                                 std::to_string(kMaxRanks));
  shape->threads =
      row_threads(static_cast<int>(args.residual.shape[1]), where.properties.max_threads_per_block);
  shape->blocks = blocks_of_call(args, {where.team_size, where.mailbox_bytes},
                                 room_for(where, shape->threads), shape->threads, shots, packs);
  shape->cooperative = true;
  shape->early = where.may_start_early;
  return Status::ok();
}

// The settings of a plan that its calls go by.
inline constexpr std::string_view kUnits = "multiprocessors to use",
                                  kResident = "blocks on each, at most",
                                  kTogether = "blocks that run together";

// The plan's shape with as many blocks as the rows of this call want.
inline LaunchShape shape_of_call(const Recipe& recipe, const Args& args, const ChannelView& team,
                                 Shots shots, bool packs) {
  LaunchShape shape = recipe.launches.front().shape;
  shape.blocks = blocks_of_call(args, {team.size, team.bytes},
                                {recipe.setting(kUnits), recipe.setting(kResident)}, shape.threads,
                                shots, packs);
  return shape;
}

template <class Wire>
inline FusedArgs fused_args(const Args& args, const ChannelView& team) {
  FusedArgs call{};
  call.team = team;
  call.partial = args.partial.addend.as<std::byte>();
  call.partial_stride = args.partial.addend.stride[0] * 2;
  call.rows = static_cast<int>(args.residual.shape[0]);
  call.norm = norm_spec(args.weight, args.residual, args.out.bf16);
  call.norm.eps = args.eps;
  call.norm.offset = args.offset;
  call.norm.fresh_residual = args.fresh_residual;
  call.quant = quant_spec(args.out.fp8);
  call.spreads_fp8 = !args.out.bf16;
  call.spreads_residual = args.spread_residual;
  call.mine = team.base[team.rank];
  call.slot_units = static_cast<int>(slot_units(team.bytes));
  call.vectors = call.norm.hidden / kVector;
  call.part_units = static_cast<int>(row_bytes(call.norm.hidden, Wire::kPacks) / kUnit);
  call.entry_units = call.part_units * (team.size - 1);
  return call;
}

// What of a call besides its rows decides where words lie and who sends them. The first number
// tells the ops that share a mailbox apart.
inline constexpr std::uint64_t kNoteOfOp = 1;
inline Note note_for(const FusedArgs& call, const LaunchShape& shape, Shots shots, bool packs) {
  const auto as = [](auto value) { return static_cast<std::uint64_t>(value); };
  return note_of(call.team,
                 {kNoteOfOp, as(shots), as(packs), as(call.norm.hidden), as(call.spreads_fp8),
                  as(call.spreads_residual), as(shape.blocks)},
                 as(call.rows));
}

// Where the peers keep what this rank sends them: see FusedArgs.
inline void find_places(FusedArgs& call) {
  const ChannelView& team = call.team;
  for (int i = 0; i < team.size - 1; ++i) {
    const int peer = (team.rank + 1 + i) % team.size;
    const int place = peer_index(team.rank, peer);
    call.part_to[i] = team.base[peer] + std::int64_t{place} * call.part_units * kUnit;
    call.result_to[i] =
        team.base[peer] + (call.spread_offset + std::int64_t{place} * call.spread_units) * kUnit;
  }
}

// What an instance of a kernel is compiled for: the most vectors of a thread, the most ranks, and
// whether it takes the usual calls alone (is_fast_path()).
struct Instance {
  int max_span, max_ranks;
  bool fast_path;
};

// Every instance of every kernel, smallest first: a call takes the first that serves it. Emulated
// targets have those of devices, so that tests run what devices run; cpu has one for all teams.
inline constexpr auto kInstances = [] {
  if constexpr (kWave == 1) {
    return std::array{Instance{kMaxVectors, kMaxRanks, false}};
  } else {
    return std::array{
        Instance{1, 1, true},  Instance{1, 1, false}, Instance{1, 2, true},  Instance{1, 2, false},
        Instance{1, 4, true},  Instance{1, 4, false}, Instance{1, 8, true},  Instance{1, 8, false},
        Instance{2, 1, false}, Instance{2, 2, false}, Instance{2, 4, false}, Instance{2, 8, false},
        Instance{4, 1, false}, Instance{4, 2, false}, Instance{4, 4, false}, Instance{4, 8, false}};
  }
}();
static_assert(kInstances.back().max_ranks == kMaxRanks);

// Not all of them exist: usual calls have rows of bf16 that fit a block, and so have packed ones.
template <class T, class Wire>
constexpr bool exists(const Instance& instance) {
  if (kWave == 1) return true;
  if (instance.fast_path && !__is_same(T, bf16)) return false;
  return instance.max_span == 1 || !Wire::kPacks;
}

// Whether a call of `ranks` ranks, whose threads own `span` vectors each, may take an instance.
constexpr bool serves(const Instance& instance, int span, int ranks, bool is_usual) {
  return span <= instance.max_span && ranks <= instance.max_ranks &&
         (is_usual || !instance.fast_path);
}

// launch.operator()<KernelFor<…>>() with the first instance that exists and serves the call.
template <class T, class Wire, class Protocol, class Launch>
inline Status with_instance(const LaunchShape& shape, const FusedArgs& call, const Launch& launch) {
  const int span = span_of(call.norm.hidden, shape.threads);
  const bool fast_path = is_fast_path(call.norm, call.quant);
  Status status;
  const auto try_one = [&]<std::size_t kIndex>() {
    constexpr Instance kInstance = kInstances[kIndex];
    if constexpr (exists<T, Wire>(kInstance)) {
      if (!serves(kInstance, span, call.team.size, fast_path)) return false;
      using Kernel = KernelFor<T, Wire, kInstance.max_span, kInstance.max_ranks,
                               kInstance.fast_path, Protocol>;
      // Here nvcc takes the value of an assignment for a Status that nobody looks at.
      static_cast<void>(status = launch.template operator()<Kernel>());
      return true;
    }
    return false;
  };
  [&]<std::size_t... kIndices>(std::index_sequence<kIndices...>) {
    static_cast<void>((try_one.template operator()<kIndices>() || ...));
  }
  (std::make_index_sequence<kInstances.size()>());
  return status;
}

// How many entries (rows, or stripes) of `units` each fit into a slot; at least `least` must.
inline Status fit_chunk(const FusedArgs& call, std::int64_t units, std::int64_t least,
                        std::int64_t* entries) {
  constexpr std::int64_t kAny = 1 << 20;  // no peers: nothing is sent
  *entries = units == 0 ? kAny : std::min(slot_units(call.team.bytes) / units, kAny);
  if (*entries >= least) return Status::ok();
  return Status::error(
      Code::kInvalidArgument,
      "fused_allreduce_rmsnorm_quant: the mailbox has " + std::to_string(call.team.bytes) +
          " bytes but hidden " + std::to_string(call.norm.hidden) + " needs at least " +
          std::to_string(mailbox_with_slots_of(static_cast<std::size_t>(least * units * kUnit))) +
          " for " + std::to_string(call.team.size) + " ranks; see mailbox_bytes()");
}

// Rows, or stripes, per generation, and so how many generations there are for `all`.
inline void set_chunk(FusedArgs& call, std::int64_t chunk, std::int64_t all) {
  call.chunk = static_cast<int>(chunk);
  call.num_generations = static_cast<int>((all + chunk - 1) / chunk);
}

template <class T, class Wire, class Protocol>
inline Status launch_one_shot(const LaunchShape& shape, const Args& args, const ChannelView* team,
                              Stream& stream) {
  FusedArgs call = fused_args<Wire>(args, *team);
  std::int64_t rows = 0;
  TENON_TRY(fit_chunk(call, call.entry_units, 1, &rows));
  set_chunk(call, rows, call.rows);
  find_places(call);
  call.note = note_for(call, shape, Shots::kOne, Wire::kPacks);
  call.workers = shape.blocks;
  const bool row_each = call.rows <= shape.blocks && call.num_generations == 1;
  return with_instance<T, Wire, Protocol>(shape, call, [&]<class K>() {
    return tenon::launch(stream, with_note_block(shape, *team),
                         row_each ? one_shot_row_kernel<K> : one_shot_kernel<K>, call);
  });
}

template <class T, class Wire, class Protocol>
inline Status launch_two_shot(const LaunchShape& shape, const Args& args, const ChannelView* team,
                              Stream& stream) {
  FusedArgs call = fused_args<Wire>(args, *team);
  const StripeUnits units = units_of(args, Wire::kPacks, team->size);
  call.spread_entry_units = static_cast<int>(units.results);
  call.spread_units = call.spread_entry_units / std::max(team->size - 1, 1);
  const std::int64_t stripes = stripes_of(args, team->size);
  const std::int64_t least = stripes > 1 ? Protocol::kLeastSteps : 1;
  std::int64_t fit = 0;
  TENON_TRY(fit_chunk(call, units.all(), least, &fit));
  call.workers =
      static_cast<int>(working_blocks(shape.blocks, stripes, fit, static_cast<int>(least)));
  // In several generations each block has as many stripes as any other.
  set_chunk(call, stripes > fit ? fit / call.workers * call.workers : fit, stripes);
  call.spread_offset = static_cast<int>(fit * units.parts);  // not by how much there is: rule 2
  find_places(call);
  call.note = note_for(call, shape, Shots::kTwo, Wire::kPacks);
  call.rows_each = static_cast<int>(rows_each(call.rows, shape.blocks));
  const TwoShotForm form =
      two_shot_form(args, team->size, shape, call.num_generations == 1, team->max_blocks);
  return with_instance<T, Wire, Protocol>(shape, call, [&]<class K>() {
    auto* kernel = form == TwoShotForm::kRow ? two_shot_row_kernel<K> : two_shot_kernel<K>;
    if constexpr (kHasLong<K>)
      if (form == TwoShotForm::kLong) kernel = two_shot_long_kernel<K>;
    if constexpr (kHasRows<K>)
      if (form == TwoShotForm::kRows) kernel = two_shot_rows_kernel<K>;
    return tenon::launch(stream, with_note_block(shape, *team), kernel, call);
  });
}

// The answer of a variant: its kernel, and the instance that calls like this one take.
template <Shots kShots, bool kPacks>
inline Status supports_shots(const Args& args, const PlanContext& where, Recipe* recipe) {
  if (kPacks) TENON_TRY(can_pack(args, where));
  TENON_TRY(is_fastest(args, where, name_of(kShots, kPacks)));
  LaunchShape shape;
  TENON_TRY(shape_for(args, where, kShots, kPacks, &shape));
  if (kShots == Shots::kOne) {
    const bool row_each = args.residual.shape[0] <= shape.blocks;
    recipe->launch(row_each ? "one_shot_row_kernel" : "one_shot_kernel", shape);
  } else {
    const bool at_once = stripes_of(args, where.team_size) <=
                         stripes_that_fit(args, {where.team_size, where.mailbox_bytes}, kPacks);
    recipe->launch(kernel_of(two_shot_form(args, where.team_size, shape, at_once,
                                           where.properties.max_cooperative_blocks)),
                   shape);
  }
  const Room room = room_for(where, shape.threads);
  recipe->set(kUnits, room.units);
  recipe->set(kResident, room.resident);
  const bool is_bf16 = args.residual.dtype == DType::kBF16;
  const bool is_usual = is_bf16 &&
                        is_fast_path(norm_spec(args.weight, args.residual, args.out.bf16),
                                     quant_spec(args.out.fp8)) &&
                        !args.fresh_residual;
  const int span = span_of(args.residual.shape[1], shape.threads);
  for (const Instance& each : kInstances) {
    if (!serves(each, span, where.team_size, is_usual)) continue;
    recipe->set("vectors of a thread", each.max_span);
    recipe->set("ranks, at most", each.max_ranks);
    recipe->set("fast path", each.fast_path ? 1 : 0);
    return Status::ok();
  }
  return Status::error(Code::kInternal, "no instance serves the call");
}

}  // namespace tenon::TENON_TARGET::fused_allreduce_rmsnorm_quant
