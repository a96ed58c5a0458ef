#include "tenon/ops/make_weights/make_weights.h"

namespace tenon::make_weights {
namespace {

Status invalid(std::string message) {
  return Status::error(Code::kInvalidArgument, std::move(message));
}

Status check_all(const Args& args) {
  const DType made = args.made.dtype;
  if (made != DType::kBF16 && made != DType::kF32 && made != DType::kE4M3)
    return invalid("the made type is " + std::string(name(made)) +
                   "; accepted: bf16, f32 and e4m3");
  Dims dims;
  if (made == DType::kE4M3) {
    TENON_TRY(match("out", args.out, {DType::kE4M3}, {"rows", "columns"}, dims));
  } else {
    TENON_TRY(match("out", args.out, {DType::kBF16, DType::kF32}, {"rows", "columns"}, dims));
  }
  if (!args.out.contiguous())
    return invalid("out is " + describe(args.out) + " but must be contiguous");
  if (args.first_row < 0 || args.first_column < 0)
    return invalid("the slice begins at row " + std::to_string(args.first_row) + ", column " +
                   std::to_string(args.first_column) + "; accepted: 0 and more");
  if (args.first_column + args.out.shape[1] > args.width)
    return invalid("columns " + std::to_string(args.first_column) + " to " +
                   std::to_string(args.first_column + args.out.shape[1]) +
                   " are asked for; accepted are those of the tensor, up to " +
                   std::to_string(args.width));
  return Status::ok();
}

}  // namespace

Status check(const Args& args) { return check_all(args).with("make_weights"); }

Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced) {
  TENON_TRY(check(args));
  return choose(kOp, &args, where, forced);
}

Status run(const Plan& plan, const Args& args, Stream& stream) {
  return launch(plan, &args, nullptr, stream);
}

Traffic traffic(const Args& args) {
  Traffic traffic;
  traffic.memory_bytes = static_cast<double>(args.out.bytes());
  return traffic;
}

}  // namespace tenon::make_weights

#define TENON_OP_NAME make_weights
#define TENON_OP_VARIANTS "tenon/ops/make_weights/built_variants.def"
#include "tenon/device/op_table.inc"
