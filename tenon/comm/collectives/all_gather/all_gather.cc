#include "tenon/comm/collectives/all_gather/all_gather.h"

#include <string>

#include "tenon/comm/collectives/places.h"

namespace tenon::all_gather {

std::size_t mailbox_bytes(int team_size, std::size_t chunk_bytes) {
  return kGatherGenerations * collectives::num_peers(team_size) *
             collectives::whole_vectors(chunk_bytes) +
         kFlagBytes;
}

Status check(const Args& args, int team_size) {
  const TensorView &in = args.in, &out = args.out;
  if (out.dtype != in.dtype || out.size() != in.size() * team_size)
    return Status::error(Code::kInvalidArgument, "all_gather: out is " + describe(out) + " but " +
                                                     std::to_string(team_size) + " times " +
                                                     describe(in) + " is gathered");
  if (!in.contiguous() || !out.contiguous())
    return Status::error(Code::kInvalidArgument,
                         "all_gather: in and out must be contiguous; they are " + describe(in) +
                             " and " + describe(out));
  return Status::ok();
}

Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced) {
  TENON_TRY(check(args, where.team_size));
  return choose(kOp, &args, where, forced);
}

Status run(const Plan& plan, const Args& args, const ChannelView& team, Stream& stream) {
  TENON_TRY(check(args, team.size));
  TENON_TRY(
      collectives::check_place("all_gather", args.in, args.out, false, args.in.device, stream));
  return launch(plan, &args, &team, stream);
}

Traffic traffic(const Args& args, int team_size) {
  const double bytes = static_cast<double>(args.in.bytes()), peers = team_size - 1;
  Traffic cost;
  cost.memory_bytes = bytes * (2 + peers);
  cost.link_bytes = bytes * peers;
  return cost;
}

}  // namespace tenon::all_gather

#define TENON_OP_NAME all_gather
#define TENON_OP_VARIANTS "tenon/comm/collectives/all_gather/built_variants.def"
#include "tenon/device/op_table.inc"
