// Block-scaled FP8 matrix product, dense or grouped by expert.
//   out[m, n] = Σ_kb xs[m, kb] · ws[n / 128, kb] · (Σ_{k in block kb} x[m, k] · w[n, k])
// The order, which every variant keeps (docs/exactness.md). Per block of 128 of k one block sum in
// fp32, from zero, k ascending; the order inside a block is the variant's own. Then
//   segment = fma(block sum, xs · ws, segment)   in fp32, from zero, blocks ascending
//   out     = ((segment 0 + segment 1) + …)      in fp32, rounded once to the output type
// with xs · ws rounded to fp32. Segments begin where ops/common/segments.h says, at places that
// depend on n and k alone. A row's result depends on that row, the weights of its expert and the
// scales, nothing else: not on the number of rows, their order, or their grouping.
// An activation may follow in the same launch, or a small product be made in it: Args::activated,
// Args::beside.
// Called by layers/linear and layers/mlp.
#pragma once

#include "tenon/core/tensor.h"
#include "tenon/device/plan.h"
#include "tenon/device/runtime.h"

namespace tenon::fp8_gemm {

extern const Op kOp;

// Another product of as many rows, of bf16, as bf16_gemm defines it: out = x · weightᵀ.
struct Beside {
  TensorView x;       // [rows, k] bf16; rows may be strided
  TensorView weight;  // [n, k] bf16, a constant as those below
  TensorView out;     // [rows, n] bf16 or f32; rows may be strided
};

struct Args {
  QuantView x;  // [tokens, k] e4m3 codes, group 128, layout row or mn_major
  // Constants: on cuda they are read while the stream's kernel before may still run.
  TensorView weight;        // [n, k], or [experts, n, k] when grouped; e4m3
  TensorView weight_scale;  // f32 [ceil(n / 128), ceil(k / 128)], or with [experts, …] in front
  TensorView out;           // [rows, n] bf16 or f32; rows may be strided. Dense: rows = tokens

  // Grouped only: output row p belongs to the expert e with offsets[e] <= p < offsets[e + 1] and
  // reads token row_of[p] (or row p itself when row_of is absent). Rows past offsets[experts] stay.
  std::optional<TensorView> offsets;  // i32 [experts + 1], device
  std::optional<TensorView> row_of;   // i32 [rows], device

  // Of variants that have it: the columns are the gate|up of an mlp, n = 2 · width, gate first, and
  // activated = quantise(rne(silu(gate) · up)) with gate and up rounded to bf16: the
  // same bits as `out` in bf16 and after it fp8_quant with its prologue kSiluMul. `out` then gives
  // the shape of the product, bf16 [rows, n], and is not written. Grouped: rows past
  // offsets[experts] stay.
  std::optional<QuantView> activated =
      {};  // e4m3 [rows, width], group 128, layout row; 128 | width

  // Dense, of variants that have it, and not with an activation: made in the same launch, with the
  // bits of bf16_gemm on this device.
  std::optional<Beside> beside = {};
};

Status check(const Args& args);
Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced = {});
Status run(const Plan& plan, const Args& args, Stream& stream);
Traffic traffic(const Args& args);

}  // namespace tenon::fp8_gemm
