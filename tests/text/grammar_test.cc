// Grammars over the vocabulary of checkpoints/tiny: what they allow is what fits, token by token,
// and what cannot be had is refused with its reason.
#include "tenon/text/grammar.h"

#include <gtest/gtest.h>
#include <malloc.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <future>
#include <nlohmann/json.hpp>
#include <random>
#include <string>

#include "tenon/core/thread.h"
#include "tenon/text/answer_grammar.h"
#include "tenon/text/answer_parser.h"

namespace tenon {
namespace {

using Json = nlohmann::json;
using jinja::Value;
using Tokens = std::vector<std::int32_t>;

class Grammars : public testing::Test {
 protected:
  void SetUp() override {
    if (!GrammarCompiler::is_built()) GTEST_SKIP() << "built without grammars";
    auto loaded = Tokenizer::load(std::string(TENON_SOURCE_DIR) + "/checkpoints/tiny");
    ASSERT_TRUE(loaded) << loaded.status().to_string();
    tokenizer_.emplace(*std::move(loaded));
    end_ = tokenizer_->eos_id();
    compiler_.emplace(*tokenizer_, std::vector<std::int32_t>{end_});
  }

  Result<Grammar> compile(const AnswerGrammar& rule) const {
    const auto tag = structural_tag(rule);
    EXPECT_TRUE(tag) << tag.status().to_string();
    return compiler_->compile(*tag);
  }
  GrammarState begin(const AnswerGrammar& rule) const {
    const auto made = compile(rule);
    EXPECT_TRUE(made) << made.status().to_string();
    auto begun = made->begin();
    EXPECT_TRUE(begun) << begun.status().to_string();
    return *std::move(begun);
  }
  std::vector<std::uint32_t> allowed(GrammarState& state) const {
    std::vector<std::uint32_t> words(static_cast<std::size_t>(tokenizer_->num_tokens() + 31) / 32,
                                     0x5555'5555u);
    const Status filled = state.fill(words);
    EXPECT_TRUE(filled) << filled.to_string();
    return words;
  }
  static bool has(const std::vector<std::uint32_t>& words, std::int32_t id) {
    return (words[static_cast<std::size_t>(id) / 32] >> (id % 32) & 1) != 0;
  }

  // How many bytes of `text` the grammar takes; one more where the answer may end behind them.
  std::size_t taken(const AnswerGrammar& rule, const std::string& text) const {
    GrammarState state = begin(rule);
    const auto ids = tokenizer_->encode(text);
    EXPECT_TRUE(ids) << ids.status().to_string();
    std::size_t bytes = 0;
    for (const std::int32_t id : *ids) {
      if (!has(allowed(state), id)) return bytes;
      EXPECT_TRUE(state.accept(id));
      bytes += tokenizer_->token_bytes(id).size();
    }
    return bytes + (has(allowed(state), end_) ? 1 : 0);
  }
  bool takes(const AnswerGrammar& rule, const std::string& text) const {
    return taken(rule, text) == text.size() + 1;
  }

  // A text of tokens drawn among those that are allowed, up to the end.
  std::string random_text(const AnswerGrammar& rule, std::mt19937& random) const {
    GrammarState state = begin(rule);
    Tokens ids;
    for (int step = 0; step < 2000; ++step) {
      const auto words = allowed(state);
      Tokens open;
      for (std::int32_t id = 0; id < tokenizer_->num_tokens(); ++id)
        if (has(words, id)) open.push_back(id);
      EXPECT_FALSE(open.empty()) << tokenizer_->decode(ids);
      if (open.empty()) break;
      const std::int32_t id = has(words, end_) ? end_ : open[random() % open.size()];
      if (id == end_) return tokenizer_->decode(ids, false);
      EXPECT_FALSE(tokenizer_->is_special(id));
      EXPECT_TRUE(state.accept(id));
      ids.push_back(id);
    }
    ADD_FAILURE() << "no end: " << tokenizer_->decode(ids).substr(0, 300);
    return {};
  }

  std::optional<Tokenizer> tokenizer_;
  std::optional<GrammarCompiler> compiler_;
  std::int32_t end_ = -1;
};

Value parsed(const std::string& json) {
  auto value = jinja::parse_json(json);
  EXPECT_TRUE(value) << value.status().to_string();
  return *std::move(value);
}

AnswerGrammar json(const std::string& schema) { return {.text = json_format(parsed(schema))}; }

const char* const kOrder = R"({"type": "object", "required": ["name", "count", "colours"],
  "properties": {"name": {"type": "string", "maxLength": 8},
                 "count": {"type": "integer", "minimum": 0, "maximum": 99},
                 "colours": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 2}}})";

const char* const kTools = R"([
  {"type": "function", "function": {"name": "add", "parameters": {"type": "object",
    "required": ["a", "why"], "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99},
    "why": {"type": "string", "maxLength": 8}, "exact": {"type": "boolean"}}}}},
  {"type": "function", "function": {"name": "now", "parameters": {"type": "object",
    "properties": {}}}}])";

auto characters(const std::string& text) {
  return std::ranges::count_if(text, [](char each) { return (each & 0xc0) != 0x80; });
}

TEST_F(Grammars, TakeWhatFitsASchema) {
  const AnswerGrammar rule = json(kOrder);
  EXPECT_TRUE(takes(rule, R"({"name": "Tom", "count": 3, "colours": ["red"]})"));
  EXPECT_TRUE(takes(rule, "{\n  \"name\": \"ü\",\n  \"count\": 99,\n  \"colours\": []\n}"));
  EXPECT_FALSE(takes(rule, R"({"name": "Tom", "count": 100, "colours": []})"));
  EXPECT_FALSE(takes(rule, R"({"name": "Tom", "count": 3})"));
  EXPECT_FALSE(takes(rule, R"({"name": "Tom", "count": 3, "colours": ["blue"]})"));
  EXPECT_FALSE(takes(rule, R"({"name": "Tom", "count": 3, "colours": [], "more": 1})"));
  EXPECT_EQ(taken(rule, "Sure: {"), 0u);
  EXPECT_TRUE(takes({.text = any_object_format()}, R"({"a": [1, null, {"b": "c"}]})"));
  EXPECT_FALSE(takes({.text = any_object_format()}, "[1]"));
}

TEST_F(Grammars, TakeOtherForms) {
  EXPECT_TRUE(takes({.text = regex_format("[0-9]{3}-[a-c]+")}, "123-abc"));
  EXPECT_FALSE(takes({.text = regex_format("[0-9]{3}-[a-c]+")}, "12-abc"));
  EXPECT_TRUE(takes({.text = choice_format({"yes", "no"})}, "no"));
  EXPECT_FALSE(takes({.text = choice_format({"yes", "no"})}, "now"));
  EXPECT_TRUE(takes({.text = ebnf_format("root ::= \"a\" | root \"b\"")}, "abbb"));
  EXPECT_FALSE(takes({.text = ebnf_format("root ::= \"a\" | root \"b\"")}, "ba"));
}

TEST_F(Grammars, EveryWayThroughEndsInJson) {
  std::mt19937 random(4);
  for (int i = 0; i < 20; ++i) {
    const std::string text = random_text(json(kOrder), random);
    const Json order = Json::parse(text, nullptr, false);
    ASSERT_TRUE(order.is_object()) << text;
    EXPECT_TRUE(order.at("count").is_number_unsigned() && order.at("count") <= 99) << text;
    ASSERT_TRUE(order.at("name").is_string()) << text;
    EXPECT_LE(characters(order.at("name")), 8) << text;
    EXPECT_LE(order.at("colours").size(), 2u) << text;
  }
}

TEST_F(Grammars, EveryForcedCallIsOneForTheParser) {
  std::mt19937 random(5);
  AnswerGrammar rule{.tools = parsed(kTools), .forces_call = true, .one_call = true};
  AnswerForm form;
  form.has_calls = true;
  form.tools = rule.tools;
  std::set<std::string> called;
  for (int i = 0; i < 24; ++i) {
    const std::string text = random_text(rule, random);
    AnswerParser parser(form);
    auto pieces = parser.push(text);
    for (AnswerPiece& each : parser.finish()) pieces.push_back(std::move(each));
    ASSERT_EQ(parser.calls(), 1) << text;
    std::string name, arguments;
    for (const AnswerPiece& each : pieces) {
      if (each.kind == AnswerPiece::Kind::kCallBegin) name = each.text;
      if (each.kind == AnswerPiece::Kind::kCallArguments) arguments += each.text;
      EXPECT_NE(each.kind, AnswerPiece::Kind::kText) << text;
    }
    called.insert(name);
    const Json found = Json::parse(arguments, nullptr, false);
    ASSERT_TRUE(found.is_object()) << text;
    if (name == "now") {
      EXPECT_TRUE(found.empty()) << text;
      continue;
    }
    EXPECT_EQ(name, "add");
    EXPECT_TRUE(found.at("a").is_number_unsigned() && found.at("a") <= 99) << text;
    ASSERT_TRUE(found.at("why").is_string()) << text;
    EXPECT_LE(characters(found.at("why")), 8) << text;
    EXPECT_TRUE(!found.contains("exact") || found.at("exact").is_boolean()) << text;
  }
  EXPECT_EQ(called, (std::set<std::string>{"add", "now"}));
}

const char* const kCall =
    "<tool_call>\n<function=add>\n<parameter=a>\n3\n</parameter>\n<parameter=why>\nfun\n"
    "</parameter>\n</function>\n</tool_call>";
const char* const kEmptyCall = "<tool_call>\n<function=now>\n</function>\n</tool_call>";

TEST_F(Grammars, CallsAsTheTemplateWritesThem) {
  AnswerGrammar rule{.tools = parsed(kTools), .forces_call = true};
  const std::string call = kCall, empty = kEmptyCall;
  EXPECT_TRUE(takes(rule, call));
  EXPECT_TRUE(takes(rule, empty));
  EXPECT_TRUE(takes(rule, call + "\n" + empty + "\n" + call));
  const std::string begin = "<tool_call>\n<function=add>\n<parameter=a>\n";
  EXPECT_EQ(taken(rule, begin + " 3"), begin.size());  // one line end belongs to the tag, no more
  EXPECT_EQ(taken(rule, begin + "3 "), begin.size() + 1);
  const std::string why = begin + "3\n</parameter>\n<parameter=why>\n";
  EXPECT_EQ(taken(rule, why + "12345678\n"), why.size() + 9);
  EXPECT_EQ(taken(rule, why + "123456789"), why.size() + 8);
  EXPECT_EQ(taken(rule, "Let me see."), 0u);
  rule.one_call = true;
  EXPECT_TRUE(takes(rule, call));
  EXPECT_FALSE(takes(rule, call + "\n" + empty));
  rule = {.tools = rule.tools};  // calls may come, and must fit
  EXPECT_TRUE(takes(rule, "Let me see.\n" + call));
  EXPECT_TRUE(takes(rule, "No."));
  EXPECT_FALSE(takes(rule, "<tool_call>\n<function=sub>\n"));
  rule.text = choice_format({"yes"});  // this text, or calls
  EXPECT_TRUE(takes(rule, "yes"));
  EXPECT_TRUE(takes(rule, call));
  EXPECT_FALSE(takes(rule, "yes" + call));
}

TEST_F(Grammars, ToolsThatAreNotStrictAreFree) {
  AnswerGrammar rule{.tools = parsed(R"([{"type": "function", "function": {"name": "add",
    "strict": false, "parameters": {"type": "object", "not": {}}}}])"),
                     .forces_call = true};
  EXPECT_TRUE(takes(rule,
                    "<tool_call>\n<function=add>\n<parameter=any>\nx\n</parameter>\n"
                    "</function>\n</tool_call>"));
}

TEST_F(Grammars, RefusalsSayWhy) {
  const auto refused = [&](const AnswerGrammar& rule, Code code, const std::string& piece) {
    const auto made = compile(rule);
    ASSERT_FALSE(made) << piece;
    EXPECT_EQ(made.status().code(), code) << made.status().to_string();
    EXPECT_NE(made.status().message().find(piece), std::string_view::npos)
        << made.status().to_string();
    EXPECT_EQ(made.status().message().find(".cc:"), std::string_view::npos);
  };
  refused(json(R"({"type": "horse"})"), Code::kInvalidArgument, "horse");
  refused(json(R"({"$ref": "#/nowhere"})"), Code::kInvalidArgument, "nowhere");
  refused(json(R"({"type": "integer", "minimum": 5, "maximum": 3})"), Code::kInvalidArgument,
          "minimum");
  refused(json(R"({"$ref": "#"})"), Code::kInvalidArgument, "no text of this vocabulary");
  refused({.text = regex_format("([")}, Code::kInvalidArgument, "Unclosed");
  refused({.text = ebnf_format("root = 5")}, Code::kInvalidArgument, "EBNF");
  refused(json(R"({"title": ")" + std::string(70'000, 'x') + "\"}"), Code::kInvalidArgument,
          "accepted are at most 65536");
  const Tokenizer none = Tokenizer::none();
  const GrammarCompiler empty(none, {});
  EXPECT_EQ(empty.compile("{}").status().code(), Code::kUnsupported);
}

// Schemas with pieces of others put in, left out and cut off: each is refused, or begins with some
// token. Nothing else comes of them.
TEST_F(Grammars, BrokenSchemasAreRefusedOrBegin) {
  const std::vector<std::string> pieces = {
      R"("type": "object")",
      R"("type": ["string", "null"])",
      R"("minLength": 3)",
      R"("maxLength": -1)",
      R"("pattern": "[a-z]+(x|y)*")",
      R"("enum": [1, "a", null])",
      R"("const": {"a": []})",
      R"("items": {"type": "integer"})",
      R"("minItems": 2)",
      R"("maxItems": 1)",
      R"("$ref": "#/$defs/a")",
      R"("required": ["a", "zz"])",
      R"("anyOf": [{}, false])",
      R"("properties": {"a": {"$ref": "#"}})",
      R"("$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]}})",
      R"("format": "date-time")",
      R"("additionalProperties": false)",
      R"("prefixItems": [{}, {}])",
      R"("minimum": 1e300)",
      R"("maximum": -5)",
      R"("multipleOf": 7)",
      R"("minProperties": 2)",
      R"("propertyNames": {"pattern": "^x"})"};
  std::mt19937 random(8);
  int refused = 0, begun = 0;
  for (int i = 0; i < 600; ++i) {
    std::string schema = "{";
    const auto count = 1 + random() % 5;
    for (unsigned piece = 0; piece < count; ++piece)
      schema += (piece > 0 ? ", " : "") + pieces[random() % pieces.size()];
    schema += "}";
    const auto value = jinja::parse_json(schema);
    if (!value) continue;  // the same name twice
    const auto tag = structural_tag({.text = json_format(*value)});
    ASSERT_TRUE(tag) << tag.status().to_string();
    const auto made = compiler_->compile(*tag);
    made ? ++begun : ++refused;
    if (!made) {
      EXPECT_FALSE(made.status().message().empty()) << schema;
      continue;
    }
    auto state = made->begin();
    ASSERT_TRUE(state) << schema;
    const auto words = allowed(*state);
    EXPECT_TRUE(std::ranges::any_of(words, [](auto word) { return word != 0; })) << schema;
  }
  EXPECT_GT(refused, 20);
  EXPECT_GT(begun, 100);
}

// It is counted, not timed: the same answer ends at the same token on every machine.
TEST_F(Grammars, WhatTakesTooMuchWorkEndsAtTheSameToken) {
  const auto ids = tokenizer_->encode("a");
  ASSERT_TRUE(ids);
  const auto tokens_until_refused = [&] {
    GrammarState state = begin({.text = regex_format("((a?){0,60}){0,60}")});
    std::vector<std::uint32_t> words(static_cast<std::size_t>(tokenizer_->num_tokens() + 31) / 32);
    for (int count = 1; count < 2000; ++count) {
      Status taken = state.accept(ids->front());
      if (taken) taken = state.fill(words);
      if (taken) continue;
      EXPECT_NE(taken.message().find("too much work"), std::string_view::npos) << taken.to_string();
      return count;
    }
    return 0;
  };
  const int first = tokens_until_refused();
  EXPECT_GT(first, 2);
  EXPECT_EQ(tokens_until_refused(), first);
}

// As above, and however its threads share the work.
TEST_F(Grammars, ACompilationIsRefusedByTheSameCount) {
  const auto tag = structural_tag({.text = regex_format("[a-z]{0,9}(-[0-9]{2,12}x|y.{0,30})")});
  ASSERT_TRUE(tag);
  const auto is_enough = [&](std::int64_t effort) {
    compiler_.emplace(*tokenizer_, std::vector<std::int32_t>{end_});
    const auto made = compiler_->compile(*tag, {.effort = effort});
    if (!made) {
      EXPECT_EQ(made.status().code(), Code::kTimeout) << made.status().to_string();
      EXPECT_NE(made.status().message().find("too much work"), std::string_view::npos);
    }
    return static_cast<bool>(made);
  };
  std::int64_t least = 1, most = 100'000'000;
  ASSERT_TRUE(is_enough(most));
  while (most - least > 1) {
    const std::int64_t middle = least + (most - least) / 2;
    (is_enough(middle) ? most : least) = middle;
  }
  EXPECT_GT(most, 100'000);
  for (int turn = 0; turn < 10; ++turn) {
    EXPECT_TRUE(is_enough(most));
    EXPECT_FALSE(is_enough(most - 1));
  }
}

TEST_F(Grammars, ACompilationEndsWhereNobodyWantsItAnyMore) {
  const auto tag = structural_tag({.text = regex_format("(.{0,100}[0-9]){0,3}")});
  ASSERT_TRUE(tag);
  std::atomic<int> asked{0};
  const auto made = compiler_->compile(*tag, {.is_wanted = [&] { return ++asked <= 10; }});
  ASSERT_FALSE(made);
  EXPECT_EQ(made.status().code(), Code::kTimeout) << made.status().to_string();
  EXPECT_GT(asked, 10);
  EXPECT_LE(asked, 10 + 3);  // once by each of its threads
  EXPECT_TRUE(compiler_->compile(*tag));
}

// Neither for its end nor for its error.
TEST_F(Grammars, NobodyWaitsForACompilationOfSomebodyElse) {
  const auto tag = structural_tag({.text = regex_format("(.{0,100}[0-9]){0,3}")});
  ASSERT_TRUE(tag);
  std::promise<bool> is_wanted;
  const std::shared_future<bool> told = is_wanted.get_future().share();
  std::promise<void> begun;
  std::atomic<int> asked{0};
  auto other = start_thread("compiles", [&] {
    const auto made = compiler_->compile(*tag, {.is_wanted = [&] {
      if (asked++ == 0) begun.set_value();
      return told.get();
    }});
    EXPECT_FALSE(made);
  });
  ASSERT_TRUE(other) << other.status().to_string();
  begun.get_future().wait();
  EXPECT_FALSE(compiler_->compile(*tag, {.effort = 1000}));
  EXPECT_TRUE(compiler_->compile(*tag));
  is_wanted.set_value(false);
  *other = {};  // joins
  EXPECT_TRUE(compiler_->compile(*tag));
}

TEST_F(Grammars, ATokenOfALongAnswerTakesLittleWork) {
  GrammarState state = begin({.text = any_object_format()});
  std::string text = R"({"a": [1)";
  for (int i = 0; i < 2000; ++i) text += ", " + std::to_string(i);
  const auto ids = tokenizer_->encode(text);
  ASSERT_TRUE(ids);
  for (const std::int32_t id : *ids) {
    ASSERT_TRUE(state.accept(id));
    allowed(state);
  }
}

// A schema that no other number gives.
std::string numbered_schema(int number, int properties) {
  Json schema{{"type", "object"}};
  for (int each = 0; each < properties; ++each) {
    const std::string name = "p" + std::to_string(number) + "_" + std::to_string(each);
    const Json kinds[] = {{{"type", "string"}, {"maxLength", 8 + number % 20}},
                          {{"type", "integer"}},
                          {{"type", "array"}, {"items", {{"enum", {name}}}}}};
    schema["properties"][name] = kinds[each % 3];
  }
  return schema.dump();
}

TEST_F(Grammars, WhatIsKeptStaysWithinItsBound) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the sanitizer holds back what was freed";
#endif
  constexpr std::int64_t kBound = 4 << 20, kSlack = 6 << 20;
  compiler_.emplace(*tokenizer_, std::vector<std::int32_t>{end_}, kBound);
  const auto taken_of_system = [] {
    const auto found = mallinfo2();
    return static_cast<std::int64_t>(found.arena + found.hblkhd);
  };
  ASSERT_TRUE(compile(json(numbered_schema(0, 3))));
  const std::int64_t before = taken_of_system();
  for (int number = 1; number <= 1500; ++number)  // many small ones
    ASSERT_TRUE(compile(json(numbered_schema(number, 3))));
  EXPECT_LE(taken_of_system() - before, kBound + kSlack);
  for (int number = 1; number <= 60; ++number)  // some large ones
    ASSERT_TRUE(compile(json(numbered_schema(number, 60))));
  EXPECT_LE(taken_of_system() - before, kBound + kSlack);
}

TEST_F(Grammars, WhatIsAskedForAgainIsKept) {
  const auto fastest = [&](auto&& number_of) {
    auto least = std::chrono::steady_clock::duration::max();
    for (int turn = 0; turn < 20; ++turn) {
      const auto begin = std::chrono::steady_clock::now();
      EXPECT_TRUE(compile(json(numbered_schema(number_of(turn), 12))));
      least = std::min(least, std::chrono::steady_clock::now() - begin);
    }
    return least;
  };
  const auto made = fastest([](int turn) { return turn; });
  const auto kept = fastest([](int turn) { return turn; });
  EXPECT_LT(3 * kept, made);
  // One that has no room is not kept, and serves whoever asked for it.
  compiler_.emplace(*tokenizer_, std::vector<std::int32_t>{end_}, 1 << 10);
  const auto held = compile(json(kOrder));
  ASSERT_TRUE(held);
  const auto again = fastest([](int) { return 0; });
  EXPECT_LT(3 * kept, again);
  EXPECT_TRUE(takes(json(kOrder), R"({"name": "Tom", "count": 3, "colours": ["red"]})"));
  EXPECT_TRUE(held->begin());
}

TEST_F(Grammars, WhatIsNotAllowedIsAnError) {
  GrammarState state = begin({.text = choice_format({"yes"})});
  EXPECT_FALSE(state.accept(tokenizer_->id_of("<think>")));
}

}  // namespace
}  // namespace tenon
