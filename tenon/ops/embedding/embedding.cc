#include "tenon/ops/embedding/embedding.h"

namespace tenon::embedding {
namespace {

Status invalid(std::string message) {
  return Status::error(Code::kInvalidArgument, std::move(message));
}

// Rows are moved in units of 16 bytes.
Status check_rows(std::string_view what, const TensorView& tensor) {
  const std::string found = std::string(what) + " is " + describe(tensor);
  if (!tensor.rows_contiguous())
    return invalid(found + " but its last dimension must have stride 1");
  if (reinterpret_cast<std::uintptr_t>(tensor.data) % 16 != 0 ||
      (tensor.shape[0] > 1 && tensor.stride[0] % 8 != 0))
    return invalid(found + " but every row must begin at a multiple of 16 bytes");
  return Status::ok();
}

Status check_all(const Args& args) {
  const TensorView& out = args.out.addend;
  Dims dims;
  TENON_TRY(match("ids", args.ids, {DType::kI32}, {"tokens"}, dims));
  TENON_TRY(match("table", args.table, {DType::kBF16, DType::kF16}, {"vocab", "hidden"}, dims));
  TENON_TRY(match("out", out, {args.table.dtype}, {"tokens", "hidden"}, dims));
  if (dims["hidden"] < 8 || dims["hidden"] % 8 != 0)
    return invalid("table is " + describe(args.table) + " but hidden must be a multiple of 8");
  if (args.vocab_begin < 0)
    return invalid("vocab_begin is " + std::to_string(args.vocab_begin) +
                   " but must be at least 0");
  if (!args.ids.contiguous())
    return invalid("ids is " + describe(args.ids) + " but must be contiguous");
  if (args.ids.device != out.device || args.table.device != out.device)
    return invalid("ids is " + describe(args.ids) + ", table is " + describe(args.table) +
                   " and out is " + describe(out) + "; all must lie on one device");
  TENON_TRY(check_rows("table", args.table));
  return check_rows("out", out);
}

}  // namespace

Status check(const Args& args) { return check_all(args).with("embedding"); }

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
      2.0 * static_cast<double>(args.out.addend.bytes()) + static_cast<double>(args.ids.bytes());
  return traffic;
}

}  // namespace tenon::embedding

#define TENON_OP_NAME embedding
#define TENON_OP_VARIANTS "tenon/ops/embedding/built_variants.def"
#include "tenon/device/op_table.inc"
