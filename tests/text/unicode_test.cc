// Which version of Unicode decides what: the reference's, whatever versions utf8proc and PCRE2 are.
// The goldens of tokenizer_test.cc hold the same against the reference itself, for every range.
#include "tenon/text/unicode.h"

#include <gtest/gtest.h>

#include <string>
#include <tuple>
#include <vector>

#include "tenon/text/python_text.h"
#include "tenon/text/split_pattern.h"
#include "tenon/text/utf8.h"

namespace tenon {
namespace {

std::string text(std::u32string_view codes) {
  std::string out;
  for (char32_t code : codes) utf8_append(out, code);
  return out;
}

std::string nfc(std::u32string_view codes) { return to_nfc(text(codes)); }

TEST(Unicode, ComposesAndOrders) {
  EXPECT_EQ(nfc(U"e\u0301"), text(U"\u00e9"));
  EXPECT_EQ(nfc(U"a\u0301\u0328"), text(U"\u0105\u0301"));  // the lower class first, then composed
  EXPECT_EQ(nfc(U"x\u0301\u0316\u0301"), text(U"x\u0316\u0301\u0301"));
  EXPECT_EQ(nfc(U"\u1112\u1161\u11ab"), text(U"\ud55c"));
  EXPECT_EQ(nfc(U"\u0344\u2126\u0958"), text(U"\u0308\u0301\u03a9\u0915\u093c"));
  EXPECT_EQ(nfc(U""), "");
  EXPECT_EQ(nfc(U"plain"), "plain");
}

// U+0316 has class 220 since Unicode 1; the others came later with classes of their own.
TEST(Unicode, MarksNewerThanUnicode9StayWhereTheyAre) {
  for (char32_t mark : {U'\u0897', U'\u0898', U'\u1ABF', U'\u1DF6', U'\U00010D27', U'\U00010F46',
                        U'\U00010EFD', U'\U0001E08F', U'\U0001E4EC', U'\U0001E5EE'}) {
    const std::u32string given = {U'x', mark, U'\u0316'};
    EXPECT_EQ(nfc(given), text(given)) << std::hex << static_cast<unsigned>(mark);
    const std::u32string across = {U'e', mark, U'\u0301'};  // nothing composes across it
    EXPECT_EQ(nfc(across), text(across)) << std::hex << static_cast<unsigned>(mark);
    const std::u32string behind = {U'e', U'\u0301', mark};
    EXPECT_EQ(nfc(behind), text({U"\u00e9"}) + text({&mark, 1}));
  }
  EXPECT_EQ(nfc(U"\U00011935\U00011930"), text(U"\U00011935\U00011930"));  // one of Unicode 13
  EXPECT_EQ(nfc(U"\U00011938"), text(U"\U00011938"));
  EXPECT_EQ(nfc(U"\u08D4\u0316x"), text(U"\u0316\u08D4x"));  // a mark of Unicode 9 moves
}

TEST(Unicode, ListsAreInOrder) {
  char32_t last = 0;
  for (const CodeRange& range : inert_in_nfc()) {
    EXPECT_LT(last, range.first);
    EXPECT_LE(range.first, range.last);
    last = range.last;
  }
  last = 0;
  for (const CategoryRange& range : newer_categories()) {
    EXPECT_LT(last, range.first);
    EXPECT_LE(range.first, range.last);
    last = range.last;
  }
}

// Templates see characters through utf8proc alone, which is of Unicode 15 in Debian 12. A newer one
// knows the last of these as well; then unicode.h and python_text.h have to say so.
TEST(Unicode, TemplatesSeeUnicode15) {
  EXPECT_TRUE(python::is_alpha(U'\U0001E4D0'));   // 15
  EXPECT_FALSE(python::is_alpha(U'\U00010D4A'));  // 16
}

std::vector<std::string> pieces(const char* pattern, const std::string& of) {
  auto compiled = SplitPattern::compile(pattern);
  EXPECT_TRUE(compiled) << pattern << ": " << compiled.status().to_string();
  std::vector<std::string_view> found;
  if (!compiled) return {};
  EXPECT_TRUE(compiled->split(of, found));
  return {found.begin(), found.end()};
}

TEST(Unicode, SplitsByTheCategoriesOfUnicode16) {
  // A letter, a mark and a digit of Unicode 15, 15, 15; then of 16.
  for (const auto& [letter, mark, digit] : {std::tuple{U'\U0001E4D0', U'\U00011241', U'\U0001E4F0'},
                                            {U'\u1C89', U'\u0897', U'\U00010D40'}}) {
    const std::string l = text({&letter, 1}), m = text({&mark, 1}), d = text({&digit, 1});
    using Pieces = std::vector<std::string>;
    EXPECT_EQ(pieces("\\p{L}+", "1" + l + "a2"), (Pieces{"1", l + "a", "2"}));
    EXPECT_EQ(pieces("\\pM+", "1" + m + "2"), (Pieces{"1", m, "2"}));
    EXPECT_EQ(pieces("\\p{N}+", "a" + d + "7b"), (Pieces{"a", d + "7", "b"}));
    EXPECT_EQ(pieces("\\p{Nd}", "a" + d), (Pieces{"a", d}));
    EXPECT_EQ(pieces("[\\p{L}\\p{M}]+", "1" + l + m + "2"), (Pieces{"1", l + m, "2"}));
    EXPECT_EQ(pieces("[^\\p{L}]+", "12" + l + "3"), (Pieces{"12", l, "3"}));
    EXPECT_EQ(pieces("\\P{L}+", "12" + l + "3"), (Pieces{"12", l, "3"}));
    EXPECT_EQ(pieces("\\p{^L}+", "12" + l + "3"), (Pieces{"12", l, "3"}));
  }
  EXPECT_EQ(pieces("\\p{Greek}+", "a\u03b1b").size(), 3u);
  EXPECT_FALSE(SplitPattern::compile("\\p{L"));
  EXPECT_FALSE(SplitPattern::compile("\\p"));
  EXPECT_FALSE(SplitPattern::compile("[\\p"));
}

TEST(Unicode, Words) {
  for (char32_t code : {U'a', U'Z', U'0', U'_', U'é', U'\u0301', U'\u203f', U'\u200d', U'\u24b6',
                        U'世', U'\U0001F170', U'\u1C89', U'\u2160'})
    EXPECT_TRUE(is_word(code)) << static_cast<unsigned>(code);
  for (char32_t code : {U' ', U'-', U'.', U'²', U'\u200b', U'😀', U'\u3000'})
    EXPECT_FALSE(is_word(code)) << static_cast<unsigned>(code);
}

}  // namespace
}  // namespace tenon
