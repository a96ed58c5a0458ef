// A slice of a weight that is made instead of read: docs/adr/0039-weights-are-made-by-place.md.
//   out[r][c] = element (first_row + r) · width + first_column + c of the tensor `made`,
//   as it is, bf16 widened to f32, or f32 rounded to bf16.
// What an element is: element.h.
#pragma once

#include "tenon/core/tensor.h"
#include "tenon/device/plan.h"
#include "tenon/device/runtime.h"
#include "tenon/ops/make_weights/element.h"

namespace tenon::make_weights {

extern const Op kOp;

struct Args {
  Made made;               // bf16, f32 or e4m3
  std::int64_t width = 0;  // elements of a row of the whole tensor: its last dimension
  std::int64_t first_row = 0, first_column = 0;
  TensorView out;  // [rows, columns], contiguous: e4m3 of e4m3, else bf16 or f32
};

Status check(const Args& args);
Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced = {});
Status run(const Plan& plan, const Args& args, Stream& stream);
Traffic traffic(const Args& args);

}  // namespace tenon::make_weights
