// Tokens to text where characters and stop strings end inside of tokens.
#include "tenon/serve/text_stream.h"

#include <gtest/gtest.h>

#include "tests/serve/serve_driver.h"

namespace tenon::serve::test {
namespace {

class Stream : public testing::Test {
 protected:
  Stream() : tokenizer_(small_tokenizer()) {}
  // The ids of single bytes.
  Tokens bytes_of(std::string_view text) const {
    Tokens ids;
    for (const char byte : text)
      for (std::int32_t id = 0; id < 256; ++id)
        if (tokenizer_.token_bytes(id) == std::string_view(&byte, 1)) ids.push_back(id);
    EXPECT_EQ(ids.size(), text.size());
    return ids;
  }
  // The parts, "|" behind each token's, and what finish() gave.
  std::string parts(TextStream& stream, const Tokens& ids) const {
    std::string all;
    for (const std::int32_t id : ids) all += stream.push(id) + "|";
    return all + stream.finish();
  }
  Tokenizer tokenizer_;
};

TEST_F(Stream, CharactersComeWhole) {
  TextStream stream(tokenizer_, {}, true);
  EXPECT_EQ(parts(stream, bytes_of("a\xc3\xa9\xe2\x82\xac")), "a||\xc3\xa9|||\xe2\x82\xac|");
}

TEST_F(Stream, AStopStringMayEndInsideOfManyTokens) {
  TextStream stream(tokenizer_, {"\xc3\xa9\xe2\x82\xac"}, true);
  EXPECT_EQ(parts(stream, bytes_of("xy\xc3\xa9\xe2\x82\xacz")), "x|y|||||||");
  EXPECT_EQ(stream.stopped_by(), "\xc3\xa9\xe2\x82\xac");
}

TEST_F(Stream, AnIncompleteEndIsToldAtTheEnd) {
  TextStream stream(tokenizer_, {"xyz"}, true);
  EXPECT_EQ(parts(stream, bytes_of("axy\xe2\x82")), "a|||||xy\xef\xbf\xbd");
  EXPECT_EQ(stream.stopped_by(), "");
}

TEST_F(Stream, WhatTheEndMakesOfItMayBeAStopString) {
  TextStream stream(tokenizer_, {"y\xef\xbf\xbd"}, true);
  EXPECT_EQ(parts(stream, bytes_of("xy\xe2\x82")), "x||||");
  EXPECT_EQ(stream.stopped_by(), "y\xef\xbf\xbd");
}

TEST_F(Stream, ATokenMayHoldMoreThanTheStopString) {
  TextStream stream(tokenizer_, {"h"}, true);
  const Tokens he = *tokenizer_.encode("he");
  ASSERT_EQ(he.size(), 1u);
  EXPECT_EQ(parts(stream, he), "|");
  EXPECT_EQ(stream.stopped_by(), "h");
}

}  // namespace
}  // namespace tenon::serve::test
