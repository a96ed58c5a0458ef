// The two mlps: gate-up-down, and a router with routed and shared experts.
#include <algorithm>

#include "tenon/layers/layers.h"

namespace tenon {

// --- Dense ----------------------------------------------------------------------------------

Result<Dense> Dense::make(std::string_view label, const DenseSpec& spec, const TensorView& out,
                          LayerContext& context) {
  Dense layer;
  layer.width_ = spec.width;
  (spec.gate_up.is_fp8() ? layer.wants_.fp8 : layer.wants_.bf16) = true;
  if (spec.width == 0) return layer;
  const std::string rows_label = std::string(label) + " gate|up";
  TENON_ASSIGN(layer.gate_up_, context.scratch.rows(rows_label, DType::kBF16, 2 * spec.width));
  TENON_ASSIGN(layer.project_,
               Linear::make(spec.gate_up, context.x, layer.gate_up_, context.where));
  TENON_ASSIGN(layer.finish_, OutProjection::make(label, spec.down, fp8_quant::Prologue::kSiluMul,
                                                  layer.gate_up_, out, context));
  if (spec.gate_up.is_fp8() && layer.finish_.codes()) {
    TENON_ASSIGN(layer.activate_,
                 layer.project_.plan_activated(context.x, layer.gate_up_, *layer.finish_.codes(),
                                               context.where));
  }
  return layer;
}

Status Dense::run(const NormedRows& x, const TensorView& out, Stream& stream) const {
  if (width_ == 0) return stream.fill(out.data, 0, out.bytes());  // no share: adds nothing
  const std::int64_t rows = out.shape[0];
  const TensorView gate_up = gate_up_.rows(0, rows);
  if (const Plan* plan = activate_.find(rows)) {
    const QuantView codes = first_rows(*finish_.codes(), rows);
    TENON_TRY(project_.run_activated(*plan, x, gate_up, codes, stream));
    return finish_.finish(out, stream);
  }
  TENON_TRY(project_.run(x, gate_up, stream));
  return finish_.run(gate_up, out, stream);
}

// --- Experts --------------------------------------------------------------------------------

Result<Experts> Experts::make(const ExpertsSpec& spec, LayerContext& context) {
  Experts layer;
  layer.spec_ = spec;
  Scratch& scratch = context.scratch;
  const PlanContext& where = context.where;
  const std::int64_t max_rows = scratch.max_rows(), pairs = max_rows * spec.top_k;
  const std::int64_t hidden = context.partial.shape[1];
  TENON_ASSIGN(layer.routed_by_, scratch.rows("router logits", DType::kF32, spec.experts + 1));
  layer.logits_ = layer.shared_gate_ = layer.routed_by_;
  layer.logits_.shape[1] = spec.experts;
  layer.shared_gate_.data = layer.shared_gate_.as<float>() + spec.experts;
  layer.shared_gate_.shape[1] = 1;
  TENON_ASSIGN(layer.weights_, scratch.rows("expert weights", DType::kF32, spec.top_k));
  TENON_ASSIGN(layer.slot_, scratch.rows("expert slots", DType::kI32, spec.top_k));
  TENON_ASSIGN(layer.offsets_,
               scratch.tensor("expert offsets", DType::kI32, {spec.local_experts + 1}));
  TENON_ASSIGN(layer.token_of_, scratch.tensor("expert tokens", DType::kI32, {pairs}));
  TENON_ASSIGN(layer.gate_up_,
               scratch.tensor("experts gate|up", DType::kBF16, {pairs, 2 * spec.width}));
  TENON_ASSIGN(layer.routed_, scratch.tensor("experts out", DType::kBF16, {pairs, hidden}));
  TENON_ASSIGN(layer.shared_rows_, scratch.rows("shared expert out", DType::kBF16, hidden));

  TENON_ASSIGN(layer.router_, Linear::make(spec.router, context.x, layer.routed_by_, where),
               "router");
  TENON_ASSIGN(layer.project_, Linear::make(spec.gate_up, context.x, layer.gate_up_, where,
                                            Grouping{layer.offsets_, layer.token_of_}));
  TENON_ASSIGN(
      layer.finish_,
      OutProjection::make("experts", spec.down, fp8_quant::Prologue::kSiluMul, layer.gate_up_,
                          layer.routed_, context, Grouping{layer.offsets_, {}}));
  if (spec.gate_up.is_fp8() && layer.finish_.codes()) {
    TENON_ASSIGN(layer.activate_, layer.project_.plan_activated(context.x, layer.gate_up_,
                                                                *layer.finish_.codes(), where));
  }
  TENON_ASSIGN(layer.shared_,
               Dense::make("shared expert", spec.shared, layer.shared_rows_, context));
  TENON_ASSIGN(layer.route_, RowPlans::make(max_rows, [&](std::int64_t rows) {
                 return moe_route::plan(layer.route_args(rows), where);
               }));
  TENON_ASSIGN(layer.combine_, RowPlans::make(max_rows, [&](std::int64_t rows) {
                 return moe_combine::plan(layer.combine_args({context.partial.rows(0, rows)}),
                                          where);
               }));
  TENON_TRY(layer.plan_fused(context));
  return layer;
}

Status Experts::plan_fused(LayerContext& context) {
  if (!spec_.gate_up.is_fp8() || !spec_.down.is_fp8()) return Status::ok();
  if (spec_.shared.width != 0 &&
      (spec_.shared.width != spec_.width || !spec_.shared.gate_up.is_fp8()))
    return Status::ok();
  const std::int64_t most =
      std::min<std::int64_t>(context.scratch.max_rows(), moe_experts::kMaxTokens);
  TENON_ASSIGN(activation_, context.scratch.tensor("experts between", DType::kBF16,
                                                   {most * (spec_.top_k + 1), spec_.width}));
  const auto plan_of = [&](std::int64_t rows, bool chooses) {
    return moe_experts::plan(
        fused_args(first_rows(*context.x.fp8, rows), {context.partial.rows(0, rows)}, chooses),
        context.where);
  };
  auto plans = RowPlans::make(most, [&](std::int64_t rows) { return plan_of(rows, false); });
  if (!plans && plans.status().code() != Code::kUnsupported) return plans.status();
  if (!plans) return Status::ok();
  fused_ = *std::move(plans);
  fused_rows_ = most;
  chosen_rows_ = std::min<std::int64_t>(most, moe_experts::kMaxChosenTokens);
  TENON_ASSIGN(chosen_, RowPlans::make(chosen_rows_, [&](std::int64_t rows) -> Result<Plan> {
                 auto plan = plan_of(rows, true);
                 if (!plan && plan.status().code() == Code::kUnsupported) return Plan{};
                 return plan;
               }));
  return Status::ok();
}

moe_experts::Args Experts::fused_args(const QuantView& x, const PartialRows& out,
                                      bool chooses) const {
  const std::int64_t tokens = out.addend.shape[0], pairs = tokens * spec_.top_k;
  moe_experts::Args args;
  args.x = x;
  args.routed = {spec_.gate_up.weight, spec_.gate_up.scale, spec_.down.weight, spec_.down.scale};
  if (spec_.shared.width != 0)
    args.shared = {spec_.shared.gate_up.weight, spec_.shared.gate_up.scale,
                   spec_.shared.down.weight, spec_.shared.down.scale};
  if (chooses) args.logits = logits_.rows(0, tokens);
  args.first_expert = spec_.first_expert;
  args.offsets = offsets_;
  args.token_of = token_of_.rows(0, pairs);
  args.weights = weights_.rows(0, tokens);
  args.slot = slot_.rows(0, tokens);
  args.shared_gate = shared_gate_.rows(0, tokens);
  args.activation = activation_.rows(0, pairs + tokens);
  args.out = out;
  return args;
}

moe_route::Args Experts::route_args(std::int64_t tokens) const {
  return {.logits = logits_.rows(0, tokens),
          .top_k = spec_.top_k,
          .first_expert = spec_.first_expert,
          .local_experts = spec_.local_experts,
          .weights = weights_.rows(0, tokens),
          .slot = slot_.rows(0, tokens),
          .offsets = offsets_,
          .token_of = token_of_.rows(0, tokens * spec_.top_k)};
}

moe_combine::Args Experts::combine_args(const PartialRows& out) const {
  const std::int64_t tokens = out.addend.shape[0];
  return {.routed = routed_.rows(0, tokens * spec_.top_k),
          .weights = weights_.rows(0, tokens),
          .slot = slot_.rows(0, tokens),
          .shared = shared_rows_.rows(0, tokens),
          .shared_gate = shared_gate_.rows(0, tokens),
          .out = out};
}

Status Experts::run(const NormedRows& x, const PartialRows& out, Stream& stream) const {
  const std::int64_t tokens = out.addend.shape[0], pairs = tokens * spec_.top_k;
  const TensorView gate_up = gate_up_.rows(0, pairs);

  TENON_TRY(router_.run(x, routed_by_.rows(0, tokens), stream));
  if (const Plan* plan = tokens <= chosen_rows_ ? chosen_.find(tokens) : nullptr)
    return moe_experts::run(*plan, fused_args(*x.fp8, out, true), stream);
  TENON_TRY(moe_route::run(route_.at(tokens), route_args(tokens), stream));
  if (tokens <= fused_rows_)
    return moe_experts::run(fused_.at(tokens), fused_args(*x.fp8, out, false), stream);
  const TensorView routed = routed_.rows(0, pairs);
  if (const Plan* plan = activate_.find(pairs)) {
    const QuantView codes = first_rows(*finish_.codes(), pairs);
    TENON_TRY(project_.run_activated(*plan, x, gate_up, codes, stream));
    TENON_TRY(finish_.finish(routed, stream));
  } else {
    TENON_TRY(project_.run(x, gate_up, stream));
    TENON_TRY(finish_.run(gate_up, routed, stream));
  }
  TENON_TRY(shared_.run(x, shared_rows_.rows(0, tokens), stream));
  return moe_combine::run(combine_.at(tokens), combine_args(out), stream);
}

NormedForms Experts::forms() const {
  NormedForms forms = shared_.forms();
  router_.add_to(&forms);
  project_.add_to(&forms);
  return forms;
}

// --- Mlp ------------------------------------------------------------------------------------

Status Mlp::run(const NormedRows& x, const PartialRows& out, Stream& stream) const {
  if (const auto* dense = std::get_if<Dense>(&held_)) return dense->run(x, out.addend, stream);
  return std::get<Experts>(held_).run(x, out, stream);
}

NormedForms Mlp::forms() const {
  return std::visit([](const auto& mlp) { return mlp.forms(); }, held_);
}

}  // namespace tenon
