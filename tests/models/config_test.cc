// config.json of Qwen3.5 as many programs write it: which default a missing key has, and that every
// key that changes the result is either understood or refused by name. Expected values are those of
// transformers 5.24. Not here: sizes that make no sense (qwen3_5_test.cc).
#include "tenon/models/qwen3_5/config.h"

#include <gtest/gtest.h>

#include <array>
#include <nlohmann/json.hpp>

#include "tests/support/tiny_model.h"

namespace tenon::qwen3_5 {
namespace {

using Json = nlohmann::json;

// A config of a tiny model with a JSON merge patch over it: null removes a key.
Result<Config> patched(const char* patch, const test::TinyShape& shape = {}) {
  Json config = Json::parse(test::tiny_config(shape));
  config.merge_patch(Json::parse(patch));
  return parse_config(config.dump());
}

void expect_refused(const char* patch, std::string_view sentence) {
  const auto config = patched(patch);
  ASSERT_FALSE(config) << patch << " is accepted, but should say: " << sentence;
  EXPECT_NE(config.status().message().find(sentence), std::string_view::npos)
      << config.status().message();
}

void expect_accepted(const char* patch) {
  const auto config = patched(patch);
  EXPECT_TRUE(config) << patch << ": " << config.status().message();
}

// --- defaults -------------------------------------------------------------------------------

struct Default {
  const char* key;
  double dense, moe;  // of Qwen3_5TextConfig and Qwen3_5MoeTextConfig
  double (*found)(const Config&);
};
constexpr Default kDefaults[] = {
    {"hidden_size", 4096, 2048, [](const Config& c) -> double { return c.hidden; }},
    {"vocab_size", 248320, 248320, [](const Config& c) -> double { return c.vocab; }},
    {"num_hidden_layers", 32, 40, [](const Config& c) { return double(c.layers.size()); }},
    {"num_attention_heads", 16, 16, [](const Config& c) -> double { return c.q_heads; }},
    {"num_key_value_heads", 4, 2, [](const Config& c) -> double { return c.kv_heads; }},
    {"head_dim", 256, 256, [](const Config& c) -> double { return c.head_dim; }},
    {"linear_num_key_heads", 16, 16, [](const Config& c) -> double { return c.k_heads; }},
    {"linear_num_value_heads", 32, 32, [](const Config& c) -> double { return c.v_heads; }},
    {"linear_key_head_dim", 128, 128, [](const Config& c) -> double { return c.key_dim; }},
    {"linear_value_head_dim", 128, 128, [](const Config& c) -> double { return c.value_dim; }},
    {"rms_norm_eps", 1e-6f, 1e-6f, [](const Config& c) -> double { return c.eps; }},
    {"max_position_embeddings", 32768, 32768,
     [](const Config& c) -> double { return c.max_positions; }},
    {"rope_theta", 10000, 10000, [](const Config& c) { return c.rope_theta; }},
    {"partial_rotary_factor · head_dim", 64, 64,
     [](const Config& c) -> double { return c.rotary_dim; }},
    {"intermediate_size", 12288, 0, [](const Config& c) -> double { return c.intermediate; }},
    {"num_experts", 0, 256, [](const Config& c) -> double { return c.experts; }},
    {"num_experts_per_tok", 0, 8, [](const Config& c) -> double { return c.top_k; }},
    {"moe_intermediate_size", 0, 512, [](const Config& c) -> double { return c.moe_intermediate; }},
    {"shared_expert_intermediate_size", 0, 512,
     [](const Config& c) -> double { return c.shared_intermediate; }},
};

TEST(Qwen3_5Defaults, AreThoseOfTransformers) {
  for (const auto* json :
       {R"({"model_type": "qwen3_5", "text_config": {"model_type": "qwen3_5_text"}})",
        R"({"architectures": ["Qwen3_5ForCausalLM"]})", R"({"model_type": "qwen3_5_text"})"}) {
    const auto config = parse_config(json);
    ASSERT_TRUE(config) << config.status().message();
    for (const Default& each : kDefaults) EXPECT_EQ(each.found(*config), each.dense) << each.key;
  }
  for (const auto* json :
       {R"({"model_type": "qwen3_5_moe", "text_config": {"model_type": "qwen3_5_moe_text"}})",
        R"({"architectures": ["Qwen3_5MoeForCausalLM"]})",
        R"({"model_type": "qwen3_5_moe_text"})"}) {
    const auto config = parse_config(json);
    ASSERT_TRUE(config) << config.status().message();
    for (const Default& each : kDefaults) EXPECT_EQ(each.found(*config), each.moe) << each.key;
    EXPECT_EQ(config->layers[2], LayerKind::kDeltaNet);
    EXPECT_EQ(config->layers[3], LayerKind::kAttention);
  }
}

// A rope object without a base has the same default, wherever it stands.
TEST(Qwen3_5Defaults, ThetaIsTenThousand) {
  EXPECT_EQ(patched(R"({"text_config": {"rope_parameters": null}})")->rope_theta, 10000);
  EXPECT_EQ(patched(R"({"text_config": {"rope_parameters": {"rope_theta": null}}})")->rope_theta,
            10000);
  EXPECT_EQ(patched(R"({"text_config": {"rope_parameters": {"rope_theta": null},
                                        "rope_theta": 500}})")
                ->rope_theta,
            500);
  EXPECT_EQ(patched(R"({"text_config": {"rope_parameters": null, "rope_theta": 500,
                        "rope_scaling": {"type": "default", "rope_theta": 7}}})")
                ->rope_theta,
            7);
}

TEST(Qwen3_5Config, KnowsDenseFromMoe) {
  expect_refused(R"({"architectures": null})",
                 "neither \"model_type\" nor \"architectures\" says which model this is");
  expect_refused(R"({"model_type": "qwen4_exp"})", "\"model_type\" is \"qwen4_exp\"");
  expect_refused(R"({"text_config": {"model_type": "qwen4_exp_text"}})",
                 "\"model_type\" is \"qwen4_exp_text\"");
  expect_refused(R"({"text_config": {"model_type": "qwen3_5_moe_text"}})",
                 "\"architectures\" is \"Qwen3_5ForConditionalGeneration\"; accepted: names of");
  expect_refused(R"({"text_config": {"num_experts": 4}})", "\"num_experts\" is 4 in a dense model");
  expect_accepted(R"({"text_config": {"num_experts": 0}})");
}

// --- rotary embedding -----------------------------------------------------------------------

TEST(Qwen3_5Config, RefusesRotaryScalingInEitherPlace) {
  for (const char* place : {"rope_parameters", "rope_scaling"}) {
    for (const char* type : {"yarn", "linear", "dynamic", "llama3", "longrope", "mrope", "ntk"}) {
      for (const char* key : {"rope_type", "type"}) {
        const std::string patch = std::string(R"({"text_config": {")") + place + R"(": {")" + key +
                                  R"(": ")" + type + R"(", "factor": 4.0}}})";
        expect_refused(patch.c_str(), std::string("\"") + place + "." + key + "\" is \"" + type +
                                          "\"; accepted: \"default\"");
      }
    }
    const std::string at = place;
    const auto with = [&](const std::string& inside) {
      return R"({"text_config": {")" + at + R"(": )" + inside + "}}";
    };
    // A key that nobody here understands.
    for (const char* key : {"factor", "mscale", "attention_factor", "beta_fast", "new_thing"}) {
      const std::string patch = with(std::string(R"({"rope_type": "default", ")") + key + "\": 4}");
      expect_refused(patch.c_str(), "\"" + at + "." + key + "\" is 4, which is not understood");
    }
    // One object for each type of layer.
    expect_refused(
        with(R"({"full_attention": {"rope_type": "default", "rope_theta": 1e7}})").c_str(),
        "\"" + at + ".full_attention\" is {\"rope_theta\":10000000.0");
    expect_refused(with("3").c_str(), "\"" + at + "\" is 3; accepted: an object");
    expect_refused(with(R"({"rope_theta": "x"})").c_str(), "\"" + at + ".rope_theta\" is \"x\"");
  }
}

// transformers lets rope_scaling replace rope_parameters; two that differ are nobody's intention.
TEST(Qwen3_5Config, RefusesTwoRotaryObjectsThatDiffer) {
  expect_refused(R"({"text_config": {"rope_scaling": {"rope_theta": 5}}})",
                 "\"rope_scaling\" is {\"rope_theta\":5} and \"rope_parameters\" is");
  expect_accepted(R"({"text_config": {"rope_scaling": {"rope_type": "default",
                      "rope_theta": 10000000, "partial_rotary_factor": 0.25}}})");
  expect_accepted(R"({"text_config": {"rope_scaling": {}}})");
  expect_accepted(R"({"text_config": {"rope_parameters": {"mrope_section": [11, 11, 10],
                      "mrope_interleaved": true}}})");
  expect_accepted(R"({"text_config": {"rope_scaling": {"type": "default",
                      "rope_theta": 10000000.0}, "partial_rotary_factor": 0.25}})");
}

// Whoever overrides a key at the root of a nested config overrides nothing.
TEST(Qwen3_5Config, RefusesKeysBesideTheTextConfig) {
  expect_refused(R"({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}})",
                 "\"rope_scaling\" stands beside \"text_config\"");
  expect_refused(R"({"rope_theta": 10000.0})", "\"rope_theta\" stands beside \"text_config\"");
  expect_refused(R"({"hidden_size": 512})", "\"hidden_size\" stands beside \"text_config\"");
  expect_refused(R"({"max_position_embeddings": 1010000})",
                 "\"max_position_embeddings\" stands beside \"text_config\"");
  expect_accepted(R"({"hidden_size": 256, "vocab_size": 512, "transformers_version": "4.57"})");
}

// --- quantization ---------------------------------------------------------------------------

TEST(Qwen3_5Config, RefusesOtherQuantizations) {
  struct Case {
    const char* inside;
    const char* sentence;
  };
  const Case cases[] = {
      {R"({"scale_fmt": "ue8m0"})",
       "quantization_config.scale_fmt\" is \"ue8m0\"; accepted: \"float\""},
      {R"({"activation_scheme": "static"})",
       "quantization_config.activation_scheme\" is \"static\"; accepted: \"dynamic\""},
      {R"({"expert_dtype": "fp4"})", "quantization_config.expert_dtype\" is \"fp4\""},
      {R"({"dequantize": true})", "quantization_config.dequantize\" is true"},
      {R"({"kv_cache_scheme": {"num_bits": 8}})", "quantization_config.kv_cache_scheme\" is"},
      {R"({"quant_method": "modelopt", "quant_algo": "NVFP4"})",
       "quantization_config.quant_method\" is \"modelopt\" with \"quant_algo\" \"NVFP4\""},
      {R"({"quant_method": "compressed-tensors", "format": "float-quantized"})",
       "quantization_config.quant_method\" is \"compressed-tensors\" with \"format\" "
       "\"float-quantized\""},
      {R"({"new_thing": 3})", "quantization_config.new_thing\" is 3, which is not understood"},
      {R"({"fmt": "e5m2"})", "quantization_config.fmt\" is \"e5m2\""},
      {R"({"weight_block_size": [64, 128]})",
       "quantization_config.weight_block_size\" is [64,128]; accepted: [128,128]"},
  };
  for (const Case& each : cases) {
    SCOPED_TRACE(each.inside);
    const std::string root = std::string(R"({"quantization_config": )") + each.inside + "}";
    expect_refused(root.c_str(), each.sentence);
    Json nested = Json::parse(R"({"quant_method": "fp8"})");
    nested.merge_patch(Json::parse(each.inside));
    const std::string patch = R"({"text_config": {"quantization_config": )" + nested.dump() + "}}";
    expect_refused(patch.c_str(), each.sentence);
  }
  expect_refused(R"({"quantization_config": {"quant_method": null}})",
                 "quantization_config.quant_method\" is missing; accepted: \"fp8\"");
  expect_refused(R"({"compression_config": {"format": "x"}})", "\"compression_config\" is");
  expect_accepted(R"({"quantization_config": {"weight_block_size": null}})");  // absent: 128
  expect_accepted(R"({"quantization_config": {"scale_fmt": "float", "modules_to_not_convert": [],
                      "ignored_layers": [], "dequantize": false}})");
}

// One scale for a whole row or tensor is written as null, which is not the same as absent.
TEST(Qwen3_5Config, RefusesScalesThatAreNotOfBlocks) {
  Json config = Json::parse(test::tiny_config({}));
  config["quantization_config"]["weight_block_size"] = nullptr;
  const auto found = parse_config(config.dump());
  ASSERT_FALSE(found);
  EXPECT_NE(found.status().message().find("quantization_config.weight_block_size\" is null"),
            std::string_view::npos)
      << found.status().message();
}

// --- the rest -------------------------------------------------------------------------------

TEST(Qwen3_5Config, RefusesVariationsByName) {
  const std::array<std::array<const char*, 2>, 14> cases{{
      {"output_gate_type", "\"sigmoid\""},
      {"mamba_ssm_dtype", "\"bfloat16\""},
      {"decoder_sparse_step", "2"},
      {"norm_topk_prob", "false"},
      {"routed_scaling_factor", "2.5"},
      {"scoring_func", "\"sigmoid\""},
      {"n_group", "8"},
      {"final_logit_softcapping", "30.0"},
      {"attn_logit_softcapping", "50.0"},
      {"use_sliding_window", "true"},
      {"logits_scaling", "2"},
      {"embedding_multiplier", "12"},
      {"residual_multiplier", "0.5"},
      {"mlp_bias", "true"},
  }};
  for (const auto& [key, value] : cases) {
    const std::string patch = std::string(R"({"text_config": {")") + key + "\": " + value + "}}";
    expect_refused(patch.c_str(), std::string("\"") + key + "\" is " + value);
  }
  for (const char* gate : {"\"silu\"", "\"swish\"", "null"}) {
    const std::string patch = std::string(R"({"text_config": {"output_gate_type": )") + gate + "}}";
    expect_accepted(patch.c_str());
  }
  expect_accepted(R"({"text_config": {"hidden_act": "swish", "decoder_sparse_step": 1,
                      "routed_scaling_factor": 1.0, "sliding_window": 4096,
                      "use_sliding_window": false, "initializer_range": 0.5}})");
}

TEST(Qwen3_5Config, NamesWhatIsNoNumber) {
  std::string text = test::tiny_config({});
  const std::string eps = "\"rms_norm_eps\": ";
  const std::size_t at = text.find(eps) + eps.size();
  text.replace(at, text.find(',', at) - at, "Infinity");
  const auto found = parse_config(text);
  ASSERT_FALSE(found);
  EXPECT_NE(found.status().message().find("config: \"rms_norm_eps\" is Infinity"),
            std::string_view::npos)
      << found.status().message();
}

TEST(Qwen3_5Config, SurvivesDeepNesting) {
  for (const char* key : {"text_config", "architectures", "rope_parameters", "eos_token_id"}) {
    std::string text = std::string("{\"") + key + "\": " + std::string(100'000, '[') +
                       std::string(100'000, ']') + "}";
    const auto found = parse_config(text);
    ASSERT_FALSE(found);
    EXPECT_NE(found.status().message().find("nested more than 256 deep"), std::string_view::npos)
        << found.status().message();
  }
}

}  // namespace
}  // namespace tenon::qwen3_5
