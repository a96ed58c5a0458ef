// Values of a test on any device, copied through a stream: where the host cannot read the memory.
#pragma once

#include <gtest/gtest.h>

#include <vector>

#include "tests/support/copy_back.h"

namespace tenon::test {

template <class T>
class DeviceArray {
 public:
  DeviceArray(Stream& stream, std::size_t count) : stream_(stream), count_(count) {
    auto memory = Buffer::allocate(stream.device(), count * sizeof(T));
    EXPECT_TRUE(memory) << memory.status().to_string();
    if (memory) memory_ = *std::move(memory);
  }
  void put(const std::vector<T>& values) {
    EXPECT_LE(values.size(), count_);
    EXPECT_TRUE(stream_.copy(memory_.data(), values.data(), values.size() * sizeof(T)));
    EXPECT_TRUE(stream_.synchronize());  // the values may go away now
  }
  // The first so many, after everything that the stream has to do.
  std::vector<T> get(std::size_t count) {
    std::vector<T> values(count);
    EXPECT_TRUE(copy_back(stream_, values.data(), memory_.data(), count * sizeof(T)));
    return values;
  }
  T* data() const { return static_cast<T*>(memory_.data()); }  // for kernels
  TensorView first(std::int64_t count, DType dtype) const {
    return view(memory_.data(), dtype, stream_.device(), {count});
  }

 private:
  Stream& stream_;
  std::size_t count_;
  Buffer memory_;
};

}  // namespace tenon::test
