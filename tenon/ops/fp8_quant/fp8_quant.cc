#include "tenon/ops/fp8_quant/fp8_quant.h"

#include "tenon/ops/common/normed_rows.h"

namespace tenon::fp8_quant {
namespace {

// What 32-bit row and element numbers of the kernel allow with room to spare.
constexpr std::int64_t kMaxRows = 1 << 24, kMaxWidth = 1 << 20;

}  // namespace

Status check(const Args& args) {
  const Device device = args.in.device;
  const DType dtype = args.in.dtype;
  Dims dims;
  TENON_TRY(match("in", args.in, {DType::kBF16, DType::kF16}, {"rows", "in_width"}, dims),
            "fp8_quant");
  TENON_TRY(check_wide_rows("in", args.in, device), "fp8_quant");
  TENON_TRY(check_normed_rows(args.out, dtype, device, dims), "fp8_quant");
  TENON_TRY(check_extents(dims, kMaxRows, kMaxWidth), "fp8_quant");
  const std::int64_t factor = args.prologue == Prologue::kSiluMul ? 2 : 1;
  if (args.in.shape[1] != factor * dims.at("hidden"))
    return Status::error(Code::kInvalidArgument,
                         "fp8_quant: in is " + describe(args.in) + " but must be [rows, " +
                             std::to_string(factor) +
                             " * width] with width = " + std::to_string(dims.at("hidden")));
  if (args.prologue == Prologue::kNone && args.out.bf16)
    return Status::error(Code::kInvalidArgument,
                         "fp8_quant: out.bf16 is wanted without a prologue, but it would be a copy "
                         "of in; it is accepted with silu_mul only");
  return Status::ok();
}

Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced) {
  TENON_TRY(check(args));
  return choose(kOp, &args, where, forced);
}

Status run(const Plan& plan, const Args& args, Stream& stream) {
  return launch(plan, &args, nullptr, stream);
}

Traffic traffic(const Args& args) {
  Traffic cost;
  cost.flops = static_cast<double>(args.in.size()) * (args.prologue == Prologue::kSiluMul ? 8 : 3);
  cost.memory_bytes = static_cast<double>(args.in.bytes()) + bytes_of(args.out);
  return cost;
}

}  // namespace tenon::fp8_quant

#define TENON_OP_NAME fp8_quant
#define TENON_OP_VARIANTS "tenon/ops/fp8_quant/built_variants.def"
#include "tenon/device/op_table.inc"
