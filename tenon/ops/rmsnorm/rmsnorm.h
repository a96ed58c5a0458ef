// Residual add, RMSNorm and group quantisation of rows that are already summed: kernel two of the
// staged chain. Steps 3 to 10 of docs/boundary.md.
//   residual = rne(y + residual);  n = rne(residual · rstd · (offset + weight));  out as asked
#pragma once

#include "tenon/core/tensor.h"
#include "tenon/device/plan.h"
#include "tenon/device/runtime.h"

namespace tenon::rmsnorm {

extern const Op kOp;

struct Args {
  TensorView y;         // [rows, hidden] bf16 or f16: the rounded sum
  TensorView residual;  // [rows, hidden], same type; read (unless fresh) and overwritten
  TensorView weight;    // [hidden], same type or f32
  float eps = 1e-6f;
  float offset = 1.0f;          // 1 for zero-centred norms (Qwen3.5), 0 otherwise
  bool fresh_residual = false;  // residual = y
  NormedRows out;               // either or both
};

// Named dimensions, types, strides, one device, and alignment (rows start at multiples of 16
// bytes). Touches no device and, where all is well, allocates nothing.
Status check(const Args& args);
Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced = {});
// Launches one kernel. Before that it does check(), and refuses what is written over another
// tensor, a plan that was made for fewer rows or for others than these, and a stream of another
// device.
Status run(const Plan& plan, const Args& args, Stream& stream);
Traffic traffic(const Args& args);

}  // namespace tenon::rmsnorm
