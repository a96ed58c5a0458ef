#include "tenon/text/chat_template.h"

#include <filesystem>
#include <optional>

#include "tenon/core/file.h"

namespace tenon {
namespace {

using jinja::Value;

// Nothing when the file does not exist.
Result<std::optional<std::string>> read_if_there(const std::string& path) {
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return std::optional<std::string>();
  TENON_ASSIGN(std::string text, read_text(path));
  return std::optional<std::string>(std::move(text));
}

// "eos_token": "x" or "eos_token": {"content": "x", …}.
Value::Pairs special_tokens(const Value& config) {
  Value::Pairs tokens;
  if (!config.is_dict()) return tokens;
  for (const char* name : {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token",
                           "cls_token", "mask_token"}) {
    const Value* token = config.find(name);
    if (token && token->is_dict()) token = token->find("content");
    if (token && token->is_string()) tokens.emplace_back(name, *token);
  }
  return tokens;
}

// A template, or a list of {"name", "template"} of which "default" is taken.
const Value* template_in(const Value& config) {
  const Value* found = config.find("chat_template");
  if (!found || !found->is_list()) return found;
  for (const Value& one : found->items()) {
    const Value* name = one.find("name");
    if (name && name->is_string() && name->as_string() == "default") return one.find("template");
  }
  return nullptr;
}

}  // namespace

Result<ChatTemplate> ChatTemplate::parse(std::string_view source) {
  TENON_ASSIGN(auto parsed, jinja::Template::parse(source), "chat template");
  return ChatTemplate(std::move(parsed));
}

Result<ChatTemplate> ChatTemplate::load(const std::string& directory) {
  TENON_ASSIGN(const auto source, read_if_there(directory + "/chat_template.jinja"));
  TENON_ASSIGN(const auto config_text, read_if_there(directory + "/tokenizer_config.json"));
  Value config;
  if (config_text) {
    TENON_ASSIGN(config, jinja::parse_json(*config_text), directory + "/tokenizer_config.json");
  }
  const Value* inside = template_in(config);
  if (!source && (!inside || !inside->is_string()))
    return Status::error(Code::kIo, directory +
                                        " has no chat template: neither chat_template.jinja nor "
                                        "\"chat_template\" in tokenizer_config.json");
  auto made = parse(source ? *source : inside->as_string());
  if (!made) return made.status().with(directory);
  made->special_tokens_ = special_tokens(config);
  return made;
}

Result<std::string> ChatTemplate::render(const std::vector<ChatMessage>& messages,
                                         const Value& tools, const ChatOptions& options) const {
  Value::Items list;
  for (const ChatMessage& message : messages) {
    Value::Pairs pairs = {{"role", message.role}, {"content", message.content}};
    for (const auto& [name, value] : message.more) pairs.emplace_back(name, value);
    list.push_back(Value::dict(std::move(pairs)));
  }
  return render_values(Value::list(std::move(list)), tools, options);
}

Result<std::string> ChatTemplate::render_values(const Value& messages, const Value& tools,
                                                const ChatOptions& options) const {
  if (!messages.is_list())
    return Status::error(Code::kInvalidArgument, "chat template: messages must be a list");
  Value::Pairs variables = special_tokens_;
  variables.emplace_back("messages", messages);
  variables.emplace_back("tools", tools);
  variables.emplace_back("documents", Value());
  variables.emplace_back("add_generation_prompt", options.add_generation_prompt);
  if (options.enable_thinking) variables.emplace_back("enable_thinking", *options.enable_thinking);
  for (const auto& [name, value] : options.more) variables.emplace_back(name, value);
  auto text = template_.render(Value::dict(std::move(variables)), options.render);
  if (!text) return text.status().with("chat template");
  return text;
}

}  // namespace tenon
