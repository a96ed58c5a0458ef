// Host side of rope: what is accepted, the choice of a variant, the launch.
// Not here: kernels (rope.cu).
#include "tenon/ops/rope/rope.h"

#include <string>

namespace tenon::rope {
namespace {

Status refuse(const std::string& why) { return Status::error(Code::kInvalidArgument, why); }

Status check_shapes(const Args& args, Dims& dims) {
  constexpr auto kBF16 = DType::kBF16;
  TENON_TRY(match("q", args.q, {kBF16}, {"tokens", "q_heads", "head_dim"}, dims));
  TENON_TRY(match("k", args.k, {kBF16}, {"tokens", "kv_heads", "head_dim"}, dims));
  TENON_TRY(match("v", args.v, {kBF16}, {"tokens", "kv_heads", "head_dim"}, dims));
  TENON_TRY(match("q_norm", args.q_norm, {kBF16, DType::kF32}, {"head_dim"}, dims));
  TENON_TRY(match("k_norm", args.k_norm, {args.q_norm.dtype}, {"head_dim"}, dims));
  TENON_TRY(match("positions", args.positions, {DType::kI32}, {"tokens"}, dims));
  TENON_TRY(match("cos_sin", args.cos_sin, {DType::kF32}, {"max_positions", "rotary_dim"}, dims));
  TENON_TRY(match("slot_mapping", args.slot_mapping, {DType::kI32}, {"tokens"}, dims));
  TENON_TRY(match("q_out", args.q_out, {kBF16}, {"tokens", "q_heads", "head_dim"}, dims));
  TENON_TRY(match("k_cache", args.k_cache, {kBF16},
                  {"blocks", "block_tokens", "kv_heads", "head_dim"}, dims));
  return match("v_cache", args.v_cache, {kBF16}, {"blocks", "block_tokens", "kv_heads", "head_dim"},
               dims);
}

Status check_layout(const Args& args) {
  for (const auto* rows : {&args.q, &args.k, &args.v})
    if (!rows->rows_contiguous())
      return refuse("q, k or v is " + describe(*rows) + " with a strided last dimension; heads " +
                    "must be contiguous, token and head strides are free");
  for (const auto* whole : {&args.q_norm, &args.k_norm, &args.positions, &args.cos_sin,
                            &args.slot_mapping, &args.q_out, &args.k_cache, &args.v_cache})
    if (!whole->contiguous())
      return refuse(describe(*whole) + " is strided; q_norm, k_norm, positions, cos_sin, " +
                    "slot_mapping, q_out and the caches must be contiguous");
  return Status::ok();
}

}  // namespace

Status check(const Args& args) {
  Dims dims;
  TENON_TRY(check_shapes(args, dims), "rope.check");
  TENON_TRY(check_layout(args), "rope.check");
  const std::int64_t head_dim = dims["head_dim"], rotary_dim = dims["rotary_dim"];
  if (head_dim < 8 || head_dim > kMaxHeadDim || head_dim % 8 != 0)
    return refuse("rope.check: head_dim is " + std::to_string(head_dim) +
                  "; multiples of 8 up to " + std::to_string(kMaxHeadDim) + " are accepted");
  if (rotary_dim < 2 || rotary_dim > head_dim || rotary_dim % 2 != 0)
    return refuse("rope.check: cos_sin has rotary_dim " + std::to_string(rotary_dim) +
                  "; even numbers up to head_dim = " + std::to_string(head_dim) + " are accepted");
  if (dims["max_positions"] < 1) return refuse("rope.check: cos_sin has no positions");
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
  const double q = static_cast<double>(args.q.size()), kv = static_cast<double>(args.k.size());
  const double rotary = static_cast<double>(args.positions.size() * args.cos_sin.shape[1]);
  Traffic cost;
  cost.flops = 6.0 * (q + kv);
  cost.memory_bytes = 4.0 * (q + 2.0 * kv) + 4.0 * rotary;
  return cost;
}

}  // namespace tenon::rope

#define TENON_OP_NAME rope
#define TENON_OP_VARIANTS "tenon/ops/rope/built_variants.def"
#include "tenon/device/op_table.inc"
