// The choice among variants, with variants made here: order, refusals, force, preference, and what
// a plan says.
#include "tenon/device/plan.h"

#include <gtest/gtest.h>

namespace tenon {
namespace {

struct Args {
  int rows = 0;
};

// Up to four rows, as one kernel.
Status supports_few(const Args& args, const PlanContext&, Recipe* recipe) {
  LaunchShape shape;
  shape.blocks = args.rows;
  recipe->launch("few_kernel", shape);
  if (args.rows > 4)
    return Status::error(Code::kUnsupported,
                         std::to_string(args.rows) + " rows are over the limit of 4");
  return Status::ok();
}
Status supports_many(const Args& args, const PlanContext& where, Recipe* recipe) {
  if (where.preferred == "few")
    return Status::error(Code::kUnsupported, "few " + where.why_preferred);
  LaunchShape shape;
  shape.blocks = args.rows;
  shape.threads = 64;
  shape.shared_bytes = 512;
  recipe->launch("first_kernel", shape);
  shape.cooperative = shape.early = true;
  recipe->launch("second_kernel", shape);
  recipe->set("splits", 3);
  recipe->workspace_bytes = 4096;
  return Status::ok();
}
// Says what it was asked to launch.
Status launch_blocks(const Recipe& recipe, const Args& args, const ChannelView*, Stream&) {
  return Status::error(Code::kInternal, std::to_string(recipe.launches.size()) + " launches for " +
                                            std::to_string(args.rows) + " rows");
}

TENON_DEFINE_VARIANT(few, Args, supports_few, launch_blocks);
TENON_DEFINE_VARIANT(many, Args, supports_many, launch_blocks);

const Variant kVariants[] = {
    {"few", Target::kCpu, {Bits::kReference, {}}, &variant_few},
    {"many", Target::kCpu, {Bits::kOwn, "split_sums"}, &variant_many},
    {"many", Target::kEmu32, {Bits::kOwn, "split_sums"}, &variant_many},
};
const Op kOp{"an_op", kVariants};

PlanContext on(Target target) {
  PlanContext where;
  where.device.target = target;
  return where;
}

TEST(Plan, VariantsAreThoseOfTheTargetInOrder) {
  const auto all = variants(kOp, Target::kCpu);
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[0].name, "few");
  EXPECT_EQ(all[1].name, "many");
  EXPECT_EQ(variants(kOp, Target::kEmu32).size(), 1u);
  EXPECT_TRUE(variants(kOp, Target::kEmu64).empty());
  EXPECT_TRUE(has_variant(kOp, Target::kCpu, "many"));
  EXPECT_FALSE(has_variant(kOp, Target::kCpu, "none"));
  EXPECT_FALSE(has_variant(kOp, Target::kEmu64, "many"));
}

TEST(Plan, TheFirstThatSaysYesIsTaken) {
  const Args args{4};
  const auto plan = choose(kOp, &args, on(Target::kCpu));
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->op, &kOp);
  EXPECT_EQ(plan->variant_name, "few");
  EXPECT_EQ(plan->promise.bits, Bits::kReference);
  EXPECT_TRUE(plan->refusals.empty());
  EXPECT_EQ(describe(*plan), "an_op on cpu: few, reference bits; few_kernel 4 x 1; no workspace");
}

TEST(Plan, RefusalsAreKeptAndLeaveNothingElse) {
  const Args args{5};
  const auto plan = choose(kOp, &args, on(Target::kCpu));
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->launches.size(), 2u);  // not that of the variant that refused
  EXPECT_EQ(describe(*plan),
            "an_op on cpu: many, own bits (split_sums); first_kernel 5 x 64 with 512 shared bytes; "
            "second_kernel 5 x 64 with 512 shared bytes, cooperative, early; 4096 bytes of "
            "workspace; splits 3; not few: 5 rows are over the limit of 4");
}

TEST(Plan, AForcedVariantRunsOrNothingDoes) {
  Args args{4};
  const auto many = choose(kOp, &args, on(Target::kCpu), "many");
  ASSERT_TRUE(many);
  EXPECT_EQ(many->variant_name, "many");
  args.rows = 5;
  const Status refused = choose(kOp, &args, on(Target::kCpu), "few").status();
  EXPECT_EQ(refused.code(), Code::kUnsupported);
  EXPECT_EQ(refused.message(),
            "an_op on cpu: no variant applies; few: 5 rows are over the limit of 4");
  const Status unknown = choose(kOp, &args, on(Target::kCpu), "none").status();
  EXPECT_EQ(unknown.code(), Code::kInvalidArgument);
  EXPECT_EQ(unknown.message(), "an_op on cpu: no variant is called \"none\"; there are few, many");
}

TEST(Plan, ATargetWithoutVariantsIsRefused) {
  const Args args{1};
  const Status refused = choose(kOp, &args, on(Target::kEmu64)).status();
  EXPECT_EQ(refused.code(), Code::kUnsupported);
  EXPECT_NE(refused.message().find("not part of this build"), std::string_view::npos);
}

TEST(Plan, VariantsSeeWhatTheCallerPrefers) {
  const Args args{5};
  PlanContext where = on(Target::kCpu);
  where.preferred = "few";
  where.why_preferred = "was measured";
  const Status refused = choose(kOp, &args, where).status();
  EXPECT_EQ(refused.message(),
            "an_op on cpu: no variant applies; few: 5 rows are over the limit of 4; many: few was "
            "measured");
}

TEST(Plan, LaunchFollowsTheRecipe) {
  auto stream = Stream::create({Target::kCpu, 0});
  ASSERT_TRUE(stream);
  const Args planned{9}, called{7};
  const auto plan = choose(kOp, &planned, on(Target::kCpu));
  ASSERT_TRUE(plan);
  EXPECT_EQ(launch(*plan, &called, nullptr, *stream).message(), "2 launches for 7 rows");
}

TEST(Plan, AnEmptyPlanSaysSo) { EXPECT_EQ(describe(Plan{}), "an empty plan"); }

}  // namespace
}  // namespace tenon
