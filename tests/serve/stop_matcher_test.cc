// Stop strings against the plainest possible search over the whole text, however it is cut.
#include "tenon/serve/stop_matcher.h"

#include <gtest/gtest.h>

#include <random>

namespace tenon::serve {
namespace {

using Strings = std::vector<std::string>;

struct Found {
  std::string text, stop;
  bool operator==(const Found&) const = default;
};

Found naive(const std::string& text, const Strings& stops) {
  for (std::size_t end = 1; end <= text.size(); ++end) {
    std::string longest;
    for (const std::string& each : stops)
      if (each.size() > longest.size() && std::string_view(text).substr(0, end).ends_with(each))
        longest = each;
    if (!longest.empty()) return {text.substr(0, end - longest.size()), longest};
  }
  return {text, {}};
}

Found matched(const Strings& parts, const Strings& stops) {
  StopMatcher matcher(stops);
  std::string text;
  for (const std::string& each : parts) text += matcher.push(each);
  text += matcher.finish();
  return {text, matcher.found()};
}

TEST(StopMatcher, HoldsBackWhatMayBeAStopString) {
  StopMatcher matcher({"END", "STOP"});
  EXPECT_EQ(matcher.push("a ST"), "a ");
  EXPECT_EQ(matcher.push("O"), "");
  EXPECT_EQ(matcher.push("RE"), "STOR");  // "E" may begin END
  EXPECT_EQ(matcher.push("N"), "");
  EXPECT_EQ(matcher.found(), "");
  EXPECT_EQ(matcher.push("D of it"), "");
  EXPECT_EQ(matcher.found(), "END");
  EXPECT_EQ(matcher.push("more"), "");
  EXPECT_EQ(matcher.finish(), "");
}

TEST(StopMatcher, GivesBackWhatWasNone) {
  StopMatcher matcher({"END"});
  EXPECT_EQ(matcher.push("the EN"), "the ");
  EXPECT_EQ(matcher.finish(), "EN");
  EXPECT_EQ(matcher.found(), "");
}

TEST(StopMatcher, WithoutStopStringsNothingIsHeldBack) {
  for (const Strings& stops : {Strings{}, Strings{""}}) {
    StopMatcher matcher(stops);
    EXPECT_EQ(matcher.push("all"), "all");
    EXPECT_EQ(matcher.finish(), "");
  }
}

TEST(StopMatcher, TheFirstEndWinsThenTheLongest) {
  EXPECT_EQ(matched({"xabcd"}, {"abcd", "bc"}), (Found{"xa", "bc"}));
  EXPECT_EQ(matched({"xabc"}, {"c", "abc", "bc"}), (Found{"x", "abc"}));
  EXPECT_EQ(matched({"aab"}, {"aab", "ab"}), (Found{"", "aab"}));
}

TEST(StopMatcher, AgreesWithTheNaiveSearchHoweverTheTextIsCut) {
  std::mt19937 random(3);
  const auto below = [&](unsigned count) { return static_cast<unsigned>(random() % count); };
  const auto word = [&](unsigned least, unsigned most) {
    std::string text;
    for (unsigned i = least + below(most - least + 1); i > 0; --i) text += "ab\xc3\xa9"[below(4)];
    return text;
  };
  int stopped = 0;
  for (int round = 0; round < 20'000; ++round) {
    Strings stops;
    for (unsigned i = below(4); i > 0; --i) stops.push_back(word(1, 7));
    const std::string text = word(0, 40);
    const Found wanted = naive(text, stops);
    stopped += !wanted.stop.empty();
    Strings parts;
    for (std::size_t at = 0; at < text.size();) {
      parts.push_back(text.substr(at, 1 + below(5)));
      at += parts.back().size();
    }
    ASSERT_EQ(matched(parts, stops), wanted) << text;
    // What is out is never taken back: at every moment it begins the answer, and holds back no
    // more than the beginning of a stop string.
    StopMatcher matcher(stops);
    std::string out, in;
    for (const std::string& each : parts) {
      out += matcher.push(each);
      in += each;
      ASSERT_TRUE(wanted.text.starts_with(out)) << text;
      if (!matcher.found().empty()) break;
      const std::string held = in.substr(out.size());
      bool begins = held.empty();
      for (const std::string& stop : stops) begins |= stop.starts_with(held);
      ASSERT_TRUE(begins) << text << ", held back: " << held;
    }
  }
  EXPECT_GT(stopped, 1000);
}

}  // namespace
}  // namespace tenon::serve
