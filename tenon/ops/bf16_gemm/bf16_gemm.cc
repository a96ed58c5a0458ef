#include "tenon/ops/bf16_gemm/bf16_gemm.h"

#include "tenon/ops/common/gemm_operands.h"

namespace tenon::bf16_gemm {
namespace {

GemmOperands operands(const Args& args) {
  return {.x = args.x,
          .weight = args.weight,
          .out = args.out,
          .row_index = args.row_index,
          .offsets = args.offsets,
          .row_of = args.row_of};
}

Status check_all(const Args& args) {
  Dims dims;
  TENON_TRY(match("x", args.x, {DType::kBF16}, {"tokens", "k"}, dims));
  if (args.weight.dtype != DType::kBF16)
    return Status::error(Code::kInvalidArgument,
                         "weight is " + describe(args.weight) + " but must be of type bf16");
  TENON_TRY(check_operands(operands(args), dims));
  if (dims["k"] % 8 != 0)
    return Status::error(Code::kInvalidArgument,
                         "x is " + describe(args.x) + " but k must be a multiple of 8");
  return Status::ok();
}

}  // namespace

Status check(const Args& args) { return check_all(args).with("bf16_gemm"); }

Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced) {
  TENON_TRY(check(args));
  return choose(kOp, &args, where, forced);
}

Status run(const Plan& plan, const Args& args, Stream& stream) {
  return launch(plan, &args, nullptr, stream);
}

Traffic traffic(const Args& args) { return operand_traffic(operands(args)); }

}  // namespace tenon::bf16_gemm

#define TENON_OP_NAME bf16_gemm
#define TENON_OP_VARIANTS "tenon/ops/bf16_gemm/built_variants.def"
#include "tenon/device/op_table.inc"
