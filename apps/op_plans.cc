#include "apps/op_plans.h"

#include <utility>

#include "apps/table.h"
#include "tenon/comm/collectives/all_gather/all_gather.h"
#include "tenon/comm/collectives/all_reduce/all_reduce.h"
#include "tenon/comm/collectives/probe/probe.h"
#include "tenon/comm/collectives/ranked_sum/ranked_sum.h"
#include "tenon/ops/attention/attention.h"
#include "tenon/ops/bf16_gemm/bf16_gemm.h"
#include "tenon/ops/embedding/embedding.h"
#include "tenon/ops/fp8_gemm/fp8_gemm.h"
#include "tenon/ops/fp8_quant/fp8_quant.h"
#include "tenon/ops/fused_allreduce_rmsnorm_quant/fused_allreduce_rmsnorm_quant.h"
#include "tenon/ops/gated_delta_net/gated_delta_net.h"
#include "tenon/ops/make_weights/make_weights.h"
#include "tenon/ops/moe_combine/moe_combine.h"
#include "tenon/ops/moe_experts/moe_experts.h"
#include "tenon/ops/moe_route/moe_route.h"
#include "tenon/ops/registry.h"
#include "tenon/ops/rmsnorm/rmsnorm.h"
#include "tenon/ops/rope/rope.h"
#include "tenon/ops/sampling/sampling.h"

namespace tenon::apps {
namespace {

// One layer of a model that is as wide as the question says; its heads and experts are small.
constexpr int kHeads = 8, kKvHeads = 2, kHeadDim = 256, kRotary = 64;
constexpr int kDeltaHeads = 4, kDeltaValueHeads = 8;
constexpr int kExperts = 64, kTopK = 8, kExpertWidth = 512, kVocab = 32'768;
constexpr int kBlockTokens = 16, kContextBlocks = 256;

// Tensors without memory: plans look at shapes, types and the alignment of addresses.
class Shapes {
 public:
  Shapes(Device device, int num_rows, int width) : rows(num_rows), hidden(width), device_(device) {}

  TensorView of(DType dtype, std::initializer_list<std::int64_t> shape) const {
    alignas(256) static std::byte somewhere[256];
    return view(somewhere, dtype, device_, shape);
  }
  TensorView wide() const { return of(DType::kBF16, {rows, hidden}); }
  QuantView quantised() const {
    const auto [first, second] = scale_shape(ScaleLayout::kRow, rows, hidden, 128);
    return {of(DType::kE4M3, {rows, hidden}), of(DType::kF32, {first, second}), 128,
            ScaleLayout::kRow};
  }

  const std::int64_t rows, hidden;

 private:
  Device device_;
};

void plan_collectives(const Shapes& shapes, const PlanContext& where, std::vector<OpPlan>& to) {
  const std::string rows = std::to_string(shapes.rows) + " rows";
  const all_reduce::Args reduce{shapes.wide(), shapes.wide()};
  PlanContext there = where;
  there.mailbox_bytes = all_reduce::mailbox_bytes(where.team_size, reduce.in.bytes());
  to.push_back({"all_reduce", rows, all_reduce::plan(reduce, there),
                all_reduce::traffic(reduce, where.team_size)});
  const all_gather::Args gather{
      shapes.of(DType::kF32, {shapes.rows, kVocab / where.team_size}),
      shapes.of(DType::kF32, {where.team_size, shapes.rows, kVocab / where.team_size})};
  there.mailbox_bytes = all_gather::mailbox_bytes(where.team_size, 1 << 20);
  to.push_back({"all_gather", rows + " of logits", all_gather::plan(gather, there),
                all_gather::traffic(gather, where.team_size)});
  const ranked_sum::Args sum{.bytes = reduce.in.bytes(), .size = where.team_size};
  to.push_back({"ranked_sum", rows, ranked_sum::plan(sum, where), ranked_sum::traffic(sum)});
  if (shapes.rows != 1) return;
  const std::pair<probe::Step, const char*> steps[] = {{probe::Step::kExchange, "patterns"},
                                                       {probe::Step::kPing, "trips"},
                                                       {probe::Step::kPush, "bytes"}};
  for (const auto& [step, call] : steps)
    to.push_back({"probe", call, probe::plan({.step = step, .times = 1}, where), {}});
}

void plan_norms(const Shapes& shapes, const PlanContext& where, std::vector<OpPlan>& to) {
  const std::string rows = std::to_string(shapes.rows) + " rows, fp8";
  fused_allreduce_rmsnorm_quant::Args fused;
  fused.partial.addend = fused.residual = shapes.wide();
  fused.weight = shapes.of(DType::kBF16, {shapes.hidden});
  fused.out.fp8 = shapes.quantised();
  to.push_back({"fused_allreduce_rmsnorm_quant", rows,
                fused_allreduce_rmsnorm_quant::plan(fused, where),
                fused_allreduce_rmsnorm_quant::traffic(fused, where.team_size)});
  rmsnorm::Args norm;
  norm.y = norm.residual = shapes.wide();
  norm.weight = fused.weight;
  norm.out = fused.out;
  to.push_back({"rmsnorm", rows, rmsnorm::plan(norm, where), rmsnorm::traffic(norm)});
  fp8_quant::Args quant;
  quant.in = shapes.of(DType::kBF16, {shapes.rows, 2 * shapes.hidden});
  quant.prologue = fp8_quant::Prologue::kSiluMul;
  quant.out = fused.out;
  to.push_back({"fp8_quant", rows, fp8_quant::plan(quant, where), fp8_quant::traffic(quant)});
}

void plan_products(const Shapes& shapes, const PlanContext& where, std::vector<OpPlan>& to) {
  const std::int64_t hidden = shapes.hidden, blocks = (hidden + 127) / 128;
  const std::string rows = std::to_string(shapes.rows) + " rows";
  fp8_gemm::Args fp8;
  fp8.x = shapes.quantised();
  fp8.weight = shapes.of(DType::kE4M3, {hidden, hidden});
  fp8.weight_scale = shapes.of(DType::kF32, {blocks, blocks});
  fp8.out = shapes.wide();
  to.push_back({"fp8_gemm", rows, fp8_gemm::plan(fp8, where), fp8_gemm::traffic(fp8)});
  bf16_gemm::Args bf16;
  bf16.x = bf16.out = shapes.wide();
  bf16.weight = shapes.of(DType::kBF16, {hidden, hidden});
  to.push_back({"bf16_gemm", rows, bf16_gemm::plan(bf16, where), bf16_gemm::traffic(bf16)});
}

void plan_loading(const Shapes& shapes, const PlanContext& where, std::vector<OpPlan>& to) {
  if (shapes.rows != 1) return;
  const make_weights::Args args{.made = {.key = 1, .dtype = DType::kE4M3},
                                .width = shapes.hidden,
                                .out = shapes.of(DType::kE4M3, {shapes.hidden, shapes.hidden})};
  to.push_back({"make_weights", "a weight, fp8", make_weights::plan(args, where),
                make_weights::traffic(args)});
}

void plan_experts(const Shapes& shapes, const PlanContext& where, std::vector<OpPlan>& to) {
  const std::int64_t rows = shapes.rows, pairs = rows * kTopK;
  const std::string call = std::to_string(rows) + " rows, top " + std::to_string(kTopK);
  moe_route::Args route;
  route.logits = shapes.of(DType::kF32, {rows, kExperts});
  route.top_k = kTopK;
  route.local_experts = kExperts;
  route.weights = shapes.of(DType::kF32, {rows, kTopK});
  route.slot = shapes.of(DType::kI32, {rows, kTopK});
  route.offsets = shapes.of(DType::kI32, {kExperts + 1});
  route.token_of = shapes.of(DType::kI32, {pairs});
  to.push_back({"moe_route", call, moe_route::plan(route, where), moe_route::traffic(route)});
  moe_combine::Args combine;
  combine.routed = shapes.of(DType::kBF16, {pairs, shapes.hidden});
  combine.weights = route.weights;
  combine.slot = route.slot;
  combine.shared = shapes.wide();
  combine.shared_gate = shapes.of(DType::kBF16, {rows, 1});
  combine.out.addend = shapes.wide();
  to.push_back(
      {"moe_combine", call, moe_combine::plan(combine, where), moe_combine::traffic(combine)});
  if (moe_experts::kOp.variants.empty()) return;  // of this build
  const std::int64_t hidden = shapes.hidden, blocks = hidden / 128;
  moe_experts::Args both;
  both.x = shapes.quantised();
  both.routed = {shapes.of(DType::kE4M3, {kExperts, 2 * kExpertWidth, hidden}),
                 shapes.of(DType::kF32, {kExperts, 2 * kExpertWidth / 128, blocks}),
                 shapes.of(DType::kE4M3, {kExperts, hidden, kExpertWidth}),
                 shapes.of(DType::kF32, {kExperts, blocks, kExpertWidth / 128})};
  both.offsets = route.offsets;
  both.token_of = route.token_of;
  both.weights = route.weights;
  both.slot = route.slot;
  both.shared_gate = shapes.of(DType::kF32, {rows, 1});
  both.activation = shapes.of(DType::kBF16, {rows * (kTopK + 1), kExpertWidth});
  both.out.addend = shapes.wide();
  to.push_back({"moe_experts", call, moe_experts::plan(both, where), moe_experts::traffic(both)});
}

// A prompt of one sequence; a single row is a step of decoding.
void plan_mixers(const Shapes& shapes, const PlanContext& where, std::vector<OpPlan>& to) {
  const std::int64_t rows = shapes.rows;
  const std::string call = rows == 1 ? "decoding" : std::to_string(rows) + " rows of a prompt";
  attention::Args attend;
  attend.q = shapes.of(DType::kBF16, {rows, kHeads, kHeadDim});
  attend.gate = attend.q;
  attend.k_cache = attend.v_cache =
      shapes.of(DType::kBF16, {kContextBlocks, kBlockTokens, kKvHeads, kHeadDim});
  attend.block_table = shapes.of(DType::kI32, {1, kContextBlocks});
  attend.sequence_starts = shapes.of(DType::kI32, {2});
  attend.sequence_lengths = shapes.of(DType::kI32, {1});
  attend.out.bf16 = shapes.of(DType::kBF16, {rows, kHeads * kHeadDim});
  attend.decode_only = rows == 1;
  if (const std::int64_t bytes = attention::workspace_bytes(attend, where); bytes > 0)
    attend.workspace = shapes.of(DType::kU8, {bytes});
  to.push_back({"attention", call, attention::plan(attend, where), attention::traffic(attend)});

  constexpr std::int64_t kDim = gated_delta_net::kHeadDim;
  constexpr std::int64_t kValues = kDeltaValueHeads * kDim;
  constexpr std::int64_t kConv = 2 * kDeltaHeads * kDim + kValues;
  gated_delta_net::Args delta;
  delta.qkv = shapes.of(DType::kBF16, {rows, kConv});
  delta.scratch = shapes.of(
      DType::kBF16,
      {rows, gated_delta_net::scratch_columns(kDeltaHeads, kDeltaValueHeads, where.device.target)});
  delta.z = shapes.of(DType::kBF16, {rows, kValues});
  delta.out.bf16 = delta.z;
  delta.b = delta.a = shapes.of(DType::kBF16, {rows, kDeltaValueHeads});
  delta.conv_weight = shapes.of(DType::kBF16, {kConv, gated_delta_net::kTaps});
  delta.a_log = delta.dt_bias = shapes.of(DType::kF32, {kDeltaValueHeads});
  delta.norm = shapes.of(DType::kF32, {kDim});
  delta.k_heads = kDeltaHeads;
  delta.v_heads = kDeltaValueHeads;
  delta.sequence_starts = attend.sequence_starts;
  delta.sequence_lengths = attend.sequence_lengths;
  delta.state_from = delta.state_to = delta.fresh = attend.sequence_lengths;
  delta.conv_state = shapes.of(DType::kBF16, {1, gated_delta_net::kKeptInputs, kConv});
  delta.state = shapes.of(DType::kF32, {1, kDeltaValueHeads, kDim, kDim});
  delta.max_tokens_per_sequence = static_cast<int>(rows);
  to.push_back({"gated_delta_net", call, gated_delta_net::plan(delta, where),
                gated_delta_net::traffic(delta)});

  rope::Args rotate;
  rotate.q = rotate.q_out = attend.q;
  rotate.k = rotate.v = shapes.of(DType::kBF16, {rows, kKvHeads, kHeadDim});
  rotate.q_norm = rotate.k_norm = shapes.of(DType::kBF16, {kHeadDim});
  rotate.positions = rotate.slot_mapping = shapes.of(DType::kI32, {rows});
  rotate.cos_sin = shapes.of(DType::kF32, {kContextBlocks * kBlockTokens, kRotary});
  rotate.k_cache = rotate.v_cache = attend.k_cache;
  to.push_back({"rope", call, rope::plan(rotate, where), rope::traffic(rotate)});
}

void plan_ends(const Shapes& shapes, const PlanContext& where, std::vector<OpPlan>& to) {
  const std::int64_t rows = shapes.rows;
  const std::string call = std::to_string(rows) + " rows";
  embedding::Args embed;
  embed.ids = shapes.of(DType::kI32, {rows});
  embed.table = shapes.of(DType::kBF16, {kVocab, shapes.hidden});
  embed.out.addend = shapes.wide();
  to.push_back({"embedding", call, embedding::plan(embed, where), embedding::traffic(embed)});
  sampling::Args draw;
  draw.logits = shapes.of(DType::kF32, {where.team_size, rows, kVocab / where.team_size});
  draw.num_tokens = kVocab / where.team_size * where.team_size;
  draw.temperature = draw.top_p = shapes.of(DType::kF32, {rows});
  draw.top_k = draw.position = draw.out = shapes.of(DType::kI32, {rows});
  draw.seed = shapes.of(DType::kI64, {rows});
  to.push_back({"sampling", call, sampling::plan(draw, where), sampling::traffic(draw)});
}

std::string listed(const Plan& plan) {
  std::string text;
  for (const KernelLaunch& each : plan.launches) {
    text += (text.empty() ? "" : ", ") + std::string(each.kernel) + " " +
            std::to_string(each.shape.blocks) + " x " + std::to_string(each.shape.threads);
    if (each.shape.shared_bytes > 0)
      text += " (" + std::to_string(each.shape.shared_bytes) + " B shared)";
  }
  return text;
}

std::string settings_of(const Plan& plan) {
  std::string text;
  for (const Setting& each : plan.settings)
    text += (text.empty() ? "" : ", ") + std::string(each.name) + " " + std::to_string(each.value);
  return text.empty() ? "-" : text;
}

std::string joined(const std::vector<std::string>& parts) {
  std::string text;
  for (const std::string& each : parts) text += (text.empty() ? "" : "; ") + each;
  return text.empty() ? "-" : text;
}

}  // namespace

Result<std::vector<OpPlan>> plan_ops(const OpsQuestion& question) {
  if (question.tp < 1 || question.tp > kMaxRanks)
    return Status::error(Code::kInvalidArgument,
                         "env: --tp is " + std::to_string(question.tp) + "; accepted are 1 to 8");
  TENON_ASSIGN(const Device device, nth_device(question.target, 0));
  TENON_ASSIGN(PlanContext where, plan_context(device));
  where.team_size = question.tp;
  where.peer_pointers = true;
  where.mailbox_bytes = fused_allreduce_rmsnorm_quant::mailbox_bytes(
      {question.max_rows, question.hidden, question.tp, where.properties.max_cooperative_blocks});
  std::vector<OpPlan> made;
  std::vector<int> all_rows{1};
  if (question.max_rows > 1) all_rows.push_back(question.max_rows);
  for (const int rows : all_rows) {
    const Shapes shapes(device, rows, question.hidden);
    for (const auto plan : {plan_collectives, plan_norms, plan_products, plan_experts, plan_mixers,
                            plan_ends, plan_loading})
      plan(shapes, where, made);
  }
  std::vector<OpPlan> ordered;
  for (const Op* op : all_ops())
    for (OpPlan& each : made)
      if (each.op == op->name) ordered.push_back(std::move(each));
  return ordered;
}

std::string text_of(const std::vector<OpPlan>& plans) {
  Table table({"op", "call", "variant", "bits", "launches", "workspace", "settings",
               "passed over, or why there is none"});
  for (const OpPlan& each : plans) {
    if (!each.plan) {
      table.add(
          {each.op, each.call, "-", "-", "-", "-", "-", std::string(each.plan.status().message())});
      continue;
    }
    const Plan& plan = *each.plan;
    const bool reference = plan.promise.bits == Bits::kReference;
    table.add({each.op, each.call, std::string(plan.variant_name),
               reference ? "reference" : std::string(plan.promise.name), listed(plan),
               std::to_string(plan.workspace_bytes) + " B", settings_of(plan),
               joined(plan.refusals)});
  }
  return table.text();
}

nlohmann::json json_of(const std::vector<OpPlan>& plans) {
  nlohmann::json list = nlohmann::json::array();
  for (const OpPlan& each : plans) {
    nlohmann::json entry{{"op", each.op}, {"call", each.call}};
    if (!each.plan) {
      entry["why_not"] = each.plan.status().message();
      list.push_back(std::move(entry));
      continue;
    }
    const Plan& plan = *each.plan;
    nlohmann::json launches = nlohmann::json::array(), settings = nlohmann::json::object();
    for (const KernelLaunch& launch : plan.launches)
      launches.push_back({{"kernel", launch.kernel},
                          {"blocks", launch.shape.blocks},
                          {"threads", launch.shape.threads},
                          {"shared_bytes", launch.shape.shared_bytes},
                          {"cooperative", launch.shape.cooperative},
                          {"early", launch.shape.early}});
    for (const Setting& setting : plan.settings)
      settings[std::string(setting.name)] = setting.value;
    entry.update({{"variant", plan.variant_name},
                  {"bits", plan.promise.bits == Bits::kReference ? "reference" : "own"},
                  {"bits_name", plan.promise.name},
                  {"launches", launches},
                  {"settings", settings},
                  {"workspace_bytes", plan.workspace_bytes},
                  {"refusals", plan.refusals},
                  {"flops", each.traffic.flops},
                  {"memory_bytes", each.traffic.memory_bytes},
                  {"link_bytes", each.traffic.link_bytes}});
    list.push_back(std::move(entry));
  }
  return list;
}

}  // namespace tenon::apps
