// Routed and shared experts into one addend.
//   out[t] = rne(Σ_k weights[t, k] · routed[slot[t, k]] + sigmoid(shared_gate[t]) · shared[t])
// The order, which every variant keeps (docs/exactness.md): every expert's output is rounded to
// bf16 before it is weighted, as routed and shared hold it. The sum is fp32 and begins at zero; it
// takes the token's choices in their order, largest weight first, and the shared expert last. Every
// product and every sum is rounded on its own; the result is rounded to bf16 once. Choices with a
// slot of −1 (another rank's experts) are left out, whatever their weight.
#pragma once

#include "tenon/comm/partial_rows.h"
#include "tenon/core/tensor.h"
#include "tenon/device/plan.h"
#include "tenon/device/runtime.h"

namespace tenon::moe_combine {

extern const Op kOp;

struct Args {
  TensorView routed;       // [pairs, hidden] bf16: down-projection outputs, sorted by expert
  TensorView weights;      // f32 [tokens, top_k]
  TensorView slot;         // i32 [tokens, top_k]
  TensorView shared;       // [tokens, hidden] bf16: this rank's addend of the shared expert
  TensorView shared_gate;  // [tokens, 1] bf16 or f32: the gate's logit
  PartialRows out;         // [tokens, hidden] bf16
};

Status check(const Args& args);
Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced = {});
Status run(const Plan& plan, const Args& args, Stream& stream);
Traffic traffic(const Args& args);

}  // namespace tenon::moe_combine
