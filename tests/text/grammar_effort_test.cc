// Ordinary forms over a vocabulary as large as the published ones: their compilation and their
// masks stay within what grammars may take.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>
#include <string>

#include "tenon/text/answer_grammar.h"
#include "tenon/text/grammar.h"

namespace tenon {
namespace {

using Json = nlohmann::json;

constexpr std::size_t kTokens = 248'000;

// How tokenizer.json spells a byte.
std::string spelled(unsigned char byte) {
  const bool as_it_is = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
  unsigned code = byte;
  if (!as_it_is) code = 256 + (byte <= 32 ? byte : byte <= 160 ? byte - 127 + 33 : 67);
  if (code < 128) return {static_cast<char>(code)};
  return {static_cast<char>(0xc0 | code >> 6), static_cast<char>(0x80 | (code & 0x3f))};
}

// Every byte, punctuation, words of Latin letters and of three bytes a letter, with and without a
// space in front, and pieces of such letters.
Tokenizer made_tokenizer() {
  std::mt19937 random(1);
  const auto below = [&](std::size_t count) { return random() % count; };
  Json vocabulary = Json::object();
  const auto add = [&](const std::string& bytes) {
    std::string name;
    for (const char each : bytes) name += spelled(static_cast<unsigned char>(each));
    if (!vocabulary.contains(name)) vocabulary[name] = vocabulary.size();
  };
  for (int byte = 0; byte < 256; ++byte) add({static_cast<char>(byte)});
  const std::string marks = "\"{}[]:,.-_/\\'()=<>!?+*&|;#",
                    letters = "eeetaoinshrdlucmfwypvbgkjqxz";
  while (vocabulary.size() < kTokens) {
    std::string text = below(2) == 0 ? " " : "";
    const std::size_t kind = below(100), length = 2 + below(9);
    for (std::size_t i = 0; i < (kind < 4 ? length / 2 : length); ++i)
      if (kind < 4)
        text += marks[below(marks.size())];
      else if (kind < 62)
        text += letters[below(letters.size())];
      else if (i < 4)
        text += {static_cast<char>(0xe4 + below(5)), static_cast<char>(0x80 + below(64)),
                 static_cast<char>(0x80 + below(64))};
    if (kind > 96) text.pop_back();
    add(text);
  }
  const Json file{
      {"version", "1.0"},
      {"added_tokens", {{{"id", kTokens}, {"content", "<|im_end|>"}, {"special", true}}}},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", Json::array()}}}};
  auto made = Tokenizer::parse(file.dump());
  EXPECT_TRUE(made) << made.status().to_string();
  return made ? *std::move(made) : Tokenizer::none();
}

Json kind_of(int number) {
  switch (number % 8) {
    case 0: return {{"type", "string"}};
    case 1: return {{"type", "integer"}};
    case 2: return {{"type", "number"}};
    case 3: return {{"type", "boolean"}};
    case 4: return {{"type", "array"}, {"items", {{"type", "string"}}}};
    case 5: return {{"enum", {"red", "green", "blue", "dark blue", "none"}}};
    case 6: return {{"anyOf", {{{"type", "string"}}, {{"type", "null"}}}}};
    default: return {{"type", "string"}, {"maxLength", 200}};
  }
}

Json object_of(int count, const std::string& kind = "any") {
  Json out{{"type", "object"}, {"additionalProperties", false}, {"required", {"kind"}}};
  out["properties"]["kind"] = {{"const", kind}};
  for (int i = 0; i < count; ++i) {
    const std::string name = (i % 2 == 0 ? "customer_" : "order_") + std::to_string(i);
    out["properties"][name] = kind_of(i);
    out["required"].push_back(name);
  }
  return out;
}

jinja::Value value_of(const Json& json) { return *jinja::parse_json(json.dump()); }

TEST(GrammarEffort, OrdinaryFormsOfALargeVocabularyAreKeptTo) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "takes minutes under a sanitizer, and what is counted is the same";
#endif
  if (!GrammarCompiler::is_built()) GTEST_SKIP() << "built without grammars";
  const Tokenizer tokenizer = made_tokenizer();
  const auto end = static_cast<std::int32_t>(kTokens);
  ASSERT_EQ(tokenizer.num_tokens(), end + 1);
  const GrammarCompiler compiler(tokenizer, std::vector<std::int32_t>{end});
  Json any, words, tools;
  for (int i = 0; i < 30; ++i) any.push_back(object_of(8, "kind" + std::to_string(i)));
  for (int i = 0; i < 500; ++i) words.push_back("label " + std::to_string(i * 7919));
  for (int i = 0; i < 64; ++i)
    tools.push_back(
        {{"type", "function"},
         {"function", {{"name", "tool_" + std::to_string(i)}, {"parameters", object_of(6)}}}});
  const auto list_of = [](const Json& items) {
    return AnswerGrammar{.text = json_format(value_of({{"type", "array"}, {"items", items}}))};
  };
  const std::pair<const char*, AnswerGrammar> forms[] = {
      {"40 properties", list_of(object_of(40))},
      {"one of 30 objects", list_of({{"anyOf", any}})},
      {"one of 500 words", list_of({{"enum", words}})},
      {"any object", AnswerGrammar{.text = any_object_format()}},
      {"addresses",
       AnswerGrammar{.text = regex_format("([a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\\.[a-z]{2,}, )+")}},
      {"64 tools", AnswerGrammar{.tools = value_of(tools), .forces_call = true}}};
  for (const auto& [name, form] : forms) {
    SCOPED_TRACE(name);
    const auto tag = structural_tag(form);
    ASSERT_TRUE(tag) << tag.status().to_string();
    const auto made = compiler.compile(*tag);
    ASSERT_TRUE(made) << made.status().to_string();
    auto state = made->begin();
    ASSERT_TRUE(state);
    std::mt19937 random(2);
    std::vector<std::uint32_t> words_of(kTokens / 32 + 1);
    for (int token = 0; token < 500; ++token) {
      const Status filled = state->fill(words_of);
      ASSERT_TRUE(filled) << "token " << token << ": " << filled.to_string();
      std::vector<std::int32_t> open;
      for (std::int32_t id = 0; id < end; ++id)
        if ((words_of[static_cast<std::size_t>(id) / 32] >> (id % 32) & 1) != 0) open.push_back(id);
      if (open.empty()) break;  // the answer is over
      std::int32_t id = open[random() % open.size()];
      // Now and then what ends a string.
      for (int turn = 0; turn < 64 && token % 4 == 0; ++turn) {
        if (tokenizer.token_bytes(id).find('"') != std::string_view::npos) break;
        id = open[random() % open.size()];
      }
      const Status accepted = state->accept(id);
      ASSERT_TRUE(accepted) << "token " << token << ": " << accepted.to_string();
    }
  }
}

}  // namespace
}  // namespace tenon
