// Host side of gated_delta_net: what is accepted, the choice of a variant, the launch.
// Not here: kernels (gated_delta_net.cu and its parts).
#include "tenon/ops/gated_delta_net/gated_delta_net.h"

#include <string>

#include "tenon/ops/common/normed_rows.h"

namespace tenon::gated_delta_net {
namespace {

Status refuse(const std::string& why) { return Status::error(Code::kInvalidArgument, why); }

Status check_rows(const Args& args, Dims& dims) {
  constexpr auto kBF16 = DType::kBF16;
  TENON_TRY(match("qkv", args.qkv, {kBF16}, {"tokens", "conv_dim"}, dims));
  TENON_TRY(match("z", args.z, {kBF16}, {"tokens", "v_heads * dv"}, dims));
  TENON_TRY(match("b", args.b, {kBF16}, {"tokens", "v_heads"}, dims));
  TENON_TRY(match("a", args.a, {kBF16}, {"tokens", "v_heads"}, dims));
  TENON_TRY(match("scratch", args.scratch, {kBF16}, {"tokens", "scratch_columns"}, dims));
  dims["rows"] = dims["tokens"];
  dims["hidden"] = dims["v_heads * dv"];
  TENON_TRY(check_normed_rows(args.out, kBF16, args.qkv.device, dims));
  if (args.out.fp8 && args.out.fp8->group != kHeadDim)
    return refuse("out.fp8.group is " + std::to_string(args.out.fp8->group) +
                  " but must be 128, a v head");
  return Status::ok();
}

Status check_weights_and_state(const Args& args, Dims& dims) {
  constexpr auto kBF16 = DType::kBF16;
  constexpr auto kF32 = DType::kF32;
  constexpr auto kI32 = DType::kI32;
  TENON_TRY(match("conv_weight", args.conv_weight, {kBF16}, {"conv_dim", "4"}, dims));
  TENON_TRY(match("a_log", args.a_log, {kF32}, {"v_heads"}, dims));
  TENON_TRY(match("dt_bias", args.dt_bias, {kF32}, {"v_heads"}, dims));
  TENON_TRY(match("norm", args.norm, {kF32}, {"128"}, dims));
  TENON_TRY(match("sequence_lengths", args.sequence_lengths, {kI32}, {"sequences"}, dims));
  TENON_TRY(match("state_from", args.state_from, {kI32}, {"sequences"}, dims));
  TENON_TRY(match("state_to", args.state_to, {kI32}, {"sequences"}, dims));
  TENON_TRY(match("fresh", args.fresh, {kI32}, {"sequences"}, dims));
  dims["sequences + 1"] = dims["sequences"] + 1;
  TENON_TRY(match("sequence_starts", args.sequence_starts, {kI32}, {"sequences + 1"}, dims));
  TENON_TRY(match("conv_state", args.conv_state, {kBF16}, {"slots", "4", "conv_dim"}, dims));
  return match("state", args.state, {kF32}, {"slots", "v_heads", "128", "128"}, dims);
}

Status check_layout(const Args& args) {
  for (const auto* rows : {&args.qkv, &args.z, &args.b, &args.a})
    if (!rows->rows_contiguous())
      return refuse("qkv, z, b or a is " + describe(*rows) +
                    " with a strided last dimension; only rows may be strided");
  for (const auto* whole :
       {&args.conv_weight, &args.a_log, &args.dt_bias, &args.norm, &args.sequence_starts,
        &args.sequence_lengths, &args.state_from, &args.state_to, &args.fresh, &args.conv_state,
        &args.state, &args.scratch})
    if (!whole->contiguous())
      return refuse(describe(*whole) +
                    " is strided; all views but qkv, z, b and a must be contiguous");
  return Status::ok();
}

}  // namespace

Status check(const Args& args) {
  if (args.k_heads < 1 || args.v_heads < 1 || args.v_heads % args.k_heads != 0)
    return refuse("gated_delta_net.check: " + std::to_string(args.v_heads) +
                  " v heads do not share " + std::to_string(args.k_heads) + " k heads evenly");
  if (args.max_tokens_per_sequence < 0)
    return refuse("gated_delta_net.check: max_tokens_per_sequence is " +
                  std::to_string(args.max_tokens_per_sequence) + "; it counts tokens");
  Dims dims;
  dims["v_heads"] = args.v_heads;
  dims["v_heads * dv"] = std::int64_t{args.v_heads} * kHeadDim;
  dims["scratch_columns"] = scratch_columns(args.k_heads, args.v_heads, args.qkv.device.target);
  dims["conv_dim"] = std::int64_t{2 * args.k_heads + args.v_heads} * kHeadDim;
  TENON_TRY(check_rows(args, dims), "gated_delta_net.check");
  TENON_TRY(check_weights_and_state(args, dims), "gated_delta_net.check");
  TENON_TRY(check_layout(args), "gated_delta_net.check");
  return Status::ok();
}

Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced) {
  TENON_TRY(check(args));
  if (forced.empty()) forced = forced_by_env(kOp);
  // A model plans steps with and without prompts, and neither form serves both: forced, each leaves
  // the other's steps to a variant that is made for them.
  const bool decodes = args.max_tokens_per_sequence <= 1;
  const auto has_chunks = [](std::string_view name) {
    return name == "chunked" || name == "tiles";
  };
  if (!(has_chunks(forced) && decodes) && !(forced == "decode" && !decodes))
    return choose(kOp, &args, where, forced);
  std::string_view instead = "chunked";
  if (decodes)
    for (const Variant& each : variants(kOp, where.device.target))
      if (has_chunks(instead)) instead = each.name;
  TENON_ASSIGN(Plan plan, choose(kOp, &args, where, instead));
  plan.refusals.push_back(std::string(forced) +
                          (decodes ? ": every sequence has one token: there is no chunk"
                                   : ": a sequence may have more than one token"));
  return plan;
}

Status run(const Plan& plan, const Args& args, Stream& stream) {
  return launch(plan, &args, nullptr, stream);
}

Traffic traffic(const Args& args) {
  const double tokens = static_cast<double>(args.qkv.shape[0]);
  const double sequences = static_cast<double>(args.state_from.shape[0]);
  const double conv_dim = static_cast<double>(args.qkv.shape[1]);
  const double values = static_cast<double>(args.z.shape[1]);
  Traffic cost;
  cost.flops = tokens * (8.0 * conv_dim + 7.0 * kHeadDim * values);
  // The rows once; the convolution's inputs of three tokens and of one; S, both ways.
  cost.memory_bytes = tokens * (2.0 * conv_dim + 2.0 * values) + bytes_of(args.out) +
                      sequences * (8.0 * conv_dim + 8.0 * kHeadDim * values);
  return cost;
}

}  // namespace tenon::gated_delta_net

#define TENON_OP_NAME gated_delta_net
#define TENON_OP_VARIANTS "tenon/ops/gated_delta_net/built_variants.def"
#include "tenon/device/op_table.inc"
