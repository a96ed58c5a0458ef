// Sampling parameters that are refused, and the edits that the others make of a request's logits.
#include "tenon/runtime/token_edits.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <random>

namespace tenon {
namespace {

using Tokens = std::vector<std::int32_t>;

std::map<std::int32_t, sampling::Edit> by_id(const TokenEdits& edits) {
  std::map<std::int32_t, sampling::Edit> found;
  for (const sampling::Edit& each : edits.list())
    EXPECT_TRUE(found.emplace(each.id, each).second) << "id " << each.id << " twice";
  return found;
}

TEST(TokenEdits, MostRequestsHaveNone) {
  SamplingParams sampling;
  sampling.temperature = 1;
  sampling.hold_back = {5};  // without min_tokens
  EXPECT_FALSE(TokenEdits::make(sampling, Tokens{7}, Tokens{1, 2}, 10));
  sampling.min_tokens = 1;
  sampling.hold_back = {};
  sampling.ignore_eos = true;
  EXPECT_FALSE(TokenEdits::make(sampling, Tokens{7}, Tokens{1, 2}, 10));
}

TEST(TokenEdits, KnowsWhatWasSaid) {
  SamplingParams sampling;
  sampling.repetition_penalty = 1.2f;
  auto edits = TokenEdits::make(sampling, {}, Tokens{4, 9, 4}, 3);
  ASSERT_TRUE(edits);
  for (const std::int32_t id : {9, 2, 9}) edits->drew(id);
  const auto found = by_id(*edits);
  ASSERT_EQ(found.size(), 3u);
  EXPECT_EQ(found.at(4).said, 1);
  EXPECT_EQ(found.at(9).said, 2 * 2 + 1);
  EXPECT_EQ(found.at(2).said, 2);
  sampling.repetition_penalty = 1;
  sampling.presence_penalty = 0.5f;  // of the answer alone
  edits = TokenEdits::make(sampling, {}, Tokens{4, 9, 4}, 3);
  ASSERT_TRUE(edits);
  EXPECT_TRUE(edits->list().empty());
  edits->drew(4);
  EXPECT_EQ(by_id(*edits).at(4).said, 2);
}

TEST(TokenEdits, HoldsBackEndsUntilThereAreEnough) {
  SamplingParams sampling;
  sampling.min_tokens = 2;
  sampling.hold_back = {5, 7};
  sampling.logit_bias = {{7, 3.0f}, {8, -1.0f}};
  auto edits = TokenEdits::make(sampling, Tokens{7, 6}, Tokens{1}, 4);
  ASSERT_TRUE(edits);
  const float never = -std::numeric_limits<float>::infinity();
  for (int drawn = 0; drawn < 4; ++drawn) {
    const auto found = by_id(*edits);
    EXPECT_EQ(found.at(5).bias, drawn < 2 ? never : 0.0f);
    EXPECT_EQ(found.at(6).bias, drawn < 2 ? never : 0.0f);
    EXPECT_EQ(found.at(7).bias, drawn < 2 ? never : 3.0f);
    EXPECT_EQ(found.at(8).bias, -1.0f);
    edits->drew(8);
  }
}

TEST(TokenEdits, RandomWorkAgreesWithAMap) {
  std::mt19937 random(8);
  SamplingParams sampling;
  sampling.repetition_penalty = 2;
  std::map<std::int32_t, std::int32_t> said;
  Tokens prompt;
  for (int i = 0; i < 500; ++i) {
    prompt.push_back(static_cast<std::int32_t>(random() % 300) * 4096);
    said[prompt.back()] = 1;
  }
  auto edits = TokenEdits::make(sampling, {}, prompt, 2000);
  ASSERT_TRUE(edits);
  for (int i = 0; i < 2000; ++i) {
    const auto id = static_cast<std::int32_t>(random() % 1000) * 4096;
    edits->drew(id);
    said[id] += 2;
  }
  const auto found = by_id(*edits);
  ASSERT_EQ(found.size(), said.size());
  for (const auto& [id, each] : found) EXPECT_EQ(each.said, said.at(id));
}

TEST(SamplingParams, RefusalsSayWhatIsAccepted) {
  const auto refused = [](auto change, std::string_view why) {
    SamplingParams sampling;
    change(sampling);
    const Status status = check(sampling);
    EXPECT_EQ(status.code(), Code::kInvalidArgument);
    EXPECT_EQ(status.message(), why);
  };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(check(SamplingParams{}));
  refused([](auto& s) { s.min_p = 1.5f; }, "min_p is 1.5; accepted: 0 to 1");
  refused([](auto& s) { s.frequency_penalty = -3; }, "frequency_penalty is -3.; accepted: -2 to 2");
  refused([&](auto& s) { s.presence_penalty = nan; }, "presence_penalty is nan; accepted: -2 to 2");
  refused([](auto& s) { s.repetition_penalty = 0; },
          "repetition_penalty is 0.000000; accepted: above 0, up to 10");
  refused([](auto& s) { s.min_tokens = 257; }, "min_tokens is 257; accepted: 0 to max_tokens, 256");
  refused([](auto& s) { s.logprobs = 21; }, "logprobs is 21; accepted are at most 20");
  refused(
      [](auto& s) {
        s.logit_bias = {{3, 1.0f}, {4, 1.0f}, {3, 2.0f}};
      },
      "logit_bias has id 3 twice; accepted is once");
  refused(
      [](auto& s) {
        s.logit_bias = {{3, 101.0f}};
      },
      "the logit_bias of id 3 is 101.000000; accepted: -100 to 100, and minus infinity");
  refused([](auto& s) { s.hold_back.resize(1025); },
          "logit_bias and hold_back have 1025 entries; accepted are at most 1024");
}

}  // namespace
}  // namespace tenon
