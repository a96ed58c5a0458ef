#include "tenon/models/qwen3_5/config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <utility>

#include "tenon/core/json.h"

namespace tenon::qwen3_5 {
namespace {

using Json = nlohmann::json;

// Larger than in any released model, and small enough that no product of them overflows.
constexpr int kMaxWidth = 1 << 20, kMaxVocab = 1 << 24, kMaxHeads = 1 << 12, kMaxHeadDim = 1 << 10,
              kMaxLayers = 1 << 12, kMaxExperts = 1 << 14, kMaxPositions = 1 << 30;
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
  // `beside` is the root of a config whose text model has an object of its own: a key that the
  // model reads and that stands there instead is read by nobody, whatever its writer meant.
  explicit Reader(const Json& object, std::string path = {}, const Json* beside = nullptr)
      : object_(object), path_(std::move(path)), beside_(beside) {}

  // The value, or null when the key is absent or null.
  const Json* find(const char* key) {
    const Json* found = find_in(object_, key);
    const Json* other = beside_ == nullptr ? nullptr : find_in(*beside_, key);
    if (other != nullptr && (found == nullptr || *found != *other))
      refuse("\"" + std::string(key) + "\" stands beside \"text_config\" as " + shown(*other) +
             " and in it as " + (found == nullptr ? "nothing" : shown(*found)) +
             "; accepted: in it only, or the same in both");
    return found;
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

  // Every other key of the object is refused, unless it is null: it may change the result.
  void nothing_but(std::initializer_list<std::string_view> keys) {
    for (const auto& [key, value] : object_.items())
      if (!value.is_null() && std::find(keys.begin(), keys.end(), key) == keys.end())
        refuse("\"" + path_ + key.substr(0, 60) + "\" is " + shown(value) +
               ", which is not understood; accepted: no such key");
  }

  void fail(const std::string& key, const Json* found, const std::string& accepted) {
    refuse("\"" + path_ + key + "\" is " + (found == nullptr ? "missing" : shown(*found)) +
           "; accepted: " + accepted);
  }
  void refuse(const std::string& why) {
    if (status_) status_ = unsupported("config: " + why);
  }

  const Status& status() const { return status_; }

 private:
  static const Json* find_in(const Json& object, const char* key) {
    const auto found = object.find(key);
    return found == object.end() || found->is_null() ? nullptr : &*found;
  }

  const Json& object_;
  const std::string path_;  // "rope_parameters.", in front of keys in messages
  const Json* const beside_;
  Status status_;
};

// What transformers takes for a missing key: Qwen3_5TextConfig and Qwen3_5MoeTextConfig. Those that
// both share stand where they are used.
struct Defaults {
  int hidden, layers, kv_heads;
};
constexpr Defaults kDenseDefaults{4096, 32, 4}, kMoeDefaults{2048, 40, 2};

// Dense or MoE is what the config calls itself, in up to three places that must agree.
Result<bool> read_is_moe(const Json& root, const Json& text) {
  struct Name {
    std::string_view key;
    const Json* value;
  };
  std::vector<Name> names{{"model_type", Reader(root).find("model_type")}};
  if (&text != &root) names.push_back({"model_type", Reader(text).find("model_type")});
  const Json* listed = Reader(root).find("architectures");
  if (listed != nullptr && listed->is_array() && !listed->empty())
    names.push_back({"architectures", &listed->front()});
  std::optional<bool> moe;
  for (const auto& [key, value] : names) {
    if (value == nullptr) continue;
    bool known = false;
    for (const std::string_view dense :
         {"qwen3_5", "qwen3_5_text", "Qwen3_5ForConditionalGeneration", "Qwen3_5ForCausalLM"})
      if (*value == dense) known = !moe.value_or(false), moe = false;
    for (const std::string_view mixture :
         {"qwen3_5_moe", "qwen3_5_moe_text", "Qwen3_5MoeForConditionalGeneration",
          "Qwen3_5MoeForCausalLM"})
      if (*value == mixture) known = moe.value_or(true), moe = true;
    if (!known)
      return unsupported("config: \"" + std::string(key) + "\" is " + shown(*value) +
                         "; accepted: names of Qwen3.5 (\"qwen3_5\", \"qwen3_5_text\") or of its "
                         "mixture (\"qwen3_5_moe\", \"qwen3_5_moe_text\"), the same everywhere");
  }
  if (!moe)
    return unsupported(
        "config: neither \"model_type\" nor \"architectures\" says which model this is");
  return *moe;
}

std::vector<LayerKind> read_layers(Reader& read, int usual) {
  const int count = read.positive("num_hidden_layers", kMaxLayers, usual);
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

struct Rotary {
  double theta = 0, part = 0;
  friend bool operator==(const Rotary&, const Rotary&) = default;
};

// One object of rotary parameters, or none; keys that it lacks stand beside it in older configs.
// Sections of mRoPE do not matter to text, whose three positions are one.
Result<Rotary> read_rotary(Reader& read, const char* name, const Json* found) {
  if (found != nullptr && !found->is_object()) read.fail(name, found, "an object");
  TENON_TRY(read.status());
  const Json none = Json::object();
  Reader rope(found == nullptr ? none : *found, std::string(name) + ".");
  rope.only("rope_type", {"default"});
  rope.only("type", {"default"});
  Rotary rotary;
  rotary.theta = rope.positive_number("rope_theta", read.positive_number("rope_theta", 10'000));
  rotary.part = rope.positive_number("partial_rotary_factor",
                                     read.positive_number("partial_rotary_factor", 0.25));
  rope.nothing_but({"rope_type", "type", "rope_theta", "partial_rotary_factor", "mrope_section",
                    "mrope_interleaved"});
  TENON_TRY(rope.status());
  TENON_TRY(read.status());
  return rotary;
}

// The newer "rope_parameters", the older "rope_scaling", neither, or both if they say the same.
Status read_rope(Reader& read, Config* config) {
  const Json *newer = read.find("rope_parameters"), *older = read.find("rope_scaling");
  TENON_TRY(read.status());
  if (older != nullptr && older->empty()) older = nullptr;
  TENON_ASSIGN(Rotary rotary, read_rotary(read, "rope_parameters", newer));
  if (older != nullptr) {
    TENON_ASSIGN(const Rotary other, read_rotary(read, "rope_scaling", older));
    if (newer != nullptr && rotary != other)
      return unsupported("config: \"rope_scaling\" is " + shown(*older) +
                         " and \"rope_parameters\" is " + shown(*newer) +
                         "; accepted: one of them, or both with the same meaning");
    rotary = other;
  }
  config->rope_theta = rotary.theta;
  const double width = config->head_dim * rotary.part;
  if (rotary.part > 1 || width != std::floor(width) || static_cast<int>(width) % 2 != 0)
    return unsupported("config: head_dim · partial_rotary_factor is " + std::to_string(width) +
                       "; accepted: an even number up to head_dim");
  config->rotary_dim = static_cast<int>(width);
  return Status::ok();
}

// The root's word and the text model's, or nothing when neither or each says another: then the
// presence of lm_head.weight decides.
Result<std::optional<bool>> read_tied(const Json& root, const Json& text) {
  std::optional<bool> tied;
  for (const Json* object : {&root, &text}) {
    const Json* found = Reader(*object).find("tie_word_embeddings");
    if (found == nullptr) continue;
    if (!found->is_boolean())
      return unsupported("config: \"tie_word_embeddings\" is " + shown(*found) +
                         "; accepted: true or false");
    if (tied && *tied != found->get<bool>()) return std::optional<bool>();
    tied = found->get<bool>();
  }
  return tied;
}

// Whatever would change the arithmetic and is not computed here. The first six are keys of this
// family; the others belong to its relatives and mean nothing else wherever they appear.
void refuse_variations(Reader& read) {
  read.only("hidden_act", {"silu", "swish"});
  read.only("attention_bias", {false});
  read.only("attn_output_gate", {true});
  read.only("output_gate_type", {"silu", "swish"});
  read.only("linear_conv_kernel_dim", {4});
  read.only("mamba_ssm_dtype", {"float32"});

  read.only("mlp_only_layers", {Json::array()});
  read.only("decoder_sparse_step", {1});
  read.only("norm_topk_prob", {true});
  read.only("routed_scaling_factor", {1});
  read.only("scoring_func", {"softmax"});
  read.only("n_group", {1});
  read.only("topk_group", {1});
  read.only("mlp_bias", {false});
  read.only("use_sliding_window", {false});
  for (const char* none : {"attn_logit_softcapping", "final_logit_softcapping"})
    if (const Json* found = read.find(none)) read.fail(none, found, "null");
  for (const char* factor : {"attention_multiplier", "embedding_multiplier", "residual_multiplier",
                             "logits_scaling", "logit_scale"})
    read.only(factor, {1});
}

void read_mlp(Reader& read, bool moe, Config* config) {
  if (!moe) {
    if (const Json* experts = read.find("num_experts"); experts != nullptr && *experts != 0)
      read.refuse("\"num_experts\" is " + shown(*experts) + " in a dense model; accepted: 0");
    config->intermediate = read.positive("intermediate_size", kMaxWidth, 12288);
    return;
  }
  config->experts = read.positive("num_experts", kMaxExperts, 256);
  config->top_k = read.positive("num_experts_per_tok", kMaxExperts, 8);
  config->moe_intermediate = read.positive("moe_intermediate_size", kMaxWidth, 512);
  config->shared_intermediate = read.positive("shared_expert_intermediate_size", kMaxWidth, 512);
}

// fp8 codes with one scale per 128 × 128 weights and activations quantised on the fly, or none.
Status check_quantization(const Json& found) {
  if (!found.is_object()) return unsupported("config: \"quantization_config\" is not an object");
  Reader read(found, "quantization_config.");
  const Json* method = read.find("quant_method");
  if (method == nullptr || *method != "fp8") {
    std::string what = "\"quantization_config.quant_method\" is ";
    what += method == nullptr ? "missing" : shown(*method);
    for (const char* key : {"quant_algo", "format", "bits"})  // what others call their kinds
      if (const Json* kind = read.find(key))
        what.append(" with \"").append(key).append("\" ").append(shown(*kind));
    read.refuse(what + "; accepted: \"fp8\"");
  }
  read.only("fmt", {"e4m3"});
  read.only("activation_scheme", {"dynamic"});
  read.only("scale_fmt", {"float"});
  read.only("expert_dtype", {"fp8"});
  read.only("dequantize", {false});
  read.only("weight_block_size", {Json::array({128, 128})});
  if (found.contains("weight_block_size") && found["weight_block_size"].is_null())
    read.fail("weight_block_size", &found["weight_block_size"], "[128,128]");
  // Which modules are fp8 is seen from the tensors.
  read.nothing_but({"quant_method", "fmt", "activation_scheme", "scale_fmt", "expert_dtype",
                    "dequantize", "weight_block_size", "modules_to_not_convert",
                    "modules_to_convert", "ignored_layers", "is_checkpoint_fp8_serialized"});
  return read.status();
}

// In the root, in the text model, or in both; whether there is any.
Result<bool> read_quantization(const Json& root, const Json& text) {
  bool any = false;
  for (const Json* object : {&root, &text}) {
    Reader read(*object);
    const Json* found = read.find("quantization_config");
    if (const Json* other = read.find("compression_config"))
      read.fail("compression_config", other, "null");
    TENON_TRY(read.status());
    if (found == nullptr) continue;
    TENON_TRY(check_quantization(*found));
    any = true;
  }
  return any;
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
  TENON_ASSIGN(const Json root, parse_json(json), "config");
  if (!root.is_object()) return malformed("config: is not a JSON object");
  const Json* nested = Reader(root).find("text_config");
  if (nested != nullptr && !nested->is_object())
    return malformed("config: \"text_config\" is not an object");
  const Json& text = nested == nullptr ? root : *nested;
  TENON_ASSIGN(const bool moe, read_is_moe(root, text));
  const Defaults& usual = moe ? kMoeDefaults : kDenseDefaults;

  Config config;
  TENON_ASSIGN(config.quantized, read_quantization(root, text));
  Reader read(text, "", nested == nullptr ? nullptr : &root);
  config.hidden = read.positive("hidden_size", kMaxWidth, usual.hidden);
  config.vocab = read.positive("vocab_size", kMaxVocab, 248'320);
  config.max_positions = read.positive("max_position_embeddings", kMaxPositions, 32'768);
  config.eps = static_cast<float>(read.positive_number("rms_norm_eps", 1e-6));
  config.layers = read_layers(read, usual.layers);
  config.q_heads = read.positive("num_attention_heads", kMaxHeads, 16);
  config.kv_heads = read.positive("num_key_value_heads", kMaxHeads, usual.kv_heads);
  config.head_dim = read.positive("head_dim", kMaxHeadDim, 256);
  config.k_heads = read.positive("linear_num_key_heads", kMaxHeads, 16);
  config.v_heads = read.positive("linear_num_value_heads", kMaxHeads, 32);
  config.key_dim = read.positive("linear_key_head_dim", kMaxHeadDim, 128);
  config.value_dim = read.positive("linear_value_head_dim", kMaxHeadDim, 128);
  read_mlp(read, moe, &config);
  refuse_variations(read);
  TENON_TRY(read.status());
  TENON_TRY(read_rope(read, &config));
  TENON_ASSIGN(config.tied, read_tied(root, text));
  TENON_TRY(check_sizes(config));
  return config;
}

Status refuse_modelopt(std::string_view json) {
  TENON_ASSIGN(const Json root, parse_json(json));
  const Json* inside = root.is_object() ? Reader(root).find("quantization") : nullptr;
  const Json* kind =
      inside != nullptr && inside->is_object() ? Reader(*inside).find("quant_algo") : nullptr;
  return unsupported("\"quant_algo\" is " + (kind == nullptr ? "missing" : shown(*kind)) +
                     "; accepted: no such file, or a \"quantization_config\" in config.json with "
                     "\"quant_method\" \"fp8\"");
}

Facts describe(const Config& config) {
  Facts facts;
  const auto add = [&facts](const char* name, double value) {
    std::array<char, 32> text{};
    std::snprintf(text.data(), text.size(), "%.17g", value);
    facts.push_back({name, text.data()});
  };
  add("hidden_size", config.hidden);
  add("vocab_size", config.vocab);
  add("rms_norm_eps", static_cast<double>(config.eps));
  add("max_position_embeddings", config.max_positions);
  add("num_attention_heads", config.q_heads);
  add("num_key_value_heads", config.kv_heads);
  add("head_dim", config.head_dim);
  add("rotary dimensions", config.rotary_dim);
  add("rope_theta", config.rope_theta);
  add("linear_num_key_heads", config.k_heads);
  add("linear_num_value_heads", config.v_heads);
  add("linear_key_head_dim", config.key_dim);
  add("linear_value_head_dim", config.value_dim);
  add("intermediate_size", config.intermediate);
  add("num_experts", config.experts);
  add("num_experts_per_tok", config.top_k);
  add("moe_intermediate_size", config.moe_intermediate);
  add("shared_expert_intermediate_size", config.shared_intermediate);
  std::string layers;
  for (const LayerKind kind : config.layers) layers += kind == LayerKind::kAttention ? 'F' : 'L';
  facts.push_back({"layer_types (L linear, F full)", layers});
  facts.push_back(
      {"tie_word_embeddings", !config.tied ? "open" : (*config.tied ? "true" : "false")});
  facts.push_back({"quantization_config", config.quantized ? "block fp8" : "none"});
  return facts;
}

namespace {

// Whether experts are sliced by their intermediate size; else they are dealt whole.
bool slices_experts(const Config& config, int size) {
  return size == 1 || config.moe_intermediate % (size * kBlock) == 0;
}

}  // namespace

std::vector<std::string> team_refusals(const Config& config, bool fp8, int size) {
  std::vector<std::string> why;
  if (fp8 && config.hidden % kBlock != 0)
    why.push_back("config: \"hidden_size\" is " + std::to_string(config.hidden) +
                  "; accepted with fp8 weights: a multiple of 128");
  const std::string team = "a team of " + std::to_string(size) + " ranks";
  for (const auto& [name, extent] : {std::pair("num_attention_heads", config.q_heads),
                                     std::pair("linear_num_key_heads", config.k_heads),
                                     std::pair("linear_num_value_heads", config.v_heads)})
    if (extent % size != 0)
      why.push_back(team + " does not divide " + name + " = " + std::to_string(extent));
  if (config.kv_heads % size != 0 && size % config.kv_heads != 0)
    why.push_back("num_key_value_heads = " + std::to_string(config.kv_heads) +
                  " neither divides nor is divided by " + team);
  if (config.is_moe() && !slices_experts(config, size) && config.experts % size != 0)
    why.push_back(
        team +
        " can neither slice moe_intermediate_size = " + std::to_string(config.moe_intermediate) +
        " into multiples of 128 nor divide num_experts = " + std::to_string(config.experts));
  return why;
}

Result<Share> share(const Config& config, bool fp8, int rank, int size) {
  const std::vector<std::string> why = team_refusals(config, fp8, size);
  if (!why.empty()) return unsupported(why.front());
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
  if (config.is_moe() && slices_experts(config, size)) {
    mine.experts = {0, config.experts};
    mine.moe_intermediate = even_slice(config.moe_intermediate, rank, size);
  } else if (config.is_moe()) {
    mine.experts = even_slice(config.experts, rank, size);
    mine.moe_intermediate = {0, config.moe_intermediate};
  }

  mine.vocab_width = (config.vocab + size - 1) / size;
  const int first = std::min(config.vocab, rank * mine.vocab_width);
  mine.vocab = {first, std::min(mine.vocab_width, config.vocab - first)};
  return mine;
}

}  // namespace tenon::qwen3_5
