#include "tenon/ops/fp8_gemm/fp8_gemm.h"

#include "tenon/ops/common/gemm_operands.h"

namespace tenon::fp8_gemm {
namespace {

constexpr std::int64_t kGroup = 128;

Status invalid(std::string message) {
  return Status::error(Code::kInvalidArgument, std::move(message));
}

GemmOperands operands(const Args& args) {
  return {.x = args.x.data,
          .weight = args.weight,
          .out = args.out,
          .row_index = std::nullopt,
          .offsets = args.offsets,
          .row_of = args.row_of};
}

Status check_x_scale(const Args& args) {
  const QuantView& x = args.x;
  if (x.group != kGroup)
    return invalid("x has groups of " + std::to_string(x.group) + " elements but must have 128");
  if (x.layout == ScaleLayout::kUe8m0Packed)
    return invalid("x.scale has the layout ue8m0_packed; accepted are row and mn_major");
  const auto [first, second] = scale_shape(x.layout, x.data.shape[0], x.data.shape[1], x.group);
  Dims none;
  TENON_TRY(match("x.scale", x.scale, {DType::kF32},
                  {std::to_string(first), std::to_string(second)}, none));
  if (!x.scale.rows_contiguous())
    return invalid("x.scale is " + describe(x.scale) +
                   " but its last dimension must have stride 1");
  return check_device("x.scale", x.scale, args.out);
}

Status check_weight_scale(const Args& args, Dims& dims) {
  const std::string n_blocks = std::to_string((dims["n"] + kGroup - 1) / kGroup);
  const std::string k_blocks = std::to_string(dims["k"] / kGroup);
  if (args.weight.num_dims == 3) {
    TENON_TRY(match("weight_scale", args.weight_scale, {DType::kF32},
                    {"experts", n_blocks, k_blocks}, dims));
  } else {
    TENON_TRY(match("weight_scale", args.weight_scale, {DType::kF32}, {n_blocks, k_blocks}, dims));
  }
  if (!args.weight_scale.rows_contiguous())
    return invalid("weight_scale is " + describe(args.weight_scale) +
                   " but its last dimension must have stride 1");
  return check_device("weight_scale", args.weight_scale, args.out);
}

Status check_activated(const Args& args, Dims& dims) {
  const QuantView& made = *args.activated;
  if (args.out.dtype != DType::kBF16)
    return invalid("activated was given, but out is " + describe(args.out) +
                   "; gate and up are rounded to bf16");
  if (dims["n"] % (2 * kGroup) != 0)
    return invalid("weight is " + describe(args.weight) +
                   " but with activated, n must be a multiple of 256");
  if (made.group != kGroup || made.layout != ScaleLayout::kRow)
    return invalid("activated must have groups of 128 elements and scales of the layout row");
  dims["width"] = dims["n"] / 2;
  TENON_TRY(match("activated", made.data, {DType::kE4M3}, {"rows", "width"}, dims));
  TENON_TRY(match("activated.scale", made.scale, {DType::kF32},
                  {"rows", std::to_string(dims["width"] / kGroup)}, dims));
  if (!made.data.rows_contiguous() || reinterpret_cast<std::uintptr_t>(made.data.data) % 16 != 0 ||
      (made.data.shape[0] > 1 && made.data.stride[0] % 16 != 0))
    return invalid("activated is " + describe(made.data) +
                   " but its rows must be contiguous and begin at multiples of 16 bytes");
  if (!made.scale.contiguous())
    return invalid("activated.scale is " + describe(made.scale) + " but must be contiguous");
  TENON_TRY(check_device("activated", made.data, args.out));
  return check_device("activated.scale", made.scale, args.out);
}

GemmOperands operands(const Beside& beside) {
  return {.x = beside.x,
          .weight = beside.weight,
          .out = beside.out,
          .row_index = std::nullopt,
          .offsets = std::nullopt,
          .row_of = std::nullopt};
}

Status check_beside(const Args& args) {
  const Beside& beside = *args.beside;
  Dims dims;
  if (args.weight.num_dims == 3 || args.activated)
    return invalid("a product beside was given; it is for one matrix [n, k] without activation");
  TENON_TRY(match("x", beside.x, {DType::kBF16}, {"tokens", "k"}, dims).with("beside"));
  TENON_TRY(match("weight", beside.weight, {DType::kBF16}, {"n", "k"}, dims).with("beside"));
  TENON_TRY(check_operands(operands(beside), dims).with("beside"));
  if (dims["k"] % 8 != 0)
    return invalid("beside: x is " + describe(beside.x) + " but k must be a multiple of 8");
  if (beside.out.shape[0] != args.out.shape[0])
    return invalid("beside: out is " + describe(beside.out) + " but out is " + describe(args.out) +
                   "; they must have the same number of rows");
  return check_device("beside: out", beside.out, args.out);
}

Status check_all(const Args& args) {
  Dims dims;
  TENON_TRY(match("x", args.x.data, {DType::kE4M3}, {"tokens", "k"}, dims));
  if (args.weight.dtype != DType::kE4M3)
    return invalid("weight is " + describe(args.weight) + " but must be of type e4m3fn");
  TENON_TRY(check_operands(operands(args), dims));
  if (dims["k"] % kGroup != 0)
    return invalid("x is " + describe(args.x.data) + " but k must be a multiple of 128");
  TENON_TRY(check_x_scale(args));
  TENON_TRY(check_weight_scale(args, dims));
  if (args.activated) TENON_TRY(check_activated(args, dims));
  return args.beside ? check_beside(args) : Status::ok();
}

}  // namespace

Status check(const Args& args) { return check_all(args).with("fp8_gemm"); }

Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced) {
  TENON_TRY(check(args));
  return choose(kOp, &args, where, forced);
}

Status run(const Plan& plan, const Args& args, Stream& stream) {
  return launch(plan, &args, nullptr, stream);
}

Traffic traffic(const Args& args) {
  Traffic traffic = operand_traffic(operands(args));
  traffic.memory_bytes += static_cast<double>(args.x.scale.bytes());
  if (args.activated)
    traffic.memory_bytes += static_cast<double>(args.activated->data.bytes()) +
                            static_cast<double>(args.activated->scale.bytes()) -
                            static_cast<double>(args.out.bytes());
  if (args.beside) {
    const Traffic other = operand_traffic(operands(*args.beside));
    traffic.flops += other.flops;
    traffic.memory_bytes += other.memory_bytes;
  }
  return traffic;
}

}  // namespace tenon::fp8_gemm

#define TENON_OP_NAME fp8_gemm
#define TENON_OP_VARIANTS "tenon/ops/fp8_gemm/built_variants.def"
#include "tenon/device/op_table.inc"
