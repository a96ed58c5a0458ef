// A checkpoint in which one token's embedding is NaN, through real layers: a request that meets the
// token ends alone; what runs beside it, and what gets its caches afterwards, keeps every bit.
#include <gtest/gtest.h>

#include <cstring>
#include <map>

#include "tenon/runtime/engine.h"
#include "tests/support/tiny_model.h"

namespace tenon {
namespace {

using Tokens = std::vector<std::int32_t>;
constexpr std::int32_t kBroken = 77;

// Files with `tensor`'s row `row` all NaN.
void write_broken(const std::filesystem::path& directory, const test::TinyShape& shape) {
  const std::string config = test::tiny_config(shape);
  test::FileTensors tensors = test::tiny_tensors(config);
  test::FileTensor& embedding = tensors.at("model.language_model.embed_tokens.weight");
  const std::uint16_t nan = 0x7fc0;
  for (int column = 0; column < shape.hidden; ++column)
    std::memcpy(embedding.bytes.data() + std::size_t{2} * (kBroken * shape.hidden + column), &nan,
                sizeof nan);
  test::write_checkpoint(directory, config, tensors, 0);
}

std::unique_ptr<Engine> open(const std::filesystem::path& directory, int tp, int num_tokens = 0) {
  EngineOptions options;
  options.model = directory.string();
  options.tp = tp;
  options.max_batch = 4;
  options.max_context = 256;
  options.max_tokens_per_step = 128;
  options.num_tokens = num_tokens;
  auto engine = Engine::open(options);
  EXPECT_TRUE(engine) << engine.status().to_string();
  return engine ? *std::move(engine) : nullptr;
}

Tokens prompt_of(int count, int first) {
  Tokens prompt;
  for (int i = 0; i < count; ++i) prompt.push_back((first + 7 * i) % kBroken);
  return prompt;
}

// Any difference in a logit shows in what such requests draw.
SamplingParams hot(int max_tokens) {
  SamplingParams sampling;
  sampling.max_tokens = max_tokens;
  sampling.temperature = 1.0f;
  sampling.seed = 5;
  sampling.ignore_eos = true;
  return sampling;
}

struct Answer {
  Tokens tokens;
  Finish finish = Finish::kNone;
};

std::map<RequestId, Answer> run_to_end(Engine& engine) {
  std::map<RequestId, Answer> answers;
  while (!engine.idle()) {
    const auto events = engine.step();
    EXPECT_TRUE(events) << events.status().to_string();
    if (!events) break;
    for (const TokenEvent& event : *events) {
      if (event.token >= 0) answers[event.id].tokens.push_back(event.token);
      answers[event.id].finish = event.finish;
    }
  }
  return answers;
}

void expect_one_ends_alone(const test::TinyShape& shape, int tp) {
  SCOPED_TRACE((shape.experts > 0 ? "moe, tp " : "dense, tp ") + std::to_string(tp));
  test::TempDirectory directory;
  write_broken(directory.path(), shape);
  auto engine = open(directory.path(), tp, kBroken + 1);  // nobody draws ids behind it
  ASSERT_NE(engine, nullptr);
  const Tokens prompts[] = {prompt_of(1, 3), prompt_of(70, 11), prompt_of(150, 5)};
  std::vector<Answer> alone;
  for (const Tokens& prompt : prompts) {
    const auto id = engine->submit(prompt, hot(12));
    ASSERT_TRUE(id) << id.status().to_string();
    alone.push_back(run_to_end(*engine)[*id]);
  }
  Tokens broken_prompt = prompt_of(130, 2), broken_decode = {1};
  broken_prompt[70] = kBroken;
  broken_decode.push_back(kBroken);
  for (int round = 0; round < 2; ++round) {  // the second time in caches that the first has left
    const auto bad = engine->submit(broken_prompt, hot(12));
    std::vector<RequestId> good;
    for (const Tokens& prompt : prompts) good.push_back(*engine->submit(prompt, hot(12)));
    const auto bad_too = engine->submit(broken_decode, hot(12));
    auto answers = run_to_end(*engine);
    EXPECT_EQ(answers[*bad].finish, Finish::kFailed);
    EXPECT_EQ(answers[*bad_too].finish, Finish::kFailed);
    for (std::size_t i = 0; i < good.size(); ++i) {
      EXPECT_EQ(answers[good[i]].tokens, alone[i].tokens) << "request " << i;
      EXPECT_EQ(answers[good[i]].finish, alone[i].finish) << "request " << i;
    }
  }
}

TEST(NoNumber, ARequestEndsAlone) {
  test::TinyShape dense, moe;
  dense.vocab = moe.vocab = 131;  // over two ranks: one id of padding
  moe.experts = 8;
  for (int tp : {1, 2})
    for (const test::TinyShape& shape : {dense, moe}) expect_one_ends_alone(shape, tp);
}

TEST(NoNumber, ThePaddingOfTheVocabularyIsNoToken) {
  test::TinyShape shape;
  shape.vocab = 131;
  test::TempDirectory directory;
  write_broken(directory.path(), shape);
  auto engine = open(directory.path(), 2);
  ASSERT_NE(engine, nullptr);
  EXPECT_TRUE(engine->submit({130}, hot(1)));
  const Status refused = engine->submit({131}, hot(1)).status();
  EXPECT_NE(refused.message().find("token id 131; accepted are 0 to 130"), std::string_view::npos)
      << refused.to_string();
}

}  // namespace
}  // namespace tenon
