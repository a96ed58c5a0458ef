// config.json of Qwen3.5 checkpoints, dense and MoE, as published (nested) or flat, and what one
// rank of a team gets of it. Not here: tensors (load.cc), the forward pass (models/decoder.cc).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tenon/core/status.h"
#include "tenon/models/fingerprint.h"
#include "tenon/models/shard.h"

namespace tenon::qwen3_5 {

enum class LayerKind : std::uint8_t { kDeltaNet, kAttention };

struct Config {
  int hidden = 0;                 // hidden_size: width of the residual stream
  int vocab = 0;                  // vocab_size: embedding rows, padding rows included
  float eps = 1e-6f;              // rms_norm_eps, of every norm
  std::vector<LayerKind> layers;  // layer_types, or every full_attention_interval-th is attention
  int max_positions = 0;          // max_position_embeddings
  std::optional<bool> tied;       // tie_word_embeddings; absent: whoever has no lm_head ties
  bool quantized = false;         // there is a quantization_config, which says block-fp8

  // Attention layers.
  int q_heads = 0;        // num_attention_heads
  int kv_heads = 0;       // num_key_value_heads
  int head_dim = 256;     // head_dim: of q, k, v and gate; not hidden / heads
  int rotary_dim = 64;    // head_dim · partial_rotary_factor: leading components that rotate
  double rope_theta = 0;  // rope_parameters.rope_theta

  // Delta-net layers.
  int k_heads = 16;     // linear_num_key_heads: of q and k
  int v_heads = 32;     // linear_num_value_heads: each k head serves v_heads / k_heads
  int key_dim = 128;    // linear_key_head_dim
  int value_dim = 128;  // linear_value_head_dim

  // Dense mlp; 0 in a MoE.
  int intermediate = 0;  // intermediate_size

  // Mixture of experts; 0 in a dense model.
  int experts = 0;              // num_experts
  int top_k = 0;                // num_experts_per_tok; their weights always sum to 1
  int moe_intermediate = 0;     // moe_intermediate_size, of one routed expert
  int shared_intermediate = 0;  // shared_expert_intermediate_size

  bool is_moe() const { return experts > 0; }
  int conv_dim() const { return 2 * k_heads * key_dim + v_heads * value_dim; }
};

// Refuses what this model does not compute, by name of the key. A key that is absent or null has
// the value that transformers gives it.
Result<Config> parse_config(std::string_view json);

// Refuses the quantization that hf_quant_config.json describes, by its name.
Status refuse_modelopt(std::string_view json);

// The config as facts that all ranks must share.
Facts describe(const Config& config);

// What one rank of a team computes.
struct Share {
  int rank = 0, size = 1;
  int q_heads = 0, kv_heads = 0;  // of this rank
  int first_q_head = 0, first_kv_head = 0;
  int k_heads = 0, v_heads = 0;
  int first_k_head = 0, first_v_head = 0;
  Range intermediate;         // of the dense mlp
  Range shared_intermediate;  // of the shared expert
  Range experts;              // routed experts that lie here
  Range moe_intermediate;     // of each of them
  int vocab_width = 0;        // slots of every rank's vocabulary slice
  Range vocab;                // ids that have a row here; the last slice may be short
};

// Every reason why a team of `size` cannot share the model; none: it can. `fp8` as in share().
std::vector<std::string> team_refusals(const Config& config, bool fp8, int size);

// The slices of `rank`, or the first of the reasons above. `fp8`: rows and slices must be whole
// blocks of 128.
//   heads: equal shares; kv heads are replicated when there are fewer than ranks
//   dense and shared mlp: whole blocks, as evenly as possible
//   experts: sliced by intermediate size if every slice is whole blocks, else placed whole
//   vocabulary: equal slots, the last slice may be short
Result<Share> share(const Config& config, bool fp8, int rank, int size);

}  // namespace tenon::qwen3_5
