// Chat completions and completions.
#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "apps/server/format.h"
#include "apps/server/json_text.h"

namespace tenon::server {
namespace {

using Kind = AnswerPiece::Kind;

Json usage_json(const Usage& usage) {
  Json out{{"prompt_tokens", usage.prompt_tokens},
           {"completion_tokens", usage.completion_tokens},
           {"total_tokens", usage.prompt_tokens + usage.completion_tokens}};
  out["prompt_tokens_details"] = {{"cached_tokens", usage.cached_tokens}};
  if (usage.reasoning_tokens)
    out["completion_tokens_details"] = {{"reasoning_tokens", *usage.reasoning_tokens}};
  return out;
}

const char* reason_text(const Ending& end) {
  switch (end.reason) {
    case Ending::Reason::kStop: return "stop";
    case Ending::Reason::kLength: return "length";
    case Ending::Reason::kCalls: return "tool_calls";
  }
  return "stop";
}

Json stop_json(const Ending& end) { return end.stop.empty() ? Json() : Json(end.stop); }

Json bytes_json(const std::string& bytes) {
  Json out = Json::array();
  for (const char c : bytes) out.push_back(static_cast<unsigned char>(c));
  return out;
}

// Of a list that may be longer, because somebody else wants more of it.
std::size_t shown(const ToldToken& token, int most) {
  return std::min(token.likeliest.size(), static_cast<std::size_t>(std::max(most, 0)));
}

// As vLLM has it: null, then for each token the likeliest and itself by id, with their ranks. A
// rank is null where the logits hold no number.
Json prompt_logprobs_json(const std::vector<ToldToken>& told, int likeliest) {
  Json out = Json::array();
  for (const ToldToken& each : told) {
    if (!each.logprob) {
      out.push_back(nullptr);
      continue;
    }
    Json one = Json::object();
    one[std::to_string(each.id)] = {{"logprob", finite(*each.logprob)},
                                    {"rank", each.rank > 0 ? Json(each.rank) : Json()},
                                    {"decoded_token", each.bytes}};
    for (std::size_t i = 0; i < shown(each, likeliest); ++i) {
      const auto& [id, bytes, logprob] = each.likeliest[i];
      if (id != each.id)
        one[std::to_string(id)] = {
            {"logprob", finite(logprob)}, {"rank", i + 1}, {"decoded_token", bytes}};
    }
    out.push_back(std::move(one));
  }
  return out;
}

Json chat_token(const std::string& bytes, float logprob) {
  return {{"token", bytes}, {"logprob", finite(logprob)}, {"bytes", bytes_json(bytes)}};
}

Json chat_logprobs(const std::vector<ToldToken>& told) {
  Json content = Json::array();
  for (const ToldToken& each : told) {
    Json one = chat_token(each.bytes, each.logprob.value_or(0));
    one["top_logprobs"] = Json::array();
    for (const auto& [id, bytes, logprob] : each.likeliest)
      one["top_logprobs"].push_back(chat_token(bytes, logprob));
    content.push_back(std::move(one));
  }
  return {{"content", std::move(content)}};
}

// `offset`: characters in front of the first token; moved behind the last.
Json completion_logprobs(const std::vector<ToldToken>& told, int likeliest, std::size_t& offset) {
  Json out{{"tokens", Json::array()},
           {"token_logprobs", Json::array()},
           {"top_logprobs", Json::array()},
           {"text_offset", Json::array()}};
  for (const ToldToken& each : told) {
    out["tokens"].push_back(each.bytes);
    Json top, own;
    if (each.logprob) {
      own = finite(*each.logprob);
      top[each.bytes] = own;
      for (std::size_t i = 0; i < shown(each, likeliest); ++i)
        top[each.likeliest[i].bytes] = finite(each.likeliest[i].logprob);
    }
    out["token_logprobs"].push_back(std::move(own));
    out["top_logprobs"].push_back(std::move(top));
    out["text_offset"].push_back(offset);
    offset += static_cast<std::size_t>(std::count_if(each.bytes.begin(), each.bytes.end(),
                                                     [](char c) { return (c & 0xC0) != 0x80; }));
  }
  return out;
}

class OpenAiFormat final : public Format {
 public:
  OpenAiFormat(bool chat, AnswerHead head)
      : chat_(chat),
        head_(std::move(head)),
        chunk_begin_(begin_object(chat ? "chat.completion.chunk" : "text_completion")) {}

  std::string part(const ChoicePart& part) override {
    if (!chat_) return completion_part(part);
    std::string out;
    Json delta = chat_delta(part);
    keep(part);
    const bool seen = !delta.empty() || (head_.return_ids && !part.tokens.empty());
    if (!seen && !part.end) return out;
    const bool first = begun_.insert(part.index).second;
    Json said = first ? Json{{"role", "assistant"}} : Json::object();
    if (first && !delta.contains("content")) said["content"] = "";
    said.update(delta);
    if (seen || first) out += event(choice(part, "delta", to_text(said), nullptr), part);
    if (part.end) out += event(choice(part, "delta", "{}", &*part.end), part);
    return out;
  }

  std::string end(const Usage& usage) override {
    std::string out;
    if (head_.include_usage)
      out = "data: " + chunk_begin_ + "],\"usage\":" + to_text(usage_json(usage)) + "}\n\n";
    return out + "data: [DONE]\n\n";
  }

  std::string broken(const ApiError& error) override {
    return "data: " + error_body(Dialect::kChat, error, head_.id) + "\n\ndata: [DONE]\n\n";
  }

  std::string whole(const std::vector<ChoicePart>& choices, const Usage& usage) override {
    std::string out = begin_object(chat_ ? "chat.completion" : "text_completion");
    for (const ChoicePart& each : choices) {
      keep(each);
      const Json value = chat_ ? message_of(each) : Json(text_of(each));
      if (&each != &choices.front()) out += ',';
      out += choice(each, chat_ ? "message" : "text", to_text(value), &each.end.value());
    }
    out += "],\"usage\":" + to_text(usage_json(usage));
    if (head_.return_ids && chat_)
      out += ",\"prompt_token_ids\":" + to_text(Json(head_.prompts.at(0)));
    if (head_.shows_prompt_logprobs && chat_)
      out += ",\"prompt_logprobs\":" +
             to_text(prompt_logprobs_json(choices.at(0).prompt_told, head_.prompt_likeliest));
    return out + '}';
  }

 private:
  // Up to the first of its choices. Put together as text, as the choices are: a stream has an
  // object for every token.
  std::string begin_object(const char* kind) const {
    const Json head{{"id", (chat_ ? "chatcmpl-" : "cmpl-") + head_.id},
                    {"object", kind},
                    {"created", head_.created},
                    {"model", head_.model}};
    std::string out = to_text(head);
    out.pop_back();
    return out + ",\"choices\":[";
  }

  // `value`: the JSON of what stands under `key`.
  std::string choice(const ChoicePart& part, const char* key, const std::string& value,
                     const Ending* end) {
    std::string out = "{\"index\":" + std::to_string(part.index) + ",\"" + key + "\":" + value;
    Untold& untold = untold_[part.index];
    out += ",\"logprobs\":";
    if (untold.told.empty()) {
      out += "null";
    } else {
      const auto told = std::exchange(untold.told, {});
      out += to_text(chat_ ? chat_logprobs(told)
                           : completion_logprobs(told, head_.told_likeliest, untold.offset));
    }
    if (head_.shows_prompt_logprobs && !chat_)
      out += ",\"prompt_logprobs\":" +
             to_text(prompt_logprobs_json(part.prompt_told, head_.prompt_likeliest));
    out += ",\"finish_reason\":";
    out += end == nullptr ? "null" : '"' + std::string(reason_text(*end)) + '"';
    if (end != nullptr) out += ",\"stop_reason\":" + to_text(stop_json(*end));
    if (head_.return_ids) {
      out += ",\"token_ids\":" + to_text(Json(std::exchange(untold.tokens, {})));
      if (!chat_ && told_prompts_.insert(part.index).second)
        out += ",\"prompt_token_ids\":" +
               to_text(Json(head_.prompts.at(part.index / static_cast<std::size_t>(head_.n))));
    }
    return out + '}';
  }

  std::string event(const std::string& choice, const ChoicePart& part) {
    std::string out = "data: " + chunk_begin_ + choice + ']';
    if (head_.continuous_usage) out += ",\"usage\":" + to_text(usage_json(part.usage));
    return out + "}\n\n";
  }

  std::string completion_part(const ChoicePart& part) {
    const std::string text = text_of(part);
    keep(part);
    const bool seen = !text.empty() || (head_.return_ids && !part.tokens.empty());
    if (!seen && !part.end) return {};
    return event(choice(part, "text", to_text(Json(text)), part.end ? &*part.end : nullptr), part);
  }

  static std::string text_of(const ChoicePart& part) {
    std::string text;
    for (const AnswerPiece& each : part.pieces) text += each.text;
    return text;
  }

  // At most one entry for each call.
  Json chat_delta(const ChoicePart& part) {
    Json delta = Json::object();
    std::string thoughts, text;
    Json calls = Json::array();
    for (const AnswerPiece& each : part.pieces) {
      switch (each.kind) {
        case Kind::kReasoning: thoughts += each.text; break;
        case Kind::kText: text += each.text; break;
        case Kind::kCallBegin:
          calls.push_back({{"index", each.call},
                           {"id", call_id("call", head_.id, part.index, each.call)},
                           {"type", "function"},
                           {"function", {{"name", each.text}, {"arguments", ""}}}});
          break;
        case Kind::kCallArguments: {
          if (calls.empty() || calls.back()["index"] != each.call)
            calls.push_back({{"index", each.call}, {"function", {{"arguments", ""}}}});
          auto& arguments = calls.back()["function"]["arguments"].get_ref<std::string&>();
          arguments += each.text;
          break;
        }
        case Kind::kCallEnd: break;
      }
    }
    if (!thoughts.empty()) delta["reasoning_content"] = delta["reasoning"] = thoughts;
    if (!text.empty()) delta["content"] = text;
    if (!calls.empty()) delta["tool_calls"] = std::move(calls);
    return delta;
  }

  Json message_of(const ChoicePart& all) {
    Json said = chat_delta(all);
    Json message{{"role", "assistant"}};
    // Null only where the answer is calls alone.
    message["content"] = said.contains("content")      ? said["content"]
                         : said.contains("tool_calls") ? Json()
                                                       : Json("");
    if (said.contains("reasoning_content"))
      message["reasoning_content"] = message["reasoning"] = said["reasoning_content"];
    if (said.contains("tool_calls")) {
      message["tool_calls"] = said["tool_calls"];
      for (Json& each : message["tool_calls"]) each.erase("index");
    }
    return message;
  }

  // Tokens without an event so far.
  struct Untold {
    std::vector<std::int32_t> tokens;
    std::vector<ToldToken> told;
    std::size_t offset = 0;  // characters of tokens that had one
  };
  void keep(const ChoicePart& part) {
    Untold& untold = untold_[part.index];
    untold.tokens.insert(untold.tokens.end(), part.tokens.begin(), part.tokens.end());
    if (head_.echo && head_.told_likeliest >= 0)
      untold.told.insert(untold.told.end(), part.prompt_told.begin(), part.prompt_told.end());
    untold.told.insert(untold.told.end(), part.told.begin(), part.told.end());
  }

  const bool chat_;
  const AnswerHead head_;
  const std::string chunk_begin_;
  std::set<std::size_t> begun_, told_prompts_;
  std::map<std::size_t, Untold> untold_;
};

}  // namespace

std::unique_ptr<Format> make_openai_format(Dialect dialect, AnswerHead head) {
  return std::make_unique<OpenAiFormat>(dialect == Dialect::kChat, std::move(head));
}

}  // namespace tenon::server
