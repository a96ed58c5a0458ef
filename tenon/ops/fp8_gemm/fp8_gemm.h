// Block-scaled FP8 matrix product, dense or grouped by expert.
//   out[m, n] = Σ_kb xs[m, kb] · ws[n / 128, kb] · (Σ_{k in block kb} x[m, k] · w[n, k])
// Inner and outer sums in fp32, one rounding to the output type. A row's result does not depend on
// how many rows there are. Called by layers/linear and layers/mlp.
#pragma once

#include "tenon/core/tensor.h"
#include "tenon/device/plan.h"
#include "tenon/device/runtime.h"

namespace tenon::fp8_gemm {

extern const Op kOp;

struct Args {
  QuantView x;              // [tokens, k] e4m3 codes, group 128, layout row or mn_major
  TensorView weight;        // [n, k], or [experts, n, k] when grouped; e4m3
  TensorView weight_scale;  // f32 [ceil(n / 128), ceil(k / 128)], or with [experts, …] in front
  TensorView out;           // [rows, n] bf16 or f32; rows may be strided. Dense: rows = tokens

  // Grouped only: output row p belongs to the expert e with offsets[e] <= p < offsets[e + 1] and
  // reads token row_of[p] (or row p itself when row_of is absent). Rows past offsets[experts] stay.
  std::optional<TensorView> offsets;  // i32 [experts + 1], device
  std::optional<TensorView> row_of;   // i32 [rows], device
};

Status check(const Args& args);
Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced = {});
Status run(const Plan& plan, const Args& args, Stream& stream);
Traffic traffic(const Args& args);

}  // namespace tenon::fp8_gemm
