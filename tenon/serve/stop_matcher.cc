#include "tenon/serve/stop_matcher.h"

#include <algorithm>
#include <utility>

namespace tenon::serve {
namespace {

// Knuth, Morris and Pratt: after a byte that does not fit, the search goes on with the longest
// beginning of the pattern that the text still ends with.
std::vector<std::size_t> borders_of(std::string_view text) {
  std::vector<std::size_t> border(text.size(), 0);
  for (std::size_t i = 1, length = 0; i < text.size(); ++i) {
    while (length > 0 && text[i] != text[length]) length = border[length - 1];
    if (text[i] == text[length]) ++length;
    border[i] = length;
  }
  return border;
}

}  // namespace

StopMatcher::StopMatcher(const std::vector<std::string>& stops) {
  patterns_.reserve(stops.size());
  for (const std::string& each : stops)
    if (!each.empty()) patterns_.push_back({each, borders_of(each)});
}

bool StopMatcher::advance(Pattern& pattern, char byte) {
  std::size_t& matched = pattern.matched;
  while (matched > 0 && pattern.text[matched] != byte) matched = pattern.border[matched - 1];
  if (pattern.text[matched] == byte) ++matched;
  return matched == pattern.text.size();
}

std::string StopMatcher::push(std::string_view part) {
  if (!found_.empty()) return {};
  if (patterns_.empty()) return std::string(part);
  for (const char byte : part) {
    held_ += byte;
    for (Pattern& each : patterns_)
      if (advance(each, byte) && each.text.size() > found_.size()) found_ = each.text;
    if (found_.empty()) continue;
    held_.resize(held_.size() - found_.size());
    return std::exchange(held_, {});
  }
  std::size_t open = 0;  // the longest end of the text that begins a stop string
  for (const Pattern& each : patterns_) open = std::max(open, each.matched);
  std::string certain = held_.substr(0, held_.size() - open);
  held_.erase(0, certain.size());
  return certain;
}

std::string StopMatcher::finish() { return std::exchange(held_, {}); }

}  // namespace tenon::serve
