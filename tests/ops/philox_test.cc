// The generator of sampling against its published vectors, and the product that makes a draw of its
// bits.
#include "tenon/ops/sampling/philox.cuh"

#include <gtest/gtest.h>

#include <random>

namespace tenon::sampling {
namespace {

TEST(Philox, GivesThePublishedWords) {
  // Known answers of the authors' library: counter, key → words.
  const Philox zeros = philox(0, Philox{{0, 0, 0, 0}});
  const std::uint32_t expected_zeros[4] = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
  const std::uint32_t all = 0xffffffffu;
  const Philox ones = philox(~std::uint64_t{0}, Philox{{all, all, all, all}});
  const std::uint32_t expected_ones[4] = {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd};
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(zeros.words[i], expected_zeros[i]);
    EXPECT_EQ(ones.words[i], expected_ones[i]);
  }
  EXPECT_EQ(random_bits(0, 0), 0xe169c58d6627e8d5u);
}

TEST(Philox, MultiplyHighIsExact) {
  std::mt19937_64 random(3);
  for (int i = 0; i < 10'000; ++i) {
    const std::uint64_t a = random() >> (random() % 64), b = random() >> (random() % 64);
    const auto exact = static_cast<unsigned __int128>(a) * b >> 64;
    ASSERT_EQ(multiply_high(a, b), static_cast<std::uint64_t>(exact));
  }
}

}  // namespace
}  // namespace tenon::sampling
