// FNV-1a with 64 bits (http://www.isthe.com/chongo/tech/comp/fnv): tells accidents apart, not
// attacks. The same number on every machine and in every build: some are written into files.
#pragma once

#include <cstdint>
#include <string_view>

namespace tenon {

class Fnv1a {
 public:
  // A byte; or a whole word at once, which the published algorithm does not have.
  constexpr void add(std::uint64_t value) { value_ = (value_ ^ value) * 1099511628211u; }
  constexpr void add_bytes(std::string_view bytes) {
    for (const char each : bytes) add(static_cast<unsigned char>(each));
  }
  constexpr std::uint64_t value() const { return value_; }

 private:
  std::uint64_t value_ = 14695981039346656037u;
};

constexpr std::uint64_t fnv1a(std::string_view bytes) {
  Fnv1a hash;
  hash.add_bytes(bytes);
  return hash.value();
}

}  // namespace tenon
