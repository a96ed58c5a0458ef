#include "tenon/ops/moe_combine/moe_combine.h"

namespace tenon::moe_combine {
namespace {

Status invalid(std::string message) {
  return Status::error(Code::kInvalidArgument, std::move(message));
}

// Rows are read and written in units of 16 bytes.
Status check_rows(std::string_view what, const TensorView& tensor, const TensorView& out) {
  const std::string found = std::string(what) + " is " + describe(tensor);
  if (!tensor.rows_contiguous())
    return invalid(found + " but its last dimension must have stride 1");
  if (reinterpret_cast<std::uintptr_t>(tensor.data) % 16 != 0 ||
      (tensor.shape[0] > 1 && tensor.stride[0] % 8 != 0))
    return invalid(found + " but every row must begin at a multiple of 16 bytes");
  if (tensor.device != out.device)
    return invalid(found + " but out is " + describe(out) + "; all must lie on one device");
  return Status::ok();
}

Status check_table(std::string_view what, const TensorView& tensor, const TensorView& out) {
  const std::string found = std::string(what) + " is " + describe(tensor);
  if (!tensor.contiguous()) return invalid(found + " but must be contiguous");
  if (tensor.device != out.device)
    return invalid(found + " but out is " + describe(out) + "; all must lie on one device");
  return Status::ok();
}

Status check_all(const Args& args) {
  const TensorView& out = args.out.addend;
  Dims dims;
  TENON_TRY(match("out", out, {DType::kBF16}, {"tokens", "hidden"}, dims));
  TENON_TRY(match("routed", args.routed, {DType::kBF16}, {"pairs", "hidden"}, dims));
  TENON_TRY(match("weights", args.weights, {DType::kF32}, {"tokens", "top_k"}, dims));
  TENON_TRY(match("slot", args.slot, {DType::kI32}, {"tokens", "top_k"}, dims));
  TENON_TRY(match("shared", args.shared, {DType::kBF16}, {"tokens", "hidden"}, dims));
  TENON_TRY(
      match("shared_gate", args.shared_gate, {DType::kBF16, DType::kF32}, {"tokens", "1"}, dims));
  if (dims["hidden"] < 8 || dims["hidden"] % 8 != 0)
    return invalid("out is " + describe(out) + " but hidden must be a multiple of 8");
  TENON_TRY(check_rows("out", out, out));
  TENON_TRY(check_rows("routed", args.routed, out));
  TENON_TRY(check_rows("shared", args.shared, out));
  TENON_TRY(check_table("weights", args.weights, out));
  TENON_TRY(check_table("slot", args.slot, out));
  if (args.shared_gate.device != out.device)
    return invalid("shared_gate is " + describe(args.shared_gate) + " but out is " + describe(out) +
                   "; all must lie on one device");
  return Status::ok();
}

}  // namespace

Status check(const Args& args) { return check_all(args).with("moe_combine"); }

Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced) {
  TENON_TRY(check(args));
  return choose(kOp, &args, where, forced);
}

Status run(const Plan& plan, const Args& args, Stream& stream) {
  return launch(plan, &args, nullptr, stream);
}

Traffic traffic(const Args& args) {
  const auto row_bytes = 2.0 * static_cast<double>(args.out.addend.shape[1]);
  const auto pairs = static_cast<double>(args.slot.size());
  const auto tokens = static_cast<double>(args.out.addend.shape[0]);
  Traffic traffic;
  traffic.flops = (pairs + tokens) * row_bytes;  // a multiplication and an addition per element
  traffic.memory_bytes = (pairs + 2.0 * tokens) * row_bytes + 8.0 * pairs;
  return traffic;
}

}  // namespace tenon::moe_combine

#define TENON_OP_NAME moe_combine
#define TENON_OP_VARIANTS "tenon/ops/moe_combine/built_variants.def"
#include "tenon/device/op_table.inc"
