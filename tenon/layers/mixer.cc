// The two token mixers: attention over the paged cache, Gated DeltaNet over its state.
#include <algorithm>

#include "tenon/layers/layers.h"
#include "tenon/ops/attention/attention.h"
#include "tenon/ops/gated_delta_net/gated_delta_net.h"
#include "tenon/ops/rope/rope.h"

namespace tenon {
namespace {

// Columns [begin, begin + count) of rows.
TensorView columns(const TensorView& rows, std::int64_t begin, std::int64_t count) {
  TensorView part = rows;
  part.data =
      static_cast<std::byte*>(rows.data) + static_cast<std::size_t>(begin) * size_of(rows.dtype);
  part.shape[1] = count;
  return part;
}

// Columns seen as heads [rows, heads, head_dim] that lie `stride` elements apart.
TensorView heads(const TensorView& rows, std::int64_t begin, std::int64_t count,
                 std::int64_t head_dim, std::int64_t stride) {
  TensorView part = columns(rows, begin, count);
  part.num_dims = 3;
  part.shape = {rows.shape[0], count, head_dim};
  part.stride = {rows.stride[0], stride, 1};
  return part;
}

// A step of `tokens` tokens as plans see it: one sequence per token, or as many as there may be.
Result<StepView> planned_step(std::int64_t tokens, bool decode, LayerContext& context) {
  Scratch& scratch = context.scratch;
  const std::int64_t sequences =
      decode || tokens < context.max_sequences ? tokens : context.max_sequences;
  StepView step;
  step.shape = {static_cast<int>(tokens), static_cast<int>(sequences), 0, decode};
  TENON_ASSIGN(step.token_ids, scratch.placeholder(DType::kI32, {tokens}));
  step.positions = step.slot_mapping = step.token_ids;
  TENON_ASSIGN(step.sequence_starts, scratch.placeholder(DType::kI32, {sequences + 1}));
  TENON_ASSIGN(step.sequence_lengths, scratch.placeholder(DType::kI32, {sequences}));
  step.state_from = step.state_to = step.fresh = step.sequence_lengths;
  TENON_ASSIGN(step.block_table, scratch.placeholder(DType::kI32, {sequences, context.max_blocks}));
  return step;
}

}  // namespace

// --- Attention ------------------------------------------------------------------------------

namespace {

// Columns of q, and of its gate if it has one.
std::int64_t q_width(const AttentionSpec& spec) {
  return std::int64_t{spec.gated ? 2 : 1} * spec.q_heads * spec.head_dim;
}

// Projected rows: q of each head, with its gate behind it if it has one; then k heads, then v
// heads.
struct Projected {
  TensorView q, k, v;
  std::optional<TensorView> gate;
  Projected(const AttentionSpec& spec, const TensorView& rows) {
    const std::int64_t dim = spec.head_dim, after_q = q_width(spec);
    q = heads(rows, 0, spec.q_heads, dim, spec.gated ? 2 * dim : dim);
    if (spec.gated) gate = heads(rows, dim, spec.q_heads, dim, 2 * dim);
    k = heads(rows, after_q, spec.kv_heads, dim, dim);
    v = heads(rows, after_q + spec.kv_heads * dim, spec.kv_heads, dim, dim);
  }
};

rope::Args rope_args(const AttentionSpec& spec, const TensorView& projected, const TensorView& q,
                     const StepView& step, const TensorView& k_cache, const TensorView& v_cache) {
  const Projected from(spec, projected);
  return {.q = from.q,
          .k = from.k,
          .v = from.v,
          .q_norm = spec.q_norm,
          .k_norm = spec.k_norm,
          .eps = spec.eps,
          .norm_offset = spec.norm_offset,
          .positions = step.positions,
          .cos_sin = spec.cos_sin,
          .slot_mapping = step.slot_mapping,
          .q_out = q,
          .k_cache = k_cache,
          .v_cache = v_cache};
}

attention::Args attention_args(const AttentionSpec& spec, const TensorView& projected,
                               const TensorView& q, const StepView& step, const TensorView& k_cache,
                               const TensorView& v_cache, const NormedRows& out,
                               const std::optional<TensorView>& workspace) {
  return {.q = q,
          .gate = Projected(spec, projected).gate,
          .k_cache = k_cache,
          .v_cache = v_cache,
          .block_table = step.block_table,
          .sequence_starts = step.sequence_starts,
          .sequence_lengths = step.sequence_lengths,
          .scale = 1.0f / __builtin_sqrtf(static_cast<float>(spec.head_dim)),
          .out = out,
          .decode_only = step.shape.decode,
          .heads = {},
          .workspace = workspace};
}

// The same with the work of rope, for steps of decoding.
attention::Args with_heads(attention::Args args, const AttentionSpec& spec,
                           const TensorView& projected, const StepView& step) {
  const Projected from(spec, projected);
  args.q = from.q;
  args.heads = {.k = from.k,
                .v = from.v,
                .q_norm = spec.q_norm,
                .k_norm = spec.k_norm,
                .eps = spec.eps,
                .norm_offset = spec.norm_offset,
                .positions = step.positions,
                .cos_sin = spec.cos_sin,
                .slot_mapping = step.slot_mapping};
  return args;
}

}  // namespace

std::vector<CacheSpec> cache_specs(const AttentionSpec& spec, int block_tokens) {
  const CacheSpec k{.name = "k",
                    .dtype = DType::kBF16,
                    .per = CacheSpec::Per::kBlock,
                    .shape = {block_tokens, spec.kv_heads, spec.head_dim}};
  CacheSpec v = k;
  v.name = "v";
  return {k, v};
}

Result<Attention> Attention::make(const AttentionSpec& spec, LayerContext& context) {
  Attention layer;
  layer.spec_ = spec;
  Scratch& scratch = context.scratch;
  const std::int64_t dim = spec.head_dim, max_rows = scratch.max_rows();
  const std::int64_t width = q_width(spec) + std::int64_t{2} * spec.kv_heads * dim;
  TENON_ASSIGN(layer.projected_, scratch.rows("attention qkv", DType::kBF16, width));
  TENON_ASSIGN(layer.q_,
               scratch.tensor("attention q", DType::kBF16, {max_rows, spec.q_heads, dim}));
  if (spec.out.is_fp8()) {
    TENON_ASSIGN(layer.attended_.fp8, scratch.codes("attention out", max_rows, spec.q_heads * dim));
  } else {
    TENON_ASSIGN(layer.attended_.bf16,
                 scratch.rows("attention out", DType::kBF16, spec.q_heads * dim));
  }
  TENON_ASSIGN(layer.project_, Linear::make(spec.qkv, context.x, layer.projected_, context.where));
  TENON_ASSIGN(const TensorView cache,
               scratch.placeholder(DType::kBF16, {1, context.block_tokens, spec.kv_heads, dim}));
  TENON_ASSIGN(const StepView largest, planned_step(max_rows, false, context));
  const std::int64_t workspace = attention::workspace_bytes(
      attention_args(spec, layer.projected_, layer.q_, largest, cache, cache, layer.attended_, {}),
      context.where);
  if (workspace > 0) {
    TENON_ASSIGN(layer.workspace_, scratch.tensor("attention workspace", DType::kU8, {workspace}));
  }
  const auto plan_rope = [&](std::int64_t rows) -> Result<Plan> {
    TENON_ASSIGN(const StepView step, planned_step(rows, false, context));
    return rope::plan(
        rope_args(spec, layer.projected_.rows(0, rows), layer.q_.rows(0, rows), step, cache, cache),
        context.where);
  };
  const auto plan_attention = [&](std::int64_t rows, bool decode) -> Result<Plan> {
    TENON_ASSIGN(const StepView step, planned_step(rows, decode, context));
    return attention::plan(
        attention_args(spec, layer.projected_.rows(0, rows), layer.q_.rows(0, rows), step, cache,
                       cache, first_rows(layer.attended_, rows), layer.workspace_),
        context.where);
  };
  TENON_ASSIGN(layer.rope_, RowPlans::make(max_rows, plan_rope));
  TENON_ASSIGN(layer.attend_decode_, RowPlans::make(max_rows, [&](std::int64_t rows) {
                 return plan_attention(rows, true);
               }));
  TENON_ASSIGN(layer.attend_prefill_, RowPlans::make(max_rows, [&](std::int64_t rows) {
                 return plan_attention(rows, false);
               }));
  // Where no variant does the work of rope, rope does.
  const std::int64_t most = std::min<std::int64_t>(max_rows, context.max_sequences);
  Result<RowPlans> whole = RowPlans::make(most, [&](std::int64_t rows) -> Result<Plan> {
    TENON_ASSIGN(const StepView step, planned_step(rows, true, context));
    const TensorView projected = layer.projected_.rows(0, rows);
    return attention::plan(
        with_heads(attention_args(spec, projected, layer.q_.rows(0, rows), step, cache, cache,
                                  first_rows(layer.attended_, rows), layer.workspace_),
                   spec, projected, step),
        context.where);
  });
  if (whole) {
    layer.decode_whole_ = *std::move(whole);
  } else if (whole.status().code() != Code::kUnsupported) {
    return whole.status();
  }
  TENON_ASSIGN(layer.finish_,
               Linear::make(spec.out, layer.attended_, context.partial, context.where));
  return layer;
}

Status Attention::run(const NormedRows& x, const StepView& step, CacheViews caches,
                      const PartialRows& out, Stream& stream) const {
  const TensorView &k_cache = caches[0], &v_cache = caches[1];
  const std::int64_t rows = step.shape.tokens;
  const TensorView projected = projected_.rows(0, rows), q = q_.rows(0, rows);
  const NormedRows attended = first_rows(attended_, rows);
  const RowPlans& attend = step.shape.decode ? attend_decode_ : attend_prefill_;
  TENON_TRY(project_.run(x, projected, stream));
  const attention::Args args =
      attention_args(spec_, projected, q, step, k_cache, v_cache, attended, workspace_);
  if (step.shape.decode && decode_whole_) {
    TENON_TRY(
        attention::run(decode_whole_->at(rows), with_heads(args, spec_, projected, step), stream));
    return finish_.run(attended, out.addend, stream);
  }
  TENON_TRY(
      rope::run(rope_.at(rows), rope_args(spec_, projected, q, step, k_cache, v_cache), stream));
  TENON_TRY(attention::run(attend.at(rows), args, stream));
  return finish_.run(attended, out.addend, stream);
}

NormedForms Attention::forms() const {
  NormedForms forms;
  project_.add_to(&forms);
  return forms;
}

// --- DeltaNet -------------------------------------------------------------------------------

namespace {

struct DeltaNetRows {
  TensorView projected, ba, scratch;
  NormedRows mixed;
  DeltaNetRows first(std::int64_t rows) const {
    return {projected.rows(0, rows), ba.rows(0, rows), scratch.rows(0, rows),
            first_rows(mixed, rows)};
  }
};

gated_delta_net::Args delta_net_args(const DeltaNetSpec& spec, const DeltaNetRows& rows,
                                     const StepView& step, const TensorView& conv_state,
                                     const TensorView& state) {
  const std::int64_t value_dim = std::int64_t{spec.v_heads} * spec.head_dim;
  const std::int64_t conv_dim = rows.projected.shape[1] - value_dim;
  return {.qkv = columns(rows.projected, 0, conv_dim),
          .z = columns(rows.projected, conv_dim, value_dim),
          .b = columns(rows.ba, 0, spec.v_heads),
          .a = columns(rows.ba, spec.v_heads, spec.v_heads),
          .conv_weight = spec.conv_weight,
          .a_log = spec.a_log,
          .dt_bias = spec.dt_bias,
          .norm = spec.norm,
          .eps = spec.eps,
          .k_heads = spec.k_heads,
          .v_heads = spec.v_heads,
          .sequence_starts = step.sequence_starts,
          .sequence_lengths = step.sequence_lengths,
          .state_from = step.state_from,
          .state_to = step.state_to,
          .fresh = step.fresh,
          .conv_state = conv_state,
          .state = state,
          .scratch = rows.scratch,
          .out = rows.mixed,
          .max_tokens_per_sequence = step.shape.decode ? 1 : step.shape.tokens,
          .state_is_settled = true};  // products run before it
}

}  // namespace

std::vector<CacheSpec> cache_specs(const DeltaNetSpec& spec) {
  const std::int64_t dim = spec.head_dim, conv_dim = (2 * spec.k_heads + spec.v_heads) * dim;
  return {{.name = "convolution",
           .dtype = DType::kBF16,
           .per = CacheSpec::Per::kSequence,
           .shape = {gated_delta_net::kKeptInputs, conv_dim}},
          {.name = "state",
           .dtype = DType::kF32,
           .per = CacheSpec::Per::kSequence,
           .shape = {spec.v_heads, dim, dim}}};
}

Result<DeltaNet> DeltaNet::make(const DeltaNetSpec& spec, LayerContext& context) {
  DeltaNet layer;
  layer.spec_ = spec;
  Scratch& scratch = context.scratch;
  const std::int64_t dim = spec.head_dim, max_rows = scratch.max_rows();
  const std::int64_t conv_dim = (2 * spec.k_heads + spec.v_heads) * dim;
  const std::int64_t value_dim = spec.v_heads * dim;
  TENON_ASSIGN(layer.projected_,
               scratch.rows("delta_net qkvz", DType::kBF16, conv_dim + value_dim));
  TENON_ASSIGN(layer.ba_, scratch.rows("delta_net ba", DType::kBF16, 2 * spec.v_heads));
  TENON_ASSIGN(layer.scratch_,
               scratch.rows("delta_net scratch", DType::kBF16,
                            gated_delta_net::scratch_columns(spec.k_heads, spec.v_heads,
                                                             context.where.device.target)));
  if (spec.out.is_fp8()) {
    TENON_ASSIGN(layer.mixed_.fp8, scratch.codes("delta_net out", max_rows, value_dim));
  } else {
    TENON_ASSIGN(layer.mixed_.bf16, scratch.rows("delta_net out", DType::kBF16, value_dim));
  }
  TENON_ASSIGN(layer.project_, Linear::make(spec.qkvz, context.x, layer.projected_, context.where));
  TENON_ASSIGN(layer.project_ba_, Linear::make(spec.ba, context.x, layer.ba_, context.where));
  TENON_ASSIGN(layer.project_both_,
               layer.project_.plan_beside(context.x, layer.projected_, layer.project_ba_, layer.ba_,
                                          context.where));
  TENON_ASSIGN(const TensorView conv_state,
               scratch.placeholder(DType::kBF16, {1, gated_delta_net::kKeptInputs, conv_dim}));
  TENON_ASSIGN(const TensorView state,
               scratch.placeholder(DType::kF32, {1, spec.v_heads, dim, dim}));
  const DeltaNetRows all{layer.projected_, layer.ba_, layer.scratch_, layer.mixed_};
  const auto make_plan = [&](std::int64_t rows, bool decode) -> Result<Plan> {
    TENON_ASSIGN(const StepView step, planned_step(rows, decode, context));
    return gated_delta_net::plan(delta_net_args(spec, all.first(rows), step, conv_state, state),
                                 context.where);
  };
  TENON_ASSIGN(layer.mix_decode_,
               RowPlans::make(max_rows, [&](std::int64_t rows) { return make_plan(rows, true); }));
  TENON_ASSIGN(layer.mix_prefill_,
               RowPlans::make(max_rows, [&](std::int64_t rows) { return make_plan(rows, false); }));
  TENON_ASSIGN(layer.finish_, Linear::make(spec.out, layer.mixed_, context.partial, context.where));
  return layer;
}

Status DeltaNet::run(const NormedRows& x, const StepView& step, CacheViews caches,
                     const PartialRows& out, Stream& stream) const {
  const std::int64_t rows = step.shape.tokens;
  const DeltaNetRows part = DeltaNetRows{projected_, ba_, scratch_, mixed_}.first(rows);
  const RowPlans& mix = step.shape.decode ? mix_decode_ : mix_prefill_;
  if (const Plan* plan = project_both_.find(rows)) {
    TENON_TRY(project_.run_beside(*plan, x, part.projected, project_ba_, part.ba, stream));
  } else {
    TENON_TRY(project_.run(x, part.projected, stream));
    TENON_TRY(project_ba_.run(x, part.ba, stream));
  }
  TENON_TRY(gated_delta_net::run(mix.at(rows),
                                 delta_net_args(spec_, part, step, caches[0], caches[1]), stream));
  return finish_.run(part.mixed, out.addend, stream);
}

NormedForms DeltaNet::forms() const {
  NormedForms forms;
  project_.add_to(&forms);
  project_ba_.add_to(&forms);
  return forms;
}

// --- Mixer ----------------------------------------------------------------------------------

Status Mixer::run(const NormedRows& x, const StepView& step, CacheViews caches,
                  const PartialRows& out, Stream& stream) const {
  return std::visit(
      [&](const auto& mixer) {
        return mixer.run(x, step, caches.subspan(first_cache_), out, stream);
      },
      held_);
}

NormedForms Mixer::forms() const {
  return std::visit([](const auto& mixer) { return mixer.forms(); }, held_);
}

}  // namespace tenon
