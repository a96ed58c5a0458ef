// Answers taken apart: every text gives the same pieces wherever it is cut, and the arguments of
// every whole call are JSON of the types that the schema asks for.
#include "tenon/text/answer_parser.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>

namespace tenon {
namespace {

using Kind = AnswerPiece::Kind;
using Json = nlohmann::json;

struct Call {
  std::string name, arguments;
  bool whole = false;
};

struct Parsed {
  std::string reasoning, text;
  std::vector<Call> calls;
  bool operator==(const Parsed& other) const {
    if (calls.size() != other.calls.size()) return false;
    for (std::size_t i = 0; i < calls.size(); ++i)
      if (calls[i].name != other.calls[i].name || calls[i].arguments != other.calls[i].arguments ||
          calls[i].whole != other.calls[i].whole)
        return false;
    return reasoning == other.reasoning && text == other.text;
  }
};

void add(Parsed& parsed, const std::vector<AnswerPiece>& pieces) {
  for (const AnswerPiece& each : pieces) switch (each.kind) {
      case Kind::kReasoning: parsed.reasoning += each.text; break;
      case Kind::kText: parsed.text += each.text; break;
      case Kind::kCallBegin:
        ASSERT_EQ(each.call, static_cast<int>(parsed.calls.size()));
        parsed.calls.push_back({each.text, "", false});
        break;
      case Kind::kCallArguments:
        ASSERT_EQ(each.call + 1, static_cast<int>(parsed.calls.size()));
        parsed.calls.back().arguments += each.text;
        break;
      case Kind::kCallEnd: parsed.calls.back().whole = true; break;
    }
}

Parsed parse(const AnswerForm& form, std::string_view text, const std::vector<std::size_t>& cuts) {
  AnswerParser parser(form);
  Parsed parsed;
  std::size_t begin = 0;
  for (const std::size_t cut : cuts) {
    add(parsed, parser.push(text.substr(begin, cut - begin)));
    begin = cut;
  }
  add(parsed, parser.push(text.substr(begin)));
  add(parsed, parser.finish());
  return parsed;
}

// At once, cut once at every byte, and byte by byte.
Parsed parse_every_way(const AnswerForm& form, const std::string& text) {
  const Parsed whole = parse(form, text, {});
  std::vector<std::size_t> all;
  for (std::size_t cut = 1; cut < text.size(); ++cut) {
    EXPECT_TRUE(parse(form, text, {cut}) == whole) << "cut at " << cut << " of: " << text;
    all.push_back(cut);
  }
  EXPECT_TRUE(parse(form, text, all) == whole) << "byte by byte: " << text;
  return whole;
}

jinja::Value tools() {
  auto parsed = jinja::parse_json(R"([{"type": "function", "function": {"name": "book",
    "parameters": {"type": "object", "properties": {
      "city": {"type": "string"}, "days": {"type": "integer"}, "price": {"type": "number"},
      "breakfast": {"type": "boolean"}, "guests": {"type": "array", "items": {"type": "string"}},
      "options": {"type": "object"}, "note": {"type": ["string", "null"]},
      "size": {"enum": ["small", "5"]}, "level": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
      "other": {"$ref": "#/$defs/other"}, "free": {}}}}}])");
  EXPECT_TRUE(parsed);
  return *parsed;
}

AnswerForm calling(bool in_reasoning = false) {
  AnswerForm form;
  form.in_reasoning = in_reasoning;
  form.has_calls = true;
  form.tools = tools();
  return form;
}

std::string parameter(const std::string& key, const std::string& value) {
  return "<parameter=" + key + ">\n" + value + "\n</parameter>\n";
}
std::string call(const std::string& name, const std::string& parameters) {
  return "<tool_call>\n<function=" + name + ">\n" + parameters + "</function>\n</tool_call>";
}

TEST(AnswerParser, TextAloneIsUntouched) {
  AnswerForm form;
  for (const char* text :
       {"Hello", " \n Hello \n\n", "", "\n", "a < b </think> <tool_call>", "<thin"})
    EXPECT_EQ(parse_every_way(form, text).text, text);
  form.has_reasoning = false;
  EXPECT_EQ(parse_every_way(form, "<think>\nx</think>y").text, "<think>\nx</think>y");
}

TEST(AnswerParser, ReasoningNeverLeaks) {
  AnswerForm form;
  form.in_reasoning = true;
  Parsed found = parse_every_way(form, "One </thin\n\nTwo\n</think>\n\nThree </think>");
  EXPECT_EQ(found.reasoning, "One </thin\n\nTwo");
  EXPECT_EQ(found.text, "Three </think>");
  found = parse_every_way(form, "<think>\nOpened again\n</think>\nText");
  EXPECT_EQ(found.reasoning, "Opened again");
  EXPECT_EQ(found.text, "Text");
  found = parse_every_way(form, "never closed <");
  EXPECT_EQ(found.reasoning, "never closed <");
  EXPECT_EQ(found.text, "");
  form.in_reasoning = false;
  found = parse_every_way(form, "\n<think>\nItself\n</think>\n\nText");
  EXPECT_EQ(found.reasoning, "Itself");
  EXPECT_EQ(found.text, "Text");
}

TEST(AnswerParser, ACallRightBehindTheThoughts) {
  const Parsed found = parse_every_way(
      calling(true), "I need <tool_call> here.\n</think>\n\n" +
                         call("book", parameter("city", "Ulm") + parameter("days", "3")));
  EXPECT_EQ(found.reasoning, "I need <tool_call> here.");
  EXPECT_EQ(found.text, "");
  ASSERT_EQ(found.calls.size(), 1u);
  EXPECT_EQ(found.calls[0].name, "book");
  EXPECT_EQ(found.calls[0].arguments, R"({"city": "Ulm", "days": 3})");
  EXPECT_TRUE(found.calls[0].whole);
}

TEST(AnswerParser, ValuesHaveTheTypesOfTheSchema) {
  const struct {
    const char *key, *text, *json;
  } kCases[] = {
      {"city", "Ulm", R"("Ulm")"},
      {"city", "5", R"("5")"},
      {"city", "two\nlines\n", R"("two\nlines\n")"},
      {"city", "\"quoted\" \\ \t", R"("\"quoted\" \\ \t")"},
      {"city", "", R"("")"},
      {"city", "a <b> </parameter", R"("a <b> </parameter")"},
      {"city",
       "Stra\xc3\x9f"
       "burg",
       "\"Stra\xc3\x9f"
       "burg\""},
      {"days", "3", "3"},
      {"days", " 3 ", "3"},
      {"days", "three", R"("three")"},
      {"price", "-2.5e3", "-2.5e3"},
      {"price", "NaN", R"("NaN")"},
      {"breakfast", "true", "true"},
      {"breakfast", "False", "false"},
      {"guests", "[\"a\",\n \"b\"]", "[\"a\",\n \"b\"]"},
      {"guests", "[\"a\"", R"("[\"a\"")"},
      {"options", "{\"x\": {\"y\": [1]}}", "{\"x\": {\"y\": [1]}}"},
      {"note", "null", "null"},
      {"note", "nullable", R"("nullable")"},
      {"size", "5", R"("5")"},
      {"level", "None", "null"},
      {"level", "7", "7"},
      {"other", "{\"a\": 1}", "{\"a\": 1}"},
      {"other", "text", R"("text")"},
      {"free", "12", R"("12")"},
      {"unknown", "{}", R"("{}")"},
  };
  for (const auto& each : kCases) {
    const Parsed found = parse_every_way(calling(), call("book", parameter(each.key, each.text)));
    ASSERT_EQ(found.calls.size(), 1u) << each.key;
    EXPECT_EQ(found.calls[0].arguments, "{\"" + std::string(each.key) + "\": " + each.json + "}");
    EXPECT_TRUE(Json::accept(found.calls[0].arguments)) << found.calls[0].arguments;
  }
}

TEST(AnswerParser, SeveralCallsAndTextAround) {
  const std::string text = "I will look.\n\n" + call("book", "") + "\n" +
                           call("find", parameter("q", "x") + parameter("q", "y")) + "\nDone.";
  Parsed found = parse_every_way(calling(), text);
  EXPECT_EQ(found.text, "I will look.Done.");
  ASSERT_EQ(found.calls.size(), 2u);
  EXPECT_EQ(found.calls[0].arguments, "{}");
  EXPECT_EQ(found.calls[1].name, "find");
  EXPECT_EQ(found.calls[1].arguments, R"({"q": "x"})");
  AnswerForm one = calling();
  one.max_calls = 1;
  found = parse_every_way(one, text);
  EXPECT_EQ(found.text, "I will look.");
  EXPECT_EQ(found.calls.size(), 1u);
}

TEST(AnswerParser, WhatIsNoCallIsText) {
  for (const char* text :
       {"a <tool_call> b", "x\n<tool_call>\n{\"name\": 1}\n</tool_call>", "<tool_call>",
        "<tool_call>\n<function=>", "<tool_call>\n<function=a\nb>", "<tool_call>\n<func"}) {
    const Parsed found = parse_every_way(calling(), text);
    EXPECT_EQ(found.text, text);
    EXPECT_TRUE(found.calls.empty());
  }
  const std::string long_name(400, 'x');
  for (const std::string end : {"", ">", ">\n</function>\n</tool_call>"}) {
    const std::string text = "<tool_call>\n<function=" + long_name + end;
    EXPECT_EQ(parse_every_way(calling(), text).text, text);
  }
  const Parsed found =
      parse_every_way(calling(), call("book", "<parameter=" + long_name + ">\nx\n</parameter>\n"));
  EXPECT_EQ(found.calls.at(0).arguments, "{}");
}

TEST(AnswerParser, ACallThatIsCutOffIsNoJson) {
  const std::string whole = call("book", parameter("city", "Ulm") + parameter("days", "3"));
  for (std::size_t end = whole.find(">\n<parameter") + 1; end < whole.find("</function>"); ++end) {
    const Parsed found = parse(calling(), whole.substr(0, end), {});
    ASSERT_EQ(found.calls.size(), 1u);
    EXPECT_FALSE(found.calls[0].whole);
    EXPECT_FALSE(Json::accept(found.calls[0].arguments)) << found.calls[0].arguments;
  }
}

TEST(AnswerParser, LenientWhereNothingIsLost) {
  const Parsed found = parse_every_way(
      calling(), "<tool_call><function=book> so: <parameter=city>Ulm</parameter> <b> </tool_call>");
  ASSERT_EQ(found.calls.size(), 1u);
  EXPECT_EQ(found.calls[0].arguments, R"({"city": "Ulm"})");
  EXPECT_TRUE(found.calls[0].whole);
}

TEST(AnswerParser, AnyTextCutAnywhere) {
  const std::string pieces[] = {"<think>",
                                "</think>",
                                "<tool_call>",
                                "</tool_call>",
                                "<function=book>",
                                "</function>",
                                "<parameter=city>",
                                "<parameter=days>",
                                "</parameter>",
                                "\n",
                                " ",
                                "3",
                                "\"",
                                "<",
                                "text",
                                "\xc3\xa9",
                                "null",
                                "</"};
  std::mt19937 random(7);
  for (int round = 0; round < 3000; ++round) {
    std::string text;
    for (unsigned i = random() % 16; i > 0; --i) text += pieces[random() % std::size(pieces)];
    AnswerForm form = calling(random() % 2 == 0);
    form.has_calls = random() % 8 != 0;
    form.max_calls = static_cast<int>(random() % 3);
    std::vector<std::size_t> cuts;
    for (std::size_t at = 1; at < text.size(); ++at)
      if (random() % 3 == 0) cuts.push_back(at);
    const Parsed whole = parse(form, text, {});
    EXPECT_TRUE(parse(form, text, cuts) == whole) << text;
    for (const Call& each : whole.calls) EXPECT_EQ(each.whole, Json::accept(each.arguments));
  }
}

TEST(AnswerParser, ThePromptSaysWhereAnAnswerBegins) {
  EXPECT_TRUE(ends_in_reasoning("<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n<think>\n"));
  EXPECT_FALSE(ends_in_reasoning("<|im_start|>assistant\n<think>\n\n</think>\n\n"));
  EXPECT_FALSE(ends_in_reasoning("<|im_start|>user\n<think>\n<|im_end|>\n<|im_start|>assistant\n"));
  EXPECT_FALSE(ends_in_reasoning(""));
}

}  // namespace
}  // namespace tenon
