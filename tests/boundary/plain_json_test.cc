#include "tenon/boundary/plain_json.h"

#include <gtest/gtest.h>

namespace tenon {
namespace {

using Kind = PlainJson::Kind;

TEST(PlainJson, ReadsObjectsListsTextsAndNumbers) {
  const auto read = parse_plain_json(
      " {\"a\" : [1, -20,\t\"x\\\"y\\\\z\\/\\n\"],\r\n \"b\":{}, \"c\": [ ], \"d\": \"\"} ");
  ASSERT_TRUE(read) << read.status().to_string();
  ASSERT_EQ(read->keys, (std::vector<std::string>{"a", "b", "c", "d"}));
  const PlainJson& a = *read->find("a");
  ASSERT_EQ(a.items.size(), 3u);
  EXPECT_EQ(a.items[0].number, 1);
  EXPECT_EQ(a.items[1].number, -20);
  EXPECT_EQ(a.items[2].text, "x\"y\\z/\n");
  EXPECT_EQ(read->find("b")->kind, Kind::kObject);
  EXPECT_EQ(read->find("c")->kind, Kind::kList);
  EXPECT_EQ(read->find("d")->describe(), "\"\"");
  EXPECT_EQ(a.items[1].describe(), "-20");
  EXPECT_EQ(read->find("e"), nullptr);
}

TEST(PlainJson, SaysWhatIsWrongAndWhere) {
  const struct {
    std::string_view text, message;
  } cases[] = {
      {"", "byte 0: no object, list, text in quotes or whole number"},
      {"{\"a\":1", "byte 6: a comma or } is missing"},
      {"[1 2]", "byte 3: a comma or ] is missing"},
      {"[1,]", "byte 3: no object"},
      {"{\"a\" 1}", "byte 5: a colon is missing"},
      {"{1:2}", "byte 1: a key in quotes is missing"},
      {"{\"a\":1,\"a\":2}", "the key \"a\" is there twice"},
      {"\"abc", "byte 4: a text has no end"},
      {"\"\\u0041\"", "byte 2: an escape that is not one of"},
      {"\"a\nb\"", "byte 2: a control character"},
      {"1.5", "byte 0: no object"},
      {"1e3", "byte 0: no object"},
      {"true", "byte 0: no object"},
      {"99999999999999999999", "byte 0: no object"},
      {"1 1", "byte 2: something follows"},
      {"[[[[[[[[[1]]]]]]]]]", "more than 8 levels"},
  };
  for (const auto& each : cases) {
    const auto read = parse_plain_json(each.text);
    ASSERT_FALSE(read) << each.text;
    EXPECT_NE(read.status().message().find(each.message), std::string::npos)
        << each.text << ": " << read.status().message();
  }
}

TEST(PlainJson, WhatIsQuotedIsReadAgain) {
  const std::string text = "a \"b\" \\ / \n\t\r\b\f";
  const auto read = parse_plain_json(in_quotes(text));
  ASSERT_TRUE(read) << read.status().to_string();
  EXPECT_EQ(read->text, text);
}

}  // namespace
}  // namespace tenon
