// The contract between the runtime, which fills these, and the models, which read them. It lies
// below both so that neither includes the other.
#pragma once

#include <cstdint>

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

// This rank's slice of the vocabulary: ids [vocab_begin, vocab_begin + width).
struct LogitsShard {
  TensorView logits;  // f32 [sequences, width]
  int vocab_begin = 0;
};

}  // namespace tenon
