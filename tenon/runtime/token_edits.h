// Which logits of a request are edited before its next token is drawn: its biases, what min_tokens
// holds back, and the tokens that its penalties know. Pure host code; ops/sampling applies them.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "tenon/ops/sampling/edit.h"
#include "tenon/runtime/sampling_params.h"

namespace tenon {

class TokenEdits {
 public:
  // Nothing where the request asks for no edit. `ends`: ids that end every answer, held back as
  // those of sampling.hold_back are, unless it ignores them. `prompt` and at most max_tokens
  // further tokens make its entries: no more memory is taken later.
  static std::optional<TokenEdits> make(const SamplingParams& sampling,
                                        std::span<const std::int32_t> ends,
                                        std::span<const std::int32_t> prompt, int max_tokens);

  // The next token is known.
  void drew(std::int32_t id);
  // Each id once.
  std::span<const sampling::Edit> list() const { return list_; }

 private:
  TokenEdits() = default;
  sampling::Edit& of(std::int32_t id);
  void hold_back(std::int32_t id);
  void release();

  std::vector<sampling::Edit> list_;
  std::vector<std::int32_t> place_;  // hash table: places in list_, or −1
  // Entries that are held back, and their bias afterwards.
  std::vector<std::pair<std::size_t, float>> held_;
  int drawn_ = 0, min_tokens_ = 0;
  bool counts_drawn_ = false;
};

}  // namespace tenon
