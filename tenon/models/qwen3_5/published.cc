#include "tenon/models/qwen3_5/published.h"

#include <cmath>
#include <string>
#include <utility>

namespace tenon::qwen3_5 {
namespace {

constexpr std::int64_t kBlock = 128;  // fp8 weights carry one scale per 128 × 128 elements
constexpr std::int64_t kConvTaps = 4;
constexpr float kNormSpread = 0.1f;
// Of a head's decay in a step, exp(−exp(a_log) · softplus(a + dt_bias)): from nearly 1 to about a
// half.
constexpr float kLogDecay = 0.5f, kLogDecaySpread = 1.5f, kStepBias = -4.0f, kStepBiasSpread = 2;

class Publisher {
 public:
  explicit Publisher(const Config& config) : config_(config) {}

  std::vector<TensorRecipe> all() && {
    const std::string model = "model.language_model.";
    const std::int64_t hidden = config_.hidden;
    plain(model + "embed_tokens.weight", {config_.vocab, hidden});
    for (std::size_t i = 0; i < config_.layers.size(); ++i)
      layer(model + "layers." + std::to_string(i) + ".", config_.layers[i]);
    norm(model + "norm.weight", hidden);
    if (!config_.tied.value_or(false)) plain("lm_head.weight", {config_.vocab, hidden});
    return std::move(out_);
  }

 private:
  // bf16, never quantised; the last extent is the number of inputs.
  TensorRecipe& plain(const std::string& name, std::vector<std::int64_t> shape) {
    const float spread = unit_spread(shape.back());
    out_.push_back({name, DType::kBF16, std::move(shape), 0, spread});
    return out_.back();
  }

  void around(const std::string& name, DType dtype, std::int64_t length, float center,
              float spread) {
    out_.push_back({name, dtype, {length}, center, spread});
  }

  void norm(const std::string& name, std::int64_t width) {  // stored around zero
    around(name, DType::kBF16, width, 0, kNormSpread);
  }

  // A projection, fp8 with scales where the checkpoint is.
  void linear(const std::string& module, std::int64_t rows, std::int64_t columns) {
    if (!config_.quantized) {
      plain(module + ".weight", {rows, columns});
      return;
    }
    const auto blocks = [](std::int64_t extent) { return (extent + kBlock - 1) / kBlock; };
    const float scale = 1 / std::sqrt(static_cast<float>(columns)) / made_code_rms();
    out_.push_back({module + ".weight", DType::kE4M3, {rows, columns}});
    out_.push_back({module + ".weight_scale_inv",
                    DType::kBF16,
                    {blocks(rows), blocks(columns)},
                    scale,
                    scale / 4});
  }

  void layer(const std::string& at, LayerKind kind) {
    norm(at + "input_layernorm.weight", config_.hidden);
    norm(at + "post_attention_layernorm.weight", config_.hidden);
    if (kind == LayerKind::kAttention)
      attention(at + "self_attn.");
    else
      delta_net(at + "linear_attn.");
    if (config_.is_moe())
      experts(at + "mlp.");
    else
      swiglu(at + "mlp.", config_.intermediate);
  }

  void attention(const std::string& at) {
    const std::int64_t dim = config_.head_dim, hidden = config_.hidden;
    linear(at + "q_proj", 2 * config_.q_heads * dim, hidden);
    linear(at + "k_proj", config_.kv_heads * dim, hidden);
    linear(at + "v_proj", config_.kv_heads * dim, hidden);
    linear(at + "o_proj", hidden, config_.q_heads * dim);
    norm(at + "q_norm.weight", dim);
    norm(at + "k_norm.weight", dim);
  }

  void delta_net(const std::string& at) {
    const std::int64_t hidden = config_.hidden, heads = config_.v_heads;
    const std::int64_t values = heads * config_.value_dim;
    linear(at + "in_proj_qkv", config_.conv_dim(), hidden);
    linear(at + "in_proj_z", values, hidden);
    plain(at + "in_proj_b.weight", {heads, hidden});
    plain(at + "in_proj_a.weight", {heads, hidden});
    plain(at + "conv1d.weight", {config_.conv_dim(), 1, kConvTaps});
    around(at + "A_log", DType::kF32, heads, kLogDecay, kLogDecaySpread);
    around(at + "dt_bias", DType::kBF16, heads, kStepBias, kStepBiasSpread);
    around(at + "norm.weight", DType::kF32, config_.value_dim, 1, kNormSpread);
    linear(at + "out_proj", hidden, values);
  }

  void swiglu(const std::string& at, std::int64_t width) {
    linear(at + "gate_proj", width, config_.hidden);
    linear(at + "up_proj", width, config_.hidden);
    linear(at + "down_proj", config_.hidden, width);
  }

  void experts(const std::string& at) {
    const std::int64_t count = config_.experts, width = config_.moe_intermediate;
    plain(at + "gate.weight", {count, config_.hidden}).skewed_rows = true;
    plain(at + "shared_expert_gate.weight", {1, config_.hidden});
    swiglu(at + "shared_expert.", config_.shared_intermediate);
    if (config_.quantized) {
      for (std::int64_t expert = 0; expert < count; ++expert)
        swiglu(at + "experts." + std::to_string(expert) + ".", width);
    } else {
      plain(at + "experts.gate_up_proj", {count, 2 * width, config_.hidden});
      plain(at + "experts.down_proj", {count, config_.hidden, width});
    }
  }

  const Config& config_;
  std::vector<TensorRecipe> out_;
};

}  // namespace

std::vector<TensorRecipe> published_tensors(const Config& config) {
  return Publisher(config).all();
}

}  // namespace tenon::qwen3_5
