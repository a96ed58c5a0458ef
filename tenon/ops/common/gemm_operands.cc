#include "tenon/ops/common/gemm_operands.h"

#include <algorithm>

namespace tenon {
namespace {

Status invalid(std::string message) {
  return Status::error(Code::kInvalidArgument, std::move(message));
}

// Kernels read rows in units of 16 bytes.
Status check_rows(std::string_view what, const TensorView& tensor) {
  const std::string found = std::string(what) + " is " + describe(tensor);
  if (!tensor.rows_contiguous())
    return invalid(found + " with a stride of " +
                   std::to_string(tensor.stride[static_cast<std::size_t>(tensor.num_dims - 1)]) +
                   " in its last dimension; it must be 1");
  if (reinterpret_cast<std::uintptr_t>(tensor.data) % 16 != 0)
    return invalid(found + " at an address that is not a multiple of 16 bytes");
  for (int i = 0; i + 1 < tensor.num_dims; ++i) {
    const auto at = static_cast<std::size_t>(i);
    const auto bytes = tensor.stride[at] * static_cast<std::int64_t>(size_of(tensor.dtype));
    if (tensor.shape[at] > 1 && bytes % 16 != 0)
      return invalid(found + " with a stride of " + std::to_string(bytes) + " bytes in dimension " +
                     std::to_string(i) + "; it must be a multiple of 16");
  }
  return Status::ok();
}

Status check_map(std::string_view what, const TensorView& map, const TensorView& out,
                 std::string_view extent, Dims& dims) {
  TENON_TRY(match(what, map, {DType::kI32}, {extent}, dims));
  if (!map.contiguous())
    return invalid(std::string(what) + " is " + describe(map) + " but must be contiguous");
  return check_device(what, map, out);
}

Status check_grouping(const GemmOperands& operands, Dims& dims) {
  if (operands.row_index)
    return invalid("row_index was given for a grouped product; it is dense only, give row_of");
  if (!operands.offsets)
    return invalid("weight is " + describe(operands.weight) +
                   " (one matrix per expert) but offsets were not given");
  dims["experts + 1"] = dims["experts"] + 1;
  return check_map("offsets", *operands.offsets, operands.out, "experts + 1", dims);
}

}  // namespace

Status check_device(std::string_view what, const TensorView& tensor, const TensorView& out) {
  if (tensor.device == out.device) return Status::ok();
  return invalid(std::string(what) + " is " + describe(tensor) + " but out is " + describe(out) +
                 "; all tensors must lie on one device");
}

Status check_operands(const GemmOperands& operands, Dims& dims) {
  const auto& [x, weight, out, row_index, offsets, row_of] = operands;
  TENON_TRY(match("x", x, {"tokens", "k"}, dims));
  if (weight.num_dims == 3) {
    TENON_TRY(match("weight", weight, {"experts", "n", "k"}, dims));
    TENON_TRY(check_grouping(operands, dims));
    if (row_of) TENON_TRY(check_map("row_of", *row_of, out, "rows", dims));
  } else {
    TENON_TRY(match("weight", weight, {"n", "k"}, dims));
    if (offsets || row_of)
      return invalid("offsets or row_of were given, but weight is " + describe(weight) +
                     "; a grouped product needs [experts, n, k]");
    if (row_index) TENON_TRY(check_map("row_index", *row_index, out, "rows", dims));
  }
  TENON_TRY(match("out", out, {DType::kBF16, DType::kF32}, {"rows", "n"}, dims));
  if (!row_of && !row_index && dims["tokens"] != dims["rows"])
    return invalid("out is " + describe(out) + " but x is " + describe(x) +
                   "; without an index of rows they have the same number");
  if (dims["n"] < 1 || dims["k"] < 1)
    return invalid("weight is " + describe(weight) + " but n and k must be at least 1");
  if (!out.rows_contiguous())
    return invalid("out is " + describe(out) + " but its last dimension must have stride 1");
  TENON_TRY(check_device("x", x, out));
  TENON_TRY(check_device("weight", weight, out));
  TENON_TRY(check_rows("x", x));
  return check_rows("weight", weight);
}

Traffic operand_traffic(const GemmOperands& operands) {
  const auto& [x, weight, out, row_index, offsets, row_of] = operands;
  const auto rows = static_cast<double>(out.shape[0]);
  const auto n = static_cast<double>(out.shape[1]);
  const auto k = static_cast<double>(x.shape[1]);
  const double matrices =
      weight.num_dims == 3 ? std::min(rows, static_cast<double>(weight.shape[0])) : 1.0;
  Traffic traffic;
  traffic.flops = 2.0 * rows * n * k;
  traffic.memory_bytes = static_cast<double>(x.bytes()) + static_cast<double>(out.bytes()) +
                         matrices * n * k * static_cast<double>(size_of(weight.dtype));
  return traffic;
}

}  // namespace tenon
