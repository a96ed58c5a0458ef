#include "tenon/ops/common/normed_rows.h"

#include <algorithm>
#include <array>
#include <cstdint>

namespace tenon {
namespace {

Status refuse(std::string message) {
  return Status::error(Code::kInvalidArgument, std::move(message));
}

std::string text_of(Device device) {
  return std::string(name(device.target)) + ":" + std::to_string(device.index);
}

Status check_device(std::string_view what, const TensorView& tensor, Device device) {
  if (tensor.device == device) [[likely]]
    return Status::ok();
  return refuse(std::string(what) + " is " + describe(tensor) + " but must be on " +
                text_of(device) + " like the rows that are read");
}

// match() says what is accepted, and in which words it is refused. It allocates, so a tensor that
// certainly fits does not get there.
Status check_matrix(std::string_view what, const TensorView& tensor,
                    std::initializer_list<DType> accepted, std::int64_t rows, std::int64_t hidden) {
  const bool fits = std::find(accepted.begin(), accepted.end(), tensor.dtype) != accepted.end() &&
                    tensor.num_dims == 2 && tensor.shape[0] == rows && tensor.shape[1] == hidden &&
                    tensor.data != nullptr;
  if (fits) [[likely]]
    return Status::ok();
  Dims dims{{"rows", rows}, {"hidden", hidden}};
  return match(what, tensor, accepted, {"rows", "hidden"}, dims);
}

Status check_scale(const QuantView& fp8, std::int64_t rows, std::int64_t hidden) {
  const TensorView& scale = fp8.scale;
  const auto shape = scale_shape(fp8.layout, rows, hidden, fp8.group);
  const bool fits = scale.dtype == scale_dtype(fp8.layout) && scale.num_dims == 2 &&
                    scale.shape[0] == shape[0] && scale.shape[1] == shape[1] &&
                    scale.data != nullptr;
  if (!fits) [[unlikely]] {
    Dims none;
    const std::string rows_text = std::to_string(shape[0]), columns_text = std::to_string(shape[1]);
    TENON_TRY(
        match("out.fp8.scale", scale, {scale_dtype(fp8.layout)}, {rows_text, columns_text}, none),
        "layout " + std::string(name(fp8.layout)));
  }
  if (!scale.contiguous()) [[unlikely]]
    return refuse("out.fp8.scale is " + describe(scale) + " with gaps but must be contiguous");
  if (reinterpret_cast<std::uintptr_t>(scale.data) % 4 != 0) [[unlikely]]
    return refuse("out.fp8.scale is " + describe(scale) +
                  " at an address that is not a multiple of 4 bytes");
  return Status::ok();
}

Status check_fp8(const QuantView& fp8, Device device, std::int64_t rows, std::int64_t hidden) {
  TENON_TRY(check_matrix("out.fp8.data", fp8.data, {DType::kE4M3, DType::kE4M3Fnuz}, rows, hidden));
  TENON_TRY(check_wide_rows("out.fp8.data", fp8.data, device));
  const int group = fp8.group;
  if (group != 32 && group != 64 && group != 128 && group != 256) [[unlikely]]
    return refuse("out.fp8.group is " + std::to_string(group) + " but must be 32, 64, 128 or 256");
  if (hidden % group != 0) [[unlikely]]
    return refuse("hidden is " + std::to_string(hidden) + " but must be a multiple of the group " +
                  std::to_string(group));
  TENON_TRY(check_scale(fp8, rows, hidden));
  return check_device("out.fp8.scale", fp8.scale, device);
}

Status check_outputs(const NormedRows& out, DType dtype, Device device, std::int64_t rows,
                     std::int64_t hidden) {
  if (!out.bf16 && !out.fp8) [[unlikely]]
    return refuse("out holds neither bf16 nor fp8 rows; at least one must be wanted");
  if (out.bf16) {
    TENON_TRY(check_matrix("out.bf16", *out.bf16, {dtype}, rows, hidden));
    TENON_TRY(check_wide_rows("out.bf16", *out.bf16, device));
  }
  if (out.fp8) TENON_TRY(check_fp8(*out.fp8, device, rows, hidden));
  return Status::ok();
}

// Where the bytes of a tensor lie: `rows` times `width` bytes, `stride` apart.
struct Extent {
  std::string_view what;
  std::uintptr_t begin = 0;
  std::uint64_t rows = 0, width = 0, stride = 0;

  Extent() = default;
  Extent(std::string_view name, const TensorView& tensor)
      : what(name), begin(reinterpret_cast<std::uintptr_t>(tensor.data)) {
    const std::uint64_t element = size_of(tensor.dtype);
    const bool matrix = tensor.num_dims == 2;
    rows = matrix ? static_cast<std::uint64_t>(tensor.shape[0]) : 1;
    width = static_cast<std::uint64_t>(tensor.shape[matrix ? 1 : 0]) * element;
    stride = matrix ? static_cast<std::uint64_t>(tensor.stride[0]) * element : width;
  }
  std::uintptr_t end() const { return begin + (rows - 1) * stride + width; }
  bool empty() const { return rows == 0 || width == 0; }
};

// Rows of the same stride may lie beside each other, as columns of one matrix.
bool overlap(const Extent& a, const Extent& b) {
  if (a.empty() || b.empty() || a.end() <= b.begin || b.end() <= a.begin) [[likely]]
    return false;
  const bool one_stride = a.rows == 1 || b.rows == 1 || a.stride == b.stride;
  const std::uint64_t stride = a.rows == 1 ? b.stride : a.stride;
  if (!one_stride || stride == 0 || (a.rows == 1 && b.rows == 1)) return true;
  const Extent& low = a.begin <= b.begin ? a : b;
  const Extent& high = a.begin <= b.begin ? b : a;
  const std::uint64_t apart = (high.begin - low.begin) % stride;
  return apart < low.width || apart + high.width > stride;
}

}  // namespace

Status check_wide_rows(std::string_view what, const TensorView& tensor, Device device) {
  TENON_TRY(check_device(what, tensor, device));
  if (tensor.size() == 0) return Status::ok();
  if (!tensor.rows_contiguous()) [[unlikely]]
    return refuse(std::string(what) + " is " + describe(tensor) +
                  " but its last dimension must be dense");
  const bool has_rows = tensor.num_dims > 1 && tensor.shape[0] > 1;
  if (has_rows && tensor.stride[0] < 0) [[unlikely]]
    return refuse(std::string(what) + " is " + describe(tensor) + " with a stride of " +
                  std::to_string(tensor.stride[0]) + "; it must not be negative");
  const auto stride = static_cast<std::uint64_t>(has_rows ? tensor.stride[0] : 0);
  if (reinterpret_cast<std::uintptr_t>(tensor.data) % 16 != 0 ||
      stride * size_of(tensor.dtype) % 16 != 0) [[unlikely]]
    return refuse(std::string(what) + " is " + describe(tensor) +
                  " but its rows must start at multiples of 16 bytes");
  return Status::ok();
}

Status check_normed_rows(const NormedRows& out, DType dtype, Device device, Dims& dims) {
  if (out.bf16) TENON_TRY(match("out.bf16", *out.bf16, {dtype}, {"rows", "hidden"}, dims));
  if (out.fp8) TENON_TRY(match("out.fp8.data", out.fp8->data, {"rows", "hidden"}, dims));
  const bool bound = out.bf16 || out.fp8;
  return check_outputs(out, dtype, device, bound ? dims.at("rows") : 0,
                       bound ? dims.at("hidden") : 0);
}

Status check_extents(const Dims& dims, std::int64_t max_rows, std::int64_t max_hidden) {
  const std::int64_t rows = dims.at("rows"), hidden = dims.at("hidden");
  if (rows < 0 || rows > max_rows) [[unlikely]]
    return refuse("rows is " + std::to_string(rows) + " but must be at most " +
                  std::to_string(max_rows) + (rows < 0 ? " and not negative" : ""));
  if (hidden < 8 || hidden > max_hidden || hidden % 8 != 0) [[unlikely]]
    return refuse("hidden is " + std::to_string(hidden) + " but must be a multiple of 8 up to " +
                  std::to_string(max_hidden));
  return Status::ok();
}

Status check_norm(const NormTensors& tensors) {
  const auto& [rows_name, rows, residual, weight, out] = tensors;
  const Device device = rows.device;
  const DType dtype = rows.dtype;
  TENON_TRY(
      check_matrix(rows_name, rows, {DType::kBF16, DType::kF16}, rows.shape[0], rows.shape[1]));
  const std::int64_t num_rows = rows.shape[0], hidden = rows.shape[1];
  if (num_rows < 0 || num_rows > kMaxNormedRows || hidden < 8 || hidden > kMaxNormedHidden ||
      hidden % 8 != 0) [[unlikely]]
    return check_extents({{"rows", num_rows}, {"hidden", hidden}}, kMaxNormedRows,
                         kMaxNormedHidden);
  TENON_TRY(check_wide_rows(rows_name, rows, device));
  TENON_TRY(check_matrix("residual", residual, {dtype}, num_rows, hidden));
  TENON_TRY(check_wide_rows("residual", residual, device));
  const bool is_weight = (weight.dtype == dtype || weight.dtype == DType::kF32) &&
                         weight.num_dims == 1 && weight.shape[0] == hidden &&
                         weight.data != nullptr;
  if (!is_weight) [[unlikely]] {
    Dims dims{{"hidden", hidden}};
    TENON_TRY(match("weight", weight, {dtype, DType::kF32}, {"hidden"}, dims));
  }
  TENON_TRY(check_wide_rows("weight", weight, device));
  return check_outputs(out, dtype, device, num_rows, hidden);
}

Status check_apart(const NormTensors& tensors) {
  std::array<Extent, 6> all;
  std::size_t written = 0;
  all[written++] = {"residual", tensors.residual};
  if (tensors.out.bf16) all[written++] = {"out.bf16", *tensors.out.bf16};
  if (tensors.out.fp8) {
    all[written++] = {"out.fp8.data", tensors.out.fp8->data};
    all[written] = {"out.fp8.scale", tensors.out.fp8->scale};
    all[written].width *= all[written].rows;  // contiguous, with any stride where it is one row
    all[written++].rows = 1;
  }
  std::size_t count = written;
  all[count++] = {tensors.name, tensors.rows};
  all[count++] = {"weight", tensors.weight};
  for (std::size_t i = 0; i < written; ++i) {
    if (all[i].rows > 1 && all[i].stride < all[i].width) [[unlikely]]
      return refuse(std::string(all[i].what) + " has rows of " + std::to_string(all[i].width) +
                    " bytes every " + std::to_string(all[i].stride) +
                    " bytes, but what is written must not overlap");
    for (std::size_t j = i + 1; j < count; ++j)
      if (overlap(all[i], all[j])) [[unlikely]]
        return refuse(std::string(all[i].what) + " and " + std::string(all[j].what) +
                      " overlap in memory, but what is written must lie apart from all else");
  }
  return Status::ok();
}

Status check_plan(const Plan& plan, const Op& op, const TensorView& rows, int team_size,
                  const Stream& stream) {
  if (plan.op != &op) [[unlikely]]
    return refuse("the plan is " +
                  (plan.op == nullptr ? "empty" : "one of " + std::string(plan.op->name)) +
                  "; accepted: what plan() of " + std::string(op.name) + " returned");
  if (stream.device() != rows.device || plan.target != rows.device.target) [[unlikely]]
    return refuse("the tensors are on " + text_of(rows.device) + ", the stream is on " +
                  text_of(stream.device()) + " and the plan was made for " +
                  std::string(name(plan.target)) + "; all must be the same");
  if (rows.shape[0] > plan.rows || rows.shape[1] != plan.hidden || rows.dtype != plan.dtype ||
      team_size != plan.team_size) [[unlikely]]
    return refuse("the call has " + std::to_string(rows.shape[0]) + " rows of " +
                  std::to_string(rows.shape[1]) + " " + std::string(name(rows.dtype)) + " on " +
                  std::to_string(team_size) + " ranks, but its plan was made for up to " +
                  std::to_string(plan.rows) + " rows of " + std::to_string(plan.hidden) + " " +
                  std::string(name(plan.dtype)) + " on " + std::to_string(plan.team_size));
  return Status::ok();
}

double bytes_of(const NormedRows& out) {
  double bytes = 0;
  if (out.bf16) bytes += static_cast<double>(out.bf16->bytes());
  if (out.fp8) bytes += static_cast<double>(out.fp8->data.bytes() + out.fp8->scale.bytes());
  return bytes;
}

}  // namespace tenon
