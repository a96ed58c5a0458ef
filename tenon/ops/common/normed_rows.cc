#include "tenon/ops/common/normed_rows.h"

namespace tenon {
namespace {

Status refuse(std::string message) {
  return Status::error(Code::kInvalidArgument, std::move(message));
}

Status check_device(std::string_view what, const TensorView& tensor, Device device) {
  if (tensor.device == device) return Status::ok();
  return refuse(std::string(what) + " is " + describe(tensor) + " but must be on " +
                std::string(name(device.target)) + ":" + std::to_string(device.index) +
                " like the rows that are read");
}

Status check_fp8(const QuantView& fp8, Device device, Dims& dims) {
  TENON_TRY(
      match("out.fp8.data", fp8.data, {DType::kE4M3, DType::kE4M3Fnuz}, {"rows", "hidden"}, dims));
  TENON_TRY(check_wide_rows("out.fp8.data", fp8.data, device));
  const int group = fp8.group;
  if (group != 32 && group != 64 && group != 128 && group != 256)
    return refuse("out.fp8.group is " + std::to_string(group) + " but must be 32, 64, 128 or 256");
  const std::int64_t rows = fp8.data.shape[0], hidden = fp8.data.shape[1];
  if (hidden % group != 0)
    return refuse("hidden is " + std::to_string(hidden) + " but must be a multiple of the group " +
                  std::to_string(group));
  const auto shape = scale_shape(fp8.layout, rows, hidden, group);
  const std::string rows_text = std::to_string(shape[0]), columns_text = std::to_string(shape[1]);
  TENON_TRY(
      match("out.fp8.scale", fp8.scale, {scale_dtype(fp8.layout)}, {rows_text, columns_text}, dims),
      "layout " + std::string(name(fp8.layout)));
  if (!fp8.scale.contiguous())
    return refuse("out.fp8.scale is " + describe(fp8.scale) + " with gaps but must be contiguous");
  return check_device("out.fp8.scale", fp8.scale, device);
}

}  // namespace

Status check_wide_rows(std::string_view what, const TensorView& tensor, Device device) {
  TENON_TRY(check_device(what, tensor, device));
  if (tensor.size() == 0) return Status::ok();
  const std::string found = std::string(what) + " is " + describe(tensor);
  if (!tensor.rows_contiguous()) return refuse(found + " but its last dimension must be dense");
  const bool has_rows = tensor.num_dims > 1 && tensor.shape[0] > 1;
  const auto stride = static_cast<std::uint64_t>(has_rows ? tensor.stride[0] : 0);
  if (reinterpret_cast<std::uintptr_t>(tensor.data) % 16 != 0 ||
      stride * size_of(tensor.dtype) % 16 != 0)
    return refuse(found + " but its rows must start at multiples of 16 bytes");
  return Status::ok();
}

Status check_normed_rows(const NormedRows& out, DType dtype, Device device, Dims& dims) {
  if (!out.bf16 && !out.fp8)
    return refuse("out holds neither bf16 nor fp8 rows; at least one must be wanted");
  if (out.bf16) {
    TENON_TRY(match("out.bf16", *out.bf16, {dtype}, {"rows", "hidden"}, dims));
    TENON_TRY(check_wide_rows("out.bf16", *out.bf16, device));
  }
  if (out.fp8) TENON_TRY(check_fp8(*out.fp8, device, dims));
  return Status::ok();
}

Status check_extents(const Dims& dims, std::int64_t max_rows, std::int64_t max_hidden) {
  const std::int64_t rows = dims.at("rows"), hidden = dims.at("hidden");
  if (rows > max_rows)
    return refuse("rows is " + std::to_string(rows) + " but must be at most " +
                  std::to_string(max_rows));
  if (hidden < 8 || hidden > max_hidden || hidden % 8 != 0)
    return refuse("hidden is " + std::to_string(hidden) + " but must be a multiple of 8 up to " +
                  std::to_string(max_hidden));
  return Status::ok();
}

double bytes_of(const NormedRows& out) {
  double bytes = 0;
  if (out.bf16) bytes += static_cast<double>(out.bf16->bytes());
  if (out.fp8) bytes += static_cast<double>(out.fp8->data.bytes() + out.fp8->scale.bytes());
  return bytes;
}

}  // namespace tenon
