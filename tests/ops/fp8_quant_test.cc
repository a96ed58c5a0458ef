// fp8_quant: codes and scales against the oracle bit for bit, SiLU·mul against double precision to
// one unit in the last place, and the same bits on every target.
#include "tenon/ops/fp8_quant/fp8_quant.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tenon/core/fp8.h"
#include "tenon/reference/boundary.h"
#include "tenon/reference/compare.h"
#include "tenon/reference/formats.h"
#include "tenon/reference/inputs.h"
#include "tests/support/boundary_tensors.h"
#include "tests/support/targets.h"

namespace tenon {
namespace {

using fp8_quant::Prologue;
using reference::BoundaryCase;
using reference::BoundaryOutputs;
using test::BoundaryTensors;
using test::GuardedRows;

constexpr ScaleLayout kLayouts[] = {ScaleLayout::kRow, ScaleLayout::kMnMajor,
                                    ScaleLayout::kUe8m0Packed};

reference::BoundaryCase shape_of(int rows, int width, int group, ScaleLayout layout, DType fp8,
                                 DType dtype) {
  reference::BoundaryCase shape;
  shape.rows = rows;
  shape.hidden = width;
  shape.team = 1;
  shape.group = group;
  shape.layout = layout;
  shape.fp8 = fp8;
  shape.dtype = shape.weight_dtype = dtype;
  return shape;
}

// Input rows of [gate | up] or [in], and the outputs of BoundaryTensors.
struct Call {
  reference::BoundaryCase shape;
  Prologue prologue = Prologue::kNone;
  bool want_bf16 = false, want_fp8 = true;
  int limit = -1;  // rows; −1: no limit
  int gap = 0;
};

// Runs the op; residual of the result is unused. `wrong` gets what failed.
reference::BoundaryOutputs run_call(const Call& call, const std::vector<std::uint16_t>& in,
                                    Target target, std::string& wrong) {
  const Device device{target, 0};
  auto stream = Stream::create(device);
  EXPECT_TRUE(stream);
  reference::BoundaryCase shape = call.shape;
  shape.want_bf16 = call.want_bf16;
  shape.want_fp8 = call.want_fp8;
  reference::BoundaryInputs nothing;
  nothing.addends.emplace_back(static_cast<std::size_t>(shape.rows) * shape.hidden);
  nothing.residual = nothing.addends[0];
  nothing.weight.resize(static_cast<std::size_t>(shape.hidden));
  const BoundaryTensors tensors(shape, nothing, 0, device, *stream, call.gap);
  const int in_width = shape.hidden * (call.prologue == Prologue::kSiluMul ? 2 : 1);
  const GuardedRows in_rows(device, shape.rows, in_width * 2, call.gap * 2);
  in_rows.write(*stream, in.data());
  auto limit = Buffer::allocate(device, sizeof(std::int32_t));
  EXPECT_TRUE(limit);
  const std::int32_t limit_rows = call.limit;
  EXPECT_TRUE(stream->copy(limit->data(), &limit_rows, sizeof limit_rows));

  fp8_quant::Args args;
  args.in = view(in_rows.data(), shape.dtype, device, {shape.rows, in_width});
  args.in.stride[0] = in_rows.stride_bytes() / 2;
  args.prologue = call.prologue;
  if (call.limit >= 0) args.row_limit = limit->as<std::int32_t>();
  args.out = tensors.out;
  if (Status checked = fp8_quant::check(args); !checked) wrong = checked.to_string();
  auto where = plan_context(device);
  EXPECT_TRUE(where);
  auto plan = fp8_quant::plan(args, *where);
  if (!plan) wrong = plan.status().to_string();
  if (!wrong.empty()) return {};
  if (Status ran = fp8_quant::run(*plan, args, *stream); !ran) wrong = ran.to_string();
  return tensors.read(*stream, wrong);
}

// Rows of many sizes, with denormals, infinities and NaNs where the oracle puts them.
std::vector<std::uint16_t> rows_of(const reference::BoundaryCase& shape, int width,
                                   std::uint64_t seed) {
  reference::BoundaryCase wide = shape;
  wide.hidden = width;
  return reference::make_inputs(wide, seed).addends[0];
}

TEST(Fp8Quant, MatchesOracleOnEveryTarget) {
  for (Target target : test::usable_targets()) {
    int n = 0;
    for (int group : {32, 64, 128, 256}) {
      for (ScaleLayout layout : kLayouts) {
        for (DType fp8 : {DType::kE4M3, DType::kE4M3Fnuz}) {
          Call call;
          const DType dtype = n % 3 == 2 ? DType::kF16 : DType::kBF16;
          call.shape = shape_of(1 + n % 7, 768, group, layout, fp8, dtype);
          call.gap = n % 2 == 0 ? 0 : 16;
          const auto in = rows_of(call.shape, 768, static_cast<std::uint64_t>(n));
          std::string wrong;
          reference::BoundaryOutputs found = run_call(call, in, target, wrong);
          ASSERT_EQ(wrong, "");
          found.residual.clear();
          EXPECT_EQ(reference::difference(call.shape, reference::quantize(call.shape, in), found),
                    "")
              << name(target) << " " << reference::describe(call.shape);
          ++n;
        }
      }
    }
  }
}

TEST(Fp8Quant, WidthsAcrossSegments) {
  for (Target target : test::usable_targets()) {
    for (int width : {128, 2048, 2176, 6144}) {
      Call call;
      call.shape = shape_of(3, width, 128, ScaleLayout::kUe8m0Packed, DType::kE4M3, DType::kBF16);
      const auto in = rows_of(call.shape, width, 3);
      std::string wrong;
      reference::BoundaryOutputs found = run_call(call, in, target, wrong);
      ASSERT_EQ(wrong, "");
      found.residual.clear();
      EXPECT_EQ(reference::difference(call.shape, reference::quantize(call.shape, in), found), "")
          << name(target) << " " << width;
    }
  }
  Call call;  // wider than any row of a norm
  call.shape = shape_of(1, 34816, 128, ScaleLayout::kRow, DType::kE4M3, DType::kBF16);
  const auto in = rows_of(call.shape, 34816, 3);
  std::string wrong;
  reference::BoundaryOutputs found = run_call(call, in, Target::kCpu, wrong);
  ASSERT_EQ(wrong, "");
  found.residual.clear();
  EXPECT_EQ(reference::difference(call.shape, reference::quantize(call.shape, in), found), "");
}

float value_of(DType dtype, std::uint16_t bits) {
  return dtype == DType::kBF16 ? to_float(bf16{bits}) : to_float(f16{bits});
}
std::uint16_t bits_of(DType dtype, double value) {
  const auto narrow = static_cast<float>(value);
  return dtype == DType::kBF16 ? to_bf16(narrow).bits : to_f16(narrow).bits;
}
// Distance on the line of representable values, or 0 when both are NaN.
int steps_between(DType dtype, std::uint16_t a, std::uint16_t b) {
  if (reference::is_nan16(dtype, a) && reference::is_nan16(dtype, b)) return 0;
  const auto place = [](std::uint16_t bits) {
    return (bits & 0x8000u) != 0 ? -static_cast<int>(bits & 0x7fffu) : static_cast<int>(bits);
  };
  return std::abs(place(a) - place(b));
}

TEST(Fp8Quant, SiluMulIsWithinOneStepOfDouble) {
  for (DType dtype : {DType::kBF16, DType::kF16}) {
    Call call;
    call.prologue = Prologue::kSiluMul;
    call.want_bf16 = true;
    call.shape = shape_of(6, 640, 128, ScaleLayout::kRow, DType::kE4M3, dtype);
    const auto in = rows_of(call.shape, 1280, 0);
    for (Target target : test::usable_targets()) {
      std::string wrong;
      const reference::BoundaryOutputs found = run_call(call, in, target, wrong);
      ASSERT_EQ(wrong, "");
      int worst = 0;
      for (std::size_t row = 0; row < 6; ++row) {
        for (std::size_t k = 0; k < 640; ++k) {
          const double gate = value_of(dtype, in[row * 1280 + k]);
          const double up = value_of(dtype, in[row * 1280 + 640 + k]);
          const double silu = gate / (1.0 + std::exp(-gate));
          worst = std::max(
              worst, steps_between(dtype, bits_of(dtype, silu * up), found.norm[row * 640 + k]));
        }
      }
      EXPECT_LE(worst, 1) << name(target) << " " << name(dtype);
      // The codes are those of the rounded value.
      reference::BoundaryOutputs codes = found;
      codes.residual.clear();
      reference::BoundaryOutputs expected = reference::quantize(call.shape, found.norm);
      expected.norm = found.norm;
      EXPECT_EQ(reference::difference(call.shape, expected, codes), "") << name(target);
    }
  }
}

TEST(Fp8Quant, TargetsAndWishesAgreeBitForBit) {
  Call call;
  call.prologue = Prologue::kSiluMul;
  call.want_bf16 = true;
  call.shape = shape_of(4, 2176, 128, ScaleLayout::kMnMajor, DType::kE4M3, DType::kBF16);
  const auto in = rows_of(call.shape, 2 * 2176, 1);
  std::string wrong;
  const reference::BoundaryOutputs first = run_call(call, in, Target::kCpu, wrong);
  for (Target target : test::usable_targets()) {
    const reference::BoundaryOutputs both = run_call(call, in, target, wrong);
    EXPECT_EQ(reference::difference(call.shape, first, both), "") << name(target);
    Call codes_only = call;
    codes_only.want_bf16 = false;
    reference::BoundaryOutputs codes = run_call(codes_only, in, target, wrong);
    codes.norm = first.norm;
    EXPECT_EQ(reference::difference(call.shape, first, codes), "") << name(target);
    Call rows_only = call;
    rows_only.want_fp8 = false;
    const reference::BoundaryOutputs rows = run_call(rows_only, in, target, wrong);
    EXPECT_EQ(reference::difference16("rows", call.shape, first.norm, rows.norm), "")
        << name(target);
  }
  EXPECT_EQ(wrong, "");
}

TEST(Fp8Quant, RowsPastTheLimitAreLeftAlone) {
  for (Target target : test::usable_targets()) {
    for (int limit : {0, 2, 5, 9}) {
      Call call;
      call.shape = shape_of(5, 256, 64, ScaleLayout::kMnMajor, DType::kE4M3, DType::kBF16);
      const auto in = rows_of(call.shape, 256, 2);
      const reference::BoundaryOutputs expected = reference::quantize(call.shape, in);
      call.limit = limit;
      std::string wrong;
      const reference::BoundaryOutputs found = run_call(call, in, target, wrong);
      ASSERT_EQ(wrong, "");
      for (std::size_t at = 0; at < found.codes.size(); ++at) {
        const bool live = static_cast<int>(at / 256) < limit;
        ASSERT_TRUE(live ? found.codes[at] == expected.codes[at] ||
                               reference::is_nan8(call.shape.fp8, found.codes[at])
                         : found.codes[at] == 0xa5)
            << name(target) << " limit " << limit << " at " << at;
      }
      for (std::size_t at = 0; at < found.scales.size(); ++at) {
        const std::size_t row = at / 4 % 8;
        const bool live = static_cast<int>(row) < limit;
        if (row < 5 && live) continue;
        EXPECT_EQ(found.scales[at], row >= 5 ? 0 : 0xa5) << "row " << row;
      }
    }
  }
}

TEST(Fp8Quant, ZeroRowsIsLegal) {
  for (Target target : test::usable_targets()) {
    Call call;
    call.shape = shape_of(0, 256, 128, ScaleLayout::kRow, DType::kE4M3, DType::kBF16);
    std::string wrong;
    run_call(call, {}, target, wrong);
    EXPECT_EQ(wrong, "") << name(target);
  }
}

TEST(Fp8Quant, CheckNamesWhatIsWrong) {
  Call call;
  call.shape = shape_of(2, 256, 128, ScaleLayout::kRow, DType::kE4M3, DType::kBF16);
  call.want_bf16 = true;  // a copy of the input
  std::string wrong;
  run_call(call, rows_of(call.shape, 256, 0), Target::kCpu, wrong);
  EXPECT_NE(wrong.find("would be a copy"), std::string::npos) << wrong;

  const Device device{Target::kCpu, 0};
  alignas(16) std::uint16_t rows[2 * 256] = {};
  alignas(16) std::uint8_t codes[2 * 256] = {};
  alignas(16) float scales[4] = {};
  fp8_quant::Args args;
  args.in = view(rows, DType::kBF16, device, {2, 256});
  args.prologue = Prologue::kSiluMul;
  args.out.fp8 = QuantView{view(codes, DType::kE4M3, device, {2, 256}),
                           view(scales, DType::kF32, device, {2, 2})};
  EXPECT_NE(fp8_quant::check(args).message().find("2 * width"), std::string::npos)
      << fp8_quant::check(args).message();
  args.prologue = Prologue::kNone;
  EXPECT_TRUE(fp8_quant::check(args)) << fp8_quant::check(args).to_string();
  EXPECT_EQ(fp8_quant::traffic(args).memory_bytes, 2 * 256 * 3 + 16);
}

}  // namespace
}  // namespace tenon
