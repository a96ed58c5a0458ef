// Host side of attention: what is accepted, the choice of a variant, the launch.
// Not here: kernels (attention.cu).
#include "tenon/ops/attention/attention.h"

#include <algorithm>
#include <string>

#include "tenon/ops/attention/workspace.h"
#include "tenon/ops/common/normed_rows.h"

namespace tenon::attention {
namespace {

Status refuse(const std::string& why) { return Status::error(Code::kInvalidArgument, why); }

Status check_shapes(const Args& args, Dims& dims) {
  constexpr auto kBF16 = DType::kBF16;
  constexpr auto kI32 = DType::kI32;
  TENON_TRY(match("q", args.q, {kBF16}, {"tokens", "q_heads", "head_dim"}, dims));
  if (args.gate)
    TENON_TRY(match("gate", *args.gate, {kBF16}, {"tokens", "q_heads", "head_dim"}, dims));
  TENON_TRY(match("k_cache", args.k_cache, {kBF16},
                  {"blocks", "block_tokens", "kv_heads", "head_dim"}, dims));
  TENON_TRY(match("v_cache", args.v_cache, {kBF16},
                  {"blocks", "block_tokens", "kv_heads", "head_dim"}, dims));
  TENON_TRY(match("block_table", args.block_table, {kI32}, {"sequences", "max_blocks"}, dims));
  TENON_TRY(match("sequence_lengths", args.sequence_lengths, {kI32}, {"sequences"}, dims));
  dims["sequences + 1"] = dims["sequences"] + 1;
  TENON_TRY(match("sequence_starts", args.sequence_starts, {kI32}, {"sequences + 1"}, dims));
  Dims rows{{"rows", dims["tokens"]}, {"hidden", dims["q_heads"] * dims["head_dim"]}};
  return check_normed_rows(args.out, kBF16, args.q.device, rows);
}

Status check_heads(const NewHeads& heads, Dims& dims) {
  constexpr auto kBF16 = DType::kBF16;
  constexpr auto kI32 = DType::kI32;
  TENON_TRY(match("heads.k", heads.k, {kBF16}, {"tokens", "kv_heads", "head_dim"}, dims));
  TENON_TRY(match("heads.v", heads.v, {kBF16}, {"tokens", "kv_heads", "head_dim"}, dims));
  TENON_TRY(match("heads.q_norm", heads.q_norm, {kBF16, DType::kF32}, {"head_dim"}, dims));
  TENON_TRY(match("heads.k_norm", heads.k_norm, {heads.q_norm.dtype}, {"head_dim"}, dims));
  TENON_TRY(match("heads.positions", heads.positions, {kI32}, {"tokens"}, dims));
  TENON_TRY(
      match("heads.cos_sin", heads.cos_sin, {DType::kF32}, {"max_positions", "rotary_dim"}, dims));
  TENON_TRY(match("heads.slot_mapping", heads.slot_mapping, {kI32}, {"tokens"}, dims));
  for (const auto* rows : {&heads.k, &heads.v})
    if (!rows->rows_contiguous())
      return refuse("heads.k or heads.v is " + describe(*rows) + " with a strided last dimension");
  for (const auto* whole :
       {&heads.q_norm, &heads.k_norm, &heads.positions, &heads.cos_sin, &heads.slot_mapping})
    if (!whole->contiguous())
      return refuse(describe(*whole) + " is strided; of heads only k and v may be");
  const std::int64_t rotary_dim = dims["rotary_dim"];
  if (rotary_dim < 2 || rotary_dim > dims["head_dim"] || rotary_dim % 2 != 0)
    return refuse("heads.cos_sin has rotary_dim " + std::to_string(rotary_dim) +
                  "; even numbers up to head_dim are accepted");
  if (dims["max_positions"] < 1) return refuse("heads.cos_sin has no positions");
  return Status::ok();
}

Status check_layout(const Args& args) {
  if (args.gate && !args.gate->rows_contiguous())
    return refuse("gate is " + describe(*args.gate) + " with a strided last dimension; heads " +
                  "must be contiguous, token and head strides are free");
  if (args.heads ? !args.q.rows_contiguous() : !args.q.contiguous())
    return refuse("q is " + describe(args.q) +
                  " and strided; it must be contiguous, or with heads " + "in its last dimension");
  for (const auto* whole : {&args.k_cache, &args.v_cache, &args.block_table, &args.sequence_starts,
                            &args.sequence_lengths})
    if (!whole->contiguous())
      return refuse(describe(*whole) + " is strided; all views that are read, but gate, must be " +
                    "contiguous");
  return Status::ok();
}

}  // namespace

Status check(const Args& args) {
  Dims dims;
  TENON_TRY(check_shapes(args, dims), "attention.check");
  TENON_TRY(check_layout(args), "attention.check");
  if (args.heads) {
    TENON_TRY(check_heads(*args.heads, dims), "attention.check");
    if (!args.decode_only)
      return refuse(
          "attention.check: heads are given for a step that may have prompts; they are "
          "accepted where decode_only is said");
  }
  const std::int64_t head_dim = dims["head_dim"];
  if (head_dim < 8 || head_dim > kMaxHeadDim || head_dim % 8 != 0)
    return refuse("attention.check: head_dim is " + std::to_string(head_dim) +
                  "; multiples of 8 up to " + std::to_string(kMaxHeadDim) + " are accepted");
  const std::int64_t q_heads = dims["q_heads"], kv_heads = dims["kv_heads"];
  if (kv_heads < 1 || q_heads % kv_heads != 0)
    return refuse("attention.check: " + std::to_string(q_heads) + " q heads do not share " +
                  std::to_string(kv_heads) + " kv heads evenly");
  if (args.out.fp8 && head_dim % args.out.fp8->group != 0)
    return refuse("attention.check: out.fp8.group is " + std::to_string(args.out.fp8->group) +
                  "; groups that divide head_dim = " + std::to_string(head_dim) + " are accepted");
  if (dims["block_tokens"] < 1) return refuse("attention.check: block_tokens must be at least 1");
  if (args.workspace)
    TENON_TRY(match("workspace", *args.workspace, {DType::kU8}, {"bytes"}, dims),
              "attention.check");
  return Status::ok();
}

std::int64_t workspace_bytes(const Args& args, const PlanContext& where) {
  const std::int64_t kv_heads = args.k_cache.shape[2], group = args.q.shape[1] / kv_heads;
  if (where.properties.cuda_capability != 90 || args.q.shape[2] != kMaxHeadDim) return 0;
  const std::int64_t context = args.block_table.shape[1] * args.k_cache.shape[1];
  const std::int64_t partials = args.block_table.shape[0] * (context / kPartialTokens + 1);
  return std::min(partials * kv_heads, kMostSlots) *
         slot_bytes(rows_of_rank(static_cast<int>(group)));
}

Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced) {
  TENON_TRY(check(args));
  return choose(kOp, &args, where, forced);
}

Status run(const Plan& plan, const Args& args, Stream& stream) {
  return launch(plan, &args, nullptr, stream);
}

// The context lengths are on the device: every block that a sequence may hold is counted, half of
// it for the flops of a prefill as long as its context.
Traffic traffic(const Args& args) {
  const double rows = static_cast<double>(args.q.size());
  const double context = static_cast<double>(args.block_table.shape[1] * args.k_cache.shape[1]);
  const double kv = static_cast<double>(args.k_cache.shape[2] * args.k_cache.shape[3]);
  const double tokens = static_cast<double>(args.q.shape[0]);
  const double sequences = static_cast<double>(args.block_table.shape[0]);
  Traffic cost;
  cost.flops = 4.0 * rows * (tokens > sequences ? context / 2.0 : context);
  cost.memory_bytes =
      rows * (args.gate ? 4.0 : 2.0) + bytes_of(args.out) + 4.0 * sequences * context * kv;
  return cost;
}

}  // namespace tenon::attention

#define TENON_OP_NAME attention
#define TENON_OP_VARIANTS "tenon/ops/attention/built_variants.def"
#include "tenon/device/op_table.inc"
