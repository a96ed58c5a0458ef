#include "tenon/comm/collectives/all_gather/all_gather.h"

#include <string>

#include "tenon/comm/collectives/places.h"

namespace tenon::all_gather {
namespace {

Status invalid(std::string message) {
  return Status::error(Code::kInvalidArgument, "all_gather: " + std::move(message));
}

Status check_dealt(const Args& args, int team_size) {
  const TensorView &in = args.in, &out = args.out;
  if (args.rank < 0 || args.rank >= team_size)
    return invalid("rank " + std::to_string(args.rank) + " of " + std::to_string(team_size));
  if (in.num_dims < 1)
    return invalid("rows of " + describe(in) + " are dealt, which has no dimension of rows");
  const std::int64_t rows = in.shape[0], own = dealt_rows(rows, team_size, args.rank).count;
  const std::int64_t row = rows == 0 ? 0 : in.size() / rows;
  if (out.dtype != in.dtype || out.size() != team_size * own * row)
    return invalid("out is " + describe(out) + " but rank " + std::to_string(args.rank) + " gets " +
                   std::to_string(own) + " rows of " + describe(in) + " from each of " +
                   std::to_string(team_size) + " ranks");
  return Status::ok();
}

}  // namespace

std::size_t mailbox_bytes(int team_size, std::size_t chunk_bytes) {
  return kGatherGenerations * collectives::num_peers(team_size) *
             collectives::whole_vectors(chunk_bytes) +
         kFlagBytes;
}

std::size_t most_bytes(const Args& args, int team_size) {
  if (args.form == Form::kGather) return args.in.bytes();
  const std::int64_t rows = args.in.shape[0];
  if (rows == 0) return 0;
  return args.in.bytes() / static_cast<std::size_t>(rows) *
         static_cast<std::size_t>(most_dealt_rows(rows, team_size));
}

Status check(const Args& args, int team_size) {
  const TensorView &in = args.in, &out = args.out;
  if (!in.contiguous() || !out.contiguous())
    return invalid("in and out must be contiguous; they are " + describe(in) + " and " +
                   describe(out));
  switch (args.form) {
    case Form::kGather:
      if (out.dtype != in.dtype || out.size() != in.size() * team_size)
        return invalid("out is " + describe(out) + " but " + std::to_string(team_size) + " times " +
                       describe(in) + " is gathered");
      return Status::ok();
    case Form::kDeal: return check_dealt(args, team_size);
    case Form::kCollect: break;
  }
  if (in.num_dims < 1)
    return invalid("rows of " + describe(in) + " are collected, which has no dimension of rows");
  if (out.data != in.data || out.dtype != in.dtype || out.size() != in.size())
    return invalid("rows are collected where they lie, but in is " + describe(in) +
                   " and out another, " + describe(out));
  return Status::ok();
}

// A rank without rows of its own need not have memory for any.
Status check_place(const Args& args, int team_size, Device device, const Stream& stream) {
  const bool takes_none = args.out.bytes() == 0;
  const bool in_place = takes_none || team_size == 1 || args.form == Form::kCollect;
  return collectives::check_place("all_gather", args.in, takes_none ? args.in : args.out, in_place,
                                  device, stream);
}

Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced) {
  TENON_TRY(check(args, where.team_size));
  return choose(kOp, &args, where, forced);
}

Status run(const Plan& plan, const Args& args, const ChannelView& team, Stream& stream) {
  TENON_TRY(check(args, team.size));
  TENON_TRY(check_place(args, team.size, args.in.device, stream));
  if (args.form != Form::kGather && args.rank != team.rank)
    return invalid("rank " + std::to_string(args.rank) + " was asked for on rank " +
                   std::to_string(team.rank));
  return launch(plan, &args, &team, stream);
}

Traffic traffic(const Args& args, int team_size) {
  const double bytes = static_cast<double>(most_bytes(args, team_size)), peers = team_size - 1;
  Traffic cost;
  cost.link_bytes = bytes * peers;
  cost.memory_bytes = bytes * (2 + peers);
  if (args.form == Form::kDeal) cost.memory_bytes = 2 * bytes * (1 + peers);
  if (args.form == Form::kCollect) cost.memory_bytes = bytes * (1 + peers);
  return cost;
}

}  // namespace tenon::all_gather

#define TENON_OP_NAME all_gather
#define TENON_OP_VARIANTS "tenon/comm/collectives/all_gather/built_variants.def"
#include "tenon/device/op_table.inc"
