#include "tenon/ops/fused_allreduce_rmsnorm_quant/fused_allreduce_rmsnorm_quant.h"

#include "tenon/ops/common/normed_rows.h"
#include "tenon/ops/fused_allreduce_rmsnorm_quant/slots.h"

namespace tenon::fused_allreduce_rmsnorm_quant {
namespace {

constexpr std::string_view kName = "fused_allreduce_rmsnorm_quant";

}  // namespace

Status check(const Args& args) {
  const TensorView& addend = args.partial.addend;
  const Device device = addend.device;
  const DType dtype = addend.dtype;
  Dims dims;
  TENON_TRY(match("partial", addend, {DType::kBF16, DType::kF16}, {"rows", "hidden"}, dims), kName);
  TENON_TRY(check_wide_rows("partial", addend, device), kName);
  TENON_TRY(match("residual", args.residual, {dtype}, {"rows", "hidden"}, dims), kName);
  TENON_TRY(check_wide_rows("residual", args.residual, device), kName);
  TENON_TRY(match("weight", args.weight, {dtype, DType::kF32}, {"hidden"}, dims), kName);
  TENON_TRY(check_wide_rows("weight", args.weight, device), kName);
  TENON_TRY(check_normed_rows(args.out, dtype, device, dims), kName);
  return check_extents(dims, kMaxNormedRows, kMaxNormedHidden).with(kName);
}

std::size_t mailbox_bytes(const MailboxNeeds& needs) {
  const int team_size = needs.team_size;
  const std::int64_t rows = std::max(needs.max_rows, 1);
  const std::int64_t stripes = (rows + team_size - 1) / team_size;
  const std::int64_t part = row_bytes(needs.hidden, true);
  const std::int64_t stripe =
      stripe_units(needs.hidden, true, false, 0, needs.spread_residual, team_size).all() * kUnit;
  const std::int64_t most_blocks =
      std::int64_t{std::max(needs.max_blocks, 1)} * resident_blocks(needs.hidden);
  const std::int64_t all_at_work = kLeastSteps * most_blocks * stripe;
  const std::int64_t wanted = std::max(rows * part * (team_size - 1), stripes * stripe);
  const std::int64_t enough = std::max(kWantedSlotBytes, all_at_work);
  const std::int64_t least = kLeastSteps * stripe;  // the longest call may be a short one
  return mailbox_with_slots_of(static_cast<std::size_t>(std::max(std::min(wanted, enough), least)));
}

int residual_owner(std::string_view variant, int row, int, int team_size) {
  return variant.starts_with("two_shot") ? row % team_size : -1;
}

Result<Plan> plan(const Args& args, const Situation& where, std::string_view forced) {
  TENON_TRY(check(args));
  return choose(Op::fused_allreduce_rmsnorm_quant, &args, where, forced);
}

Status run(const Plan& plan, const Args& args, const TeamView& team, Stream& stream) {
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
