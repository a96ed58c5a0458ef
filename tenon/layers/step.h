// The contract between the runtime, which fills these, and the models, which read them. It lies
// below both so that neither includes the other.
#pragma once

#include <cstdint>
#include <span>

#include "tenon/core/tensor.h"

namespace tenon {

// One forward pass over a mix of prefill and decode sequences. Device views at fixed addresses.
struct StepView {
  int num_tokens = 0, num_sequences = 0;
  int max_tokens_per_sequence = 1;  // 1: every sequence decodes
  TensorView token_ids, positions;  // i32 [tokens]
  TensorView sequence_starts;       // i32 [sequences + 1]
  TensorView sequence_lengths;      // i32 [sequences]: context with this step's tokens
  TensorView slot_mapping;          // i32 [tokens]: where k and v go; −1 for padding
  TensorView block_table;           // i32 [sequences, max blocks]
  TensorView state_slots;           // i32 [sequences]; −1 for padding
  TensorView fresh;                 // i32 [sequences]: 1 if the sequence starts in this step
  TensorView logit_rows;            // i32 [sequences]: the token row that gets logits
};

// What a model needs from the caches, per rank.
struct CacheLayout {
  int block_tokens = 64;
  int num_kv_layers = 0, kv_heads = 0, head_dim = 0;  // k and v: bf16
  int num_state_layers = 0, conv_dim = 0;             // conv state: bf16 [3, conv_dim]
  int v_heads = 0, key_dim = 0, value_dim = 0;        // state: f32 [v_heads, key_dim, value_dim]

  std::int64_t kv_bytes_per_token() const {
    return std::int64_t{4} * num_kv_layers * kv_heads * head_dim;
  }
  std::int64_t state_bytes_per_sequence() const {
    return num_state_layers *
           (std::int64_t{6} * conv_dim + std::int64_t{4} * v_heads * key_dim * value_dim);
  }
};

// One entry per layer of that kind, in layer order.
struct CacheViews {
  std::span<const TensorView> k, v;               // [blocks, block_tokens, kv_heads, head_dim] bf16
  std::span<const TensorView> conv_state, state;  // as in ops/gated_delta_net
};

// This rank's slice of the vocabulary: ids [vocab_begin, vocab_begin + width).
struct LogitsShard {
  TensorView logits;  // f32 [sequences, width]
  int vocab_begin = 0;
};

}  // namespace tenon
