#include "tenon/core/tensor.h"

#include <gtest/gtest.h>

#include <string>

namespace tenon {
namespace {

constexpr Device kCpu{Target::kCpu, 0};
float memory[4096];

TEST(TensorView, CountsAndKnowsWhatIsContiguous) {
  const TensorView tensor = view(memory, DType::kF32, kCpu, {2, 3, 4});
  EXPECT_EQ(tensor.num_dims, 3);
  EXPECT_EQ(tensor.size(), 24);
  EXPECT_EQ(tensor.bytes(), 96u);
  EXPECT_EQ(tensor.stride[0], 12);
  EXPECT_EQ(tensor.stride[2], 1);
  EXPECT_TRUE(tensor.contiguous());
  EXPECT_TRUE(tensor.rows_contiguous());

  TensorView padded = tensor;  // rows further apart than they are long
  padded.stride[1] = 8;
  EXPECT_FALSE(padded.contiguous());
  EXPECT_TRUE(padded.rows_contiguous());
  TensorView transposed = view(memory, DType::kF32, kCpu, {4, 4});
  std::swap(transposed.stride[0], transposed.stride[1]);
  EXPECT_FALSE(transposed.contiguous());
  EXPECT_FALSE(transposed.rows_contiguous());

  TensorView one_row = view(memory, DType::kF32, kCpu, {1, 4});
  one_row.stride[0] = 999;  // a stride that nothing steps over
  EXPECT_TRUE(one_row.contiguous());
  EXPECT_EQ(view(memory, DType::kF32, kCpu, {}).size(), 1);
  EXPECT_EQ(view(memory, DType::kF32, kCpu, {0, 5}).size(), 0);
}

TEST(TensorView, RowsAreAWindow) {
  const TensorView tensor = view(memory, DType::kF32, kCpu, {8, 4});
  const TensorView part = tensor.rows(3, 2);
  EXPECT_EQ(part.as<float>(), memory + 12);
  EXPECT_EQ(part.shape[0], 2);
  EXPECT_EQ(part.shape[1], 4);
  EXPECT_TRUE(part.contiguous());
}

TEST(TensorView, DescribesItself) {
  EXPECT_EQ(describe(view(memory, DType::kBF16, {Target::kEmu64, 3}, {4, 5120})),
            "bf16 [4, 5120] on emu64:3");
  EXPECT_EQ(describe(view(memory, DType::kI32, kCpu, {})), "i32 [] on cpu:0");
}

TEST(Match, BindsNamesAndDemandsThemAgain) {
  Dims dims;
  EXPECT_TRUE(match("x", view(memory, DType::kF32, kCpu, {4, 128}), {"rows", "hidden"}, dims));
  EXPECT_EQ(dims["rows"], 4);
  EXPECT_EQ(dims["hidden"], 128);
  EXPECT_TRUE(match("weight", view(memory, DType::kF32, kCpu, {128}), {"hidden"}, dims));
  const Status status = match("weight", view(memory, DType::kF32, kCpu, {127}), {"hidden"}, dims);
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_EQ(status.message(),
            "weight is f32 [127] on cpu:0 but must be [hidden] with hidden = 128");
}

TEST(Match, NumbersAreFixedExtents) {
  Dims dims;
  EXPECT_TRUE(match("x", view(memory, DType::kF32, kCpu, {4, 3}), {"4", "n"}, dims));
  const Status status = match("x", view(memory, DType::kF32, kCpu, {5, 3}), {"4", "n"}, dims);
  EXPECT_EQ(status.message(), "x is f32 [5, 3] on cpu:0 but must be [4, n] with 4 = 4");
  EXPECT_FALSE(dims.contains("4"));
}

TEST(Match, RefusesRankTypeAndNull) {
  Dims dims;
  EXPECT_EQ(match("x", view(memory, DType::kF32, kCpu, {4}), {"rows", "hidden"}, dims).message(),
            "x is f32 [4] on cpu:0 but must be [rows, hidden]");
  EXPECT_EQ(
      match("x", view(memory, DType::kF32, kCpu, {4}), {DType::kBF16, DType::kF16}, {"rows"}, dims)
          .message(),
      "x is f32 [4] on cpu:0 but must be of type bf16 or f16");
  EXPECT_TRUE(match("x", view(memory, DType::kF16, kCpu, {4}), {DType::kBF16, DType::kF16},
                    {"rows"}, dims));
  Dims fresh;
  EXPECT_EQ(match("x", view(nullptr, DType::kF32, kCpu, {4}), {"rows"}, fresh).message(),
            "x is f32 [4] on cpu:0 but its data pointer is null");
  Dims empty;
  EXPECT_TRUE(match("x", view(nullptr, DType::kF32, kCpu, {0}), {"rows"}, empty))
      << "nothing to point to";
}

TEST(ScaleShape, FollowsTheLayout) {
  using Shape = std::array<std::int64_t, 2>;
  EXPECT_EQ(scale_shape(ScaleLayout::kRow, 5, 640, 128), (Shape{5, 5}));
  EXPECT_EQ(scale_shape(ScaleLayout::kMnMajor, 5, 640, 128), (Shape{5, 8}));
  EXPECT_EQ(scale_shape(ScaleLayout::kUe8m0Packed, 5, 640, 128), (Shape{2, 8}));
  EXPECT_EQ(scale_shape(ScaleLayout::kUe8m0Packed, 4, 512, 128), (Shape{1, 4}));
  EXPECT_EQ(scale_shape(ScaleLayout::kMnMajor, 0, 512, 128), (Shape{4, 0}));
  EXPECT_EQ(scale_dtype(ScaleLayout::kRow), DType::kF32);
  EXPECT_EQ(scale_dtype(ScaleLayout::kMnMajor), DType::kF32);
  EXPECT_EQ(scale_dtype(ScaleLayout::kUe8m0Packed), DType::kI32);
}

}  // namespace
}  // namespace tenon
