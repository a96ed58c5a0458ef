// The walk over variants and the plans that it makes, for every op of the list and every target.
#include "tenon/ops/registry.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <set>

#include "tenon/core/fp8.h"
#include "tenon/ops/fp8_quant/fp8_quant.h"
#include "tests/support/processes.h"
#include "tests/support/targets.h"

namespace tenon {
namespace {

TEST(Registry, NamesComeFromTheList) {
  std::set<std::string_view> names;
  for (const Op* op : all_ops()) names.insert(op->name);
  EXPECT_EQ(names.size(), all_ops().size());
  EXPECT_TRUE(names.contains("rmsnorm"));
  EXPECT_TRUE(names.contains("all_reduce"));
}

// Stand for chains of other ops, which run where there is no variant.
bool is_chain(std::string_view op) { return op == "moe_experts"; }

TEST(Registry, EveryBuiltTargetHasEveryOp) {
  for (const Op* op : all_ops()) {
    std::size_t of_targets = 0;
    for (Target target : built_targets()) {
      const auto list = variants(*op, target);
      of_targets += list.size();
      EXPECT_TRUE(!list.empty() || is_chain(op->name)) << op->name << " on " << name(target);
      std::set<std::string_view> names;
      for (const Variant& each : list) {
        EXPECT_EQ(each.target, target);
        EXPECT_NE(each.code, nullptr);
        EXPECT_EQ(each.promise.name.empty(), each.promise.bits == Bits::kReference) << op->name;
        names.insert(each.name);
      }
      EXPECT_EQ(names.size(), list.size()) << op->name << ": a name is used twice";
    }
    EXPECT_EQ(of_targets, op->variants.size()) << op->name;
  }
}

// A small call that is legal on the cpu target.
struct SmallCall {
  alignas(16) std::uint16_t in[2 * 256] = {};
  alignas(16) std::uint8_t codes[2 * 256] = {};
  alignas(16) float scales[4] = {};
  fp8_quant::Args args;

  SmallCall() {
    const Device device{Target::kCpu, 0};
    args.in = view(in, DType::kBF16, device, {2, 256});
    args.out.fp8 = QuantView{view(codes, DType::kE4M3, device, {2, 256}),
                             view(scales, DType::kF32, device, {2, 2})};
  }
};

TEST(Registry, PlanSaysWhatWasChosen) {
  SmallCall call;
  auto where = plan_context({Target::kCpu, 0});
  ASSERT_TRUE(where);
  const auto plan = choose(fp8_quant::kOp, &call.args, *where);
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->op, &fp8_quant::kOp);
  EXPECT_EQ(plan->target, Target::kCpu);
  const Variant& first = variants(fp8_quant::kOp, Target::kCpu).front();
  EXPECT_EQ(plan->variant_name, first.name);
  EXPECT_EQ(plan->code, first.code);
  EXPECT_EQ(describe(*plan),
            "fp8_quant on cpu: segment, reference bits; segment_kernel 2 x 1, early; no workspace");
  EXPECT_TRUE(plan->refusals.empty());
}

TEST(Registry, UnknownVariantNamesTheKnownOnes) {
  SmallCall call;
  auto where = plan_context({Target::kCpu, 0});
  ASSERT_TRUE(where);
  const auto plan = choose(fp8_quant::kOp, &call.args, *where, "no_such");
  ASSERT_FALSE(plan);
  EXPECT_EQ(plan.status().code(), Code::kInvalidArgument);
  EXPECT_NE(plan.status().message().find("no variant is called \"no_such\""), std::string::npos);
  EXPECT_NE(plan.status().message().find("segment"), std::string::npos);
}

TEST(Registry, TargetOutsideTheBuildIsRefused) {
  SmallCall call;
  for (int t = 0; t < kNumTargets; ++t) {
    const auto target = static_cast<Target>(t);
    if (!variants(fp8_quant::kOp, target).empty()) continue;
    PlanContext where;
    where.device.target = target;
    const auto plan = choose(fp8_quant::kOp, &call.args, where);
    ASSERT_FALSE(plan);
    EXPECT_EQ(plan.status().code(), Code::kUnsupported);
    EXPECT_NE(plan.status().message().find("not part of this build"), std::string_view::npos);
  }
}

TEST(Registry, LaunchRunsThePlan) {
  SmallCall call;
  std::fill(std::begin(call.in), std::end(call.in), to_bf16(1.0f).bits);
  auto where = plan_context({Target::kCpu, 0});
  ASSERT_TRUE(where);
  const auto plan = choose(fp8_quant::kOp, &call.args, *where);
  ASSERT_TRUE(plan);
  auto stream = Stream::create({Target::kCpu, 0});
  ASSERT_TRUE(stream);
  ASSERT_TRUE(launch(*plan, &call.args, nullptr, *stream));
  ASSERT_TRUE(stream->synchronize());
  EXPECT_EQ(call.codes[0], 0x7e);  // every element is its group's largest: 448
  EXPECT_EQ(call.scales[3], 1.0f * (1.0f / 448.0f));
}

TEST(RegistryChild, DISABLED_Early) {
  const SmallCall call;
  const auto comm = Communicator::create({}, Device{});
  ASSERT_TRUE(comm);
  const auto alone = plan_context(Device{}), in_team = plan_context(**comm);
  ASSERT_TRUE(alone && in_team);
  const auto plan = fp8_quant::plan(call.args, *alone);
  ASSERT_TRUE(plan);
  std::printf("early: %d %d %d\n", plan->launches.front().shape.early, in_team->may_start_early,
              (*comm)->may_start_early());
}

TEST(Registry, TheKnobTurnsEarlyLaunchOffEverywhere) {
  for (const char* knob : {"TENON_EARLY=1", "TENON_EARLY=0"}) {
    auto child = test::start_rank(0, 1, test::free_port(), "RegistryChild.DISABLED_Early", {knob});
    EXPECT_EQ(child.wait(std::chrono::milliseconds(20'000)), 0) << child.output();
    const bool off = std::string_view(knob).ends_with("0");
    EXPECT_NE(child.output().find(off ? "early: 0 0 0\n" : "early: 1 1 1\n"), std::string::npos)
        << child.output();
  }
}

}  // namespace
}  // namespace tenon
