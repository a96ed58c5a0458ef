// Routed and shared experts into one addend.
//   out[t] = rne(Σ_k weights[t, k] · routed[slot[t, k]] + sigmoid(shared_gate[t]) · shared[t])
// in fp32, k ascending, slots of −1 skipped, shared expert last.
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
