// Matrix product of 16-bit floats: router, gates, a/b projections, output head, and every linear of
// an unquantised checkpoint; dense or grouped by expert.
//   out[m, n] = Σ_k x[m, k] · w[n, k]      sum in fp32, one rounding to the output type
// A row's result does not depend on how many rows there are.
#pragma once

#include "tenon/core/tensor.h"
#include "tenon/device/plan.h"
#include "tenon/device/runtime.h"

namespace tenon::bf16_gemm {

extern const Op kOp;

struct Args {
  TensorView x;       // [tokens, k] bf16; rows may be strided
  TensorView weight;  // [n, k], or [experts, n, k] when grouped; bf16
  TensorView out;     // [rows, n] bf16 or f32; rows may be strided. Dense: rows = tokens
  std::optional<TensorView>
      row_index;  // dense only: i32 [rows], out row r reads token row_index[r]

  // Grouped only, as in fp8_gemm.
  std::optional<TensorView> offsets;  // i32 [experts + 1], device
  std::optional<TensorView> row_of;   // i32 [rows], device
};

Status check(const Args& args);
Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced = {});
Status run(const Plan& plan, const Args& args, Stream& stream);
Traffic traffic(const Args& args);

}  // namespace tenon::bf16_gemm
