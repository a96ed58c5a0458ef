// rmsnorm against the oracle, bit for bit, on every built target and for every block shape; and the
// two formulations of the oracle against each other.
#include "tenon/ops/rmsnorm/rmsnorm.h"

#include <gtest/gtest.h>

#include "tenon/reference/boundary.h"
#include "tenon/reference/compare.h"
#include "tenon/reference/inputs.h"
#include "tests/support/boundary_tensors.h"
#include "tests/support/op_suite.h"
#include "tests/support/second_oracle.h"

namespace tenon {
namespace {

using reference::BoundaryCase;
using reference::BoundaryInputs;
using reference::BoundaryOutputs;
using test::BoundaryTensors;
using test::DeviceFixture;
using test::for_each_way;
using test::Way;

constexpr ScaleLayout kLayouts[] = {ScaleLayout::kRow, ScaleLayout::kMnMajor,
                                    ScaleLayout::kUe8m0Packed};

// The n-th of a series of cases that goes through types, layouts, groups and flags at different
// paces, so that a few dozen meet most pairs.
reference::BoundaryCase nth_case(int n, int rows, int hidden) {
  reference::BoundaryCase shape;
  shape.rows = rows;
  shape.hidden = hidden;
  shape.team = 1;
  shape.dtype = n % 4 == 3 ? DType::kF16 : DType::kBF16;
  shape.weight_dtype = n % 3 == 2 ? DType::kF32 : shape.dtype;
  shape.offset = n % 2 == 0 ? 1.0f : 0.0f;
  shape.eps = n % 7 == 6 ? 1e-5f : 1e-6f;
  shape.fresh_residual = n % 5 == 4;
  shape.want_bf16 = n % 3 != 1;
  shape.want_fp8 = n % 8 != 0;
  if (!shape.want_fp8) shape.want_bf16 = true;
  shape.fp8 = n % 5 < 3 ? DType::kE4M3 : DType::kE4M3Fnuz;
  shape.layout = kLayouts[(n / 2) % 3];
  constexpr int kGroups[] = {128, 64, 32, 256};
  shape.group = kGroups[n % 4];
  while (hidden % shape.group != 0) shape.group /= 2;
  return shape;
}

rmsnorm::Args args_of(const reference::BoundaryCase& shape, const BoundaryTensors& tensors) {
  rmsnorm::Args args;
  args.y = tensors.addend;
  args.residual = tensors.residual;
  args.weight = tensors.weight;
  args.eps = shape.eps;
  args.offset = shape.offset;
  args.fresh_residual = shape.fresh_residual;
  args.out = tensors.out;
  return args;
}

// Runs the case and says what is wrong with it. `threads` overrides the block.
std::string run_case(const reference::BoundaryCase& shape, std::uint64_t seed, const Way& way,
                     int threads = 0, int gap = 0) {
  DeviceFixture fixture(way.target);
  const reference::BoundaryInputs inputs = reference::make_inputs(shape, seed);
  const BoundaryTensors tensors(shape, inputs, 0, fixture.device(), fixture.stream(), gap);
  const rmsnorm::Args args = args_of(shape, tensors);
  Plan plan = test::plan_forced(fixture, args, way.variant);
  if (threads != 0 && plan.code != nullptr) plan.launches.front().shape.threads = threads;
  test::run_plan(fixture, plan, args);
  std::string wrong;
  const reference::BoundaryOutputs found = tensors.read(fixture.stream(), wrong);
  if (!wrong.empty()) return wrong;
  return reference::difference(shape, reference::boundary(shape, inputs), found);
}

TEST(BoundaryOracle, FormulationsAgree) {
  int n = 0;
  for (int hidden : {128, 256, 640, 2880}) {
    for (int team = 1; team <= 8; ++team, ++n) {
      reference::BoundaryCase shape = nth_case(n, 7, hidden);
      shape.team = team;
      const reference::BoundaryInputs inputs =
          reference::make_inputs(shape, static_cast<std::uint64_t>(n));
      EXPECT_EQ(reference::difference(shape, reference::boundary(shape, inputs),
                                      test::second_oracle(shape, inputs)),
                "")
          << reference::describe(shape);
    }
  }
}

TEST(BoundaryOracle, InputsTellTheOrderOfSummation) {
  for (DType dtype : {DType::kBF16, DType::kF16}) {
    for (int team = 3; team <= 8; ++team) {
      reference::BoundaryCase shape;
      shape.team = team;
      shape.hidden = 640;
      shape.dtype = shape.weight_dtype = dtype;
      const reference::BoundaryInputs inputs = reference::make_inputs(shape, 3, true);
      for (int first = 1; first < team; ++first)
        EXPECT_GT(reference::order_sensitive_elements(shape, inputs, first), shape.hidden / 50)
            << name(dtype) << " " << team << " ranks from " << first;
    }
  }
}

TEST(Rmsnorm, MatchesOracleOnEveryTarget) {
  for_each_way(rmsnorm::kOp, [](const Way& way) {
    int n = 0;
    for (int hidden : {128, 256, 640, 2048, 2880, 4096}) {
      for (int rows : {1, 3, 7}) {
        const reference::BoundaryCase shape = nth_case(n, rows, hidden);
        EXPECT_EQ(run_case(shape, static_cast<std::uint64_t>(n), way), "")
            << reference::describe(shape);
        ++n;
      }
    }
  });
}

TEST(Rmsnorm, EveryGroupLayoutAndType) {
  for_each_way(rmsnorm::kOp, [](const Way& way) {
    for (int group : {32, 64, 128, 256}) {
      for (ScaleLayout layout : kLayouts) {
        for (DType fp8 : {DType::kE4M3, DType::kE4M3Fnuz}) {
          reference::BoundaryCase shape;
          shape.team = 1;
          shape.rows = 5;
          shape.hidden = 768;
          shape.group = group;
          shape.layout = layout;
          shape.fp8 = fp8;
          shape.dtype = shape.weight_dtype = group == 64 ? DType::kF16 : DType::kBF16;
          EXPECT_EQ(run_case(shape, 1, way), "") << reference::describe(shape);
        }
      }
    }
  });
}

TEST(Rmsnorm, BitsDoNotDependOnTheBlock) {
  for_each_way(rmsnorm::kOp, [](const Way& way) {
    if (test::wave_of(way.target) == 1) return;  // one thread is all there is
    for (int hidden : {640, 2880, 8192, 16384}) {
      for (int threads : {64, 3 * 64, 256, 512}) {
        if (threads * 4 * 8 < hidden) continue;  // a thread takes four vectors of 8 at most
        const reference::BoundaryCase shape = nth_case(hidden + threads / 64, 2, hidden);
        EXPECT_EQ(run_case(shape, 5, way, threads), "")
            << threads << " threads, " << reference::describe(shape);
      }
    }
  });
}

TEST(Rmsnorm, WideAndManyRows) {
  for_each_way(rmsnorm::kOp, [](const Way& way) {
    if (test::is_slow(way.target)) return;
    for (int hidden : {5120, 8192, 16384})
      EXPECT_EQ(run_case(nth_case(hidden / 1024, 6, hidden), 2, way), "") << hidden;
    for (int rows : {16, 17, 64, 65, 300})
      EXPECT_EQ(run_case(nth_case(rows, rows, 256), 4, way), "") << rows;
  });
}

TEST(Rmsnorm, RowsMayBeStrided) {
  for_each_way(rmsnorm::kOp,
               [](const Way& way) { EXPECT_EQ(run_case(nth_case(2, 5, 640), 9, way, 0, 48), ""); });
}

TEST(Rmsnorm, ZeroRowsIsLegal) {
  for_each_way(rmsnorm::kOp, [](const Way& way) {
    for (ScaleLayout layout : kLayouts) {
      reference::BoundaryCase shape;
      shape.team = 1;
      shape.rows = 0;
      shape.layout = layout;
      EXPECT_EQ(run_case(shape, 0, way), "") << name(layout);
    }
  });
}

TEST(Rmsnorm, RefusalsSayWhatIsAccepted) {
  DeviceFixture fixture(Target::kCpu);
  reference::BoundaryCase shape;
  shape.rows = 3;
  shape.team = 1;
  const BoundaryTensors tensors(shape, reference::make_inputs(shape, 0), 0, fixture.device(),
                                fixture.stream());
  using rmsnorm::Args;
  test::expect_refusals(
      rmsnorm::kOp, args_of(shape, tensors),
      {{[](Args& a) { a.residual.shape[0] = 2; }, "residual is bf16 [2, 256]"},
       {[](Args& a) { a.weight.shape[0] = 255; }, "weight is bf16 [255]"},
       {[](Args& a) { a.out = {}; }, "neither bf16 nor fp8"},
       {[](Args& a) { a.out.fp8->group = 96; }, "32, 64, 128 or 256"},
       // [3, 2] is not [2, 4]
       {[](Args& a) { a.out.fp8->layout = ScaleLayout::kMnMajor; }, "mn_major"},
       {[](Args& a) { a.y.data = a.y.as<std::byte>() + 2; }, "16 bytes"},
       {[](Args& a) { a.out.bf16->device.index = 1; }, "must be on cpu:0"},
       {[](Args& a) { a.out.bf16->dtype = DType::kF16; }, "must be of type bf16"}});
}

// Users call run() with a plan of their own: nothing is launched that the plan was not made for.
TEST(Rmsnorm, RunRefusesWhatItsPlanWasNotMadeFor) {
  DeviceFixture fixture(Target::kCpu);
  const Device device = fixture.device();
  Stream& stream = fixture.stream();
  PlanContext where = fixture.where();
  reference::BoundaryCase shape;
  shape.rows = 3;
  shape.team = 1;
  const BoundaryTensors tensors(shape, reference::make_inputs(shape, 0), 0, device, stream);
  tensors.reset(stream);
  std::string damage;
  const reference::BoundaryOutputs before = tensors.read(stream, damage);
  const rmsnorm::Args good = args_of(shape, tensors);
  const auto plan = rmsnorm::plan(good, where);
  ASSERT_TRUE(plan);
  const auto expect_refused = [&](const Plan& with, const rmsnorm::Args& args, Stream& on,
                                  std::string_view text) {
    const Status refused = rmsnorm::run(with, args, on);
    EXPECT_EQ(refused.code(), Code::kInvalidArgument);
    EXPECT_NE(refused.message().find(text), std::string_view::npos) << refused.to_string();
  };
  expect_refused(Plan{}, good, stream, "the plan is empty");
  Plan other = *plan;
  const Op other_op{"another op", {}};
  other.op = &other_op;
  expect_refused(other, good, stream, "the plan is one of another op");

  shape.rows = 2;
  const BoundaryTensors few(shape, reference::make_inputs(shape, 0), 0, device, stream);
  const auto short_plan = rmsnorm::plan(args_of(shape, few), where);
  shape.rows = 3;
  shape.hidden = 512;
  const BoundaryTensors wide(shape, reference::make_inputs(shape, 0), 0, device, stream);
  const auto wide_plan = rmsnorm::plan(args_of(shape, wide), where);
  shape.hidden = 256;
  shape.dtype = shape.weight_dtype = DType::kF16;
  const BoundaryTensors halves(shape, reference::make_inputs(shape, 0), 0, device, stream);
  const auto halves_plan = rmsnorm::plan(args_of(shape, halves), where);
  ASSERT_TRUE(short_plan && wide_plan && halves_plan);
  expect_refused(*short_plan, good, stream, "made for up to 2 rows of 256 bf16");
  expect_refused(*wide_plan, good, stream, "made for up to 3 rows of 512 bf16");
  expect_refused(*halves_plan, good, stream, "made for up to 3 rows of 256 f16");
  for (const Target target : test::usable_targets()) {
    if (target == Target::kCpu) continue;
    auto elsewhere = Stream::create(Device{target, 0});
    ASSERT_TRUE(elsewhere);
    expect_refused(*plan, good, *elsewhere, "the stream is on " + std::string(name(target)));
  }
  rmsnorm::Args args = good;
  args.out.fp8->scale.shape[0] = 1;
  expect_refused(*plan, args, stream, "out.fp8.scale is f32 [1, 2]");
  args = good;
  args.residual.data = good.out.bf16->data;
  expect_refused(*plan, args, stream, "residual and out.bf16 overlap");
  EXPECT_EQ(reference::difference(shape, before, tensors.read(stream, damage)), "");

  EXPECT_TRUE(rmsnorm::run(*plan, args_of(reference::BoundaryCase{shape}, few), stream));
  EXPECT_TRUE(rmsnorm::run(*plan, good, stream));
}

TEST(Rmsnorm, PlansSayWhetherKernelsStartEarly) {
  DeviceFixture fixture(Target::kCpu);
  const Device device = fixture.device();
  Stream& stream = fixture.stream();
  PlanContext where = fixture.where();
  reference::BoundaryCase shape;
  shape.team = 1;
  const BoundaryTensors tensors(shape, reference::make_inputs(shape, 0), 0, device, stream);
  for (const bool early : {true, false}) {
    where.may_start_early = early;
    const auto plan = rmsnorm::plan(args_of(shape, tensors), where);
    ASSERT_TRUE(plan);
    EXPECT_EQ(plan->launches.front().shape.early, early);
  }
}

TEST(Rmsnorm, TrafficCountsEveryTensorOnce) {
  DeviceFixture fixture(Target::kCpu);
  reference::BoundaryCase shape;
  shape.rows = 3;
  shape.team = 1;
  const BoundaryTensors tensors(shape, reference::make_inputs(shape, 0), 0, fixture.device(),
                                fixture.stream());
  const Traffic cost = rmsnorm::traffic(args_of(shape, tensors));
  const double elements = 3 * 256;
  EXPECT_EQ(cost.memory_bytes, elements * (2 + 2 + 2 + 2 + 1) + 256 * 2 + 3 * 2 * 4);
  EXPECT_EQ(cost.link_bytes, 0);
}

}  // namespace
}  // namespace tenon
