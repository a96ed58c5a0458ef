// A conversation to the text a model was trained on, by the checkpoint's own template.
// What does not live here: the template language (jinja/template.h), reading answers back.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tenon/core/status.h"
#include "tenon/text/jinja/template.h"

namespace tenon {

// One message as an OpenAI-shaped request has it.
struct ChatMessage {
  std::string role;  // "system", "user", "assistant", "tool"
  std::string content;
  // Further members the template may look at: "reasoning_content", "tool_calls", … A "content" here
  // wins over the text above (lists of parts).
  std::vector<std::pair<std::string, jinja::Value>> more;
};

struct ChatOptions {
  bool add_generation_prompt = true;
  // Left out: the template decides.
  std::optional<bool> enable_thinking;
  // Further variables of the template, by name.
  std::vector<std::pair<std::string, jinja::Value>> more;
  jinja::RenderOptions render;
};

// Immutable and safe to share between threads.
class ChatTemplate {
 public:
  // Reads chat_template.jinja in `directory`, or else "chat_template" of tokenizer_config.json.
  // Special tokens named in tokenizer_config.json become variables (eos_token, …).
  static Result<ChatTemplate> load(const std::string& directory);
  static Result<ChatTemplate> parse(std::string_view source);

  // `tools` is a list of tool definitions, or none. What the template raises (no user message,
  // unknown role, …) comes back as kInvalidArgument.
  Result<std::string> render(const std::vector<ChatMessage>& messages,
                             const jinja::Value& tools = {}, const ChatOptions& options = {}) const;
  // The same for messages that are values already: a list of dicts.
  Result<std::string> render_values(const jinja::Value& messages, const jinja::Value& tools = {},
                                    const ChatOptions& options = {}) const;

 private:
  explicit ChatTemplate(jinja::Template parsed) : template_(std::move(parsed)) {}
  jinja::Template template_;
  jinja::Value::Pairs special_tokens_;
};

}  // namespace tenon
