#include "tenon/ops/fused_allreduce_rmsnorm_quant/fused_allreduce_rmsnorm_quant.h"

#include "tenon/ops/common/normed_rows.h"
#include "tenon/ops/fused_allreduce_rmsnorm_quant/mailbox_layout.h"

namespace tenon::fused_allreduce_rmsnorm_quant {
namespace {

constexpr std::string_view kName = "fused_allreduce_rmsnorm_quant";

NormTensors tensors_of(const Args& args) {
  return {"partial", args.partial.addend, args.residual, args.weight, args.out};
}

// A mailbox whose communicator is suspended, or has no peer pointers, has no addresses.
Status check_team(const ChannelView& team) {
  for (int rank = 0; team.size > 1 && rank < team.size; ++rank)
    if (team.base[rank] == nullptr) [[unlikely]]
      return Status::error(Code::kInvalidArgument,
                           "the mailbox has no memory of rank " + std::to_string(rank) +
                               "; accepted: the team of a Channel that is ready()");
  return Status::ok();
}

}  // namespace

Status check(const Args& args) { return check_norm(tensors_of(args)).with(kName); }

std::size_t mailbox_bytes(const MailboxNeeds& needs) {
  const int team_size = needs.team_size;
  const std::int64_t rows = std::max(needs.max_rows, 1);
  const std::int64_t stripes = (rows + team_size - 1) / team_size;
  const std::int64_t part = row_bytes(needs.hidden, true);
  const std::int64_t stripe =
      stripe_units(needs.hidden, true, false, 0, needs.spread_residual, team_size).all() * kUnit;
  const std::int64_t units = std::max(needs.max_blocks, 1);
  const std::int64_t resident = resident_blocks(needs.hidden);
  const std::int64_t all_at_work =
      std::max(resident, kLeastSteps * blocks_of_long_calls(resident, team_size)) * units * stripe;
  const std::int64_t wanted = std::max(rows * part * (team_size - 1), stripes * stripe);
  const std::int64_t enough = std::max(kWantedSlotBytes, all_at_work);
  const std::int64_t least = kLeastSteps * stripe;  // the longest call may be a short one
  return mailbox_with_slots_of(static_cast<std::size_t>(std::max(std::min(wanted, enough), least)));
}

int residual_owner(std::string_view variant, int row, int, int team_size) {
  return variant.starts_with("two_shot") ? row % team_size : -1;
}

Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced) {
  TENON_TRY(check(args));
  TENON_ASSIGN(Plan made, choose(kOp, &args, where, forced));
  made.rows = args.partial.addend.shape[0];
  made.hidden = args.partial.addend.shape[1];
  made.dtype = args.partial.addend.dtype;
  made.team_size = where.team_size;
  return made;
}

Status run(const Plan& plan, const Args& args, const ChannelView& team, Stream& stream) {
  TENON_TRY(check(args));
  if (args.partial.addend.shape[0] == 0) return Status::ok();
  TENON_TRY(check_apart(tensors_of(args)), kName);
  TENON_TRY(check_plan(plan, kOp, args.partial.addend, team.size, stream), kName);
  TENON_TRY(check_team(team), kName);
  return launch(plan, &args, &team, stream);
}

Traffic traffic(const Args& args, int team_size) {
  Traffic cost;
  const TensorView& addend = args.partial.addend;
  const double elements = static_cast<double>(addend.size());
  cost.flops = elements * (10 + team_size);
  cost.memory_bytes = elements * (args.fresh_residual ? 4 : 6) +
                      static_cast<double>(args.weight.bytes()) + bytes_of(args.out);
  // Each rank sends its part of the rows of others, and its own results to the others.
  const auto hidden = static_cast<double>(addend.shape[1]);
  const auto row =
      static_cast<double>(row_link_bytes(addend.shape[1], addend.dtype == DType::kBF16));
  const double fp8 = args.out.fp8 ? hidden + hidden / args.out.fp8->group * 4 : 0;
  const double result = (args.out.bf16 ? row : fp8) + (args.spread_residual ? row : 0);
  cost.link_bytes =
      static_cast<double>(addend.shape[0]) * (row + result) * (team_size - 1) / team_size;
  return cost;
}

}  // namespace tenon::fused_allreduce_rmsnorm_quant

#define TENON_OP_NAME fused_allreduce_rmsnorm_quant
#define TENON_OP_VARIANTS "tenon/ops/fused_allreduce_rmsnorm_quant/built_variants.def"
#include "tenon/device/op_table.inc"
