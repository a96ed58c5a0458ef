// A list of at most kMost values that lies where it is declared: no memory is allocated.
#pragma once

#include <array>
#include <cstddef>

#include "tenon/core/status.h"

namespace tenon {

template <class T, std::size_t kMost>
class FixedList {
 public:
  // More than kMost is a mistake of the code that adds them.
  void push_back(const T& value) {
    TENON_CHECK(size_ < kMost);
    values_[size_++] = value;
  }
  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  T& operator[](std::size_t i) { return values_[i]; }
  const T& operator[](std::size_t i) const { return values_[i]; }
  T& front() { return values_[0]; }
  const T& front() const { return values_[0]; }
  T* begin() { return values_.data(); }
  T* end() { return values_.data() + size_; }
  const T* begin() const { return values_.data(); }
  const T* end() const { return values_.data() + size_; }

 private:
  std::array<T, kMost> values_{};
  std::size_t size_ = 0;
};

}  // namespace tenon
