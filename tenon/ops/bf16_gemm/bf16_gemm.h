// Matrix product of 16-bit floats: router, gates, a/b projections, output head, and every linear of
// an unquantised checkpoint; dense or grouped by expert.
//   out[m, n] = Σ_k x[m, k] · w[n, k]
// The order, which every variant keeps (docs/exactness.md). In fp32; per segment of k from zero, k
// ascending in blocks of at most 128, the order inside a block being the variant's own; then
//   out = ((segment 0 + segment 1) + …)          in fp32, rounded once to the output type
// Segments begin where ops/common/segments.h says, at places that depend on n and k alone. A row's
// result depends on that row and the weights of its expert, nothing else.
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
