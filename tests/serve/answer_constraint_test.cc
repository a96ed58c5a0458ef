// Answers held to a rule, token by token: thoughts that are cut off, and a grammar behind them.
#include "tenon/serve/answer_constraint.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "tenon/serve/language_model.h"
#include "tenon/serve/request_queue.h"
#include "tenon/text/answer_grammar.h"

namespace tenon::serve {
namespace {

using Tokens = std::vector<std::int32_t>;
const std::string kModel = std::string(TENON_SOURCE_DIR) + "/checkpoints/tiny";

class AnswerConstraints : public testing::Test {
 protected:
  void SetUp() override {
    auto loaded = Tokenizer::load(kModel);
    ASSERT_TRUE(loaded) << loaded.status().to_string();
    tokenizer_.emplace(*std::move(loaded));
    end_ = tokenizer_->eos_id();
    think_end_ = tokenizer_->id_of("</think>");
    auto marks = AnswerMarks::of(*tokenizer_, {end_});
    ASSERT_TRUE(marks) << marks.status().to_string();
    marks_ = std::make_shared<const AnswerMarks>(*std::move(marks));
  }
  std::unique_ptr<TokenConstraint> make(const AnswerRule& rule) const {
    auto made = make_constraint(rule, marks_);
    EXPECT_TRUE(made) << made.status().to_string();
    return *std::move(made);
  }
  // The ids that may come next, or nothing where all may.
  std::optional<Tokens> open(TokenConstraint& constraint) const {
    if (!constraint.constrains()) return std::nullopt;
    std::vector<std::uint32_t> words(static_cast<std::size_t>(tokenizer_->num_tokens() + 31) / 32,
                                     0xaaaa'aaaau);
    constraint.fill(words);
    Tokens ids;
    for (std::int32_t id = 0; id < tokenizer_->num_tokens(); ++id)
      if ((words[static_cast<std::size_t>(id) / 32] >> (id % 32) & 1) != 0) ids.push_back(id);
    return ids;
  }
  // Takes these tokens, each of which must be the only one that may come.
  void expect_forced(TokenConstraint& constraint, const Tokens& ids) const {
    for (const std::int32_t id : ids) {
      EXPECT_EQ(open(constraint), Tokens{id});
      constraint.drew(id);
    }
  }
  Tokens gap() const { return *tokenizer_->encode("\n\n"); }
  Tokens end_of_thoughts() const {
    Tokens ids = gap();
    ids.insert(ids.begin(), think_end_);
    return ids;
  }

  std::optional<Tokenizer> tokenizer_;
  std::shared_ptr<const AnswerMarks> marks_;
  std::int32_t end_ = -1, think_end_ = -1;
};

TEST_F(AnswerConstraints, WithoutARuleThereIsNone) {
  EXPECT_EQ(make({}), nullptr);
  EXPECT_EQ(make({.in_reasoning = true}), nullptr);
  EXPECT_EQ(make({.thinking_budget = 3}), nullptr);  // there are no thoughts
}

TEST_F(AnswerConstraints, ABudgetEndsThoughts) {
  for (const int budget : {0, 1, 4}) {
    SCOPED_TRACE(budget);
    const auto held = make({.in_reasoning = true, .thinking_budget = budget});
    for (int i = 0; i < budget; ++i) {
      EXPECT_EQ(open(*held), std::nullopt);
      held->drew(5);
    }
    expect_forced(*held, end_of_thoughts());
    EXPECT_EQ(open(*held), std::nullopt);
    held->drew(think_end_);  // now a token like any other
    EXPECT_EQ(open(*held), std::nullopt);
  }
}

TEST_F(AnswerConstraints, ThoughtsThatEndInTimeAreLeftAlone) {
  const auto held = make({.in_reasoning = true, .thinking_budget = 4});
  held->drew(5);
  held->drew(think_end_);
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(open(*held), std::nullopt);
    held->drew(6);
  }
}

TEST_F(AnswerConstraints, AGrammarBeginsBehindTheThoughts) {
  if (!GrammarCompiler::is_built()) GTEST_SKIP() << "built without grammars";
  const GrammarCompiler compiler(*tokenizer_, Tokens{end_});
  const auto grammar =
      compiler.compile(*structural_tag({.text = ebnf_format("root ::= \"ab\" [^c]*")}));
  ASSERT_TRUE(grammar) << grammar.status().to_string();
  for (const bool is_cut : {false, true}) {
    SCOPED_TRACE(is_cut);
    AnswerRule rule{.grammar = *grammar, .in_reasoning = true};
    if (is_cut) rule.thinking_budget = 2;
    const auto held = make(rule);
    for (int i = 0; i < 2; ++i) {  // thoughts are free, but do not end the answer
      const auto ids = open(*held);
      ASSERT_TRUE(ids);
      EXPECT_EQ(static_cast<int>(ids->size()), tokenizer_->num_tokens() - 1);
      EXPECT_EQ(std::ranges::count(*ids, end_), 0);
      held->drew(5);
    }
    if (is_cut) {
      expect_forced(*held, end_of_thoughts());
    } else {
      held->drew(think_end_);
      expect_forced(*held, gap());
    }
    const Tokens begin = *tokenizer_->encode("ab");
    for (const std::int32_t id : begin) {
      const auto ids = open(*held);
      ASSERT_TRUE(ids);
      EXPECT_EQ(std::ranges::count(*ids, id), 1);
      EXPECT_LE(ids->size(), 8u);
      held->drew(id);
    }
    const auto ids = open(*held);
    ASSERT_TRUE(ids);
    EXPECT_EQ(std::ranges::count(*ids, end_), 1);
    for (const std::int32_t mark : marks_->thoughts) EXPECT_EQ(std::ranges::count(*ids, mark), 0);
  }
  const auto held = make({.grammar = *grammar});  // no thoughts: at once
  const auto ids = open(*held);
  ASSERT_TRUE(ids);
  EXPECT_LE(ids->size(), 8u);
  held->drew(tokenizer_->encode("z")->front());  // nobody who draws as it says does that
  EXPECT_EQ(open(*held), Tokens{});
}

TEST_F(AnswerConstraints, ThoughtsNeedTheirEndInTheVocabulary) {
  const auto none = std::make_shared<const AnswerMarks>();
  const auto refused = make_constraint({.in_reasoning = true, .thinking_budget = 1}, none);
  EXPECT_EQ(refused.status().code(), Code::kUnsupported);
}

TEST_F(AnswerConstraints, AQueueHoldsAnswersToTheirRule) {
  EngineOptions options;
  options.model = kModel;
  options.max_batch = 4;
  options.max_context = 256;
  auto model = LanguageModel::open(options, TemplateUse::kIfThere);
  ASSERT_TRUE(model) << model.status().to_string();
  auto queue = RequestQueue::without_thread(**model);
  ASSERT_TRUE(queue) << queue.status().to_string();
  Request request;
  request.prompt = std::string("Tom has 3 boxes.");
  request.rule = {.in_reasoning = true, .thinking_budget = 3};
  request.sampling.max_tokens = 12;
  request.sampling.ignore_eos = true;
  Submission made = (*queue)->submit(request);
  ASSERT_TRUE(made) << made.why.to_string();
  while ((*queue)->step()) {
  }
  const Tokens tokens = made.reply.complete().tokens;
  ASSERT_EQ(tokens.size(), 12u);
  EXPECT_TRUE(
      std::ranges::equal(std::span(tokens).subspan(3, 1 + gap().size()), end_of_thoughts()));

  request.rule.thinking_budget = -1;
  EXPECT_EQ((*queue)->submit(request).admission, Admission::kInvalid);
  if (!GrammarCompiler::is_built()) return;
  const auto grammar =
      (*model)->grammars().compile(*structural_tag({.text = choice_format({"36 pencils"})}));
  ASSERT_TRUE(grammar) << grammar.status().to_string();
  request.rule = {.grammar = *grammar};
  made = (*queue)->submit(request);
  EXPECT_EQ(made.admission, Admission::kInvalid);
  EXPECT_NE(made.why.message().find("ignore_eos"), std::string_view::npos);
  request.sampling.ignore_eos = false;
  request.sampling.max_tokens = 40;
  made = (*queue)->submit(request);
  ASSERT_TRUE(made) << made.why.to_string();
  while ((*queue)->step()) {
  }
  const Completion whole = made.reply.complete();
  EXPECT_EQ(whole.text, "36 pencils");
  EXPECT_EQ(whole.outcome.reason, FinishReason::kStop);
}

}  // namespace
}  // namespace tenon::serve
