#include "tenon/text/added_tokens.h"

#include <algorithm>

namespace tenon {

void AddedTokens::add(std::string spelling, std::int32_t id) {
  const auto at = std::ranges::lower_bound(entries_, spelling, {}, &Entry::spelling);
  can_begin_[static_cast<unsigned char>(spelling.front())] = true;
  if (at != entries_.end() && at->spelling == spelling) {
    at->id = id;
  } else {
    entries_.insert(at, {std::move(spelling), id});
  }
}

std::optional<AddedTokens::Found> AddedTokens::find(std::string_view text, std::size_t from) const {
  for (std::size_t begin = from; begin < text.size(); ++begin) {
    if (!can_begin_[static_cast<unsigned char>(text[begin])]) continue;
    // The entries that agree with the text so far shrink byte by byte.
    auto low = entries_.begin(), high = entries_.end();
    std::optional<Found> longest;
    for (std::size_t length = 1; low != high && begin + length <= text.size(); ++length) {
      const int byte = static_cast<unsigned char>(text[begin + length - 1]);
      const auto byte_of = [&](const Entry& entry) {
        if (entry.spelling.size() < length) return -1;
        return static_cast<int>(static_cast<unsigned char>(entry.spelling[length - 1]));
      };
      low = std::lower_bound(
          low, high, byte, [&](const Entry& entry, int wanted) { return byte_of(entry) < wanted; });
      high = std::upper_bound(
          low, high, byte, [&](int wanted, const Entry& entry) { return wanted < byte_of(entry); });
      if (low != high && low->spelling.size() == length)
        longest = Found{begin, begin + length, low->id};
    }
    if (longest) return longest;
  }
  return std::nullopt;
}

}  // namespace tenon
