// What fp8_gemm and bf16_gemm have in common on the host: x [tokens, k] · weightᵀ [n, k] → out
// [rows, n], dense or grouped by expert: its checks and its traffic.
// Not here: scales (fp8_gemm), the kernels (gemm_tile.cuh, host_lanes.cuh).
#pragma once

#include <optional>

#include "tenon/core/tensor.h"
#include "tenon/device/plan.h"

namespace tenon {

struct GemmOperands {
  TensorView x;                               // [tokens, k]
  TensorView weight;                          // [n, k] or [experts, n, k]
  TensorView out;                             // [rows, n]
  std::optional<TensorView> row_index;        // dense: i32 [rows]
  std::optional<TensorView> offsets, row_of;  // grouped: i32 [experts + 1], i32 [rows]
};

// Shapes, output type, strides, alignment, one device, and that the three maps fit the weight's
// form. Element types of x and weight are the op's. Binds tokens, rows, n, k and experts.
Status check_operands(const GemmOperands& operands, Dims& dims);

// `tensor` lies on the device of the output.
Status check_device(std::string_view what, const TensorView& tensor, const TensorView& out);

// Every operand once. Grouped: as many experts as there can be rows.
Traffic operand_traffic(const GemmOperands& operands);

}  // namespace tenon
