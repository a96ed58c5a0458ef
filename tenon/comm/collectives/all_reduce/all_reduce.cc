#include "tenon/comm/collectives/all_reduce/all_reduce.h"

#include <string>

#include "tenon/comm/collectives/places.h"

namespace tenon::all_reduce {

std::size_t mailbox_bytes(int team_size, std::size_t chunk_bytes) {
  return mailbox_with_slots_of(collectives::num_peers(team_size) *
                               collectives::whole_vectors(chunk_bytes));
}

Status check(const Args& args) {
  const TensorView &in = args.in, &out = args.out;
  if (in.dtype != DType::kBF16 && in.dtype != DType::kF16)
    return Status::error(Code::kInvalidArgument,
                         "all_reduce: the addend is " + describe(in) + "; accepted: bf16, f16");
  if (out.dtype != in.dtype || out.size() != in.size())
    return Status::error(Code::kInvalidArgument, "all_reduce: out is " + describe(out) +
                                                     " but the addend is " + describe(in));
  if (!in.contiguous() || !out.contiguous())
    return Status::error(Code::kInvalidArgument,
                         "all_reduce: addend and out must be contiguous; they are " + describe(in) +
                             " and " + describe(out));
  return Status::ok();
}

Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced) {
  TENON_TRY(check(args));
  return choose(kOp, &args, where, forced);
}

Status run(const Plan& plan, const Args& args, const ChannelView& team, Stream& stream) {
  TENON_TRY(check(args));
  TENON_TRY(
      collectives::check_place("all_reduce", args.in, args.out, true, args.in.device, stream));
  return launch(plan, &args, &team, stream);
}

Traffic traffic(const Args& args, int team_size) {
  const double bytes = static_cast<double>(args.in.bytes()), peers = team_size - 1;
  Traffic cost;
  cost.flops = static_cast<double>(args.in.size()) * peers;
  cost.memory_bytes = 2 * bytes;
  cost.link_bytes = bytes * peers;
  return cost;
}

}  // namespace tenon::all_reduce

#define TENON_OP_NAME all_reduce
#define TENON_OP_VARIANTS "tenon/comm/collectives/all_reduce/built_variants.def"
#include "tenon/device/op_table.inc"
