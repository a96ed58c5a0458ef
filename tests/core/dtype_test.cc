#include "tenon/core/dtype.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

#include "tenon/core/tensor.h"

namespace tenon {
namespace {

constexpr DType kAll[] = {DType::kF32,  DType::kBF16, DType::kF16, DType::kE4M3, DType::kE4M3Fnuz,
                          DType::kE5M2, DType::kI32,  DType::kI64, DType::kU8};

TEST(DType, NamesAndSizes) {
  struct Expected {
    DType dtype;
    std::string_view text;
    std::size_t bytes;
    bool fp8;
  };
  constexpr Expected kExpected[] = {{DType::kF32, "f32", 4, false},
                                    {DType::kBF16, "bf16", 2, false},
                                    {DType::kF16, "f16", 2, false},
                                    {DType::kE4M3, "e4m3fn", 1, true},
                                    {DType::kE4M3Fnuz, "e4m3fnuz", 1, true},
                                    {DType::kE5M2, "e5m2", 1, true},
                                    {DType::kI32, "i32", 4, false},
                                    {DType::kI64, "i64", 8, false},
                                    {DType::kU8, "u8", 1, false}};
  static_assert(std::size(kExpected) == std::size(kAll));
  for (const Expected& each : kExpected) {
    EXPECT_EQ(name(each.dtype), each.text);
    EXPECT_EQ(size_of(each.dtype), each.bytes);
    EXPECT_EQ(is_fp8(each.dtype), each.fp8);
    EXPECT_EQ(dtype_named(each.text), each.dtype);
  }
}

TEST(DType, UnknownNamesAreNothing) {
  for (std::string_view text : {"", "F32", "bf16 ", "float", "e4m3", "fp8"})
    EXPECT_FALSE(dtype_named(text)) << text;
}

TEST(Target, NamesAreTheListsAndGoBothWays) {
  std::set<std::string_view> names;
  for (int i = 0; i < kNumTargets; ++i) {
    const auto target = static_cast<Target>(i);
    names.insert(name(target));
    EXPECT_EQ(target_named(name(target)), target);
    EXPECT_EQ(is_host(target), name(target) != "cuda" && name(target) != "hip");
  }
  EXPECT_EQ(names, (std::set<std::string_view>{"cuda", "hip", "cpu", "emu32", "emu64"}));
  EXPECT_FALSE(target_named("gpu"));
}

TEST(ScaleLayout, NamesGoBothWays) {
  for (ScaleLayout layout : {ScaleLayout::kRow, ScaleLayout::kMnMajor, ScaleLayout::kUe8m0Packed})
    EXPECT_EQ(scale_layout_named(name(layout)), layout);
  EXPECT_EQ(name(ScaleLayout::kUe8m0Packed), "ue8m0_packed");
  EXPECT_FALSE(scale_layout_named("column"));
}

}  // namespace
}  // namespace tenon
