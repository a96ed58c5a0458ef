// The sum of gathered addends as a kernel: what Communicator::all_reduce runs behind a gather where
// the transport brings collectives of its own and no peer pointers.
#pragma once

#include <cstdint>

#include "tenon/core/dtype.h"
#include "tenon/core/status.h"
#include "tenon/device/plan.h"
#include "tenon/device/runtime.h"

namespace tenon::ranked_sum {

extern const Op kOp;

// out = sum over ranks of their parts, in rank order in fp32, rounded once (docs/boundary.md, steps
// 1 and 2). Rank r's part begins at parts + r · bytes, as a gather of `bytes` of every rank leaves
// it. Any alignment that the elements have; `out` lies outside the parts.
struct Args {
  const std::uint8_t* parts = nullptr;  // [size, bytes], device
  std::uint8_t* out = nullptr;          // [bytes], device
  std::uint64_t bytes = 0;
  int size = 1;                // ranks, at most kMaxRanks
  DType dtype = DType::kBF16;  // bf16 or f16
};

Status check(const Args& args);
Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced = {});
// Launches one kernel.
Status run(const Plan& plan, const Args& args, Stream& stream);
Traffic traffic(const Args& args);

}  // namespace tenon::ranked_sum
