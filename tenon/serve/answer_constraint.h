// What an answer must be, and how its tokens are held to it: how many tokens of thoughts it may
// have, and a grammar for what it says behind them.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "tenon/runtime/engine.h"
#include "tenon/text/grammar.h"

namespace tenon::serve {

struct AnswerRule {
  std::optional<Grammar> grammar = {};
  // The prompt ends inside an open <think>: thoughts come first, and the grammar is that of what
  // follows </think> and an empty line. Thoughts then do not end the answer.
  bool in_reasoning = false;
  // Of tokens of thoughts, without </think>; where it is used up, </think> and an empty line
  // follow.
  std::optional<std::int64_t> thinking_budget = {};

  bool any() const { return grammar || (in_reasoning && thinking_budget); }
};

// The tokens that a rule speaks of.
struct AnswerMarks {
  std::int32_t think_end = -1;              // </think>; −1: the vocabulary has none
  std::vector<std::int32_t> gap = {};       // an empty line
  std::vector<std::int32_t> thoughts = {};  // <think> and </think>, which no grammar gets
  std::vector<std::int32_t> ends = {};      // what ends an answer
  static Result<AnswerMarks> of(const Tokenizer& tokenizer, std::vector<std::int32_t> ends);
};

// The constraint of one answer. kUnsupported where the rule needs </think>, and there is none.
Result<std::unique_ptr<TokenConstraint>> make_constraint(
    const AnswerRule& rule, const std::shared_ptr<const AnswerMarks>& marks);

}  // namespace tenon::serve
