// Causal attention over the paged cache with grouped queries and an output gate; any mix of prefill
// and decode sequences in one call.
//   o = softmax(q · kᵀ · scale + causal) · v;   out = rne(rne(o) · sigmoid(gate))
// Query t of sequence s (sequence_starts[s] <= t < sequence_starts[s + 1]) stands at context
// position sequence_lengths[s] − (sequence_starts[s + 1] − t) and sees positions up to its own.
// Query head j reads kv head j / (q_heads / kv_heads).
// A row's result has the same bits on every target, whatever else is in the batch and however the
// prompt was split into steps: context positions are summed in order, in tiles of kTileTokens from
// position 0 on. Rows behind the last sequence, and rows that see no position, become zero.
#pragma once

#include "tenon/core/tensor.h"
#include "tenon/device/plan.h"
#include "tenon/device/runtime.h"

namespace tenon::attention {

extern const Op kOp;

inline constexpr int kMaxHeadDim = 256;
inline constexpr int kTileTokens = 16;  // the running maximum changes once per tile

struct Args {
  TensorView q;                    // [tokens, q_heads, head_dim] bf16, contiguous
  std::optional<TensorView> gate;  // [tokens, q_heads, head_dim] bf16; token and head strides free
  TensorView k_cache, v_cache;     // [blocks, block_tokens, kv_heads, head_dim] bf16, contiguous
  TensorView block_table;          // i32 [sequences, max blocks]
  TensorView sequence_starts;      // i32 [sequences + 1]
  TensorView sequence_lengths;     // i32 [sequences]: context length with this step's tokens
  float scale = 0.0625f;
  TensorView out;  // [tokens, q_heads · head_dim] bf16, contiguous
};

Status check(const Args& args);
Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced = {});
Status run(const Plan& plan, const Args& args, Stream& stream);
Traffic traffic(const Args& args);

}  // namespace tenon::attention
