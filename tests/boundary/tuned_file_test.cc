// Boundaries of a process whose TENON_TUNED_FILE has tables: buckets end where choices do, outputs
// have choices of their own, and the boundaries of a channel with a sharded residual run alike.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include "tenon/boundary/boundary.h"
#include "tenon/boundary/tuned.h"
#include "tests/support/ranks.h"

namespace tenon {
namespace {

// Before the first look at the environment.
const std::string kPath = testing::TempDir() + "boundary_tuned_file_test.json";
const bool kIsSet = [] {
  std::ofstream(kPath) << R"({"tables": [
    {"device": "host", "ranks": 2, "hidden": 512, "outputs": "fp8", "date": "2026-11-28",
     "lines": [{"up_to_rows": 3, "choice": "one_shot"}, {"choice": "two_shot"}]},
    {"device": "host", "ranks": 2, "hidden": 512, "outputs": "fp8+bf16", "date": "2026-11-28",
     "lines": [{"up_to_rows": 5, "choice": "one_shot"}, {"up_to_rows": 8, "choice": "two_shot"},
               {"choice": "two_kernels"}]},
    {"device": "host", "ranks": 3, "hidden": 1024, "outputs": "fp8", "date": "2026-11-28",
     "lines": [{"up_to_rows": 3, "choice": "one_shot"}, {"choice": "two_shot"}]},
    {"device": "host", "ranks": 3, "hidden": 1024, "outputs": "fp8", "residual": "whole",
     "date": "2026-11-28",
     "lines": [{"up_to_rows": 6, "choice": "one_shot"}, {"choice": "two_shot"}]}]})";
  return setenv("TENON_TUNED_FILE", kPath.c_str(), 1) == 0;
}();

class TunedFile : public testing::Test {
 protected:
  static void TearDownTestSuite() { std::remove(kPath.c_str()); }
};

Result<std::shared_ptr<BoundaryChannel>> make_channel(bool sharded, int hidden,
                                                      Communicator& comm) {
  BoundaryChannel::Spec spec;
  spec.hidden = hidden;
  spec.max_rows = 16;
  spec.sharded_residual = sharded;
  return BoundaryChannel::make(spec, comm);
}

Result<Boundary> make(bool bf16, const std::shared_ptr<BoundaryChannel>& channel,
                      int hidden = 512) {
  BoundarySpec spec;
  spec.site = bf16 ? "both" : "fp8";
  spec.hidden = hidden;
  spec.max_rows = 16;
  spec.want_bf16 = bf16;
  return Boundary::make(spec, channel);
}

// What each bucket takes: "3 one_shot, 4 two_shot, …".
std::string text_of(const Boundary& boundary) {
  std::string text;
  for (const BoundaryUse& each : boundary.uses())
    text += (text.empty() ? "" : ", ") + std::to_string(each.max_rows) + " " + each.variant;
  return text;
}

constexpr const char* kOfFp8 =
    "1 one_shot, 2 one_shot, 3 one_shot, 4 two_shot, 5 two_shot, 8 two_shot, 16 two_shot";
constexpr const char* kOfBoth =
    "1 one_shot, 2 one_shot, 3 one_shot, 4 one_shot, 5 one_shot, 8 two_shot, 16 peer_all_reduce";

// Makes one boundary after the other, `bf16_first` or not, and returns their texts in that order.
void expect_choices(bool sharded, bool bf16_first, const std::string& first,
                    const std::string& second) {
  test::run_ranks(2, {}, [&](int, Communicator& comm) {
    const auto channel = make_channel(sharded, 512, comm);
    ASSERT_TRUE(channel) << channel.status().to_string();
    const auto one = make(bf16_first, *channel);
    ASSERT_TRUE(one) << one.status().to_string();
    const auto two = make(!bf16_first, *channel);
    ASSERT_TRUE(two) << two.status().to_string();
    EXPECT_EQ(text_of(*one), first);
    EXPECT_EQ(text_of(*two), second);
  });
}

TEST_F(TunedFile, OutputsHaveChoicesOfTheirOwn) {
  ASSERT_TRUE(kIsSet);
  ASSERT_TRUE(tuned_status()) << tuned_status().to_string();
  expect_choices(false, true, kOfBoth, kOfFp8);
  expect_choices(false, false, kOfFp8, kOfBoth);
}

TEST_F(TunedFile, WithAShardedResidualTheFirstChoosesForAll) {
  expect_choices(true, true, kOfBoth, kOfBoth);
  expect_choices(true, false, kOfFp8, kOfFp8);
}

TEST_F(TunedFile, WholeResidualsHaveChoicesOfTheirOwn) {
  test::run_ranks(3, {}, [&](int, Communicator& comm) {
    for (const bool sharded : {false, true}) {
      const auto channel = make_channel(sharded, 1024, comm);
      ASSERT_TRUE(channel) << channel.status().to_string();
      const auto boundary = make(false, *channel, 1024);
      ASSERT_TRUE(boundary) << boundary.status().to_string();
      EXPECT_EQ(text_of(*boundary),
                sharded
                    ? "1 one_shot, 2 one_shot, 3 one_shot, 4 two_shot, 8 two_shot, 16 two_shot"
                    : "1 one_shot, 2 one_shot, 4 one_shot, 6 one_shot, 8 two_shot, 16 two_shot");
    }
  });
}

TEST_F(TunedFile, TheFileStandsOverTheTablesThatAreBuiltIn) {
  EXPECT_TRUE(tuned_file_text().starts_with("contents "));
  EXPECT_EQ(choices_for(tuned_tables(), {"host", 0, 2}, "fp8", 512).of(4), "two_shot");
  EXPECT_EQ(choices_for(tuned_tables(), {"NVIDIA H200", 0, 2}, "fp8", 4096).of(1),
            "one_shot_split");
}

}  // namespace
}  // namespace tenon
