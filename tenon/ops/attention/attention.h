// Causal attention over the paged cache with grouped queries and an output gate; any mix of prefill
// and decode sequences in one call.
//   o = softmax(q · kᵀ · scale + causal) · v;   out = rne(rne(o) · sigmoid(gate))
// Query t of sequence s (sequence_starts[s] <= t < sequence_starts[s + 1]) stands at context
// position sequence_lengths[s] − (sequence_starts[s + 1] − t) and sees positions up to its own.
// Query head j reads kv head j / (q_heads / kv_heads).
// Rows behind the last sequence, and rows that see no position, become zero.
//
// The order, which every variant keeps (docs/exactness.md). The context is cut into partials of
// kPartialTokens positions, counted from position 0. Each has a softmax of its own over the
// positions that the row sees: a maximum m, a sum l, and weighted values o, in fp32. It begins with
// m = −∞, l = 0, o = 0 and takes tiles of kTileTokens positions in order, each with scores s_j = (q
// · k_j) · scale; the order of a sum inside a tile is the variant's own:
//   m' = max(m, all s_j);  r = e^(m − m');  w_j = e^(s_j − m')
//   l = l · r + Σ_j w_j;   o = o · r + Σ_j w_j · v_j;   m = m'
// Partials join from left to right. The first is taken as it is; (M, L, O) and the next (m, l, o)
// become, every product and every sum rounded to fp32 on its own,
//   M' = max(M, m);  a = e^(M − M');  b = e^(m − M')
//   L = L · a + l · b;   O = O · a + o · b;   M = M'
// At the end the row is O · (1 / L), rounded to bf16, then gated, and where fp8 is wanted quantised
// as fp8_quant does it (docs/boundary.md steps 9 and 10). A partial of which the row sees nothing
// does not join. So the split of a context over workers, at whole partials, the chunks of a
// prompt and the other rows of the batch show in no bit.
#pragma once

#include "tenon/core/tensor.h"
#include "tenon/device/plan.h"
#include "tenon/device/runtime.h"

namespace tenon::attention {

extern const Op kOp;

inline constexpr int kMaxHeadDim = 256;
inline constexpr int kTileTokens = 64;      // the running maximum moves once per tile
inline constexpr int kPartialTokens = 256;  // positions with a softmax of their own

// What stands between the projections and attention, done on the way: the op rope
// (ops/rope/rope.h), with the same bits. q, k and v are as projected; k and v of each token go
// where slot_mapping says.
struct NewHeads {
  TensorView k, v;            // [tokens, kv_heads, head_dim] bf16; token and head strides free
  TensorView q_norm, k_norm;  // [head_dim] bf16 or f32, both of one type
  float eps = 1e-6f;
  float norm_offset = 1;    // added to the weights of q_norm and k_norm, in fp32
  TensorView positions;     // i32 [tokens]
  TensorView cos_sin;       // f32 [max positions, rotary_dim]: rotary_dim/2 cosines, then sines
  TensorView slot_mapping;  // i32 [tokens]: where the cache has the token's position; −1: nowhere
};

struct Args {
  // [tokens, q_heads, head_dim] bf16; contiguous, but with `heads` token and head strides are free
  TensorView q;
  std::optional<TensorView> gate;  // [tokens, q_heads, head_dim] bf16; token and head strides free
  TensorView k_cache, v_cache;     // [blocks, block_tokens, kv_heads, head_dim] bf16, contiguous
  TensorView block_table;          // i32 [sequences, max blocks]
  TensorView sequence_starts;      // i32 [sequences + 1]
  TensorView sequence_lengths;     // i32 [sequences]: context length with this step's tokens
  float scale = 0.0625f;
  NormedRows out;  // [tokens, q_heads · head_dim]: bf16, fp8, or both; fp8 groups divide head_dim
  // No sequence has more than one token in a call; a plan then has no kernel for prompts.
  bool decode_only = false;
  // Calls for decode_only steps alone; the last position of each sequence is taken from here, not
  // from the cache. Where no variant does it plan() refuses: rope and a call without it do.
  std::optional<NewHeads> heads;
  // Memory for results of partials: u8 [workspace_bytes()] at a multiple of 256 bytes. Calls of one
  // stream may share it; what it holds does not matter. Without it only variants that need none are
  // chosen.
  std::optional<TensorView> workspace;
};

Status check(const Args& args);
// Bytes of Args::workspace that calls up to the extents of `args` make use of; 0: they need none.
// Fewer are accepted and cost time where contexts are long.
std::int64_t workspace_bytes(const Args& args, const PlanContext& where);
Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced = {});
Status run(const Plan& plan, const Args& args, Stream& stream);
Traffic traffic(const Args& args);

}  // namespace tenon::attention
