#include "tenon/ops/moe_experts/moe_experts.h"

#include <algorithm>

namespace tenon::moe_experts {
namespace {

constexpr std::int64_t kGroup = 128;

Status invalid(std::string message) {
  return Status::error(Code::kInvalidArgument, std::move(message));
}

// On the device of the output, and elements of a row beside each other, every row at a multiple of
// `aligned` bytes.
Status check_layout(std::string_view what, const TensorView& tensor, const TensorView& out,
                    std::int64_t aligned) {
  const std::string found = std::string(what) + " is " + describe(tensor);
  if (tensor.device != out.device)
    return invalid(found + " but out is " + describe(out) + "; all must lie on one device");
  if (!tensor.rows_contiguous())
    return invalid(found + " but its last dimension must have stride 1");
  const auto size = static_cast<std::int64_t>(size_of(tensor.dtype));
  bool fits = reinterpret_cast<std::uintptr_t>(tensor.data) % aligned == 0;
  for (int i = 0; i + 1 < tensor.num_dims; ++i)
    if (tensor.shape[static_cast<std::size_t>(i)] > 1)
      fits = fits && tensor.stride[static_cast<std::size_t>(i)] * size % aligned == 0;
  if (!fits)
    return invalid(found + " but every row must begin at a multiple of " + std::to_string(aligned) +
                   " bytes");
  return Status::ok();
}
Status check_table(std::string_view what, const TensorView& tensor, const TensorView& out) {
  if (!tensor.contiguous())
    return invalid(std::string(what) + " is " + describe(tensor) + " but must be contiguous");
  if (reinterpret_cast<std::uintptr_t>(tensor.data) % 16 != 0)
    return invalid(std::string(what) + " is " + describe(tensor) +
                   " but must begin at a multiple of 16 bytes");
  return check_layout(what, tensor, out, 4);
}

Status check_matrix(const std::string& what, const TensorView& weight, const TensorView& scale,
                    std::initializer_list<std::string_view> shape,
                    std::initializer_list<std::string_view> scale_shape, const TensorView& out,
                    Dims& dims) {
  TENON_TRY(match(what, weight, {DType::kE4M3}, shape, dims));
  TENON_TRY(match(what + "_scale", scale, {DType::kF32}, scale_shape, dims));
  TENON_TRY(check_layout(what, weight, out, 16));
  return check_layout(what + "_scale", scale, out, 4);
}

Status check_matrices(const Args& args, Dims& dims) {
  const TensorView& out = args.out.addend;
  const Matrices& routed = args.routed;
  TENON_TRY(match("down", routed.down, {"experts", "hidden", "width"}, dims));
  const std::int64_t width = dims["width"], hidden = dims["hidden"];
  if (hidden < kGroup || hidden % kGroup != 0 || width < kGroup || width % kGroup != 0)
    return invalid("down is " + describe(routed.down) +
                   " but hidden and width must be multiples of 128");
  dims["2 * width"] = 2 * width;
  dims["2 * width / 128"] = 2 * width / kGroup;
  dims["width / 128"] = width / kGroup;
  dims["hidden / 128"] = hidden / kGroup;
  TENON_TRY(check_matrix("gate_up", routed.gate_up, routed.gate_up_scale,
                         {"experts", "2 * width", "hidden"},
                         {"experts", "2 * width / 128", "hidden / 128"}, out, dims));
  TENON_TRY(check_matrix("down", routed.down, routed.down_scale, {"experts", "hidden", "width"},
                         {"experts", "hidden / 128", "width / 128"}, out, dims));
  if (!args.shared) return Status::ok();
  TENON_TRY(check_matrix("shared gate_up", args.shared->gate_up, args.shared->gate_up_scale,
                         {"2 * width", "hidden"}, {"2 * width / 128", "hidden / 128"}, out, dims));
  return check_matrix("shared down", args.shared->down, args.shared->down_scale,
                      {"hidden", "width"}, {"hidden / 128", "width / 128"}, out, dims);
}

Status check_x(const Args& args, Dims& dims) {
  const QuantView& x = args.x;
  TENON_TRY(match("x", x.data, {DType::kE4M3}, {"tokens", "hidden"}, dims));
  if (x.group != kGroup)
    return invalid("x has groups of " + std::to_string(x.group) + " elements but must have 128");
  if (x.layout == ScaleLayout::kUe8m0Packed)
    return invalid("x.scale has the layout ue8m0_packed; accepted are row and mn_major");
  const auto [first, second] = scale_shape(x.layout, x.data.shape[0], x.data.shape[1], x.group);
  Dims none;
  TENON_TRY(match("x.scale", x.scale, {DType::kF32},
                  {std::to_string(first), std::to_string(second)}, none));
  TENON_TRY(check_layout("x", x.data, args.out.addend, 16));
  return check_layout("x.scale", x.scale, args.out.addend, 4);
}

Status check_logits(const Args& args, Dims& dims) {
  const TensorView& logits = *args.logits;
  TENON_TRY(match("logits", logits, {DType::kF32}, {"tokens", "all experts"}, dims));
  const std::int64_t all = dims["all experts"], own = dims["experts"];
  if (args.first_expert < 0 || args.first_expert + own > all)
    return invalid("this rank's experts are [" + std::to_string(args.first_expert) + ", " +
                   std::to_string(args.first_expert + own) + ") but must be a part of [0, " +
                   std::to_string(all) + ")");
  if (dims["top_k"] > all)
    return invalid("slot is " + describe(args.slot) + " but there are " + std::to_string(all) +
                   " experts to choose from");
  return check_layout("logits", logits, args.out.addend, 4);
}

Status check_all(const Args& args) {
  const TensorView& out = args.out.addend;
  Dims dims;
  TENON_TRY(match("out", out, {DType::kBF16}, {"tokens", "hidden"}, dims));
  TENON_TRY(match("weights", args.weights, {DType::kF32}, {"tokens", "top_k"}, dims));
  TENON_TRY(match("slot", args.slot, {DType::kI32}, {"tokens", "top_k"}, dims));
  TENON_TRY(check_matrices(args, dims));
  TENON_TRY(check_x(args, dims));
  if (args.logits) TENON_TRY(check_logits(args, dims));
  dims["experts + 1"] = dims["experts"] + 1;
  dims["tokens * top_k"] = dims["tokens"] * dims["top_k"];
  dims["tokens * (top_k + 1)"] = dims["tokens"] * (dims["top_k"] + 1);
  TENON_TRY(match("offsets", args.offsets, {DType::kI32}, {"experts + 1"}, dims));
  TENON_TRY(match("token_of", args.token_of, {DType::kI32}, {"tokens * top_k"}, dims));
  TENON_TRY(match("shared_gate", args.shared_gate, {DType::kF32}, {"tokens", "1"}, dims));
  TENON_TRY(match("activation", args.activation, {DType::kBF16}, {"tokens * (top_k + 1)", "width"},
                  dims));
  for (const auto& [what, table] : {std::pair{"weights", &args.weights},
                                    {"slot", &args.slot},
                                    {"offsets", &args.offsets},
                                    {"token_of", &args.token_of}})
    TENON_TRY(check_table(what, *table, out));
  TENON_TRY(check_layout("shared_gate", args.shared_gate, out, 4));
  TENON_TRY(check_layout("activation", args.activation, out, 16));
  return check_layout("out", out, out, 16);
}

}  // namespace

Status check(const Args& args) { return check_all(args).with("moe_experts"); }

Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced) {
  TENON_TRY(check(args));
  return choose(kOp, &args, where, forced);
}

Status run(const Plan& plan, const Args& args, Stream& stream) {
  return launch(plan, &args, nullptr, stream);
}

Traffic traffic(const Args& args) {
  const auto tokens = static_cast<double>(args.out.addend.shape[0]);
  const auto hidden = static_cast<double>(args.out.addend.shape[1]);
  const auto width = static_cast<double>(args.activation.shape[1]);
  const auto pairs = static_cast<double>(args.slot.size());
  const double shared = args.shared ? 1.0 : 0.0;
  const double matrices = std::min(pairs, static_cast<double>(args.routed.down.shape[0])) + shared;
  Traffic traffic;
  traffic.flops = 6.0 * (pairs + shared * tokens) * hidden * width;
  traffic.memory_bytes = 3.0 * matrices * hidden * width + tokens * hidden * 3.0 + 8.0 * pairs;
  if (args.logits) traffic.memory_bytes += static_cast<double>(args.logits->bytes());
  return traffic;
}

}  // namespace tenon::moe_experts

#define TENON_OP_NAME moe_experts
#define TENON_OP_VARIANTS "tenon/ops/moe_experts/built_variants.def"
#include "tenon/device/op_table.inc"
