// Gated DeltaNet: causal short convolution with SiLU, the gated delta rule, gated head norm.
//   u = silu(conv(qkv));  q, k L2-normalised per head (eps inside the root), q · d_k^-½
//   beta = sigmoid(b);  g = −exp(a_log) · softplus(a + dt_bias)
//   S ← exp(g) · S;  d = beta · (v − Sᵀk);  S ← S + k ⊗ d;  o = Sᵀq        state S in fp32
//   out = rne(o · rstd(o) · norm · silu(z)) per v head, o rounded to bf16 first
// v head j uses q/k head j / (v_heads / k_heads). Source: the model's reference and the chunked WY
// form. Rows behind the last sequence become zero. Without state (slot −1) a sequence starts from
// zero.
//
// Two forms, equal up to fp32 rounding, and one rule for which token meets which
// (docs/exactness.md): a sequence with one token in the step, which is a decode step or a prompt of
// one token, takes the recurrence; one with more takes chunks of kChunkTokens, counted from its
// first token of the step, the last one as short as it is. The caller cuts prompts at multiples of
// kChunkTokens of the sequence's position only and never leaves one token alone; chunks then lie at
// the same positions however a prompt is cut. A token of a chunk reads earlier tokens of its
// sequence only, so a prompt's end shows in no token before it. A row's result depends on its own
// sequence and nothing else.
// Variants: "chunked" keeps the rule and is preferred on every target; "recurrent" is what it takes
// for sequences of one token. Forced for longer ones, "recurrent" is another definition: one that
// gives the same bits wherever a prompt is cut.
#pragma once

#include "tenon/core/tensor.h"
#include "tenon/device/plan.h"
#include "tenon/device/runtime.h"

namespace tenon::gated_delta_net {

extern const Op kOp;

inline constexpr int kHeadDim = 128;  // dk and dv
inline constexpr int kTaps = 4;       // of the convolution
inline constexpr int kChunkTokens = 64;

struct Args {
  TensorView qkv;             // [tokens, 2·k_heads·dk + v_heads·dv] bf16, before the convolution
  TensorView z;               // [tokens, v_heads·dv] bf16; rows may be strided
  TensorView b, a;            // [tokens, v_heads] bf16; rows may be strided
  TensorView conv_weight;     // [conv_dim, 4] bf16; the last column meets the current token
  TensorView a_log, dt_bias;  // f32 [v_heads]
  TensorView norm;            // f32 [dv]
  float eps = 1e-6f;
  int k_heads = 0, v_heads = 0;     // of this rank; dk = dv = 128
  TensorView sequence_starts;       // i32 [sequences + 1]
  TensorView state_slots;           // i32 [sequences]; −1: padding, reads and writes no state
  TensorView fresh;                 // i32 [sequences]: 1 starts from zero state, 0 continues
  TensorView conv_state;            // bf16 [slots, 3, conv_dim]: last three inputs, oldest first
  TensorView state;                 // f32 [slots, v_heads, dk, dv]
  TensorView scratch;               // [tokens, conv_dim] bf16: u
  TensorView out;                   // [tokens, v_heads·dv] bf16, contiguous
  int max_tokens_per_sequence = 1;  // of this step: 1 means decode only
};

Status check(const Args& args);
// Forced to chunked, a step of one token per sequence is planned as recurrent.
Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced = {});
Status run(const Plan& plan, const Args& args, Stream& stream);
Traffic traffic(const Args& args);

}  // namespace tenon::gated_delta_net
