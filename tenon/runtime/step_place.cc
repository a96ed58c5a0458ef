#include "tenon/runtime/step_place.h"

#include <algorithm>
#include <cstdio>
#include <vector>

namespace tenon {
namespace {

constexpr int kCallBits = 24;
constexpr std::chrono::milliseconds kSilence(1'500);  // three signs of life that did not come

std::string seconds(std::chrono::milliseconds time) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f s", static_cast<double>(time.count()) / 1e3);
  return text;
}

// "rank 1", "ranks 1, 3".
std::string names(const std::vector<std::size_t>& ranks) {
  std::string out = ranks.size() == 1 ? "rank" : "ranks";
  for (std::size_t i = 0; i < ranks.size(); ++i)
    out += (i == 0 ? " " : ", ") + std::to_string(ranks[i]);
  return out;
}

// What those at `behind` have not done, of what those at `ahead` have.
std::string difference(const StepPlace& behind, const StepPlace& ahead, bool many) {
  const std::string has_not = many ? " have not " : " has not ";
  const auto number = [](std::int64_t step) { return "step " + std::to_string(step); };
  if (behind.step == ahead.step && behind.has_ended == ahead.has_ended)
    return has_not + "come to call " + std::to_string(ahead.calls) + " of " + number(ahead.step) +
           ", where others wait";
  if (behind.has_ended) return has_not + "begun " + number(behind.step + 1);
  return has_not + "ended " + number(behind.step);
}

}  // namespace

std::uint64_t StepPlace::word() const {
  const auto half_steps = static_cast<std::uint64_t>(2 * step - (has_ended ? 0 : 1));
  return half_steps << kCallBits | static_cast<std::uint64_t>(calls);
}

StepPlace StepPlace::of(std::uint64_t word) {
  const auto half_steps = static_cast<std::int64_t>(word >> kCallBits);
  return {(half_steps + 1) / 2, half_steps % 2 == 0,
          static_cast<std::int64_t>(word & ((std::uint64_t{1} << kCallBits) - 1))};
}

std::string tell_places(std::span<const RankSign> ranks) {
  std::vector<std::uint64_t> places;
  for (const RankSign& each : ranks)
    if (each.place) places.push_back(*each.place);
  std::string text;
  if (places.empty()) {
    text = "where the ranks are cannot be seen";
  } else {
    const auto [least, most] = std::minmax_element(places.begin(), places.end());
    const StepPlace first = StepPlace::of(*most);
    const std::string step = " step " + std::to_string(first.step + (first.has_ended ? 1 : 0));
    std::vector<std::size_t> behind;
    for (std::size_t rank = 0; rank < ranks.size(); ++rank)
      if (ranks[rank].place == *least) behind.push_back(rank);
    if (*least != *most)
      text = names(behind) + difference(StepPlace::of(*least), first, behind.size() > 1);
    else if (first.has_ended)
      text = "rank 0 has not begun" + step;
    else
      text = names(behind) + (behind.size() > 1 ? " are all in" : " is in") + step;
  }
  for (std::size_t rank = 0; rank < ranks.size(); ++rank)
    if (ranks[rank].silence > kSilence)
      text += "; nothing was heard of rank " + std::to_string(rank) + " for " +
              seconds(ranks[rank].silence);
  return text;
}

}  // namespace tenon
