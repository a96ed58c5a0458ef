#include "tenon/ops/moe_route/moe_route.h"

namespace tenon::moe_route {
namespace {

Status invalid(std::string message) {
  return Status::error(Code::kInvalidArgument, std::move(message));
}

Status check_table(std::string_view what, const TensorView& tensor, const TensorView& logits) {
  const std::string found = std::string(what) + " is " + describe(tensor);
  if (!tensor.contiguous()) return invalid(found + " but must be contiguous");
  if (tensor.device != logits.device)
    return invalid(found + " but logits is " + describe(logits) + "; all must lie on one device");
  return Status::ok();
}

Status check_experts(const Args& args) {
  const std::int64_t experts = args.logits.shape[1];
  const std::string found = "logits is " + describe(args.logits);
  if (experts < 1 || experts > kMaxExperts)
    return invalid(found + " but there may be 1 to " + std::to_string(kMaxExperts) + " experts");
  if (args.top_k < 1 || args.top_k > experts)
    return invalid("top_k is " + std::to_string(args.top_k) + " but must be 1 to " +
                   std::to_string(experts));
  if (args.first_expert < 0 || args.local_experts < 1 ||
      std::int64_t{args.first_expert} + args.local_experts > experts)
    return invalid("local experts are [" + std::to_string(args.first_expert) + ", " +
                   std::to_string(std::int64_t{args.first_expert} + args.local_experts) +
                   ") but must be a part of [0, " + std::to_string(experts) + ")");
  return Status::ok();
}

Status check_all(const Args& args) {
  Dims dims;
  TENON_TRY(match("logits", args.logits, {DType::kBF16, DType::kF32}, {"tokens", "experts"}, dims));
  if (!args.logits.rows_contiguous())
    return invalid("logits is " + describe(args.logits) +
                   " but its last dimension must have stride 1");
  TENON_TRY(check_experts(args));
  dims["top_k"] = args.top_k;
  dims["local_experts + 1"] = std::int64_t{args.local_experts} + 1;
  dims["tokens * top_k"] = dims["tokens"] * args.top_k;
  TENON_TRY(match("weights", args.weights, {DType::kF32}, {"tokens", "top_k"}, dims));
  TENON_TRY(match("slot", args.slot, {DType::kI32}, {"tokens", "top_k"}, dims));
  TENON_TRY(match("offsets", args.offsets, {DType::kI32}, {"local_experts + 1"}, dims));
  TENON_TRY(match("token_of", args.token_of, {DType::kI32}, {"tokens * top_k"}, dims));
  TENON_TRY(check_table("weights", args.weights, args.logits));
  TENON_TRY(check_table("slot", args.slot, args.logits));
  TENON_TRY(check_table("offsets", args.offsets, args.logits));
  return check_table("token_of", args.token_of, args.logits);
}

}  // namespace

Status check(const Args& args) { return check_all(args).with("moe_route"); }

Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced) {
  TENON_TRY(check(args));
  return choose(kOp, &args, where, forced);
}

Status run(const Plan& plan, const Args& args, Stream& stream) {
  return launch(plan, &args, nullptr, stream);
}

Traffic traffic(const Args& args) {
  Traffic traffic;
  traffic.memory_bytes =
      static_cast<double>(args.logits.bytes()) + static_cast<double>(args.weights.bytes()) +
      static_cast<double>(args.slot.bytes()) + static_cast<double>(args.token_of.bytes()) +
      static_cast<double>(args.offsets.bytes());
  return traffic;
}

}  // namespace tenon::moe_route

#define TENON_OP_NAME moe_route
#define TENON_OP_VARIANTS "tenon/ops/moe_route/built_variants.def"
#include "tenon/device/op_table.inc"
