// One rank's weights of a Qwen3.5 checkpoint as the specs of its layers. Tensor names live in
// load.cc only, marks of their kinds in inspect.cc. Not here: plans and scratch (qwen3_5.cc).
#pragma once

#include <variant>
#include <vector>

#include "tenon/layers/layers.h"
#include "tenon/models/qwen3_5/config.h"
#include "tenon/models/shard.h"

namespace tenon::qwen3_5 {

struct LayerWeights {
  TensorView first_norm, second_norm;  // in front of the mixer, in front of the mlp
  std::variant<DeltaNetSpec, AttentionSpec> mixer;
  std::variant<DenseSpec, ExpertsSpec> mlp;
};

struct ModelWeights {
  TensorView embedding;   // [vocabulary slice, hidden] bf16
  TensorView head;        // the same memory when tied
  TensorView final_norm;  // [hidden]
  std::vector<LayerWeights> layers;
};

// Parts of a checkpoint that are not used: the vision tower and the draft head.
std::vector<std::string_view> skipped_prefixes();

// Takes every tensor of the text model, and refuses leftovers. cos_sin comes from rotary_table().
Result<ModelWeights> load_weights(const Config& config, const Share& share,
                                  const TensorView& cos_sin, ShardLoader& loader);

// [positions, rotary_dim]: rotary_dim / 2 cosines, then as many sines; computed in double.
std::vector<float> rotary_table(const Config& config, int positions);

}  // namespace tenon::qwen3_5
