#include "tenon/core/status.h"

#include <gtest/gtest.h>

#include <memory>
#include <set>
#include <string>

namespace tenon {
namespace {

TEST(Status, OkSaysNothing) {
  const Status status = Status::ok();
  EXPECT_TRUE(status);
  EXPECT_EQ(status.code(), Code::kOk);
  EXPECT_EQ(status.message(), "");
  EXPECT_EQ(status.to_string(), "ok");
}

TEST(Status, ErrorsKeepCodeAndSentence) {
  const Status status = Status::error(Code::kTimeout, "rank 1 waited for rank 0");
  EXPECT_FALSE(status);
  EXPECT_EQ(status.code(), Code::kTimeout);
  EXPECT_EQ(status.to_string(), "timeout: rank 1 waited for rank 0");
  const Status copy = status;
  EXPECT_EQ(copy.message(), status.message());
}

TEST(Status, ContextGoesInFront) {
  const Status status =
      Status::error(Code::kIo, "short read").with("model-00001.safetensors").with("load model");
  EXPECT_EQ(status.to_string(), "io: load model: model-00001.safetensors: short read");
  EXPECT_TRUE(Status::ok().with("load model"));
}

TEST(Status, EveryCodeHasItsOwnName) {
  std::set<std::string_view> names;
  constexpr int kCodes = static_cast<int>(Code::kInternal) + 1;
  for (int i = 0; i < kCodes; ++i) names.insert(name(static_cast<Code>(i)));
  EXPECT_EQ(names.size(), static_cast<std::size_t>(kCodes));
  EXPECT_FALSE(names.contains("unknown code"));
}

TEST(Result, HoldsAValueOrTheReason) {
  Result<std::string> value = std::string("rows");
  ASSERT_TRUE(value);
  EXPECT_EQ(*value, "rows");
  EXPECT_EQ(value->size(), 4u);
  EXPECT_TRUE(value.status());
  const Result<std::string> reason = Status::error(Code::kUnsupported, "no such device");
  EXPECT_FALSE(reason);
  EXPECT_EQ(reason.status().to_string(), "unsupported: no such device");
}

TEST(Result, MovesWhatCannotBeCopied) {
  Result<std::unique_ptr<int>> result = std::make_unique<int>(3);
  const std::unique_ptr<int> taken = *std::move(result);
  EXPECT_EQ(*taken, 3);
}

Status fail_if(bool fail) { return fail ? Status::error(Code::kInternal, "broken") : Status::ok(); }
Result<int> half(int value) {
  if (value % 2 != 0)
    return Status::error(Code::kInvalidArgument, std::to_string(value) + " is odd");
  return value / 2;
}

Status plain_try(bool fail, bool* reached) {
  TENON_TRY(fail_if(fail));
  *reached = true;
  return Status::ok();
}
Result<int> quarter(int value) {
  TENON_ASSIGN(const int halved, half(value), "first half");
  TENON_ASSIGN(const int quartered, half(halved), "second half");
  TENON_TRY(half(quartered * 2), "never");
  return quartered;
}

TEST(Try, ReturnsEarlyOnlyOnFailure) {
  bool reached = false;
  EXPECT_TRUE(plain_try(false, &reached));
  EXPECT_TRUE(reached);
  reached = false;
  EXPECT_EQ(plain_try(true, &reached).to_string(), "internal: broken");
  EXPECT_FALSE(reached);
}

TEST(Try, AssignTakesTheValueOrAddsContext) {
  EXPECT_EQ(*quarter(12), 3);
  EXPECT_EQ(quarter(7).status().message(), "first half: 7 is odd");
  EXPECT_EQ(quarter(6).status().message(), "second half: 3 is odd");
}

TEST(CheckDeathTest, NamesThePlace) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(TENON_CHECK(1 + 1 == 3),
               "internal check failed at .*status_test.cc:[0-9]+: 1 \\+ 1 == 3");
  EXPECT_DEATH((void)Status::error(Code::kOk, "not an error"), "internal check failed");
}

}  // namespace
}  // namespace tenon
