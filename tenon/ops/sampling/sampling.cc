#include "tenon/ops/sampling/sampling.h"

#include <limits>

namespace tenon::sampling {
namespace {

Status invalid(std::string message) {
  return Status::error(Code::kInvalidArgument, std::move(message));
}

Status check_tensor(std::string_view what, const TensorView& tensor, DType dtype,
                    std::initializer_list<std::string_view> shape, const Args& args, Dims& dims) {
  TENON_TRY(match(what, tensor, {dtype}, shape, dims));
  const std::string found = std::string(what) + " is " + describe(tensor);
  if (!tensor.contiguous()) return invalid(found + " but must be contiguous");
  if (tensor.device != args.logits.device)
    return invalid(found + " but logits is " + describe(args.logits) +
                   "; all must lie on one device");
  return Status::ok();
}

Status check_rows(std::string_view what, const TensorView& tensor, DType dtype, const Args& args,
                  Dims& dims) {
  return check_tensor(what, tensor, dtype, {"rows"}, args, dims);
}

Status check_edits(const Args& args, Dims& dims) {
  const Edits& edits = *args.edits;
  dims["words"] = 3;
  dims["begins"] = args.logits.shape[1] + 1;
  TENON_TRY(check_tensor("edits", edits.list, DType::kI32, {"edits", "words"}, args, dims));
  TENON_TRY(check_tensor("begins", edits.begins, DType::kI32, {"begins"}, args, dims));
  TENON_TRY(check_tensor("saved", edits.saved, DType::kF32, {"edits"}, args, dims));
  TENON_TRY(check_rows("repetition", edits.repetition, DType::kF32, args, dims));
  TENON_TRY(check_rows("frequency", edits.frequency, DType::kF32, args, dims));
  return check_rows("presence", edits.presence, DType::kF32, args, dims);
}

Status check_mask(const Args& args, Dims& dims) {
  const Mask& mask = *args.mask;
  TENON_TRY(
      check_tensor("allowed", mask.allowed, DType::kI32, {"masks", "mask words"}, args, dims));
  if (std::int64_t{32} * mask.allowed.shape[1] < args.num_tokens)
    return invalid("allowed is " + describe(mask.allowed) + " but num_tokens is " +
                   std::to_string(args.num_tokens) + ", for which a mask has at least " +
                   std::to_string((args.num_tokens + 31) / 32) + " words");
  return check_rows("which", mask.which, DType::kI32, args, dims);
}

Status check_report(const Args& args, Dims& dims) {
  const Report& report = *args.report;
  dims["likely"] = kMaxLikely;
  TENON_TRY(check_rows("wanted", report.wanted, DType::kI32, args, dims));
  TENON_TRY(check_rows("drawn", report.drawn, DType::kF32, args, dims));
  TENON_TRY(check_rows("largest", report.largest, DType::kF32, args, dims));
  TENON_TRY(check_rows("mass", report.mass, DType::kI64, args, dims));
  if (report.given) TENON_TRY(check_rows("given", *report.given, DType::kI32, args, dims));
  if (report.before) TENON_TRY(check_rows("before", *report.before, DType::kI32, args, dims));
  TENON_TRY(check_tensor("ids", report.ids, DType::kI32, {"rows", "likely"}, args, dims));
  return check_tensor("listed logits", report.logits, DType::kF32, {"rows", "likely"}, args, dims);
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
  TENON_TRY(check_rows("out", args.out, DType::kI32, args, dims));
  if (args.min_p) TENON_TRY(check_rows("min_p", *args.min_p, DType::kF32, args, dims));
  if (args.edits) TENON_TRY(check_edits(args, dims));
  if (args.mask) TENON_TRY(check_mask(args, dims));
  return args.report ? check_report(args, dims) : Status::ok();
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
