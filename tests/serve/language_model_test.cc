// A checkpoint as text in, text out: checkpoints/tiny answers through the queue as its engine does
// alone, whoever else asks.
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

// The answer of the engine alone, without the end-of-sequence token.
Tokens lone_answer(LanguageModel& model, const Prompt& prompt, const SamplingParams& sampling) {
  Tokens made;
  auto ids = model.text().encode(prompt);
  EXPECT_TRUE(ids && model.engine().submit(*std::move(ids), sampling));
  while (!model.engine().idle()) {
    const auto events = model.engine().step();
    EXPECT_TRUE(events) << events.status().to_string();
    if (!events) break;
    for (const TokenEvent& event : *events)
      if (event.finish != Finish::kStop) made.push_back(event.token);
  }
  return made;
}

TEST(LanguageModel, AnswersAsTheEngineAloneWhoeverElseAsks) {
  auto model = LanguageModel::open(options(), TemplateUse::kRequired);
  ASSERT_TRUE(model) << model.status().to_string();
  EXPECT_EQ((*model)->max_context(), 512);
  EXPECT_EQ((*model)->max_batch(), 4);
  const Tokenizer& tokenizer = (*model)->text().tokenizer();
  std::ifstream file(kModel + "/eval.jsonl");
  std::vector<Request> requests;
  std::vector<Tokens> wanted;
  for (std::string line; requests.size() < 8 && std::getline(file, line);) {
    Request request;
    request.prompt = asked(Json::parse(line)["question"]);
    request.sampling.max_tokens = 90;
    wanted.push_back(lone_answer(**model, request.prompt, request.sampling));
    requests.push_back(std::move(request));
  }
  ASSERT_EQ(requests.size(), 8u);
  auto queue = RequestQueue::start(**model);
  ASSERT_TRUE(queue) << queue.status().to_string();
  std::vector<Reply> replies;
  for (Request& each : requests) {
    Submission made = (*queue)->submit(std::move(each));
    ASSERT_TRUE(made) << made.why.to_string();
    replies.push_back(std::move(made.reply));
  }
  int stopped = 0;
  for (std::size_t i = 0; i < replies.size(); ++i) {
    Completion made = replies[i].complete();
    EXPECT_EQ(made.text, tokenizer.decode(wanted[i]));
    if (made.outcome.reason == FinishReason::kStop) {
      made.tokens.pop_back();
      ++stopped;
    }
    EXPECT_EQ(made.tokens, wanted[i]);
  }
  EXPECT_GT(stopped, 0);
}

}  // namespace
}  // namespace tenon::serve
