// Facts of a checkpoint: what is sampled, and that ranks agree on them or all hear of the first
// difference. Not here: whole models (load_test.cc).
#include "tenon/models/fingerprint.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/support/ranks.h"
#include "tests/support/tiny_model.h"

namespace tenon {
namespace {

using test::FileTensor;
using test::FileTensors;
using test::run_ranks;

FileTensor bytes_of(std::size_t count) {
  return {"U8", {static_cast<std::int64_t>(count)}, std::vector<std::byte>(count, std::byte{7})};
}

Facts facts_of(const FileTensors& tensors) {
  const test::TempDirectory directory;
  test::write_checkpoint(directory.path(), "{}", tensors, 0);
  const auto weights = Weights::open(directory.path().string());
  EXPECT_TRUE(weights) << weights.status().message();
  Facts facts;
  const std::string_view skipped[] = {"skip."};
  EXPECT_TRUE(weights && add_tensors(*weights, skipped, &facts));
  return facts;
}

TEST(Fingerprint, SeesEveryByteOfSmallTensorsAndBothEndsOfLargeOnes) {
  const FileTensors tensors{{"large", bytes_of(100'003)}, {"small", bytes_of(16 << 10)}};
  const Facts before = facts_of(tensors);
  ASSERT_EQ(before.size(), 4u);
  EXPECT_EQ(before[0], (Fact{"tensor \"large\"", "U8 [100003]"}));
  EXPECT_EQ(before[3].name, "the data of tensor \"small\"");
  const auto after = [&](const char* name, std::size_t at) {
    FileTensors changed = tensors;
    changed[name].bytes[at] ^= std::byte{1};
    const Facts facts = facts_of(changed);
    EXPECT_EQ(facts.size(), before.size());
    return std::mismatch(before.begin(), before.end(), facts.begin()).first - before.begin();
  };
  for (const std::size_t at : {0u, 1u, 5000u, (16u << 10) - 1}) EXPECT_EQ(after("small", at), 3);
  for (const std::size_t at : {0u, 63u, 100'002u, 100'002u - 63}) EXPECT_EQ(after("large", at), 2);
  EXPECT_EQ(after("large", 64), 4) << "no difference is seen there, or else change this test";
}

// A mixture has tens of thousands of tensors that differ by numbers only.
TEST(Fingerprint, SamplesAPartOfTensorsThatAreAlike) {
  FileTensors tensors{{"norm", bytes_of(8)}, {"skip.me", bytes_of(8)}};
  for (int layer = 0; layer < 10; ++layer)
    for (int expert = 0; expert < 30; ++expert)
      tensors["l." + std::to_string(layer) + ".e." + std::to_string(expert) + ".w"] = bytes_of(8);
  std::size_t headers = 0, samples = 0;
  bool norm = false;
  for (const auto& [name, value] : facts_of(tensors)) {
    const bool sample = name.starts_with("the data of ");
    ++(sample ? samples : headers);
    norm = norm || name == "the data of tensor \"norm\"";
    EXPECT_EQ(name.find("skip."), std::string::npos);
  }
  EXPECT_EQ(headers, 301u);
  EXPECT_EQ(samples, 1u + 100u);  // every third of 300
  EXPECT_TRUE(norm);
}

std::vector<std::string> agree(const std::vector<Facts>& facts, int failing = -1) {
  std::vector<std::string> said(facts.size());
  run_ranks(static_cast<int>(facts.size()), [&](int rank, Communicator& comm) {
    const auto at = static_cast<std::size_t>(rank);
    const Status mine =
        rank == failing ? Status::error(Code::kIo, "the moon is down") : Status::ok();
    const Status agreed = agree_on_facts(mine, facts[at], comm, "test");
    said[at] = agreed ? "ok" : std::string(agreed.message());
    EXPECT_TRUE(comm.agree(Status::ok(), "after"));  // nobody is a call behind
  });
  return said;
}

void expect_all(const std::vector<std::string>& said, const std::string& sentence) {
  for (const std::string& each : said) EXPECT_NE(each.find(sentence), std::string::npos) << each;
}

TEST(Fingerprint, AllRanksHearTheSame) {
  const Facts good{{"a", "1"}, {"b", "2"}, {"c", ""}};
  expect_all(agree({good, good, good}), "ok");
  expect_all(agree({good, good, good}, 2), "rank 2: the moon is down");
  Facts other = good;
  other[1].value = "3";
  expect_all(agree({good, good, other}), "rank 2: b is 3, on rank 0 it is 2; accepted: the same");
  expect_all(agree({other, good, good}), "rank 1: b is 2, on rank 0 it is 3");
  expect_all(agree({good, {}}), "rank 1: a is missing, on rank 0 it is 1");
  expect_all(agree({{}, good}), "rank 1: a is 1, on rank 0 it is missing");
  expect_all(agree({good, {good[0], good[2]}}), "rank 1: b is missing, on rank 0 it is 2");
  const Facts longer{{"a", "1"}, {"b", std::string(3'000'000, 'x')}, {"c", ""}};
  for (const auto& said : agree({longer, good}))
    EXPECT_NE(said.find("rank 1: b is 2, on rank 0 it is xxx"), std::string::npos);
}

// Names and values cannot run into each other.
TEST(Fingerprint, BoundariesCount) {
  expect_all(agree({{{"ab", "c"}}, {{"a", "bc"}}}), "rank 1: a is bc, on rank 0 it is missing");
}

}  // namespace
}  // namespace tenon
