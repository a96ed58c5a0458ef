// tests/support/op_suite.h notices an op that runs another variant than it was told to, or none, or
// accepts too much, or lets rows see each other.
#include "tests/support/op_suite.h"

#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

#include "tenon/device/plan.h"

namespace tenon::fake_op {
namespace {

using test::DeviceFixture;

struct Args {
  int rows = 1;
};

// What is wrong with the op.
enum class Fault { kNone, kTakesTheFirst, kLaunchesNothing, kLaunchesTwice, kPlansAnything };
Fault fault = Fault::kNone;

Status supports(const void*, const PlanContext&, Recipe*) { return Status::ok(); }
Status launch_nothing(const Recipe&, const void*, const ChannelView*, Stream&) {
  return Status::ok();
}
constexpr VariantCode kFirst{&supports, &launch_nothing, HostOnly{}};
constexpr VariantCode kSecond{&supports, &launch_nothing, HostOnly{}};
constexpr Variant kVariants[] = {{"first", Target::kCpu, {}, &kFirst},
                                 {"second", Target::kCpu, {}, &kSecond}};
const Op kOp{"fake_op", kVariants};

Status check(const Args& args) {
  if (args.rows > 0) return Status::ok();
  return Status::error(Code::kInvalidArgument,
                       "fake_op: rows is " + std::to_string(args.rows) + " but must be at least 1");
}
Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced = {}) {
  if (fault != Fault::kPlansAnything) TENON_TRY(check(args));
  return choose(kOp, &args, where, fault == Fault::kTakesTheFirst ? "first" : forced);
}
Status run(const Plan& plan, const Args& args, Stream& stream) {
  if (fault == Fault::kLaunchesNothing) return Status::ok();
  if (fault == Fault::kLaunchesTwice) TENON_TRY(launch(plan, &args, nullptr, stream));
  return launch(plan, &args, nullptr, stream);
}

class OpSuite : public ::testing::Test {
 protected:
  void TearDown() override { fault = Fault::kNone; }
  void run_second() {
    DeviceFixture fixture(Target::kCpu);
    test::run_forced(fixture, Args{}, "second");
  }
};

TEST_F(OpSuite, AForcedVariantIsTheOneThatRuns) {
  run_second();
  fault = Fault::kTakesTheFirst;
  ::testing::TestPartResultArray found;
  {
    ::testing::ScopedFakeTestPartResultReporter reporter(
        ::testing::ScopedFakeTestPartResultReporter::INTERCEPT_ONLY_CURRENT_THREAD, &found);
    run_second();
  }
  EXPECT_EQ(found.size(), 3);  // the plan's name, and the code of either variant
  fault = Fault::kLaunchesNothing;
  EXPECT_NONFATAL_FAILURE(run_second(), "witness.launches()");
  fault = Fault::kLaunchesTwice;
  EXPECT_NONFATAL_FAILURE(run_second(), "witness.launches()");
}

void expect_refusal(int rows, const std::string& words) {
  test::expect_refusals(kOp, Args{}, {{[rows](Args& args) { args.rows = rows; }, words}});
}

TEST_F(OpSuite, RefusalsHaveTheirWords) {
  expect_refusal(0, "at least 1");
  expect_refusal(0, "fake_op: rows is 0 but must be at least 1");
  EXPECT_NONFATAL_FAILURE(expect_refusal(0, "at most"), "rows is 0");
  EXPECT_NONFATAL_FAILURE(expect_refusal(0, "fake_op: rows is 0"), "at least 1");  // not all of it
  fault = Fault::kPlansAnything;
  EXPECT_NONFATAL_FAILURE(expect_refusal(0, "at least 1"), "was planned");
}

// Each row is its number, and something of the rows beside it.
void expect_rows(int of_the_first, int of_all) {
  test::expect_rows_alone_equal_together(5, [&](const std::vector<int>& rows) {
    std::vector<test::RowBytes> found(rows.size());
    for (std::size_t at = 0; at < rows.size(); ++at) {
      found[at] = {static_cast<std::uint8_t>(rows[at] + of_the_first * rows[0]),
                   static_cast<std::uint8_t>(of_all * static_cast<int>(rows.size()))};
    }
    return found;
  });
}

TEST_F(OpSuite, RowsThatSeeEachOtherAreNoticed) {
  expect_rows(0, 0);
  EXPECT_FATAL_FAILURE(expect_rows(1, 0), "in a call of 5");
  EXPECT_FATAL_FAILURE(expect_rows(0, 1), "in a call of 1");
}

}  // namespace
}  // namespace tenon::fake_op
