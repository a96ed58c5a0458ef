// A language model without weights for the tests of this floor: the fake model of the engine's
// tests with the tokenizer of the text floor's, and an oracle that knows every answer's text.
#pragma once

#include <fstream>
#include <nlohmann/json.hpp>

#include "tenon/serve/language_model.h"
#include "tenon/serve/request_queue.h"
#include "tests/runtime/engine_driver.h"

namespace tenon::serve::test {

using namespace tenon::test;

inline constexpr int kNumTokens = 300;

// Every id but the padding has a token: bytes that are no characters alone, and merges.
inline FakeOptions speaking_options() {
  FakeOptions fake;
  fake.vocab = fake.num_ids = 312;  // over 1, 2, 3 and 4 ranks
  fake.num_tokens = kNumTokens;
  fake.eos = 97;
  return fake;
}

// The first kNumTokens of tests/data/tokenizer/small.json: few, so that ends are met.
inline Tokenizer small_tokenizer() {
  std::ifstream file(std::string(TENON_SOURCE_DIR) + "/tests/data/tokenizer/small.json",
                     std::ios::binary);
  nlohmann::json json = nlohmann::json::parse(file);
  nlohmann::json vocab = nlohmann::json::object(), merges = nlohmann::json::array();
  for (const auto& [text, id] : json["model"]["vocab"].items())
    if (id < kNumTokens) vocab[text] = id;
  for (const auto& pair : json["model"]["merges"])
    if (vocab.contains(pair[0].get<std::string>() + pair[1].get<std::string>()))
      merges.push_back(pair);
  json["model"]["vocab"] = vocab;
  json["model"]["merges"] = merges;
  json["added_tokens"] = nlohmann::json::array();
  auto tokenizer = Tokenizer::parse(json.dump());
  EXPECT_TRUE(tokenizer) << tokenizer.status().to_string();
  EXPECT_EQ(tokenizer->num_tokens(), kNumTokens);
  return std::move(*tokenizer);
}

inline std::unique_ptr<LanguageModel> must_open_speaking(
    const EngineOptions& options, const FakeOptions& fake = speaking_options()) {
  auto model =
      LanguageModel::open(TextCodec(small_tokenizer()), options, fake_factory(options, fake));
  EXPECT_TRUE(model) << model.status().to_string();
  return std::move(*model);
}

struct Told {
  std::string text;
  Tokens tokens;
  FinishReason reason = FinishReason::kFailed;
  std::string stop;
};

// What a lone run tells, by the plainest means: the engine's oracle for the tokens, and a search of
// the whole text so far after each of them.
inline Told told_alone(const Tokenizer& tokenizer, const Request& request, int max_context,
                       const FakeOptions& fake = speaking_options()) {
  const auto& prompt = std::get<Tokens>(request.prompt);
  const Answer answer = oracle(prompt, request.sampling, max_context, fake);
  Told told;
  std::string text;
  StreamingDetokenizer detokenizer(tokenizer, request.skip_special);
  const auto cut_at_stop = [&] {
    for (std::size_t end = 1; end <= text.size() && told.stop.empty(); ++end)
      for (const std::string& each : request.stops)
        if (each.size() > told.stop.size() &&
            std::string_view(text).substr(0, end).ends_with(each)) {
          told.stop = each;
          told.text = text.substr(0, end - each.size());
          told.reason = FinishReason::kStopString;
        }
    return !told.stop.empty();
  };
  for (std::size_t i = 0; i < answer.tokens.size(); ++i) {
    const std::int32_t token = answer.tokens[i];
    told.tokens.push_back(token);
    const bool last = i + 1 == answer.tokens.size();
    const bool asked = std::count(request.stop_ids.begin(), request.stop_ids.end(), token) > 0;
    if (asked || (last && answer.finish == Finish::kStop)) {
      told.reason = FinishReason::kStop;
      break;
    }
    text += detokenizer.push(token);
    if (cut_at_stop()) return told;
    if (last)
      told.reason = answer.finish == Finish::kLength    ? FinishReason::kLength
                    : answer.finish == Finish::kContext ? FinishReason::kContext
                                                        : FinishReason::kFailed;
  }
  text += detokenizer.finish();
  if (told.reason != FinishReason::kFailed && cut_at_stop()) return told;
  told.text = text;
  return told;
}

inline void expect_told(const Completion& made, const Told& wanted) {
  EXPECT_EQ(name(made.outcome.reason), name(wanted.reason)) << made.outcome.why.to_string();
  EXPECT_EQ(made.text, wanted.text);
  EXPECT_EQ(made.tokens, wanted.tokens);
  EXPECT_EQ(made.outcome.stop, wanted.stop);
  EXPECT_EQ(made.outcome.completion_tokens, static_cast<std::int64_t>(wanted.tokens.size()));
}

inline Tokens speaking_prompt(std::mt19937& random, int most) {
  Tokens prompt(1 + random() % static_cast<unsigned>(most));
  for (auto& token : prompt) token = static_cast<std::int32_t>(random() % unsigned{kNumTokens});
  return prompt;
}

// A request with random limits, stop strings that its own text may hold, and stop ids.
inline Request random_request(std::mt19937& random) {
  Request request;
  request.prompt = speaking_prompt(random, random() % 4 == 0 ? 299 : 70);
  request.sampling = greedy(1 + static_cast<int>(random() % 50), random() % 2 == 0);
  static const char* const kStops[] = {"a", "e", "\xef\xbf\xbd", "th", "Q\xc3\xa9", " t", "1"};
  for (const char* each : kStops)
    if (random() % 12 == 0) request.stops.push_back(each);
  if (random() % 4 == 0)
    request.stop_ids.push_back(static_cast<std::int32_t>(random() % unsigned{kNumTokens}));
  request.skip_special = random() % 2 == 0;
  return request;
}

}  // namespace tenon::serve::test
