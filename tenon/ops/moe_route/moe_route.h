// Chooses experts and sorts (token, choice) pairs by local expert.
//   p = softmax(logits) in fp32 over all experts; the top_k largest (lowest index first on ties),
//   their p divided by the sum of the chosen p
// Pairs whose expert lies on another rank get slot −1 and take no part here. The others are sorted
// by (local expert, token, choice). A NaN logit makes all weights of its token NaN; its experts are
// then the first top_k. Same bits on every target.
#pragma once

#include "tenon/core/tensor.h"
#include "tenon/device/plan.h"
#include "tenon/device/runtime.h"

namespace tenon::moe_route {

extern const Op kOp;

inline constexpr int kMaxExperts = 1024;

struct Args {
  TensorView logits;  // [tokens, experts] bf16 or f32
  int top_k = 1;
  int first_expert = 0;  // local experts are [first_expert, first_expert + local_experts)
  int local_experts = 0;
  TensorView weights;   // f32 [tokens, top_k], out
  TensorView slot;      // i32 [tokens, top_k], out: row of the pair in the sorted list, or −1
  TensorView offsets;   // i32 [local_experts + 1], out: rows of each local expert
  TensorView token_of;  // i32 [tokens · top_k], out: token of each sorted pair; rest is 0
};

Status check(const Args& args);
Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced = {});
Status run(const Plan& plan, const Args& args, Stream& stream);
Traffic traffic(const Args& args);

}  // namespace tenon::moe_route
