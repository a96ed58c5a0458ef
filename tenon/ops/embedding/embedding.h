// Vocabulary-parallel lookup: this rank's addend of the embedded tokens.
//   out[t] = table[id[t] − vocab_begin] if the id lies in this rank's slice, zero otherwise
#pragma once

#include "tenon/comm/partial_rows.h"
#include "tenon/core/tensor.h"
#include "tenon/device/plan.h"
#include "tenon/device/runtime.h"

namespace tenon::embedding {

extern const Op kOp;

struct Args {
  TensorView ids;                // i32 [tokens]
  TensorView table;              // [vocab slice, hidden] bf16 or f16
  std::int32_t vocab_begin = 0;  // first id of the slice
  PartialRows out;               // [tokens, hidden], same type
};

Status check(const Args& args);
Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced = {});
Status run(const Plan& plan, const Args& args, Stream& stream);
Traffic traffic(const Args& args);

}  // namespace tenon::embedding
