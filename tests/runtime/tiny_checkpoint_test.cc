// The engine, the tokenizer and the chat template together on the trained checkpoint in
// checkpoints/tiny: it answers, as transformers does; and neither the batch nor the stage can
// change a token.
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "tenon/runtime/engine.h"
#include "tenon/text/chat_template.h"
#include "tenon/text/tokenizer.h"

namespace tenon {
namespace {

using Json = nlohmann::json;
using Tokens = std::vector<std::int32_t>;
const std::string kModel = std::string(TENON_SOURCE_DIR) + "/checkpoints/tiny";
constexpr int kMaxTokens = 90;

struct Problem {
  std::string question, final;
  Tokens reference;  // what transformers generates greedily, without the stop token
};

std::vector<Problem> problems(std::size_t count) {
  std::ifstream greedy(std::string(TENON_SOURCE_DIR) + "/tests/data/goldens/tiny/greedy.json");
  std::ifstream eval(kModel + "/eval.jsonl");
  const Json references = Json::parse(greedy);
  std::vector<Problem> found;
  for (std::string line; found.size() < count && std::getline(eval, line);) {
    const Json problem = Json::parse(line);
    const Json& reference = references[found.size()];
    EXPECT_EQ(reference["question"], problem["question"]);
    found.push_back({problem["question"], problem["final"], reference["token_ids"].get<Tokens>()});
  }
  EXPECT_EQ(found.size(), count);
  return found;
}

class TinyCheckpoint : public testing::Test {
 protected:
  void SetUp() override {
    auto tokenizer = Tokenizer::load(kModel);
    ASSERT_TRUE(tokenizer) << tokenizer.status().to_string();
    tokenizer_.emplace(*std::move(tokenizer));
    auto chat = ChatTemplate::load(kModel);
    ASSERT_TRUE(chat) << chat.status().to_string();
    template_.emplace(*std::move(chat));
  }

  std::unique_ptr<Engine> open(int tp, int force_stage = 0) const {
    EngineOptions options;
    options.model = kModel;
    options.tp = tp;
    options.max_batch = 8;
    options.max_context = 512;
    options.num_tokens = tokenizer_->num_tokens();
    options.force_stage = static_cast<StagePolicy>(force_stage);
    auto engine = Engine::open(options);
    EXPECT_TRUE(engine) << engine.status().to_string();
    return std::move(*engine);
  }

  // Runs all questions together; the answers without the stop token.
  std::vector<Tokens> answers(Engine& engine, const std::vector<Problem>& asked) const {
    SamplingParams sampling;
    sampling.max_tokens = kMaxTokens;
    std::map<RequestId, std::size_t> order;
    std::vector<Tokens> made(asked.size());
    for (const Problem& problem : asked) {
      const auto text = template_->render({{"user", problem.question, {}}});
      EXPECT_TRUE(text) << text.status().to_string();
      auto id = engine.submit(*tokenizer_->encode(*text), sampling);
      EXPECT_TRUE(id) << id.status().to_string();
      order.emplace(*id, order.size());
    }
    while (!engine.idle()) {
      auto events = engine.step();
      EXPECT_TRUE(events) << events.status().to_string();
      if (!events) break;
      for (const TokenEvent& event : *events)
        if (event.finish != Finish::kStop) made[order.at(event.id)].push_back(event.token);
    }
    return made;
  }

  std::optional<Tokenizer> tokenizer_;
  std::optional<ChatTemplate> template_;
};

// Near-ties fall either way, so agreement with the reference is counted, not demanded: at most
// every fourth answer may differ somewhere.
TEST_F(TinyCheckpoint, AnswersAsTransformersDoes) {
  const std::vector<Problem> asked = problems(8);
  for (int tp : {1, 2}) {
    auto engine = open(tp);
    const std::vector<Tokens> made = answers(*engine, asked);
    int equal = 0, correct = 0, reference_correct = 0;
    for (std::size_t i = 0; i < asked.size(); ++i) {
      Tokens reference = asked[i].reference;
      if (reference.size() > kMaxTokens) reference.resize(kMaxTokens);
      equal += made[i] == reference;
      const std::string ending = "#### " + asked[i].final;
      correct += tokenizer_->decode(made[i]).ends_with(ending);
      reference_correct += tokenizer_->decode(reference).ends_with(ending);
    }
    EXPECT_GE(equal, 6) << "of 8, at tp " << tp;
    EXPECT_GE(correct, reference_correct - 1) << "at tp " << tp;
    EXPECT_GE(reference_correct, 4);
  }
}

TEST_F(TinyCheckpoint, TheBatchChangesNoToken) {
  const std::vector<Problem> asked = problems(3);
  auto engine = open(2);
  const std::vector<Tokens> together = answers(*engine, asked);
  for (std::size_t i = 0; i < asked.size(); ++i)
    EXPECT_EQ(answers(*engine, {asked[i]})[0], together[i]) << asked[i].question;
}

TEST_F(TinyCheckpoint, TheStageChangesNoToken) {
  const std::vector<Problem> asked = problems(2);
  std::vector<Tokens> first;
  for (int stage : {1, 2, 3}) {
    auto engine = open(2, stage);
    const std::vector<Tokens> made = answers(*engine, asked);
    if (first.empty()) first = made;
    EXPECT_EQ(made, first) << "stage " << stage;
    std::uint64_t elsewhere = 0;
    for (const BoundaryUse& use : engine->stats().boundaries)
      if (static_cast<int>(use.stage) != stage) elsewhere += use.count;
    EXPECT_EQ(elsewhere, 0u);
  }
}

}  // namespace
}  // namespace tenon
