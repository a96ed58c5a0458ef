#include "tests/support/boundary_tensors.h"

#include <algorithm>
#include <cstring>

#include "tests/support/copy_back.h"

namespace tenon::test {
namespace {

constexpr std::uint8_t kPoison = 0xa5;
constexpr std::int64_t kGuard = 64;

void must(const Status& status) { TENON_CHECK(status); }

TensorView row_view(const GuardedRows& rows, DType dtype, Device device, std::int64_t num_rows,
                    std::int64_t width) {
  TensorView tensor = view(rows.data(), dtype, device, {num_rows, width});
  tensor.stride[0] = rows.stride_bytes() / static_cast<std::int64_t>(size_of(dtype));
  return tensor;
}

std::vector<std::uint16_t> as_halves(const std::vector<std::uint8_t>& bytes) {
  std::vector<std::uint16_t> out(bytes.size() / 2);
  if (!bytes.empty()) std::memcpy(out.data(), bytes.data(), bytes.size());
  return out;
}

std::int64_t scale_bytes(const reference::BoundaryCase& shape) {
  const auto extents = scale_shape(shape.layout, shape.rows, shape.hidden, shape.group);
  return extents[0] * extents[1] * 4;
}

}  // namespace

GuardedRows::GuardedRows(Device device, std::int64_t rows, std::int64_t row_bytes, std::int64_t gap)
    : rows_(rows), row_bytes_(row_bytes), gap_(gap) {
  auto memory =
      Buffer::allocate(device, static_cast<std::size_t>(rows * (row_bytes + gap) + kGuard));
  must(memory.status());
  memory_ = *std::move(memory);
}

void GuardedRows::poison(Stream& stream) const {
  must(stream.fill(memory_.data(), kPoison, memory_.bytes()));
}

void GuardedRows::write(Stream& stream, const void* rows) const {
  for (std::int64_t row = 0; row < rows_; ++row)
    must(stream.copy(memory_.as<std::byte>() + row * stride_bytes(),
                     static_cast<const std::byte*>(rows) + row * row_bytes_,
                     static_cast<std::size_t>(row_bytes_)));
  must(stream.synchronize());
}

std::vector<std::uint8_t> GuardedRows::read(Stream& stream, const char* what,
                                            std::string& damage) const {
  std::vector<std::uint8_t> all(memory_.bytes());
  must(copy_back(stream, all.data(), memory_.data(), all.size()));
  std::vector<std::uint8_t> rows;
  rows.reserve(static_cast<std::size_t>(rows_ * row_bytes_));
  for (std::int64_t at = 0; at < static_cast<std::int64_t>(all.size()); ++at) {
    const std::int64_t stride = std::max<std::int64_t>(stride_bytes(), 1);  // empty rows
    const std::int64_t row = at / stride, column = at % stride;
    const std::uint8_t byte = all[static_cast<std::size_t>(at)];
    if (row < rows_ && column < row_bytes_) {
      rows.push_back(byte);
    } else if (byte != kPoison && damage.empty()) {
      damage = std::string(what) + " was written outside its rows, at byte " + std::to_string(at);
    }
  }
  return rows;
}

BoundaryTensors::BoundaryTensors(const reference::BoundaryCase& shape,
                                 const reference::BoundaryInputs& inputs, int rank, Device device,
                                 Stream& stream, int gap)
    : shape_(shape),
      residual_in_(inputs.residual),
      addend_rows_(device, shape.rows, 2 * shape.hidden, 2 * gap),
      residual_rows_(device, shape.rows, 2 * shape.hidden, 2 * gap),
      weight_rows_(device, 1, static_cast<std::int64_t>(size_of(shape.weight_dtype)) * shape.hidden,
                   0),
      norm_rows_(device, shape.want_bf16 ? shape.rows : 0, 2 * shape.hidden, 2 * gap),
      code_rows_(device, shape.want_fp8 ? shape.rows : 0, shape.hidden, gap),
      scale_rows_(device, shape.want_fp8 ? 1 : 0, scale_bytes(shape), 0) {
  addend = row_view(addend_rows_, shape.dtype, device, shape.rows, shape.hidden);
  residual = row_view(residual_rows_, shape.dtype, device, shape.rows, shape.hidden);
  weight = view(weight_rows_.data(), shape.weight_dtype, device, {shape.hidden});
  if (shape.want_bf16)
    out.bf16 = row_view(norm_rows_, shape.dtype, device, shape.rows, shape.hidden);
  if (shape.want_fp8) {
    const auto extents = scale_shape(shape.layout, shape.rows, shape.hidden, shape.group);
    QuantView fp8;
    fp8.data = row_view(code_rows_, shape.fp8, device, shape.rows, shape.hidden);
    fp8.scale =
        view(scale_rows_.data(), scale_dtype(shape.layout), device, {extents[0], extents[1]});
    fp8.group = shape.group;
    fp8.layout = shape.layout;
    out.fp8 = fp8;
  }
  addend_rows_.poison(stream);
  addend_rows_.write(stream, inputs.addends[static_cast<std::size_t>(rank)].data());
  weight_rows_.poison(stream);
  if (shape.weight_dtype == DType::kF32) {
    weight_rows_.write(stream, inputs.weight.data());
  } else {
    const std::vector<std::uint16_t> halves(inputs.weight.begin(), inputs.weight.end());
    weight_rows_.write(stream, halves.data());
  }
  reset(stream);
}

void BoundaryTensors::reset(Stream& stream) const {
  residual_rows_.poison(stream);
  if (!shape_.fresh_residual) residual_rows_.write(stream, residual_in_.data());
  norm_rows_.poison(stream);
  code_rows_.poison(stream);
  scale_rows_.poison(stream);
  must(stream.synchronize());
}

reference::BoundaryOutputs BoundaryTensors::read(Stream& stream, std::string& damage) const {
  reference::BoundaryOutputs found;
  found.residual = as_halves(residual_rows_.read(stream, "residual", damage));
  found.norm = as_halves(norm_rows_.read(stream, "out.bf16", damage));
  found.codes = code_rows_.read(stream, "out.fp8.data", damage);
  found.scales = scale_rows_.read(stream, "out.fp8.scale", damage);
  if (!shape_.want_fp8) found.scales.clear();
  return found;
}

}  // namespace tenon::test
