// The split pattern of a tokenizer, compiled by PCRE2: cuts text into pieces that are encoded one
// by one. Only this pair of files sees PCRE2.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tenon/core/status.h"

namespace tenon {

// Immutable and safe to share between threads.
class SplitPattern {
 public:
  // Compiled with UTF, Unicode properties and the just-in-time compiler where there is one. `\s`
  // means Unicode's White_Space, as in the Oniguruma engine such patterns are written for.
  static Result<SplitPattern> compile(std::string_view pattern);
  SplitPattern(SplitPattern&&) noexcept;
  SplitPattern& operator=(SplitPattern&&) noexcept;
  ~SplitPattern();

  // Appends the pieces of `text` (valid UTF-8), in order and without gaps: every match is a piece,
  // and so is what lies between two matches. Pieces point into `text`.
  Status split(std::string_view text, std::vector<std::string_view>& pieces) const;

 private:
  struct State;
  explicit SplitPattern(std::unique_ptr<const State> state);
  std::unique_ptr<const State> state_;
};

}  // namespace tenon
