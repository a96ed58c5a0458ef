#include "tenon/serve/answer_constraint.h"

#include <algorithm>
#include <string>
#include <utility>

#include "tenon/core/env.h"

namespace tenon::serve {
namespace {

class AnswerConstraint final : public TokenConstraint {
 public:
  AnswerConstraint(const AnswerRule& rule, std::optional<GrammarState> grammar,
                   std::shared_ptr<const AnswerMarks> marks)
      : marks_(std::move(marks)), grammar_(std::move(grammar)), thinks_(rule.in_reasoning) {
    if (thinks_) budget_ = rule.thinking_budget;
    end_thoughts_if_spent();
  }

  bool constrains() const override { return forced_ < forces_.size() || grammar_.has_value(); }

  void fill(std::span<std::uint32_t> words) override {
    if (forced_ < forces_.size()) {
      std::fill(words.begin(), words.end(), 0u);
      set(words, forces_[forced_]);
      return;
    }
    if (thinks_) {  // nothing has been said yet
      std::fill(words.begin(), words.end(), ~0u);
      for (const std::int32_t id : marks_->ends) clear(words, id);
      return;
    }
    if (broken_) broken_ = grammar_->fill(words);
    if (!broken_) {
      log(LogLevel::kWarning, "a grammar allows nothing: " + std::string(broken_.message()));
      std::fill(words.begin(), words.end(), 0u);
    }
    for (const std::int32_t id : marks_->thoughts) clear(words, id);
  }

  std::string trouble() const override {
    return broken_ ? "" : "its grammar " + std::string(broken_.message());
  }

  void drew(std::int32_t id) override {
    const bool was_forced = forced_ < forces_.size();
    if (was_forced) ++forced_;
    if (thinks_) {
      if (id == marks_->think_end) {
        thinks_ = false;
        if (!was_forced && grammar_) force(marks_->gap);
        return;
      }
      ++thoughts_;
      end_thoughts_if_spent();
      return;
    }
    if (was_forced || !grammar_) return;
    if (broken_) broken_ = grammar_->accept(id);
  }

 private:
  static void set(std::span<std::uint32_t> words, std::int32_t id) {
    words[static_cast<std::size_t>(id) / 32] |= 1u << (id % 32);
  }
  static void clear(std::span<std::uint32_t> words, std::int32_t id) {
    if (static_cast<std::size_t>(id) / 32 < words.size())
      words[static_cast<std::size_t>(id) / 32] &= ~(1u << (id % 32));
  }
  void force(std::vector<std::int32_t> ids) {
    forces_ = std::move(ids);
    forced_ = 0;
  }
  void end_thoughts_if_spent() {
    if (!budget_ || thoughts_ < *budget_) return;
    std::vector<std::int32_t> end{marks_->think_end};
    end.insert(end.end(), marks_->gap.begin(), marks_->gap.end());
    force(std::move(end));
  }

  const std::shared_ptr<const AnswerMarks> marks_;
  std::optional<GrammarState> grammar_;
  bool thinks_;
  std::optional<std::int64_t> budget_;  // of thoughts, where they have one
  std::int64_t thoughts_ = 0;
  std::vector<std::int32_t> forces_;  // the next tokens, from number forced_ on
  std::size_t forced_ = 0;
  Status broken_ = Status::ok();  // why the grammar is lost
};

}  // namespace

Result<AnswerMarks> AnswerMarks::of(const Tokenizer& tokenizer, std::vector<std::int32_t> ends) {
  AnswerMarks marks;
  marks.ends = std::move(ends);
  marks.think_end = tokenizer.id_of("</think>");
  for (const std::int32_t id : {tokenizer.id_of("<think>"), marks.think_end})
    if (id >= 0) marks.thoughts.push_back(id);
  if (tokenizer.num_tokens() == 0) return marks;
  TENON_ASSIGN(marks.gap, tokenizer.encode("\n\n"));
  return marks;
}

Result<std::unique_ptr<TokenConstraint>> make_constraint(
    const AnswerRule& rule, const std::shared_ptr<const AnswerMarks>& marks) {
  if (!rule.any()) return std::unique_ptr<TokenConstraint>();
  if (rule.in_reasoning && marks->think_end < 0)
    return Status::error(Code::kUnsupported,
                         "the answer begins with thoughts, but the vocabulary has no </think>");
  std::optional<GrammarState> grammar;
  if (rule.grammar) {
    TENON_ASSIGN(grammar, rule.grammar->begin());
  }
  return std::unique_ptr<TokenConstraint>(
      std::make_unique<AnswerConstraint>(rule, std::move(grammar), marks));
}

}  // namespace tenon::serve
