// The random numbers of sampling: Philox4x32 with 10 rounds (Salmon et al., "Parallel random
// numbers: as easy as 1, 2, 3", 2011). A pure function of key and counter; integers only.
#pragma once

#include <cstdint>

#include "tenon/core/dtype.h"

namespace tenon::sampling {

struct Philox {
  std::uint32_t words[4];
};

TENON_HD constexpr Philox philox(std::uint64_t key, Philox counter) {
  auto key0 = static_cast<std::uint32_t>(key);
  auto key1 = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xd2511f53u} * counter.words[0];
    const std::uint64_t b = std::uint64_t{0xcd9e8d57u} * counter.words[2];
    counter = Philox{{static_cast<std::uint32_t>(b >> 32) ^ counter.words[1] ^ key0,
                      static_cast<std::uint32_t>(b),
                      static_cast<std::uint32_t>(a >> 32) ^ counter.words[3] ^ key1,
                      static_cast<std::uint32_t>(a)}};
    key0 += 0x9e3779b9u;
    key1 += 0xbb67ae85u;
  }
  return counter;
}

// 64 random bits for the token at `position` of a sequence with `seed`.
TENON_HD constexpr std::uint64_t random_bits(std::int64_t seed, std::int32_t position) {
  const Philox drawn = philox(static_cast<std::uint64_t>(seed),
                              Philox{{static_cast<std::uint32_t>(position), 0, 0, 0}});
  return drawn.words[0] | std::uint64_t{drawn.words[1]} << 32;
}

// floor(a · b / 2^64): a uniform number below b when the bits of a are random.
TENON_HD constexpr std::uint64_t multiply_high(std::uint64_t a, std::uint64_t b) {
  const std::uint64_t a_low = a & 0xffffffffu, a_high = a >> 32;
  const std::uint64_t b_low = b & 0xffffffffu, b_high = b >> 32;
  const std::uint64_t middle = a_high * b_low + (a_low * b_low >> 32);  // cannot overflow
  const std::uint64_t carry = (middle & 0xffffffffu) + a_low * b_high;
  return a_high * b_high + (middle >> 32) + (carry >> 32);
}

}  // namespace tenon::sampling
