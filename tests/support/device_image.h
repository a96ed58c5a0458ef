// What a test has in a device's memory, laid out on the host.
#pragma once

#include <cstring>
#include <vector>

#include "tenon/device/runtime.h"

namespace tenon::test {

// Everything that a rank has on its device, as one allocation that is written once.
class Image {
 public:
  explicit Image(std::uint8_t poison) : poison_(poison) {}
  struct Rows {
    std::size_t at = 0;
    std::int32_t vectors = 0, stride = 0;
  };
  // Rows with a gap behind each and a guard behind all, which hold poison; so do rows of null.
  Rows put(const void* rows, int num_rows, std::size_t row_bytes, std::size_t gap_bytes = 0) {
    constexpr std::size_t kGuard = 64;
    const std::size_t stride = row_bytes + gap_bytes, at = bytes_.size();
    const std::size_t all = (static_cast<std::size_t>(num_rows) * stride + 15) / 16 * 16 + kGuard;
    bytes_.resize(at + (all + 255) / 256 * 256, std::byte{poison_});
    const auto* from = static_cast<const std::byte*>(rows);
    for (std::size_t to = at; rows != nullptr && num_rows-- > 0; to += stride, from += row_bytes)
      std::memcpy(bytes_.data() + to, from, row_bytes);
    return {at, static_cast<std::int32_t>(all / 16), static_cast<std::int32_t>(stride)};
  }
  template <class T>
  Rows put(const std::vector<T>& values) {
    return put(values.data(), 1, values.size() * sizeof(T));
  }
  std::byte* bytes_at(std::size_t at) { return bytes_.data() + at; }
  Status upload(Device device, Stream& stream) {
    TENON_ASSIGN(memory_, Buffer::allocate(device, bytes_.size()));
    return stream.copy(memory_.data(), bytes_.data(), bytes_.size());
  }
  void forget_host() { bytes_ = {}; }
  std::byte* address(std::size_t at) const { return memory_.as<std::byte>() + at; }

 private:
  std::uint8_t poison_;
  std::vector<std::byte> bytes_;
  Buffer memory_;
};

}  // namespace tenon::test
