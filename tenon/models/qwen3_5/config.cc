#include "tenon/models/qwen3_5/config.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

namespace tenon::qwen3_5 {
namespace {

using Json = nlohmann::json;

// Larger than in any released model, and small enough that no product of them overflows.
constexpr int kMaxWidth = 1 << 20, kMaxVocab = 1 << 24, kMaxHeads = 1 << 12, kMaxHeadDim = 1 << 10,
              kMaxLayers = 1 << 12, kMaxExperts = 1 << 14;
constexpr std::int64_t kBlock = 128;  // fp8 weights carry one scale per 128 × 128 elements

Status unsupported(std::string why) { return Status::error(Code::kUnsupported, std::move(why)); }
Status malformed(std::string why) { return Status::error(Code::kIo, std::move(why)); }

// What stands there, short enough for a message.
std::string shown(const Json& value) {
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  return text.size() <= 60 ? text : text.substr(0, 57) + "...";
}

// Reads keys of one JSON object and keeps the first thing that is wrong.
class Reader {
 public:
  explicit Reader(const Json& object) : object_(object) {}

  // The value, or null when the key is absent or null.
  const Json* find(const char* key) const {
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }

  int positive(const char* key, int most, std::optional<int> otherwise = std::nullopt) {
    const Json* value = find(key);
    if (value == nullptr && otherwise) return *otherwise;
    if (value != nullptr && value->is_number_integer()) {
      const auto number = value->get<std::int64_t>();
      if (number > 0 && number <= most) return static_cast<int>(number);
    }
    fail(key, value, "a positive integer of at most " + std::to_string(most));
    return 1;
  }

  double positive_number(const char* key, double otherwise) {
    const Json* value = find(key);
    if (value == nullptr) return otherwise;
    if (value->is_number() && value->get<double>() > 0 && std::isfinite(value->get<double>()))
      return value->get<double>();
    fail(key, value, "a positive number");
    return otherwise;
  }

  // The key is absent, or has one of the accepted values.
  void only(const char* key, std::initializer_list<Json> accepted) {
    const Json* value = find(key);
    if (value == nullptr) return;
    std::string list;
    for (const Json& each : accepted) {
      if (*value == each) return;
      list += (list.empty() ? "" : " or ") + each.dump();
    }
    fail(key, value, list);
  }

  void fail(const char* key, const Json* found, const std::string& accepted) {
    if (!status_) return;
    status_ =
        unsupported("config: \"" + std::string(key) + "\" is " +
                    (found == nullptr ? "missing" : shown(*found)) + "; accepted: " + accepted);
  }

  const Status& status() const { return status_; }

 private:
  const Json& object_;
  Status status_;
};

std::vector<LayerKind> read_layers(Reader& read) {
  const int count = read.positive("num_hidden_layers", kMaxLayers);
  std::vector<LayerKind> layers;
  const Json* listed = read.find("layer_types");
  if (listed == nullptr) {
    const int interval = read.positive("full_attention_interval", kMaxLayers, 4);
    for (int i = 0; i < count; ++i)
      layers.push_back((i + 1) % interval == 0 ? LayerKind::kAttention : LayerKind::kDeltaNet);
    return layers;
  }
  const std::string accepted =
      "a list of " + std::to_string(count) + " times \"linear_attention\" or \"full_attention\"";
  if (!listed->is_array() || listed->size() != static_cast<std::size_t>(count)) {
    read.fail("layer_types", listed, accepted);
    return layers;
  }
  for (const Json& each : *listed) {
    if (each == "full_attention")
      layers.push_back(LayerKind::kAttention);
    else if (each == "linear_attention")
      layers.push_back(LayerKind::kDeltaNet);
    else
      read.fail("layer_types", &each, accepted);
  }
  return layers;
}

// Rotary parameters: the newer "rope_parameters" object, or the older keys beside the others.
Status read_rope(Reader& read, Config* config) {
  const Json* nested = read.find("rope_parameters");
  if (nested == nullptr) nested = read.find("rope_scaling");
  const Json none = Json::object();
  if (nested != nullptr && !nested->is_object())
    return unsupported("config: \"rope_parameters\" is " + shown(*nested) +
                       "; accepted: an object");
  Reader rope(nested == nullptr ? none : *nested);
  rope.only("rope_type", {"default"});
  rope.only("type", {"default"});
  config->rope_theta = rope.positive_number("rope_theta", read.positive_number("rope_theta", 1e7));
  const double part = rope.positive_number("partial_rotary_factor",
                                           read.positive_number("partial_rotary_factor", 0.25));
  TENON_TRY(rope.status());
  const double rotary = config->head_dim * part;
  if (part > 1 || rotary != std::floor(rotary) || static_cast<int>(rotary) % 2 != 0)
    return unsupported("config: head_dim · partial_rotary_factor is " + std::to_string(rotary) +
                       "; accepted: an even number up to head_dim");
  config->rotary_dim = static_cast<int>(rotary);
  return Status::ok();
}

Status read_eos(const Json* found, std::vector<std::int32_t>* ids) {
  if (found == nullptr) return Status::ok();
  const Json list = found->is_array() ? *found : Json::array({*found});
  for (const Json& each : list) {
    if (!each.is_number_integer() || each.get<std::int64_t>() < 0 ||
        each.get<std::int64_t>() > std::numeric_limits<std::int32_t>::max())
      return malformed("\"eos_token_id\" is " + shown(*found) +
                       "; accepted: an id or a list of ids");
    const auto id = each.get<std::int32_t>();
    if (std::find(ids->begin(), ids->end(), id) == ids->end()) ids->push_back(id);
  }
  return Status::ok();
}

// true, false or absent; the root's word and the text model's word must not differ.
Status read_tied(const Json& root, const Json& text, std::optional<bool>* tied) {
  for (const Json* object : {&root, &text}) {
    const Json* found = Reader(*object).find("tie_word_embeddings");
    if (found == nullptr) continue;
    if (!found->is_boolean())
      return unsupported("config: \"tie_word_embeddings\" is " + shown(*found) +
                         "; accepted: true or false");
    if (*tied && **tied != found->get<bool>()) {
      tied->reset();  // they differ: the presence of lm_head.weight decides
      return Status::ok();
    }
    *tied = found->get<bool>();
  }
  return Status::ok();
}

// Whatever would change the arithmetic and is not computed here.
void refuse_variations(Reader& read) {
  read.only("hidden_act", {"silu"});
  read.only("attention_bias", {false});
  read.only("attn_output_gate", {true});
  read.only("output_gate_type", {"silu", "swish"});
  read.only("linear_conv_kernel_dim", {4});
  read.only("mamba_ssm_dtype", {"float32"});
  read.only("mlp_only_layers", {Json::array()});
  read.only("norm_topk_prob", {true});
  read.only("use_sliding_window", {false});
}

void read_mlp(Reader& read, Config* config) {
  if (read.find("num_experts") == nullptr) {
    config->intermediate = read.positive("intermediate_size", kMaxWidth);
    return;
  }
  config->experts = read.positive("num_experts", kMaxExperts);
  config->top_k = read.positive("num_experts_per_tok", kMaxExperts);
  config->moe_intermediate = read.positive("moe_intermediate_size", kMaxWidth);
  config->shared_intermediate = read.positive("shared_expert_intermediate_size", kMaxWidth);
}

Status check_quantization(const Json& root) {
  const Json* found = Reader(root).find("quantization_config");
  if (found == nullptr) return Status::ok();
  if (!found->is_object()) return unsupported("config: \"quantization_config\" is not an object");
  Reader read(*found);
  if (read.find("quant_method") == nullptr) read.fail("quant_method", nullptr, "\"fp8\"");
  read.only("quant_method", {"fp8"});
  read.only("fmt", {"e4m3"});
  read.only("activation_scheme", {"dynamic"});
  read.only("weight_block_size", {Json::array({128, 128})});
  return read.status();
}

Status check_sizes(const Config& config) {
  const auto refuse = [](const std::string& what, int found, const std::string& accepted) {
    return unsupported("config: \"" + what + "\" is " + std::to_string(found) +
                       "; accepted: " + accepted);
  };
  if (config.hidden % 8 != 0) return refuse("hidden_size", config.hidden, "a multiple of 8");
  if (config.q_heads % config.kv_heads != 0)
    return refuse("num_attention_heads", config.q_heads,
                  "a multiple of num_key_value_heads = " + std::to_string(config.kv_heads));
  if (config.v_heads % config.k_heads != 0)
    return refuse("linear_num_value_heads", config.v_heads,
                  "a multiple of linear_num_key_heads = " + std::to_string(config.k_heads));
  if (config.key_dim != 128) return refuse("linear_key_head_dim", config.key_dim, "128");
  if (config.value_dim != 128) return refuse("linear_value_head_dim", config.value_dim, "128");
  if (config.top_k > config.experts)
    return refuse("num_experts_per_tok", config.top_k,
                  "at most num_experts = " + std::to_string(config.experts));
  return Status::ok();
}

}  // namespace

Result<Config> parse_config(std::string_view json) {
  const Json root = Json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (!root.is_object()) return malformed("config: is not a JSON object");
  const Json* nested = Reader(root).find("text_config");
  if (nested != nullptr && !nested->is_object())
    return malformed("config: \"text_config\" is not an object");
  const Json& text = nested == nullptr ? root : *nested;
  TENON_TRY(check_quantization(root));

  Config config;
  Reader read(text);
  config.hidden = read.positive("hidden_size", kMaxWidth);
  config.vocab = read.positive("vocab_size", kMaxVocab);
  config.eps = static_cast<float>(read.positive_number("rms_norm_eps", 1e-6));
  config.layers = read_layers(read);
  config.q_heads = read.positive("num_attention_heads", kMaxHeads);
  config.kv_heads = read.positive("num_key_value_heads", kMaxHeads);
  config.head_dim = read.positive("head_dim", kMaxHeadDim, 256);
  config.k_heads = read.positive("linear_num_key_heads", kMaxHeads, 16);
  config.v_heads = read.positive("linear_num_value_heads", kMaxHeads, 32);
  config.key_dim = read.positive("linear_key_head_dim", kMaxHeadDim, 128);
  config.value_dim = read.positive("linear_value_head_dim", kMaxHeadDim, 128);
  read_mlp(read, &config);
  refuse_variations(read);
  TENON_TRY(read.status());
  TENON_TRY(read_rope(read, &config));
  TENON_TRY(read.status());
  TENON_TRY(read_eos(read.find("eos_token_id"), &config.eos_ids), "config");
  TENON_TRY(read_tied(root, text, &config.tied));
  TENON_TRY(check_sizes(config));
  return config;
}

Status add_eos_ids(std::string_view json, std::vector<std::int32_t>* ids) {
  const Json root = Json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (!root.is_object()) return malformed("is not a JSON object");
  return read_eos(Reader(root).find("eos_token_id"), ids);
}

namespace {

Status divides(int size, int extent, std::string_view what) {
  if (extent % size == 0) return Status::ok();
  return unsupported("a team of " + std::to_string(size) + " ranks does not divide " +
                     std::string(what) + " = " + std::to_string(extent));
}

// Slices of the experts: of their intermediate size if all are whole blocks, else whole experts.
Status share_experts(const Config& config, Share* share) {
  const int width = config.moe_intermediate, rank = share->rank, size = share->size;
  if (size == 1 || width % (size * kBlock) == 0) {
    share->experts = {0, config.experts};
    share->moe_intermediate = even_slice(width, rank, size);
    return Status::ok();
  }
  if (config.experts % size == 0) {
    share->experts = even_slice(config.experts, rank, size);
    share->moe_intermediate = {0, width};
    return Status::ok();
  }
  return unsupported(
      "a team of " + std::to_string(size) + " ranks can neither slice " +
      "moe_intermediate_size = " + std::to_string(width) +
      " into multiples of 128 nor divide num_experts = " + std::to_string(config.experts));
}

}  // namespace

Result<Share> share(const Config& config, bool fp8, int rank, int size) {
  TENON_TRY(divides(size, config.q_heads, "num_attention_heads"));
  TENON_TRY(divides(size, config.k_heads, "linear_num_key_heads"));
  TENON_TRY(divides(size, config.v_heads, "linear_num_value_heads"));
  if (config.kv_heads % size != 0 && size % config.kv_heads != 0)
    return unsupported("num_key_value_heads = " + std::to_string(config.kv_heads) +
                       " neither divides nor is divided by a team of " + std::to_string(size) +
                       " ranks");
  Share mine;
  mine.rank = rank;
  mine.size = size;
  mine.q_heads = config.q_heads / size;
  mine.first_q_head = rank * mine.q_heads;
  mine.kv_heads = std::max(1, config.kv_heads / size);
  mine.first_kv_head = rank * config.kv_heads / size;  // replicated: several ranks share one
  mine.k_heads = config.k_heads / size;
  mine.first_k_head = rank * mine.k_heads;
  mine.v_heads = config.v_heads / size;
  mine.first_v_head = rank * mine.v_heads;

  const std::int64_t block = fp8 ? kBlock : 8;  // bf16 rows are read 16 bytes at a time
  mine.intermediate = block_slice(config.intermediate, block, rank, size);
  mine.shared_intermediate = block_slice(config.shared_intermediate, block, rank, size);
  if (config.is_moe()) TENON_TRY(share_experts(config, &mine));

  mine.vocab_width = (config.vocab + size - 1) / size;
  const int first = std::min(config.vocab, rank * mine.vocab_width);
  mine.vocab = {first, std::min(mine.vocab_width, config.vocab - first)};
  return mine;
}

}  // namespace tenon::qwen3_5
