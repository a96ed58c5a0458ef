// /v1/messages: blocks of content, each opened and closed by events of its own.
#include <optional>

#include "apps/server/format.h"
#include "apps/server/json_text.h"

namespace tenon::server {
namespace {

using Kind = AnswerPiece::Kind;

enum class Block : std::uint8_t { kNone, kThinking, kText, kCall };

Block block_of(Kind kind) {
  switch (kind) {
    case Kind::kReasoning: return Block::kThinking;
    case Kind::kText: return Block::kText;
    case Kind::kCallBegin:
    case Kind::kCallArguments:
    case Kind::kCallEnd: break;
  }
  return Block::kCall;
}

std::string named_event(const char* name, const Json& data) {
  return std::string("event: ") + name + "\n" + data_event(data);
}

Json stop_fields(const Ending& end) {
  const char* reason = "end_turn";
  if (end.reason == Ending::Reason::kLength) reason = "max_tokens";
  if (end.reason == Ending::Reason::kCalls) reason = "tool_use";
  if (end.reason == Ending::Reason::kStop && !end.stop.empty()) reason = "stop_sequence";
  const bool named = std::string_view(reason) == "stop_sequence";
  return {{"stop_reason", reason}, {"stop_sequence", named ? Json(end.stop) : Json()}};
}

Json usage_json(const Usage& usage) {
  return {{"input_tokens", usage.prompt_tokens}, {"output_tokens", usage.completion_tokens}};
}

class MessagesFormat final : public Format {
 public:
  explicit MessagesFormat(AnswerHead head) : head_(std::move(head)) {}

  std::string part(const ChoicePart& part) override {
    std::string out = part.pieces.empty() && !part.end ? std::string() : begin(part.usage);
    for (const AnswerPiece& each : part.pieces) {
      if (each.kind == Kind::kCallEnd) continue;
      const Block wanted = block_of(each.kind);
      if (each.kind == Kind::kCallBegin || wanted != open_) {
        out += close();
        out += open(wanted, each);
      }
      if (each.kind == Kind::kReasoning)
        out += delta({{"type", "thinking_delta"}, {"thinking", each.text}});
      if (each.kind == Kind::kText) out += delta({{"type", "text_delta"}, {"text", each.text}});
      if (each.kind == Kind::kCallArguments)
        out += delta({{"type", "input_json_delta"}, {"partial_json", each.text}});
    }
    if (part.end) end_ = part.end;
    return out;
  }

  std::string end(const Usage& usage) override {
    std::string out = begin(usage);
    out += close();
    out += named_event("message_delta", {{"type", "message_delta"},
                                         {"delta", stop_fields(end_.value_or(Ending{}))},
                                         {"usage", usage_json(usage)}});
    return out + named_event("message_stop", {{"type", "message_stop"}});
  }

  std::string broken(const ApiError& error) override {
    return "event: error\ndata: " + error_body(Dialect::kMessages, error, head_.id) + "\n\n";
  }

  std::string whole(const std::vector<ChoicePart>& choices, const Usage& usage) override {
    const ChoicePart& all = choices.at(0);
    Json content = Json::array();
    std::string arguments;
    for (const AnswerPiece& each : all.pieces) switch (each.kind) {
        case Kind::kReasoning:
          content.push_back({{"type", "thinking"}, {"thinking", each.text}, {"signature", ""}});
          break;
        case Kind::kText: content.push_back({{"type", "text"}, {"text", each.text}}); break;
        case Kind::kCallBegin:
          arguments.clear();
          content.push_back({{"type", "tool_use"},
                             {"id", call_id("toolu", head_.id, 0, each.call)},
                             {"name", each.text},
                             {"input", Json::object()}});
          break;
        case Kind::kCallArguments: arguments += each.text; break;
        case Kind::kCallEnd:
          content.back()["input"] = Json::parse(arguments, nullptr, false);
          break;
      }
    // A call that the limit cut off has no whole input: it is no call.
    if (!content.empty() && content.back()["type"] == "tool_use" && !all.pieces.empty() &&
        all.pieces.back().kind != Kind::kCallEnd)
      content.erase(content.size() - 1);
    Json out = message(content);
    out.update(stop_fields(all.end.value_or(Ending{})));
    out["usage"] = usage_json(usage);
    return to_text(out);
  }

 private:
  Json message(Json content) const {
    return {{"id", "msg_" + head_.id},       {"type", "message"},
            {"role", "assistant"},           {"model", head_.model},
            {"content", std::move(content)}, {"stop_reason", nullptr},
            {"stop_sequence", nullptr}};
  }
  std::string begin(const Usage& usage) {
    if (std::exchange(begun_, true)) return {};
    Json first = message(Json::array());
    first["usage"] = usage_json({usage.prompt_tokens, 0, 0, {}});
    return named_event("message_start", {{"type", "message_start"}, {"message", first}});
  }
  std::string open(Block block, const AnswerPiece& piece) {
    open_ = block;
    Json content{{"type", "text"}, {"text", ""}};
    if (block == Block::kThinking)
      content = {{"type", "thinking"}, {"thinking", ""}, {"signature", ""}};
    if (block == Block::kCall)
      content = {{"type", "tool_use"},
                 {"id", call_id("toolu", head_.id, 0, piece.call)},
                 {"name", piece.text},
                 {"input", Json::object()}};
    return named_event("content_block_start", {{"type", "content_block_start"},
                                               {"index", ++index_},
                                               {"content_block", std::move(content)}});
  }
  std::string close() {
    const Block closed = std::exchange(open_, Block::kNone);
    if (closed == Block::kNone) return {};
    std::string out;
    if (closed == Block::kThinking) out = delta({{"type", "signature_delta"}, {"signature", ""}});
    return out +
           named_event("content_block_stop", {{"type", "content_block_stop"}, {"index", index_}});
  }
  std::string delta(Json what) const {
    return named_event(
        "content_block_delta",
        {{"type", "content_block_delta"}, {"index", index_}, {"delta", std::move(what)}});
  }

  const AnswerHead head_;
  bool begun_ = false;
  Block open_ = Block::kNone;
  int index_ = -1;
  std::optional<Ending> end_;
};

}  // namespace

std::unique_ptr<Format> make_messages_format(AnswerHead head) {
  return std::make_unique<MessagesFormat>(std::move(head));
}

}  // namespace tenon::server
