#include "tenon/runtime/token_edits.h"

#include <bit>
#include <limits>

namespace tenon {

std::optional<TokenEdits> TokenEdits::make(const SamplingParams& sampling,
                                           std::span<const std::int32_t> ends,
                                           std::span<const std::int32_t> prompt, int max_tokens) {
  const bool repeats = sampling.repetition_penalty != 1.0f;
  const bool counts =
      repeats || sampling.frequency_penalty != 0.0f || sampling.presence_penalty != 0.0f;
  if (sampling.ignore_eos) ends = {};
  std::size_t held = sampling.hold_back.size() + ends.size();
  if (sampling.min_tokens == 0) held = 0;
  if (!counts && held == 0 && sampling.logit_bias.empty()) return std::nullopt;
  TokenEdits made;
  made.counts_drawn_ = counts;
  std::size_t most = sampling.logit_bias.size() + held;
  if (repeats) most += prompt.size();
  if (counts) most += static_cast<std::size_t>(max_tokens);
  made.list_.reserve(most);
  made.place_.assign(std::bit_ceil(2 * most), -1);
  for (const auto& [id, bias] : sampling.logit_bias) made.of(id).bias = bias;
  if (repeats)
    for (const std::int32_t id : prompt) made.of(id).said |= 1;
  if (held == 0) return made;
  made.min_tokens_ = sampling.min_tokens;
  made.held_.reserve(held);
  for (const std::int32_t id : sampling.hold_back) made.hold_back(id);
  for (const std::int32_t id : ends) made.hold_back(id);
  return made;
}

void TokenEdits::hold_back(std::int32_t id) {
  sampling::Edit& edit = of(id);
  const float after = std::exchange(edit.bias, -std::numeric_limits<float>::infinity());
  held_.emplace_back(static_cast<std::size_t>(&edit - list_.data()), after);
}

sampling::Edit& TokenEdits::of(std::int32_t id) {
  const std::size_t mask = place_.size() - 1;
  std::size_t at = (static_cast<std::uint32_t>(id) * 0x9e3779b1u) & mask;
  for (; place_[at] >= 0; at = (at + 1) & mask) {
    sampling::Edit& found = list_[static_cast<std::size_t>(place_[at])];
    if (found.id == id) return found;
  }
  place_[at] = static_cast<std::int32_t>(list_.size());
  return list_.emplace_back(sampling::Edit{.id = id});
}

void TokenEdits::drew(std::int32_t id) {
  if (counts_drawn_) of(id).said += 2;
  if (++drawn_ == min_tokens_) release();
}

// In reverse: an id that is held back twice had its own bias first.
void TokenEdits::release() {
  while (!held_.empty()) {
    list_[held_.back().first].bias = held_.back().second;
    held_.pop_back();
  }
}

}  // namespace tenon
