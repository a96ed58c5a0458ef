// The routed and the shared experts of a decode step, from quantised rows to the addend:
//   gate | up  = fp8_gemm(x, gate_up), rounded to bf16    for each (token, expert) pair
//   activation = rne(silu(gate) · up), quantised by groups of 128 as fp8_quant does
//   routed     = fp8_gemm(activation, down), rounded to bf16
//   out        = moe_combine(routed, weights, slot, shared expert, shared_gate)
// with the shared expert treated like the others, for every token. With logits it begins with
// moe_route. This is a chain of four ops of their own, fp8_gemm, fp8_quant, fp8_gemm and
// moe_combine, in two launches or three; it has the bits of that chain by the variants sm90 of
// fp8_gemm. Where no variant takes a call (other devices, many tokens), the caller runs the chain:
// layers/mlp does.
#pragma once

#include <optional>

#include "tenon/comm/partial_rows.h"
#include "tenon/core/tensor.h"
#include "tenon/device/plan.h"
#include "tenon/device/runtime.h"

namespace tenon::moe_experts {

extern const Op kOp;

inline constexpr int kMaxTokens = 64;        // no variant takes more
inline constexpr int kMaxChosenTokens = 24;  // nor with logits

// A gated mlp. Constants: they are read while the stream's kernel before may still run.
struct Matrices {
  TensorView gate_up;        // e4m3 [experts, 2 · width, hidden], gate first; shared: no [experts]
  TensorView gate_up_scale;  // f32 [experts, 2 · width / 128, hidden / 128]
  TensorView down;           // e4m3 [experts, hidden, width]
  TensorView down_scale;     // f32 [experts, hidden / 128, width / 128]
};

struct Args {
  QuantView x;  // [tokens, hidden] e4m3 codes, group 128, layout row or mn_major
  Matrices routed;
  std::optional<Matrices> shared;  // absent: it adds zeros. As wide as the others
  // [tokens, all experts] f32, of which those from first_expert on are this rank's. Then weights
  // and slot are outputs, with what moe_route makes, offsets is memory between the launches, and
  // token_of is not used. Absent: the four have what moe_route makes.
  std::optional<TensorView> logits;
  int first_expert = 0;
  TensorView offsets;      // i32 [experts + 1]
  TensorView token_of;     // i32 [tokens · top_k]
  TensorView weights;      // f32 [tokens, top_k]
  TensorView slot;         // i32 [tokens, top_k]
  TensorView shared_gate;  // [tokens, 1] f32: the gate's logit
  TensorView activation;   // bf16 [tokens · (top_k + 1), width]: memory between the launches
  PartialRows out;         // [tokens, hidden] bf16
};

// hidden and width are multiples of 128.
Status check(const Args& args);
Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced = {});
Status run(const Plan& plan, const Args& args, Stream& stream);
// As many experts as there can be pairs.
Traffic traffic(const Args& args);

}  // namespace tenon::moe_experts
