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

std::size_t mailbox_bytes(int max_rows, int hidden, DType, int team_size) {
  const std::int64_t rows = std::max(max_rows, 1);
  const std::int64_t stripes = (rows + team_size - 1) / team_size;
  const std::int64_t result = result_bytes(hidden, false, 0, true);
  const std::int64_t stripe = stripe_bytes(hidden, result, team_size);
  const std::int64_t least = kLeastSteps * stripe;
  const std::int64_t wanted =
      std::max(rows * one_shot_row_bytes(hidden, team_size), stripes * stripe);
  const std::int64_t slot = std::max(std::min(wanted, kMaxSlotBytes), least);
  const auto aligned = (static_cast<std::size_t>(slot) + kSlotAlignment - 1) / kSlotAlignment;
  return aligned * kSlotAlignment * kNumSlots;
}

int residual_owner(std::string_view variant, int row, int, int team_size) {
  return variant == "two_shot" ? row % team_size : -1;
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
  const bool spreads_fp8 = !args.out.bf16;
  const std::int64_t groups = args.out.fp8 ? addend.shape[1] / args.out.fp8->group : 0;
  const std::int64_t result =
      result_bytes(addend.shape[1], spreads_fp8, groups, args.spread_residual);
  cost.link_bytes = static_cast<double>(addend.shape[0]) *
                    static_cast<double>(part_bytes(addend.shape[1]) + result) * (team_size - 1) /
                    team_size;
  return cost;
}

}  // namespace tenon::fused_allreduce_rmsnorm_quant
