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
#include "tests/support/op_suite.h"

namespace tenon {
namespace {

using fp8_quant::Prologue;
using reference::BoundaryCase;
using reference::BoundaryOutputs;
using test::BoundaryTensors;
using test::DeviceFixture;
using test::for_each_way;
using test::GuardedRows;
using test::Way;

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

// Runs the op; the residual of the result is empty.
BoundaryOutputs run_call(const Call& call, const std::vector<std::uint16_t>& in, const Way& way) {
  DeviceFixture fixture(way.target);
  const Device device = fixture.device();
  reference::BoundaryCase shape = call.shape;
  shape.want_bf16 = call.want_bf16;
  shape.want_fp8 = call.want_fp8;
  reference::BoundaryInputs nothing;
  nothing.addends.emplace_back(static_cast<std::size_t>(shape.rows) * shape.hidden);
  nothing.residual = nothing.addends[0];
  nothing.weight.resize(static_cast<std::size_t>(shape.hidden));
  const BoundaryTensors tensors(shape, nothing, 0, device, fixture.stream(), call.gap);
  const int in_width = shape.hidden * (call.prologue == Prologue::kSiluMul ? 2 : 1);
  const GuardedRows in_rows(device, shape.rows, in_width * 2, call.gap * 2);
  in_rows.write(fixture.stream(), in.data());

  fp8_quant::Args args;
  args.in = view(in_rows.data(), shape.dtype, device, {shape.rows, in_width});
  args.in.stride[0] = in_rows.stride_bytes() / 2;
  args.prologue = call.prologue;
  if (call.limit >= 0)
    args.row_limit = fixture.put<std::int32_t>({call.limit}, DType::kI32, {1}).as<std::int32_t>();
  args.out = tensors.out;
  test::run_forced(fixture, args, way.variant);
  std::string wrong;
  BoundaryOutputs found = tensors.read(fixture.stream(), wrong);
  EXPECT_EQ(wrong, "");
  found.residual.clear();
  return found;
}

// The op's codes and scales are those of the oracle.
void expect_oracle(const Call& call, const std::vector<std::uint16_t>& in, const Way& way) {
  EXPECT_EQ(reference::difference(call.shape, reference::quantize(call.shape, in),
                                  run_call(call, in, way)),
            "")
      << reference::describe(call.shape);
}

// Rows of many sizes, with denormals, infinities and NaNs where the oracle puts them.
std::vector<std::uint16_t> rows_of(const reference::BoundaryCase& shape, int width,
                                   std::uint64_t seed) {
  reference::BoundaryCase wide = shape;
  wide.hidden = width;
  return reference::make_inputs(wide, seed).addends[0];
}

TEST(Fp8Quant, MatchesOracleOnEveryTarget) {
  for_each_way(fp8_quant::kOp, [](const Way& way) {
    int n = 0;
    for (int group : {32, 64, 128, 256}) {
      for (ScaleLayout layout : kLayouts) {
        for (DType fp8 : {DType::kE4M3, DType::kE4M3Fnuz}) {
          Call call;
          const DType dtype = n % 3 == 2 ? DType::kF16 : DType::kBF16;
          call.shape = shape_of(1 + n % 7, 768, group, layout, fp8, dtype);
          call.gap = n % 2 == 0 ? 0 : 16;
          expect_oracle(call, rows_of(call.shape, 768, static_cast<std::uint64_t>(n)), way);
          ++n;
        }
      }
    }
  });
}

TEST(Fp8Quant, WidthsAcrossSegments) {
  for_each_way(fp8_quant::kOp, [](const Way& way) {
    for (int width : {128, 2048, 2176, 6144}) {
      Call call;
      call.shape = shape_of(3, width, 128, ScaleLayout::kUe8m0Packed, DType::kE4M3, DType::kBF16);
      expect_oracle(call, rows_of(call.shape, width, 3), way);
    }
    if (test::is_slow(way.target)) return;
    Call call;  // wider than any row of a norm
    call.shape = shape_of(1, 34816, 128, ScaleLayout::kRow, DType::kE4M3, DType::kBF16);
    expect_oracle(call, rows_of(call.shape, 34816, 3), way);
  });
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
    for_each_way(fp8_quant::kOp, [&](const Way& way) {
      const BoundaryOutputs found = run_call(call, in, way);
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
      EXPECT_LE(worst, 1) << name(dtype);
      // The codes are those of the rounded value.
      BoundaryOutputs expected = reference::quantize(call.shape, found.norm);
      expected.norm = found.norm;
      EXPECT_EQ(reference::difference(call.shape, expected, found), "");
    });
  }
}

TEST(Fp8Quant, TargetsAndWishesAgreeBitForBit) {
  Call call;
  call.prologue = Prologue::kSiluMul;
  call.want_bf16 = true;
  call.shape = shape_of(4, 2176, 128, ScaleLayout::kMnMajor, DType::kE4M3, DType::kBF16);
  const auto in = rows_of(call.shape, 2 * 2176, 1);
  const BoundaryOutputs first = run_call(call, in, test::on_cpu(fp8_quant::kOp));
  for_each_way(fp8_quant::kOp, [&](const Way& way) {
    EXPECT_EQ(reference::difference(call.shape, first, run_call(call, in, way)), "");
    Call codes_only = call;
    codes_only.want_bf16 = false;
    BoundaryOutputs codes = run_call(codes_only, in, way);
    codes.norm = first.norm;
    EXPECT_EQ(reference::difference(call.shape, first, codes), "");
    Call rows_only = call;
    rows_only.want_fp8 = false;
    const BoundaryOutputs rows = run_call(rows_only, in, way);
    EXPECT_EQ(reference::difference16("rows", call.shape, first.norm, rows.norm), "");
  });
}

TEST(Fp8Quant, RowsPastTheLimitAreLeftAlone) {
  for_each_way(fp8_quant::kOp, [](const Way& way) {
    for (int limit : {0, 2, 5, 9}) {
      Call call;
      call.shape = shape_of(5, 256, 64, ScaleLayout::kMnMajor, DType::kE4M3, DType::kBF16);
      const auto in = rows_of(call.shape, 256, 2);
      const BoundaryOutputs expected = reference::quantize(call.shape, in);
      call.limit = limit;
      const BoundaryOutputs found = run_call(call, in, way);
      for (std::size_t at = 0; at < found.codes.size(); ++at) {
        const bool live = static_cast<int>(at / 256) < limit;
        ASSERT_TRUE(live ? found.codes[at] == expected.codes[at] ||
                               reference::is_nan8(call.shape.fp8, found.codes[at])
                         : found.codes[at] == 0xa5)
            << "limit " << limit << " at " << at;
      }
      for (std::size_t at = 0; at < found.scales.size(); ++at) {
        const std::size_t row = at / 4 % 8;
        const bool live = static_cast<int>(row) < limit;
        if (row < 5 && live) continue;
        EXPECT_EQ(found.scales[at], row >= 5 ? 0 : 0xa5) << "row " << row;
      }
    }
  });
}

TEST(Fp8Quant, ZeroRowsIsLegal) {
  for_each_way(fp8_quant::kOp, [](const Way& way) {
    Call call;
    call.shape = shape_of(0, 256, 128, ScaleLayout::kRow, DType::kE4M3, DType::kBF16);
    run_call(call, {}, way);
  });
}

TEST(Fp8Quant, RefusalsSayWhatIsAccepted) {
  DeviceFixture fixture(Target::kCpu);
  fp8_quant::Args good;
  good.in = fixture.blank(DType::kBF16, {2, 256});
  good.out.fp8 =
      QuantView{fixture.blank(DType::kE4M3, {2, 256}), fixture.blank(DType::kF32, {2, 2})};
  const TensorView copy = fixture.blank(DType::kBF16, {2, 256});
  using fp8_quant::Args;
  test::expect_refusals(fp8_quant::kOp, good,
                        {{[&](Args& a) { a.out.bf16 = copy; }, "would be a copy"},
                         {[](Args& a) { a.prologue = Prologue::kSiluMul; }, "2 * width"}});
  EXPECT_EQ(fp8_quant::traffic(good).memory_bytes, 2 * 256 * 3 + 16);
}

}  // namespace
}  // namespace tenon
