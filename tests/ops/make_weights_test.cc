// make_weights against the plainest reading of its definition, bit for bit, on every target.
#include "tenon/ops/make_weights/make_weights.h"

#include <gtest/gtest.h>

#include <cstring>

#include "tests/support/op_suite.h"

namespace tenon::make_weights {
namespace {

using test::DeviceFixture;
using test::Way;

constexpr std::int64_t kHeight = 11, kWidth = 45;  // of the whole tensor

// Number `index` of the sequence that splitmix64 makes from a seed.
std::uint64_t splitmix(std::uint64_t seed, std::uint64_t index) {
  std::uint64_t z = seed + (index + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

// An element in the type that it is made in.
struct Element {
  std::uint8_t code = 0;
  float value = 0;
};
Element element_of(const Made& made, std::int64_t row, std::int64_t column) {
  const auto index = static_cast<std::uint64_t>(row * kWidth + column);
  const std::size_t size = size_of(made.dtype);
  std::uint8_t word[8];
  const std::uint64_t bits = splitmix(made.key, index * size / 8);
  std::memcpy(word, &bits, 8);
  const std::uint8_t* const at = word + index * size % 8;
  float spread = made.spread;
  if (made.skewed_rows) {
    const auto part = splitmix(~made.key, static_cast<std::uint64_t>(row)) >> 40;
    const float unit = static_cast<float>(part) / 16777216.0f;
    spread *= 0.5f + 3.5f * (unit * unit * (unit * unit));
  }
  Element found;
  if (made.dtype == DType::kE4M3) {
    found.code = at[0] & 0xbf;
  } else if (made.dtype == DType::kBF16) {
    std::int16_t number;
    std::memcpy(&number, at, 2);
    found.value = to_float(to_bf16(made.center + number * (spread / 32768.0f)));
  } else {
    std::int32_t number;
    std::memcpy(&number, at, 4);
    found.value = made.center + static_cast<float>(number >> 8) * (spread / 8388608.0f);
  }
  return found;
}

std::vector<std::byte> expected_of(const Args& args) {
  std::vector<std::byte> bytes(args.out.bytes());
  std::byte* to = bytes.data();
  for (std::int64_t row = 0; row < args.out.shape[0]; ++row)
    for (std::int64_t column = 0; column < args.out.shape[1]; ++column) {
      const Element found = element_of(args.made, args.first_row + row, args.first_column + column);
      const bf16 rounded = to_bf16(found.value);
      const void* from = &found.value;
      if (args.out.dtype == DType::kBF16) from = &rounded;
      if (args.out.dtype == DType::kE4M3) from = &found.code;
      std::memcpy(to, from, size_of(args.out.dtype));
      to += size_of(args.out.dtype);
    }
  return bytes;
}

void expect_slice(const Made& made, DType as, std::int64_t row, std::int64_t column,
                  std::int64_t rows, std::int64_t columns) {
  test::for_each_way(kOp, [&](const Way& way) {
    DeviceFixture fixture(way.target);
    const auto bytes = static_cast<std::size_t>(rows * columns) * size_of(as);
    Args args{.made = made, .width = kWidth, .first_row = row, .first_column = column, .out = {}};
    args.out = fixture.put(std::vector<std::byte>(bytes, std::byte{0x5a}), as, {rows, columns});
    test::run_forced(fixture, args, way.variant);
    const TensorView found =
        view(args.out.data, DType::kU8, args.out.device, {static_cast<std::int64_t>(bytes)});
    EXPECT_EQ(fixture.get<std::byte>(found), expected_of(args))
        << name(made.dtype) << " as " << name(as) << ", " << rows << " x " << columns << " from "
        << row << ", " << column;
  });
}

TEST(MakeWeights, KeepsItsDefinitionToTheBit) {
  for (const bool skewed : {false, true}) {
    const Made bf16_tensor{0x1234567890abcdefu, DType::kBF16, 0.5f, 0.37f, skewed};
    const Made f32_tensor{77, DType::kF32, -1, 2.5f, skewed};
    for (const DType as : {DType::kBF16, DType::kF32}) {
      expect_slice(bf16_tensor, as, 0, 0, kHeight, kWidth);
      expect_slice(f32_tensor, as, 0, 0, kHeight, kWidth);
    }
  }
  expect_slice({5, DType::kE4M3}, DType::kE4M3, 0, 0, kHeight, kWidth);
}

TEST(MakeWeights, ASliceIsThatPartOfTheWhole) {
  for (const std::int64_t row : {0, 3})
    for (const std::int64_t column : {0, 1, 7, 16})
      for (const std::int64_t columns : {1, 5, 8, 29}) {
        expect_slice({9, DType::kE4M3}, DType::kE4M3, row, column, 4, columns);
        expect_slice({9, DType::kBF16, 0, 1, true}, DType::kBF16, row, column, 4, columns);
        expect_slice({9, DType::kF32, 0, 1, true}, DType::kBF16, row, column, 4, columns);
      }
}

TEST(MakeWeights, NothingIsFine) { expect_slice({9, DType::kBF16}, DType::kBF16, 0, 0, 0, 8); }

TEST(MakeWeights, RefusalsSayWhatIsAccepted) {
  DeviceFixture fixture(Target::kCpu);
  Args good{.made = {1, DType::kBF16}, .width = 8, .first_row = 0, .first_column = 2, .out = {}};
  good.out = fixture.put(std::vector<std::uint16_t>(12), DType::kBF16, {2, 6});
  test::expect_refusals(
      kOp, good,
      {{[](Args& a) { a.made.dtype = DType::kF16; },
        "make_weights: the made type is f16; accepted: bf16, f32 and e4m3"},
       {[](Args& a) { a.made.dtype = DType::kE4M3; }, "out is bf16 [2, 6] on cpu:0 but must be of"},
       {[](Args& a) { a.out.dtype = DType::kE4M3; },
        "out is e4m3fn [2, 6] on cpu:0 but must be of"},
       {[](Args& a) { a.out.stride[0] = 8; }, "must be contiguous"},
       {[](Args& a) { a.first_row = -1; }, "begins at row -1, column 2; accepted: 0 and more"},
       {[](Args& a) { a.first_column = 3; },
        "make_weights: columns 3 to 9 are asked for; accepted are those of the tensor, up to 8"}});
}

}  // namespace
}  // namespace tenon::make_weights
