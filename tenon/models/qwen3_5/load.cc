#include "tenon/models/qwen3_5/load.h"

#include <array>
#include <cmath>
#include <string>

#include "tenon/core/env.h"

namespace tenon::qwen3_5 {
namespace {

constexpr std::int64_t kConvTaps = 4;
constexpr float kNormOffset = 1;  // norms of rows and of heads are stored around zero

// Loads the tensors of one layer, by the names that Qwen publishes.
class LayerLoader {
 public:
  LayerLoader(const Config& config, const Share& share, std::string prefix, ShardLoader& loader)
      : config_(config), share_(share), at_(std::move(prefix)), loader_(loader) {}

  Result<DecoderLayer> load(LayerKind kind, const TensorView& cos_sin) {
    DecoderLayer layer;
    TENON_ASSIGN(layer.first_norm, norm("input_layernorm.weight"));
    TENON_ASSIGN(layer.second_norm, norm("post_attention_layernorm.weight"));
    if (kind == LayerKind::kAttention) {
      TENON_ASSIGN(layer.mixer, attention(cos_sin));
    } else {
      TENON_ASSIGN(layer.mixer, delta_net());
    }
    if (config_.is_moe()) {
      TENON_ASSIGN(layer.mlp, experts());
    } else {
      TENON_ASSIGN(layer.mlp, swiglu("mlp.", config_.intermediate, share_.intermediate));
    }
    return layer;
  }

 private:
  bool is_f32(const std::string& name) { return loader_.weights().dtype(name) == DType::kF32; }

  // Norms of rows keep their type: the boundary reads either.
  Result<TensorView> norm(const char* name) {
    const std::string full = at_ + name;
    return norm_as(full, config_.hidden, is_f32(full) ? DType::kF32 : DType::kBF16);
  }
  Result<TensorView> norm_as(const std::string& name, std::int64_t width, DType as) {
    return loader_.vector(name, {DType::kBF16, DType::kF32}, width, {0, width}, as);
  }

  // Row-parallel: this rank's input features of a projection back to the residual's width.
  Result<Matrix> back(const std::string& module, std::int64_t in, Range columns) {
    const LinearPart part{module, config_.hidden, in, {{0, config_.hidden}}, columns};
    return loader_.linear({&part, 1});
  }

  // q rows of head j are [query of j | gate of j]: they stay together.
  Result<AttentionSpec> attention(const TensorView& cos_sin) {
    const std::string at = at_ + "self_attn.";
    const std::int64_t dim = config_.head_dim, hidden = config_.hidden;
    const std::int64_t q_width = std::int64_t{2} * config_.q_heads * dim;
    const std::int64_t kv_width = std::int64_t{1} * config_.kv_heads * dim;
    const Range q{2 * share_.first_q_head * dim, 2 * share_.q_heads * dim};
    const Range kv{share_.first_kv_head * dim, share_.kv_heads * dim};
    const Range all{0, hidden};
    AttentionSpec spec{.q_heads = share_.q_heads,
                       .kv_heads = share_.kv_heads,
                       .head_dim = config_.head_dim,
                       .eps = config_.eps,
                       .norm_offset = kNormOffset,
                       .gated = true,
                       .qkv = {},
                       .q_norm = {},
                       .k_norm = {},
                       .cos_sin = cos_sin,
                       .out = {}};
    const std::array<LinearPart, 3> parts{{{at + "q_proj", q_width, hidden, {q}, all},
                                           {at + "k_proj", kv_width, hidden, {kv}, all},
                                           {at + "v_proj", kv_width, hidden, {kv}, all}}};
    TENON_ASSIGN(spec.qkv, loader_.linear(parts));
    const std::string q_norm = at + "q_norm.weight", k_norm = at + "k_norm.weight";
    const DType as = is_f32(q_norm) || is_f32(k_norm) ? DType::kF32 : DType::kBF16;
    TENON_ASSIGN(spec.q_norm, norm_as(q_norm, dim, as));
    TENON_ASSIGN(spec.k_norm, norm_as(k_norm, dim, as));
    TENON_ASSIGN(spec.out, back(at + "o_proj", q_width / 2, {q.begin / 2, q.count / 2}));
    return spec;
  }

  // in_proj_qkv and conv1d hold all q channels, then all k, then all v: three ranges of a rank.
  Result<DeltaNetSpec> delta_net() {
    const std::string at = at_ + "linear_attn.";
    const std::int64_t dim = config_.key_dim, hidden = config_.hidden,
                       conv_dim = config_.conv_dim();
    const std::int64_t all_keys = config_.k_heads * dim, all_values = config_.v_heads * dim;
    const Range q{share_.first_k_head * dim, share_.k_heads * dim};
    const Range k{all_keys + q.begin, q.count};
    const Range z{share_.first_v_head * dim, share_.v_heads * dim};
    const Range v{2 * all_keys + z.begin, z.count};
    const Range heads{share_.first_v_head, share_.v_heads}, all{0, hidden};
    DeltaNetSpec spec;
    spec.k_heads = share_.k_heads;
    spec.v_heads = share_.v_heads;
    spec.head_dim = config_.key_dim;
    spec.eps = config_.eps;
    const std::array<LinearPart, 2> large{{{at + "in_proj_qkv", conv_dim, hidden, {q, k, v}, all},
                                           {at + "in_proj_z", all_values, hidden, {z}, all}}};
    const std::array<LinearPart, 2> small{
        {{at + "in_proj_b", config_.v_heads, hidden, {heads}, all},
         {at + "in_proj_a", config_.v_heads, hidden, {heads}, all}}};
    TENON_ASSIGN(spec.qkvz, loader_.linear(large));
    TENON_ASSIGN(spec.ba, loader_.linear(small));
    // The op reads bf16, which is what transformers computes with.
    TENON_ASSIGN(spec.conv_weight, loader_.rows(at + "conv1d.weight", {DType::kBF16, DType::kF32},
                                                {conv_dim, 1, kConvTaps}, {q, k, v}, DType::kBF16,
                                                {2 * q.count + v.count, kConvTaps}));
    TENON_ASSIGN(spec.a_log, as_f32(at + "A_log", config_.v_heads, heads));
    TENON_ASSIGN(spec.dt_bias, as_f32(at + "dt_bias", config_.v_heads, heads));
    TENON_ASSIGN(spec.norm, as_f32(at + "norm.weight", dim, {0, dim}));
    TENON_ASSIGN(spec.out, back(at + "out_proj", all_values, z));
    return spec;
  }

  Result<TensorView> as_f32(const std::string& name, std::int64_t length, Range taken) {
    return loader_.vector(name, {DType::kF32, DType::kBF16}, length, taken, DType::kF32);
  }

  // gate and up stacked, and down: a dense mlp or the shared expert.
  Result<DenseSpec> swiglu(const std::string& module, std::int64_t width, Range mine) {
    const std::string at = at_ + module;
    const Range all{0, config_.hidden};
    const std::array<LinearPart, 2> parts{{{at + "gate_proj", width, config_.hidden, {mine}, all},
                                           {at + "up_proj", width, config_.hidden, {mine}, all}}};
    DenseSpec spec;
    spec.width = mine.count;
    TENON_ASSIGN(spec.gate_up, loader_.linear(parts));
    TENON_ASSIGN(spec.down, back(at + "down_proj", width, mine));
    return spec;
  }

  Result<ExpertsSpec> experts() {
    ExpertsSpec spec;
    spec.experts = config_.experts;
    spec.top_k = config_.top_k;
    spec.first_expert = static_cast<int>(share_.experts.begin);
    spec.local_experts = static_cast<int>(share_.experts.count);
    spec.width = share_.moe_intermediate.count;
    TENON_ASSIGN(spec.router, router());
    TENON_ASSIGN(spec.shared, swiglu("mlp.shared_expert.", config_.shared_intermediate,
                                     share_.shared_intermediate));
    const std::string at = at_ + "mlp.experts.";
    if (loader_.weights().has(at + "gate_up_proj"))
      TENON_TRY(fused_experts(at, &spec));
    else
      TENON_TRY(separate_experts(at, &spec));
    return spec;
  }

  // A row of each expert, and the shared one's.
  Result<Matrix> router() {
    const std::int64_t experts = config_.experts, hidden = config_.hidden;
    const Range all{0, hidden};
    const std::array<LinearPart, 2> parts{
        {{at_ + "mlp.gate", experts, hidden, {{0, experts}}, all},
         {at_ + "mlp.shared_expert_gate", 1, hidden, {{0, 1}}, all}}};
    TENON_ASSIGN(const Matrix matrix, loader_.linear(parts));
    if (matrix.is_fp8())
      return Status::error(Code::kUnsupported,
                           parts[0].module + ".weight is e4m3; a router must be of bf16");
    return matrix;
  }

  // bf16 releases: one tensor for all experts, gate rows before up rows, no ".weight".
  Status fused_experts(const std::string& at, ExpertsSpec* spec) {
    const std::int64_t width = config_.moe_intermediate, hidden = config_.hidden;
    const Range gate = share_.moe_intermediate, up{width + gate.begin, gate.count};
    TENON_ASSIGN(spec->gate_up,
                 loader_.fused_experts(at + "gate_up_proj", {config_.experts, 2 * width, hidden},
                                       share_.experts, {gate, up}, {0, hidden}));
    TENON_ASSIGN(spec->down,
                 loader_.fused_experts(at + "down_proj", {config_.experts, hidden, width},
                                       share_.experts, {{0, hidden}}, share_.moe_intermediate));
    return Status::ok();
  }

  // fp8 releases: three linears per expert; those of other ranks are taken and left where they are.
  Status separate_experts(const std::string& at, ExpertsSpec* spec) {
    const std::int64_t width = config_.moe_intermediate, hidden = config_.hidden;
    const Range mine = share_.moe_intermediate, all{0, hidden};
    std::vector<LinearPart> gate_up, down;
    for (std::int64_t expert = 0; expert < config_.experts; ++expert) {
      const std::string module = at + std::to_string(expert) + ".";
      const bool here = expert >= share_.experts.begin && expert < share_.experts.end();
      const auto taken = [here](Range rows) {
        return here ? std::vector<Range>{rows} : std::vector<Range>{};
      };
      gate_up.push_back({module + "gate_proj", width, hidden, taken(mine), all});
      gate_up.push_back({module + "up_proj", width, hidden, taken(mine), all});
      down.push_back({module + "down_proj", hidden, width, taken(all), mine});
    }
    TENON_ASSIGN(spec->gate_up, loader_.linear(gate_up, share_.experts.count));
    TENON_ASSIGN(spec->down, loader_.linear(down, share_.experts.count));
    return Status::ok();
  }

  const Config& config_;
  const Share& share_;
  const std::string at_;  // "model.language_model.layers.3."
  ShardLoader& loader_;
};

// Where the text model's tensors begin: in the multimodal wrapper, or in a text-only export.
Result<std::string> find_prefix(const Weights& weights) {
  for (const char* prefix : {"model.language_model.", "model."})
    if (weights.has(std::string(prefix) + "embed_tokens.weight")) return std::string(prefix);
  return Status::error(Code::kIo,
                       "the checkpoint holds neither \"model.language_model.embed_tokens.weight\" "
                       "nor \"model.embed_tokens.weight\"");
}

// Whether the head is the embedding. A head of its own counts, whatever the config says, unless it
// only repeats the rows of this rank: then the result is the same and the memory is saved.
Result<bool> is_tied(const Config& config, const Share& share, const std::string& embedding,
                     ShardLoader& loader) {
  constexpr std::string_view kHead = "lm_head.weight";
  if (!loader.weights().has(kHead)) {
    if (config.tied && !*config.tied)
      return Status::error(
          Code::kIo, "config: \"tie_word_embeddings\" is false but \"lm_head.weight\" is missing");
    return true;
  }
  if (!config.tied || !*config.tied) return false;
  TENON_ASSIGN(const bool copy, loader.skip_copy(kHead, embedding, share.vocab));
  if (!loader.only_counts())
    log(copy ? LogLevel::kInfo : LogLevel::kWarning,
        std::string("config: \"tie_word_embeddings\" is true and there is \"lm_head.weight\": ") +
            (copy ? "it repeats the embedding and is skipped"
                  : "it differs from the embedding and is used"));
  return copy;
}

}  // namespace

std::vector<std::string_view> skipped_prefixes() {
  return {"model.visual.",      "visual.", "mtp.", "model.mtp.", "model.language_model.mtp.",
          "language_model.mtp."};
}

Result<DecoderSpec> load_weights(const Config& config, const Share& share,
                                 const TensorView& cos_sin, ShardLoader& loader) {
  TENON_ASSIGN(const std::string prefix, find_prefix(loader.weights()));
  TENON_ASSIGN(const bool tied, is_tied(config, share, prefix + "embed_tokens.weight", loader));
  const auto vocabulary_rows = [&](const std::string& name) {
    return loader.rows(name, {DType::kBF16}, {config.vocab, config.hidden}, {share.vocab},
                       DType::kBF16, {share.vocab.count, config.hidden});
  };
  DecoderSpec model;
  model.hidden = config.hidden;
  model.eps = config.eps;
  model.norm_offset = kNormOffset;
  model.num_ids = config.vocab;
  model.vocab_width = share.vocab_width;
  TENON_ASSIGN(model.embedding, vocabulary_rows(prefix + "embed_tokens.weight"));
  model.head = model.embedding;
  if (!tied) {
    TENON_ASSIGN(model.head, vocabulary_rows("lm_head.weight"));
  }
  for (std::size_t i = 0; i < config.layers.size(); ++i) {
    const std::string at = prefix + "layers." + std::to_string(i) + ".";
    TENON_ASSIGN(DecoderLayer layer,
                 LayerLoader(config, share, at, loader).load(config.layers[i], cos_sin));
    model.layers.push_back(layer);
  }
  const std::string norm = prefix + "norm.weight";
  const DType as = loader.weights().dtype(norm) == DType::kF32 ? DType::kF32 : DType::kBF16;
  TENON_ASSIGN(model.final_norm, loader.vector(norm, {DType::kBF16, DType::kF32}, config.hidden,
                                               {0, config.hidden}, as));
  TENON_TRY(loader.finish());
  return model;
}

std::vector<float> rotary_table(const Config& config, int positions) {
  const int pairs = config.rotary_dim / 2;
  std::vector<float> table;
  table.reserve(static_cast<std::size_t>(positions) * static_cast<std::size_t>(config.rotary_dim));
  std::vector<double> frequency;
  frequency.reserve(static_cast<std::size_t>(pairs));
  for (int i = 0; i < pairs; ++i)
    frequency.push_back(std::pow(config.rope_theta, -2.0 * i / config.rotary_dim));
  for (int position = 0; position < positions; ++position) {
    for (double each : frequency) table.push_back(static_cast<float>(std::cos(position * each)));
    for (double each : frequency) table.push_back(static_cast<float>(std::sin(position * each)));
  }
  return table;
}

}  // namespace tenon::qwen3_5
