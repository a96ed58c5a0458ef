// Gated DeltaNet: causal short convolution with SiLU, the gated delta rule, gated head norm.
//   u = silu(conv(qkv));  q, k L2-normalised per head (eps inside the root), q · d_k^-½
//   beta = sigmoid(b);  g = −exp(a_log) · softplus(a + dt_bias)
//   S ← exp(g) · S;  d = beta · (v − Sᵀk);  S ← S + k ⊗ d;  o = Sᵀq        state S in fp32
//   t = rne(o · rstd(o) · norm · silu(z)) per v head, o rounded to bf16 first
//   out.bf16 = t;  out.fp8 = quantise(t) as fp8_quant does, one group per v head
// v head j uses q/k head j / (v_heads / k_heads). Source: the model's reference and the chunked WY
// form. Rows behind the last sequence become zero, and a sequence may have no rows at all: padding.
// A slot keeps S and the inputs of the last four tokens of its sequence, one more than the
// convolution looks back: so one call may read and write it without any order between blocks.
// A sequence reads its state from one slot and leaves it in another, or in the same; a slot that
// one sequence writes is read by no other in the same call. Without a slot to read from (−1) it
// starts from zero.
//
// Two forms, equal up to fp32 rounding, and one rule for which token meets which
// (docs/exactness.md): a sequence with one token in the step, which is a decode step or a prompt of
// one token, takes the recurrence; one with more takes chunks of kChunkTokens, counted from its
// first token of the step, the last one as short as it is. The caller cuts prompts at multiples of
// kChunkTokens of the sequence's position only and never leaves one token alone; chunks then lie at
// the same positions however a prompt is cut. A token of a chunk reads earlier tokens of its
// sequence only, so a prompt's end shows in no token before it. A row's result depends on its own
// sequence and nothing else.
// Variants: "chunked" keeps the rule and is preferred on every target for steps with longer
// sequences; "recurrent" has the bits of the recurrence, and so has "decode", one kernel for steps
// of one token per sequence, which the cpu target has no use for. Forced for longer sequences,
// "recurrent" is another definition: one that gives the same bits wherever a prompt is cut.
#pragma once

#include "tenon/core/tensor.h"
#include "tenon/device/plan.h"
#include "tenon/device/runtime.h"

namespace tenon::gated_delta_net {

extern const Op kOp;

inline constexpr int kHeadDim = 128;  // dk and dv
inline constexpr int kTaps = 4;       // of the convolution
inline constexpr int kChunkTokens = 64;
inline constexpr int kKeptInputs = 4;  // of the convolution, in a slot

inline constexpr int kTileColumns =
    272;  // of scratch for a v head, where chunks run on tensor cores

// Columns of Args::scratch: u and o of a token; on targets with a variant "tiles" also what that
// hands from kernel to kernel.
constexpr std::int64_t scratch_columns(int k_heads, int v_heads, Target target) {
  const bool tiles = target == Target::kCuda || target == Target::kEmu32;
  return std::int64_t{2 * k_heads + 2 * v_heads} * kHeadDim + (tiles ? v_heads * kTileColumns : 0);
}

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
  TensorView sequence_lengths;      // i32 [sequences]: tokens so far, those of this step included
  TensorView state_from;            // i32 [sequences]: slot to read; −1: starts from zero
  TensorView state_to;              // i32 [sequences]: slot to write; −1: writes none
  TensorView fresh;                 // i32 [sequences]: 1 starts from zero, whatever its slot holds
  TensorView conv_state;            // bf16 [slots, 4, conv_dim]: input of position p in row p mod 4
  TensorView state;                 // f32 [slots, v_heads, dk, dv]
  TensorView scratch;               // [tokens, scratch_columns()] bf16, rows of 16 bytes: u first
  NormedRows out;                   // [tokens, v_heads·dv]: bf16, fp8 in groups of 128, or both
  int max_tokens_per_sequence = 1;  // of this step: 1 means decode only
  // The arrays of sequences and both states were complete when the kernel started that runs before
  // this op on its stream, and that kernel does not write them: they may be read beside it.
  bool state_is_settled = false;
};

Status check(const Args& args);
// Forced to chunked, a step of one token per sequence is planned as the target's best variant for
// it, and forced to decode, a step with longer sequences as chunked: a model has both.
Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced = {});
Status run(const Plan& plan, const Args& args, Stream& stream);
Traffic traffic(const Args& args);

}  // namespace tenon::gated_delta_net
