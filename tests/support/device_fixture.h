// Tensors of a test on any device: put host values there, run an op, read them back.
// Values are copied through a stream, so that the same test serves targets with their own memory.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "tenon/device/runtime.h"
#include "tenon/ops/registry.h"

namespace tenon::test {

// Owns what a test puts on one device, and the stream that its ops run on.
class DeviceFixture {
 public:
  explicit DeviceFixture(Target target)
      : device_{target, 0}, stream_(must(Stream::create(device_))) {}

  Device device() const { return device_; }
  Stream& stream() { return stream_; }
  PlanContext where() const { return must(plan_context(device_)); }

  // A contiguous tensor with these values; as many as the shape has elements.
  template <class T>
  TensorView put(const std::vector<T>& values, DType dtype,
                 std::initializer_list<std::int64_t> shape) {
    Buffer memory = must(Buffer::allocate(device_, values.size() * sizeof(T) + 16));
    const TensorView found = view(memory.data(), dtype, device_, shape);
    EXPECT_EQ(found.bytes(), values.size() * sizeof(T));
    EXPECT_TRUE(stream_.copy(memory.data(), values.data(), values.size() * sizeof(T)));
    EXPECT_TRUE(stream_.synchronize());
    memory_.push_back(std::move(memory));
    return found;
  }
  // A contiguous tensor, each byte set to `filler`.
  TensorView blank(DType dtype, std::initializer_list<std::int64_t> shape,
                   std::uint8_t filler = 0xa5) {
    std::size_t bytes = size_of(dtype);
    for (const std::int64_t extent : shape) bytes *= static_cast<std::size_t>(extent);
    const TensorView memory = put(std::vector<std::uint8_t>(bytes, filler), DType::kU8,
                                  {static_cast<std::int64_t>(bytes)});
    return view(memory.data, dtype, device_, shape);
  }
  // Rows of `columns` elements that lie `stride` elements apart, each byte set to `filler`.
  TensorView rows(DType dtype, std::int64_t rows, std::int64_t columns, std::int64_t stride,
                  std::uint8_t filler = 0xa5) {
    TensorView found = blank(dtype, {rows, stride}, filler);
    found.shape[1] = columns;
    return found;
  }

  // All elements of a view whose rows may be strided, in order.
  template <class T>
  std::vector<T> get(const TensorView& tensor) {
    EXPECT_EQ(sizeof(T), size_of(tensor.dtype));
    EXPECT_TRUE(tensor.num_dims == 2 || tensor.contiguous());
    std::vector<T> values(static_cast<std::size_t>(tensor.size()));
    const std::int64_t num_rows = tensor.num_dims == 2 ? tensor.shape[0] : 1;
    const std::int64_t columns = num_rows > 0 ? tensor.size() / num_rows : 0;
    for (std::int64_t row = 0; row < num_rows; ++row)
      EXPECT_TRUE(stream_.copy(values.data() + row * columns,
                               tensor.as<T>() + row * tensor.stride[0],
                               static_cast<std::size_t>(columns) * sizeof(T)));
    EXPECT_TRUE(stream_.synchronize());
    return values;
  }

  template <class T>
  static T must(Result<T> result) {
    if (!result) ADD_FAILURE() << result.status().to_string();
    return *std::move(result);
  }

 private:
  Device device_;
  Stream stream_;
  std::vector<Buffer> memory_;
};

// Bits, for comparisons in which NaN equals itself and zeros have a sign.
template <class T>
std::vector<std::uint8_t> bytes_of(const std::vector<T>& values) {
  std::vector<std::uint8_t> bytes(values.size() * sizeof(T));
  if (!bytes.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

// The sentence of a refusal; a failure of the test if there was none.
inline std::string refusal(const Status& status) {
  EXPECT_FALSE(status) << "was accepted";
  return std::string(status.message());
}

}  // namespace tenon::test
