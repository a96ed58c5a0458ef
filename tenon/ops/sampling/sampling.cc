#include "tenon/ops/sampling/sampling.h"

#include <limits>

namespace tenon::sampling {
namespace {

Status invalid(std::string message) {
  return Status::error(Code::kInvalidArgument, std::move(message));
}

Status check_rows(std::string_view what, const TensorView& tensor, DType dtype, const Args& args,
                  Dims& dims) {
  TENON_TRY(match(what, tensor, {dtype}, {"rows"}, dims));
  const std::string found = std::string(what) + " is " + describe(tensor);
  if (!tensor.contiguous()) return invalid(found + " but must be contiguous");
  if (tensor.device != args.logits.device)
    return invalid(found + " but logits is " + describe(args.logits) +
                   "; all must lie on one device");
  return Status::ok();
}

Status check_all(const Args& args) {
  Dims dims;
  TENON_TRY(match("logits", args.logits, {DType::kF32}, {"slices", "rows", "width"}, dims));
  if (!args.logits.rows_contiguous())
    return invalid("logits is " + describe(args.logits) +
                   " but its last dimension must have stride 1");
  const std::int64_t ids = dims["slices"] * dims["width"];
  if (ids > std::numeric_limits<std::int32_t>::max())
    return invalid("logits is " + describe(args.logits) + " but an id must fit in 31 bits");
  if (args.num_tokens < 1 || args.num_tokens > ids)
    return invalid("num_tokens is " + std::to_string(args.num_tokens) + " but must be 1 to " +
                   std::to_string(ids) + " for logits " + describe(args.logits));
  TENON_TRY(check_rows("temperature", args.temperature, DType::kF32, args, dims));
  TENON_TRY(check_rows("top_k", args.top_k, DType::kI32, args, dims));
  TENON_TRY(check_rows("top_p", args.top_p, DType::kF32, args, dims));
  TENON_TRY(check_rows("seed", args.seed, DType::kI64, args, dims));
  TENON_TRY(check_rows("position", args.position, DType::kI32, args, dims));
  return check_rows("out", args.out, DType::kI32, args, dims);
}

}  // namespace

Status check(const Args& args) { return check_all(args).with("sampling"); }

Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced) {
  TENON_TRY(check(args));
  return choose(kOp, &args, where, forced);
}

Status run(const Plan& plan, const Args& args, Stream& stream) {
  return launch(plan, &args, nullptr, stream);
}

Traffic traffic(const Args& args) {
  Traffic traffic;
  traffic.memory_bytes = static_cast<double>(args.logits.bytes()) +
                         28.0 * static_cast<double>(args.out.shape[0]);  // the rows' parameters
  return traffic;
}

}  // namespace tenon::sampling

#define TENON_OP_NAME sampling
#define TENON_OP_VARIANTS "tenon/ops/sampling/built_variants.def"
#include "tenon/device/op_table.inc"
