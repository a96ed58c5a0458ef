// The one place that parses JSON: its limits, and where it says that something is wrong.
#include "tenon/core/json.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

namespace tenon {
namespace {

std::string nested(std::size_t depth, const char* open, const char* close) {
  std::string text;
  for (std::size_t i = 0; i < depth; ++i) text += open;
  text += "1";
  for (std::size_t i = 0; i < depth; ++i) text += close;
  return text;
}

void expect_refused(std::string_view text, std::string_view sentence,
                    JsonKeys keys = JsonKeys::kLastWins) {
  const auto parsed = parse_json(text, keys);
  ASSERT_FALSE(parsed) << "accepted, but should say: " << sentence;
  EXPECT_EQ(parsed.status().code(), Code::kIo);
  EXPECT_EQ(parsed.status().message(), sentence);
}

TEST(Json, ParsesWhatIsRight) {
  const auto parsed =
      parse_json(R"( {"a": [1, -2.5e3, "NaN [[ Infinity"], "b\"": {}, "b": null} )");
  ASSERT_TRUE(parsed) << parsed.status().message();
  EXPECT_EQ(parsed->at("a").at(1), -2500);
  EXPECT_EQ(parsed->at("a").at(2), "NaN [[ Infinity");
  EXPECT_EQ(parsed->size(), 3u);
  EXPECT_EQ(parse_json(R"({"a":1,"a":2})")->at("a"), 2);
}

TEST(Json, LimitsTheDepth) {
  EXPECT_TRUE(parse_json(nested(kMaxJsonDepth, "[", "]")));
  expect_refused(nested(kMaxJsonDepth + 1, "[", "]"),
                 "is nested more than 256 deep at line 1, column 257");
  expect_refused(nested(100'000, "{\"a\":", "}"),
                 "is nested more than 256 deep at line 1, column 1281");
  expect_refused(std::string(1'000'000, '['), "is nested more than 256 deep at line 1, column 257");
  std::string flat = "[";
  for (int i = 0; i < 1000; ++i) flat += "[],{},";
  EXPECT_TRUE(parse_json(flat + "0]"));
}

TEST(Json, NamesTheKeyOfWhatIsNoNumber) {
  expect_refused(R"({"rms_norm_eps": Infinity})",
                 "\"rms_norm_eps\" is Infinity at line 1, column 18; accepted: a finite number");
  expect_refused("{\"a\": {\n\"theta\" : -Infinity}}",
                 "\"theta\" is -Infinity at line 2, column 12; accepted: a finite number");
  expect_refused(R"({"a":1,"b":[2,NaN]})",
                 "\"b\" is NaN at line 1, column 15; accepted: a finite number");
  expect_refused("NaN", "a value is NaN at line 1, column 1; accepted: a finite number");
}

TEST(Json, SaysWhereItIsWrong) {
  expect_refused("", "is not valid JSON at line 1, column 1");
  expect_refused("{\n  \"a\": 1,\n}", "is not valid JSON at line 3, column 1");
  expect_refused("{\"a\": nope}", "is not valid JSON at line 1, column 8");
  expect_refused("{} {}", "is not valid JSON at line 1, column 4");
  expect_refused("[1e999]", "is not valid JSON: it holds a number that no double can hold");
  for (const char* open : {"\"", "\"\\", "\"\\\"", "{\"a\\"})
    EXPECT_FALSE(parse_json(open)) << open;
}

TEST(Json, RefusesRepeatedKeysWhereAsked) {
  expect_refused(R"({"a":{"x":1,"x":2}})", "holds the key \"x\" twice", JsonKeys::kUnique);
  expect_refused(R"([{"x":[{"y":1}]},{"x":[],"z":{"x":1},"x":2}])", "holds the key \"x\" twice",
                 JsonKeys::kUnique);
  EXPECT_TRUE(parse_json(R"({"a":{"x":1},"b":{"x":2},"x":[{"x":1},{"x":2}]})", JsonKeys::kUnique));
}

}  // namespace
}  // namespace tenon
