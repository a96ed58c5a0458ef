// Requests of the server to what they ask for, and answers to what is written: what the tiny model
// of the tests on the wire never says, above all calls of tools.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "apps/server/format.h"
#include "apps/server/metrics.h"
#include "apps/server/requests.h"

namespace tenon::server {
namespace {

using Json = nlohmann::json;
using Kind = AnswerPiece::Kind;

ApiRequest must_parse(Dialect dialect, const std::string& body) {
  auto parsed = parse_request(dialect, body, {});
  if (const auto* error = std::get_if<ApiError>(&parsed)) {
    ADD_FAILURE() << error->message << " of " << body;
    return {};
  }
  return std::get<ApiRequest>(std::move(parsed));
}

const serve::ChatPrompt& chat_of(const ApiRequest& request) {
  return std::get<serve::ChatPrompt>(request.prompts.at(0));
}

std::string more(const ChatMessage& message, const std::string& name) {
  for (const auto& [key, value] : message.more)
    if (key == name) return *jinja::to_json(value);
  return {};
}

TEST(ServerRequests, ConversationsOfBothKindsBecomeTheSame) {
  const ApiRequest chat = must_parse(Dialect::kChat, R"({"messages": [
      {"role": "system", "content": "Be brief."},
      {"role": "user", "content": [{"type": "text", "text": "5 + "}, {"type": "text", "text": "3?"}]},
      {"role": "assistant", "content": "Let me see.", "reasoning_content": "Use it.", "tool_calls":
        [{"id": "a", "type": "function", "function": {"name": "add", "arguments": "{\"z\": 5, \"a\": 3}"}}]},
      {"role": "tool", "tool_call_id": "a", "content": "8"}],
    "tools": [{"type": "function", "function": {"name": "add", "description": "Adds.",
      "parameters": {"type": "object", "properties": {"z": {"type": "integer"}}}}}],
    "enable_thinking": true})");
  const ApiRequest messages = must_parse(Dialect::kMessages, R"({"max_tokens": 9,
    "system": [{"type": "text", "text": "Be brief."}], "messages": [
      {"role": "user", "content": "5 + 3?"},
      {"role": "assistant", "content": [{"type": "thinking", "thinking": "Use it.", "signature": ""},
        {"type": "text", "text": "Let me see."},
        {"type": "tool_use", "id": "a", "name": "add", "input": {"z": 5, "a": 3}}]},
      {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "8"}]}],
    "tools": [{"name": "add", "description": "Adds.",
      "input_schema": {"type": "object", "properties": {"z": {"type": "integer"}}}}],
    "thinking": {"type": "enabled", "budget_tokens": 1024}})");
  const auto &one = chat_of(chat), &other = chat_of(messages);
  ASSERT_EQ(one.messages.size(), 4u);
  ASSERT_EQ(other.messages.size(), 4u);
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(one.messages[i].role, other.messages[i].role);
    EXPECT_EQ(one.messages[i].content, other.messages[i].content);
    for (const char* name : {"reasoning_content", "tool_calls", "tool_call_id"})
      EXPECT_EQ(more(one.messages[i], name), more(other.messages[i], name)) << name;
  }
  // An object, in the order in which it was written.
  EXPECT_NE(more(one.messages[2], "tool_calls").find(R"("arguments": {"z": 5, "a": 3})"),
            std::string::npos);
  EXPECT_EQ(*jinja::to_json(one.tools), *jinja::to_json(other.tools));
  EXPECT_EQ(one.options.enable_thinking, true);
  EXPECT_EQ(other.options.enable_thinking, true);
  EXPECT_TRUE(chat.form.has_calls && messages.form.has_calls && chat.form.has_reasoning);
}

TEST(ServerRequests, ResultsOfToolsComeBeforeWhatTheUserSays) {
  const ApiRequest request = must_parse(Dialect::kMessages, R"({"max_tokens": 9, "messages": [
      {"role": "user", "content": [{"type": "text", "text": "And now?"},
        {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "8"}]},
        {"type": "tool_result", "tool_use_id": "b"}]}]})");
  const auto& messages = chat_of(request).messages;
  ASSERT_EQ(messages.size(), 3u);
  EXPECT_EQ(messages[0].role + messages[1].role + messages[2].role, "tooltooluser");
  EXPECT_EQ(messages[0].content, "8");
  EXPECT_EQ(messages[2].content, "And now?");
  EXPECT_EQ(chat_of(request).options.enable_thinking, false);  // as the API has it where unsaid
}

TEST(ServerRequests, DefaultsAndChoices) {
  ApiDefaults defaults;
  defaults.sampling.temperature = 0.5f;
  defaults.sampling.top_k = 20;
  auto parsed = parse_request(Dialect::kCompletion,
                              R"({"prompt": ["a", "b"], "n": 3, "top_k": -1})", defaults);
  const auto& request = std::get<ApiRequest>(parsed);
  EXPECT_EQ(request.sampling.temperature, 0.5f);
  EXPECT_EQ(request.sampling.top_k, 0);
  EXPECT_EQ(request.max_tokens, 16);
  EXPECT_EQ(request.choices(), 6u);
  EXPECT_FALSE(must_parse(Dialect::kChat, R"({"messages": [{"role": "user", "content": "x"}]})")
                   .max_tokens.has_value());
  const ApiRequest one =
      must_parse(Dialect::kChat, R"({"messages": [{"role": "user", "content": "x"}],
      "tools": [{"type": "function", "function": {"name": "f"}}], "parallel_tool_calls": false,
      "reasoning_effort": "none", "stop": ["", "a"]})");
  EXPECT_EQ(one.form.max_calls, 1);
  EXPECT_EQ(chat_of(one).options.enable_thinking, false);
  EXPECT_EQ(one.stops, std::vector<std::string>{"a"});
}

// ---- answers ----

ChoicePart part(std::vector<AnswerPiece> pieces, std::optional<Ending> end = {}) {
  ChoicePart made;
  made.pieces = std::move(pieces);
  made.tokens = {1};
  made.end = std::move(end);
  made.usage = {10, 5, 0, 2};
  return made;
}

std::vector<AnswerPiece> call_pieces() {
  return {{Kind::kReasoning, "Use it.", -1},
          {Kind::kText, "Let me see.", -1},
          {Kind::kCallBegin, "add", 0},
          {Kind::kCallArguments, "{\"a\": ", 0},
          {Kind::kCallArguments, "5}", 0},
          {Kind::kCallEnd, "", 0},
          {Kind::kCallBegin, "now", 1},
          {Kind::kCallArguments, "{}", 1},
          {Kind::kCallEnd, "", 1}};
}

AnswerHead head() { return {"id.1", "tiny", 1000}; }

// The JSON of each event.
std::vector<Json> events_of(const std::string& text) {
  std::vector<Json> events;
  for (std::size_t at = 0; (at = text.find("data: ", at)) != std::string::npos;) {
    const std::size_t end = text.find("\n\n", at);
    const std::string data = text.substr(at + 6, end - at - 6);
    if (data != "[DONE]") events.push_back(Json::parse(data));
    at = end;
  }
  return events;
}

TEST(ServerFormat, ChatCallsWhole) {
  const Json answer = Json::parse(
      make_format(Dialect::kChat, head())
          ->whole({part(call_pieces(), Ending{Ending::Reason::kCalls, {}})}, {10, 5, 0, 2}));
  const Json& choice = answer["choices"][0];
  EXPECT_EQ(choice["finish_reason"], "tool_calls");
  EXPECT_EQ(choice["message"]["content"], "Let me see.");
  EXPECT_EQ(choice["message"]["reasoning_content"], "Use it.");
  const Json& calls = choice["message"]["tool_calls"];
  ASSERT_EQ(calls.size(), 2u);
  EXPECT_EQ(calls[0], Json::parse(R"({"id": "call_id_1_0_0", "type": "function",
                                      "function": {"name": "add", "arguments": "{\"a\": 5}"}})"));
  EXPECT_EQ(calls[1]["function"]["name"], "now");
  EXPECT_EQ(answer["usage"]["completion_tokens_details"]["reasoning_tokens"], 2);
  const auto alone = std::vector<AnswerPiece>{{Kind::kCallBegin, "now", 0}};
  const Json null =
      Json::parse(make_format(Dialect::kChat, head())
                      ->whole({part(alone, Ending{Ending::Reason::kLength, {}})}, {}));
  EXPECT_TRUE(null["choices"][0]["message"]["content"].is_null());
}

// What clients put together from a stream is what they would have got whole, whatever comes
// together.
TEST(ServerFormat, ChatCallsStreamed) {
  for (const bool together : {true, false}) {
    auto format = make_format(Dialect::kChat, head());
    std::string text;
    if (together) {
      text += format->part(part(call_pieces()));
    } else {
      for (const AnswerPiece& each : call_pieces()) text += format->part(part({each}));
    }
    text += format->part(part({}, Ending{Ending::Reason::kCalls, {}}));
    text += format->end({});
    std::string content, thoughts, last;
    std::vector<Json> calls;
    for (const Json& event : events_of(text)) {
      const Json& delta = event["choices"][0]["delta"];
      content += delta.value("content", "");
      thoughts += delta.value("reasoning_content", "");
      const Json some = delta.value("tool_calls", Json::array());
      for (const Json& each : some) {
        const auto index = each["index"].get<std::size_t>();
        if (index == calls.size()) {
          EXPECT_FALSE(each["id"].empty());
          calls.push_back(each["function"]);
        } else {
          EXPECT_EQ(index + 1, calls.size());
          EXPECT_FALSE(each.contains("id"));
          calls[index]["arguments"] = calls[index]["arguments"].get<std::string>() +
                                      each["function"]["arguments"].get<std::string>();
        }
      }
      if (!event["choices"][0]["finish_reason"].is_null())
        last = event["choices"][0]["finish_reason"];
    }
    EXPECT_EQ(content, "Let me see.");
    EXPECT_EQ(thoughts, "Use it.");
    ASSERT_EQ(calls.size(), 2u);
    EXPECT_EQ(calls[0], Json::parse(R"({"name": "add", "arguments": "{\"a\": 5}"})"));
    EXPECT_EQ(calls[1], Json::parse(R"({"name": "now", "arguments": "{}"})"));
    EXPECT_EQ(last, "tool_calls");
  }
}

TEST(ServerFormat, MessagesCalls) {
  const Json whole = Json::parse(
      make_format(Dialect::kMessages, head())
          ->whole({part(call_pieces(), Ending{Ending::Reason::kCalls, {}})}, {10, 5, 0, 2}));
  EXPECT_EQ(whole["stop_reason"], "tool_use");
  ASSERT_EQ(whole["content"].size(), 4u);
  EXPECT_EQ(whole["content"][2], Json::parse(R"({"type": "tool_use", "id": "toolu_id_1_0_0",
                                                 "name": "add", "input": {"a": 5}})"));
  auto format = make_format(Dialect::kMessages, head());
  std::string text;
  for (const AnswerPiece& each : call_pieces()) text += format->part(part({each}));
  text += format->part(part({}, Ending{Ending::Reason::kCalls, {}}));
  text += format->end({10, 5, 0, 2});
  std::string kinds, arguments;
  int open = -1, blocks = 0;
  for (const Json& event : events_of(text)) {
    const std::string type = event["type"];
    if (type == "content_block_start") {
      EXPECT_EQ(open, -1) << "two blocks are open";
      EXPECT_EQ(event["index"], blocks++);
      open = event["index"];
      kinds += event["content_block"]["type"].get<std::string>() + " ";
    }
    if (type == "content_block_delta") {
      EXPECT_EQ(event["index"], open);
      arguments += event["delta"].value("partial_json", "");
    }
    if (type == "content_block_stop") {
      EXPECT_EQ(event["index"], open);
      open = -1;
    }
    if (type == "message_delta") {
      EXPECT_EQ(event["delta"]["stop_reason"], "tool_use");
    }
  }
  EXPECT_EQ(open, -1);
  EXPECT_EQ(kinds, "thinking text tool_use tool_use ");
  EXPECT_EQ(arguments, "{\"a\": 5}{}");
  auto cut = call_pieces();
  cut.resize(4);  // inside the first call
  const Json half = Json::parse(make_format(Dialect::kMessages, head())
                                    ->whole({part(cut, Ending{Ending::Reason::kLength, {}})}, {}));
  EXPECT_EQ(half["content"].size(), 2u);
  EXPECT_EQ(half["stop_reason"], "max_tokens");
}

TEST(ServerFormat, BrokenTextIsStillUtf8) {
  const auto text = make_format(Dialect::kCompletion, head())
                        ->whole({part({{Kind::kText, "a\xff", -1}}, Ending{})}, {});
  EXPECT_EQ(Json::parse(text)["choices"][0]["text"], "a\xef\xbf\xbd");
}

TEST(ServerMetrics, HistogramsAddUp) {
  Histogram histogram;
  for (const double seconds : {0.0005, 0.001, 0.3, 99999.0}) histogram.observe(seconds);
  histogram.observe(0.002, 5);
  const std::string text = histogram.text("x", "Help.", "a=\"b\"");
  EXPECT_NE(text.find("x_bucket{a=\"b\",le=\"0.001\"} 2\n"), std::string::npos) << text;
  EXPECT_NE(text.find("x_bucket{a=\"b\",le=\"0.0025\"} 7\n"), std::string::npos);
  EXPECT_NE(text.find("x_bucket{a=\"b\",le=\"2560\"} 8\n"), std::string::npos);
  EXPECT_NE(text.find("x_bucket{a=\"b\",le=\"+Inf\"} 9\n"), std::string::npos);
  EXPECT_NE(text.find("x_count{a=\"b\"} 9\n"), std::string::npos);
}

}  // namespace
}  // namespace tenon::server
