#include "tests/support/tiny_model.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "tenon/core/fp8.h"
#include "tenon/core/hash.h"

namespace tenon::test {
namespace {

using Json = nlohmann::json;

// u of the binding specification: 32 uniform bits for element `index` of a tensor.
class Hash {
 public:
  explicit Hash(std::string_view name) : base_(fnv1a(name)) {}
  std::int64_t operator()(std::int64_t index) const {
    return static_cast<std::int64_t>(splitmix64(base_ + static_cast<std::uint64_t>(index)) >> 32);
  }

 private:
  std::uint64_t base_;
};

std::int64_t count(const std::vector<std::int64_t>& shape) {
  std::int64_t elements = 1;
  for (std::int64_t extent : shape) elements *= extent;
  return elements;
}

template <class T>
FileTensor fill(std::string type, std::vector<std::int64_t> shape,
                const std::function<T(std::int64_t)>& value) {
  FileTensor tensor{std::move(type), std::move(shape), {}};
  const std::int64_t elements = count(tensor.shape);
  tensor.bytes.resize(static_cast<std::size_t>(elements) * sizeof(T));
  for (std::int64_t i = 0; i < elements; ++i) {
    const T element = value(i);
    std::memcpy(tensor.bytes.data() + static_cast<std::size_t>(i) * sizeof(T), &element, sizeof(T));
  }
  return tensor;
}

int rounded_log2(double x) { return static_cast<int>(std::lround(std::log2(x))); }

float around_zero(std::int64_t u, int exponent) {
  return std::ldexp(static_cast<float>(u % 255 - 127), -exponent);
}

// Adds the tensors of one checkpoint, by kind.
class Maker {
 public:
  explicit Maker(bool fp8) : fp8_(fp8) {}

  // (u % 255 − 127) · 2^-exponent in bf16.
  void bf16_values(const std::string& name, std::vector<std::int64_t> shape, int exponent,
                   float centre = 0) {
    const Hash u(name);
    tensors[name] = fill<std::uint16_t>("BF16", std::move(shape), [&](std::int64_t i) {
      return to_bf16(centre + around_zero(u(i), exponent)).bits;
    });
  }
  void f32_values(const std::string& name, std::vector<std::int64_t> shape, int exponent,
                  float centre) {
    const Hash u(name);
    tensors[name] = fill<float>("F32", std::move(shape), [&](std::int64_t i) {
      return centre + around_zero(u(i), exponent);
    });
  }
  void bf16_matrix(const std::string& name, const std::vector<std::int64_t>& shape) {
    const auto fan_in = static_cast<double>(shape.back());
    bf16_values(name, shape, rounded_log2(73.6 * std::sqrt(fan_in)));
  }
  // A linear that an FP8 checkpoint quantises; `module` carries no ".weight".
  void linear(const std::string& module, std::int64_t out, std::int64_t in) {
    const std::string name = module + ".weight";
    if (!fp8_) return bf16_matrix(name, {out, in});
    const Hash u(name), v(name + "_scale_inv");
    tensors[name] = fill<std::uint8_t>("F8_E4M3", {out, in}, [&](std::int64_t i) {
      return to_fp8<DType::kE4M3>(static_cast<float>(u(i) % 31 - 15));
    });
    const int s = 7 + rounded_log2(1.5 * 8.94 * std::sqrt(static_cast<double>(in)));
    tensors[name + "_scale_inv"] =
        fill<std::uint16_t>("BF16", {(out + 127) / 128, (in + 127) / 128}, [&](std::int64_t i) {
          return to_bf16(std::ldexp(static_cast<float>(128 + v(i) % 128), -s)).bits;
        });
  }
  void norm(const std::string& name, std::int64_t width) { bf16_values(name, {width}, 9); }

  FileTensors tensors;

 private:
  bool fp8_;
};

void add_delta_net(Maker& make, const Json& text, const std::string& at, std::int64_t hidden) {
  const std::int64_t dk = text.at("linear_key_head_dim"), dv = text.at("linear_value_head_dim");
  const std::int64_t nk = text.at("linear_num_key_heads"), nv = text.at("linear_num_value_heads");
  const std::int64_t conv_dim = 2 * nk * dk + nv * dv;
  make.linear(at + "in_proj_qkv", conv_dim, hidden);
  make.linear(at + "in_proj_z", nv * dv, hidden);
  make.bf16_matrix(at + "in_proj_b.weight", {nv, hidden});
  make.bf16_matrix(at + "in_proj_a.weight", {nv, hidden});
  make.bf16_matrix(at + "conv1d.weight", {conv_dim, 1, 4});
  make.f32_values(at + "A_log", {nv}, 6, 0);
  make.bf16_values(at + "dt_bias", {nv}, 6);
  make.f32_values(at + "norm.weight", {dv}, 9, 1);
  make.linear(at + "out_proj", hidden, nv * dv);
}

void add_attention(Maker& make, const Json& text, const std::string& at, std::int64_t hidden) {
  const std::int64_t heads = text.at("num_attention_heads"), dim = text.at("head_dim");
  const std::int64_t kv_heads = text.at("num_key_value_heads");
  make.linear(at + "q_proj", heads * 2 * dim, hidden);
  make.linear(at + "k_proj", kv_heads * dim, hidden);
  make.linear(at + "v_proj", kv_heads * dim, hidden);
  make.linear(at + "o_proj", hidden, heads * dim);
  make.norm(at + "q_norm.weight", dim);
  make.norm(at + "k_norm.weight", dim);
}

void add_swiglu(Maker& make, const std::string& at, std::int64_t hidden, std::int64_t width) {
  make.linear(at + "gate_proj", width, hidden);
  make.linear(at + "up_proj", width, hidden);
  make.linear(at + "down_proj", hidden, width);
}

void add_mlp(Maker& make, const Json& text, const std::string& at, std::int64_t hidden, bool fp8) {
  if (!text.contains("num_experts"))
    return add_swiglu(make, at, hidden, text.at("intermediate_size"));
  const std::int64_t experts = text.at("num_experts"), width = text.at("moe_intermediate_size");
  make.bf16_matrix(at + "gate.weight", {experts, hidden});
  make.bf16_matrix(at + "shared_expert_gate.weight", {1, hidden});
  add_swiglu(make, at + "shared_expert.", hidden, text.at("shared_expert_intermediate_size"));
  if (!fp8) {
    make.bf16_matrix(at + "experts.gate_up_proj", {experts, 2 * width, hidden});
    make.bf16_matrix(at + "experts.down_proj", {experts, hidden, width});
    return;
  }
  for (std::int64_t e = 0; e < experts; ++e)
    add_swiglu(make, at + "experts." + std::to_string(e) + ".", hidden, width);
}

std::string index_json(const std::vector<FileTensors>& shards,
                       const std::vector<std::string>& files) {
  Json index{{"metadata", Json::object()}, {"weight_map", Json::object()}};
  for (std::size_t i = 0; i < shards.size(); ++i)
    for (const auto& [name, tensor] : shards[i]) index["weight_map"][name] = files[i];
  return index.dump();
}

}  // namespace

std::uint64_t splitmix64(std::uint64_t x) {
  std::uint64_t z = x + 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

std::string safetensors_bytes(const FileTensors& tensors) {
  Json header = Json::object();
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    const std::size_t begin = data.size();
    data.append(reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size());
    header[name] = {
        {"dtype", tensor.type}, {"shape", tensor.shape}, {"data_offsets", {begin, data.size()}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string file;
  for (int i = 0; i < 8; ++i) file += static_cast<char>(text.size() >> (8 * i) & 0xff);
  return file + text + data;
}

void write_file(const std::filesystem::path& path, std::string_view bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!file) throw std::runtime_error("cannot write " + path.string());
}

std::string tiny_config(const TinyShape& shape) {
  const bool moe = shape.experts > 0;
  Json types = Json::array();
  for (int i = 0; i < shape.layers; ++i)
    types.push_back((i + 1) % 4 == 0 ? "full_attention" : "linear_attention");
  Json text = {
      {"attention_bias", false},
      {"attn_output_gate", true},
      {"eos_token_id", shape.vocab - 1},
      {"full_attention_interval", 4},
      {"head_dim", shape.head_dim},
      {"hidden_act", "silu"},
      {"hidden_size", shape.hidden},
      {"layer_types", types},
      {"linear_conv_kernel_dim", 4},
      {"linear_key_head_dim", 128},
      {"linear_num_key_heads", shape.k_heads},
      {"linear_num_value_heads", shape.v_heads},
      {"linear_value_head_dim", 128},
      {"mamba_ssm_dtype", "float32"},
      {"max_position_embeddings", 4096},
      {"num_attention_heads", shape.heads},
      {"num_hidden_layers", shape.layers},
      {"num_key_value_heads", shape.kv_heads},
      {"rms_norm_eps", 1e-6},
      {"rope_parameters",
       {{"rope_type", "default"}, {"rope_theta", 10000000}, {"partial_rotary_factor", 0.25}}},
      {"vocab_size", shape.vocab},
  };
  if (moe) {
    text["num_experts"] = shape.experts;
    text["num_experts_per_tok"] = shape.top_k;
    text["moe_intermediate_size"] = shape.moe_intermediate;
    text["shared_expert_intermediate_size"] = shape.shared_intermediate;
  } else {
    text["intermediate_size"] = shape.intermediate;
  }
  const std::string family = moe ? "Qwen3_5Moe" : "Qwen3_5";
  Json config = shape.flat ? text : Json{{"text_config", text}};
  config["architectures"] =
      Json::array({family + (shape.flat ? "ForCausalLM" : "ForConditionalGeneration")});
  config["tie_word_embeddings"] = shape.tied;
  if (shape.fp8)
    config["quantization_config"] = {{"quant_method", "fp8"},
                                     {"fmt", "e4m3"},
                                     {"activation_scheme", "dynamic"},
                                     {"weight_block_size", {128, 128}}};
  return config.dump(2);
}

FileTensors tiny_tensors(std::string_view config_json, std::string_view prefix) {
  const Json config = Json::parse(config_json);
  const Json& text = config.contains("text_config") ? config["text_config"] : config;
  const bool fp8 = config.contains("quantization_config");
  const std::int64_t hidden = text.at("hidden_size"), vocab = text.at("vocab_size");
  const std::string root(prefix);
  Maker make(fp8);
  make.bf16_values(root + "embed_tokens.weight", {vocab, hidden}, 6);
  make.norm(root + "norm.weight", hidden);
  if (!config.at("tie_word_embeddings").get<bool>())
    make.bf16_matrix("lm_head.weight", {vocab, hidden});
  const Json& types = text.at("layer_types");
  for (std::size_t i = 0; i < types.size(); ++i) {
    const std::string at = root + "layers." + std::to_string(i) + ".";
    make.norm(at + "input_layernorm.weight", hidden);
    make.norm(at + "post_attention_layernorm.weight", hidden);
    if (types[i] == "full_attention")
      add_attention(make, text, at + "self_attn.", hidden);
    else
      add_delta_net(make, text, at + "linear_attn.", hidden);
    add_mlp(make, text, at + "mlp.", hidden, fp8);
  }
  return std::move(make.tensors);
}

void write_checkpoint(const std::filesystem::path& directory, std::string_view config_json,
                      const FileTensors& tensors, int shards) {
  write_file(directory / "config.json", config_json);
  if (shards == 0) return write_file(directory / "model.safetensors", safetensors_bytes(tensors));
  std::vector<FileTensors> parts(static_cast<std::size_t>(shards));
  std::vector<std::string> files;
  std::size_t next = 0;
  for (const auto& [name, tensor] : tensors) parts[next++ % parts.size()].emplace(name, tensor);
  for (std::size_t i = 0; i < parts.size(); ++i) {
    files.push_back("layers-" + std::to_string(i) + ".safetensors");
    write_file(directory / files.back(), safetensors_bytes(parts[i]));
  }
  write_file(directory / "model.safetensors.index.json", index_json(parts, files));
}

TempDirectory::TempDirectory() {
  std::string name = (std::filesystem::temp_directory_path() / "tenon-XXXXXX").string();
  if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("cannot make a directory");
  path_ = name;
}

TempDirectory::~TempDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace tenon::test
