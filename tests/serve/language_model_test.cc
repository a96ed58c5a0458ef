// A checkpoint as text in, text out: checkpoints/tiny answers through the queue as transformers
// does, whoever else asks.
#include "tenon/serve/language_model.h"

#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>

#include "tenon/serve/request_queue.h"

namespace tenon::serve {
namespace {

using Json = nlohmann::json;
using Tokens = std::vector<std::int32_t>;
const std::string kModel = std::string(TENON_SOURCE_DIR) + "/checkpoints/tiny";

EngineOptions options() {
  EngineOptions out;
  out.model = kModel;
  out.max_batch = 4;
  out.max_context = 512;
  return out;
}

ChatPrompt asked(const std::string& question) { return {{{"user", question, {}}}}; }

TEST(TextCodec, EncodesIdsTextsAndConversations) {
  auto codec = TextCodec::load(kModel, TemplateUse::kIfThere);
  ASSERT_TRUE(codec) << codec.status().to_string();
  EXPECT_TRUE(codec->chats());
  EXPECT_EQ(codec->eos_ids(), Tokens{codec->tokenizer().eos_id()});
  EXPECT_EQ(*codec->encode(Tokens{3, 1, 2}), (Tokens{3, 1, 2}));
  EXPECT_EQ(*codec->encode(std::string("Tom has")), *codec->tokenizer().encode("Tom has"));
  const auto rendered = codec->render(asked("How many?"));
  ASSERT_TRUE(rendered) << rendered.status().to_string();
  EXPECT_NE(rendered->find("How many?"), std::string::npos);
  EXPECT_EQ(*codec->encode(asked("How many?")), *codec->tokenizer().encode(*rendered));
  EXPECT_EQ(codec->encode(ChatPrompt{{{"nobody", "How many?", {}}}}).status().code(),
            Code::kInvalidArgument);
}

TEST(TextCodec, WithoutATemplateItDoesNotChat) {
  EXPECT_TRUE(has_chat_template(kModel));
  EXPECT_FALSE(has_chat_template(kModel + "/nowhere"));
  auto codec = TextCodec::load(kModel, TemplateUse::kNone);
  ASSERT_TRUE(codec) << codec.status().to_string();
  EXPECT_FALSE(codec->chats());
  EXPECT_TRUE(codec->eos_ids().empty());
  EXPECT_EQ(codec->encode(asked("How many?")).status().code(), Code::kUnsupported);
  EXPECT_FALSE(TextCodec::load(kModel + "/nowhere", TemplateUse::kNone));
}

// What docs/requests.md shows.
Status ask(const std::function<void(std::string_view)>& show) {
  // [ask]
  EngineOptions options;
  options.model = kModel;
  TENON_ASSIGN(auto model, LanguageModel::open(options, TemplateUse::kIfThere));
  TENON_ASSIGN(auto queue, RequestQueue::start(*model));

  Request request;
  request.prompt = ChatPrompt{{{"user", "Tom has 3 boxes of 12 pencils. How many?", {}}}};
  request.sampling.max_tokens = 50;
  request.stops = {"####"};
  Submission made = queue->submit(std::move(request));
  if (!made) return made.why;

  std::optional<Outcome> outcome;
  while (!outcome) {
    ReplyPart part = made.reply.wait();
    show(part.text);
    outcome = std::move(part.outcome);
  }
  // [/ask]
  EXPECT_EQ(name(outcome->reason), "stop_string") << outcome->why.to_string();
  return Status::ok();
}

TEST(LanguageModel, TheExampleWorks) {
  std::string text;
  const Status asked = ask([&](std::string_view part) { text += part; });
  EXPECT_TRUE(asked) << asked.to_string();
  EXPECT_FALSE(text.empty());
  EXPECT_EQ(text.find("#"), std::string::npos);
}

TEST(LanguageModel, AnswersAsTheReferenceWhoeverElseAsks) {
  constexpr std::size_t kProblems = 8, kMaxTokens = 90;
  auto model = LanguageModel::open(options(), TemplateUse::kRequired);
  ASSERT_TRUE(model) << model.status().to_string();
  EXPECT_EQ((*model)->max_context(), 512);
  EXPECT_EQ((*model)->max_batch(), 4);
  auto queue = RequestQueue::start(**model);
  ASSERT_TRUE(queue) << queue.status().to_string();
  std::ifstream file(std::string(TENON_SOURCE_DIR) + "/tests/data/goldens/tiny/greedy.json");
  const Json references = Json::parse(file);
  ASSERT_GE(references.size(), kProblems);
  std::vector<Reply> replies;
  for (std::size_t i = 0; i < kProblems; ++i) {
    Request request;
    request.prompt = asked(references[i]["question"]);
    request.sampling.max_tokens = kMaxTokens;
    Submission made = (*queue)->submit(std::move(request));
    ASSERT_TRUE(made) << made.why.to_string();
    replies.push_back(std::move(made.reply));
  }
  const Tokenizer& tokenizer = (*model)->text().tokenizer();
  for (std::size_t i = 0; i < kProblems; ++i) {
    Completion made = replies[i].complete();
    const bool stopped = made.outcome.reason == FinishReason::kStop;
    ASSERT_TRUE(stopped || made.outcome.reason == FinishReason::kLength)
        << made.outcome.why.to_string();
    if (stopped) made.tokens.pop_back();  // the end-of-sequence token
    const auto reference = references[i]["token_ids"].get<Tokens>();
    EXPECT_EQ(stopped, reference.size() < kMaxTokens);
    EXPECT_EQ(made.tokens, reference);
    EXPECT_EQ(made.text, tokenizer.decode(reference));
  }
}

}  // namespace
}  // namespace tenon::serve
