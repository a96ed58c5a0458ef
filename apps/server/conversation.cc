// Conversations in the words of chat completions and of /v1/messages, to what a template gets.
#include <algorithm>
#include <utility>

#include "apps/server/answer_rules.h"
#include "apps/server/requests.h"

namespace tenon::server {
namespace {

using jinja::Value;

std::string text_of(const Value* value) {
  return value != nullptr && value->is_string() ? value->as_string() : std::string();
}

const Value* member(const Value& object, const char* name) {
  const Value* found = object.is_dict() ? object.find(name) : nullptr;
  return found == nullptr || found->is_none() ? nullptr : found;
}

// A text, or a list of parts that are texts, put together. Nothing where there is something else.
bool read_content(const Fields& fields, const std::string& where, const Value* content,
                  std::string& out) {
  if (content == nullptr) return true;
  if (content->is_string()) {
    out += content->as_string();
    return true;
  }
  if (!content->is_list()) {
    fields.fail(where, "is " + std::string(kind_name(*content)) +
                           "; accepted are a string and a list of text parts");
    return false;
  }
  for (const Value& part : content->items()) {
    if (const Value* type = member(part, "type"); type != nullptr && !type->is_string()) {
      fields.fail(where, "holds a part whose type is " + shown(*type) + "; accepted is a string");
      return false;
    }
    const std::string type = text_of(member(part, "type"));
    const Value* text = member(part, type == "refusal" ? "refusal" : "text");
    if (part.is_string()) {
      out += part.as_string();
    } else if ((type == "text" || type == "input_text" || type == "refusal" || type.empty()) &&
               text != nullptr && text->is_string()) {
      out += text->as_string();
    } else {
      fields.fail(where, "holds a part of type \"" + type.substr(0, 40) +
                             "\"; accepted are text parts: this server reads text only");
      return false;
    }
  }
  return true;
}

// Templates walk over the arguments of a call: a JSON text becomes the object that it holds.
Value arguments_of(const Value* arguments) {
  if (arguments == nullptr) return Value::dict({});
  if (!arguments->is_string()) return *arguments;
  if (arguments->as_string().empty()) return Value::dict({});
  auto parsed = jinja::parse_json(arguments->as_string());
  return parsed && parsed->is_dict() ? *std::move(parsed) : *arguments;
}

Value call_value(const std::string& id, const std::string& name, Value arguments) {
  return Value::dict({{"id", id},
                      {"type", "function"},
                      {"function", Value::dict({{"name", name}, {"arguments", arguments}})}});
}

bool read_calls(const Fields& fields, const std::string& where, const Value& calls,
                ChatMessage& message) {
  Value::Items out;
  if (calls.is_list())
    for (const Value& each : calls.items()) {
      const Value* function = member(each, "function");
      const std::string name = function == nullptr ? "" : text_of(member(*function, "name"));
      if (name.empty()) {
        fields.fail(where, "holds something else; accepted are calls with function.name");
        return false;
      }
      out.push_back(call_value(text_of(member(each, "id")), name,
                               arguments_of(member(*function, "arguments"))));
    }
  else
    fields.fail(where, "is " + std::string(kind_name(calls)) + "; accepted is a list");
  if (!out.empty()) message.more.emplace_back("tool_calls", Value::list(std::move(out)));
  return fields.ok();
}

void read_message(const Fields& fields, const std::string& where, const Value& from,
                  std::vector<ChatMessage>& out) {
  ChatMessage message;
  message.role = text_of(member(from, "role"));
  if (message.role.empty()) return fields.fail(where, "has no \"role\" that is a string");
  if (message.role == "developer") message.role = "system";
  if (!read_content(fields, where + ".content", member(from, "content"), message.content)) return;
  const Fields inside = fields.inside(from, (where + ".").c_str());
  const auto add_text = [&](const char* name, const char* as) {
    std::string text;
    inside.text(name, text);
    if (inside.find(name) != nullptr) message.more.emplace_back(as, text);
  };
  const bool is_long = inside.find("reasoning_content") != nullptr;
  add_text(is_long ? "reasoning_content" : "reasoning", "reasoning_content");
  for (const char* name : {"name", "tool_call_id"}) add_text(name, name);
  if (const Value* calls = member(from, "tool_calls"))
    if (!read_calls(fields, where + ".tool_calls", *calls, message)) return;
  out.push_back(std::move(message));
}

// The messages, one by one; `read` gets each with its place.
template <class Read>
void for_each_message(const Fields& fields, Read read) {
  if (fields.need("messages") == nullptr) return;
  const Value* list = fields.list("messages");
  if (list == nullptr) return;
  if (list->items().empty()) return fields.fail("messages", "is empty; accepted is at least 1");
  for (std::size_t i = 0; i < list->items().size() && fields.ok(); ++i) {
    const Value& each = list->items()[i];
    const std::string where = "messages[" + std::to_string(i) + "]";
    if (!each.is_dict())
      return fields.fail(where, "is " + std::string(kind_name(each)) + "; accepted is an object");
    read(where, each);
  }
}

// What a tool may say of its parameters: an object, or nothing.
bool is_schema(const Value* parameters) { return parameters == nullptr || parameters->is_dict(); }

void set_tools(ApiRequest& request, serve::ChatPrompt& prompt, Value tools) {
  prompt.tools = tools;
  request.form.tools = std::move(tools);
  request.form.has_calls = true;
}

// "none" switches thinking off; other names are tried on the template when it is rendered.
void set_effort(ApiRequest& request, serve::ChatPrompt& prompt, const std::string& effort) {
  if (effort == "none") {
    prompt.options.enable_thinking = false;
  } else {
    request.effort = effort;
  }
}

void read_tools(const Fields& fields, ApiRequest& request, serve::ChatPrompt& prompt) {
  const Value* tools = fields.list("tools");
  if (tools != nullptr)
    for (const Value& each : tools->items()) {
      const Value* function = member(each, "function");
      if (text_of(member(each, "type")) != "function" || function == nullptr ||
          text_of(member(*function, "name")).empty() || !is_schema(member(*function, "parameters")))
        return fields.fail("tools",
                           "holds something else; accepted are {\"type\": \"function\", "
                           "\"function\": {\"name\": …, \"parameters\": {…}}}");
    }
  const ToolChoice choice = read_tool_choice(fields);
  bool parallel = true;
  fields.boolean("parallel_tool_calls", parallel);
  request.form.max_calls = parallel ? 0 : 1;
  if (tools != nullptr && !tools->items().empty() && choice.kind != ToolChoice::Kind::kNone)
    set_tools(request, prompt, *tools);
  if (fields.ok()) apply_tool_choice(fields, choice, prompt.tools, request);
}

// ---- /v1/messages ----

// Parts of one message of /v1/messages. What tools gave comes as messages of their own, in front.
void read_blocks(const Fields& fields, const std::string& where, const Value& from,
                 std::vector<ChatMessage>& out) {
  ChatMessage message;
  message.role = text_of(member(from, "role"));
  if (message.role.empty()) return fields.fail(where, "has no \"role\" that is a string");
  const Value* content = member(from, "content");
  if (content == nullptr) return fields.fail(where + ".content", "is missing");
  if (!content->is_list()) {
    if (read_content(fields, where + ".content", content, message.content))
      out.push_back(std::move(message));
    return;
  }
  std::string thoughts;
  Value::Items calls;
  bool said = content->items().empty();
  for (const Value& block : content->items()) {
    const std::string type = text_of(member(block, "type"));
    if (type == "text" || type == "thinking") {
      const Value* text = member(block, type.c_str());
      if (text == nullptr || !text->is_string())
        return fields.fail(where + ".content", "has a block of type \"" + type +
                                                   "\" without its \"" + type +
                                                   "\"; accepted is a string");
      (type == "text" ? message.content : thoughts) += text->as_string();
      said |= type == "text";
    } else if (type == "redacted_thinking") {
      continue;
    } else if (type == "tool_use") {
      const std::string name = text_of(member(block, "name"));
      if (name.empty()) return fields.fail(where + ".content", "has a tool_use without a name");
      calls.push_back(
          call_value(text_of(member(block, "id")), name, arguments_of(member(block, "input"))));
    } else if (type == "tool_result") {
      ChatMessage result;
      result.role = "tool";
      if (!read_content(fields, where + ".content", member(block, "content"), result.content))
        return;
      result.more.emplace_back("tool_call_id", text_of(member(block, "tool_use_id")));
      out.push_back(std::move(result));
    } else {
      return fields.fail(where + ".content",
                         "has a block of type \"" + type.substr(0, 40) +
                             "\"; accepted are text, thinking, tool_use and tool_result: this "
                             "server reads text only");
    }
  }
  if (!thoughts.empty()) message.more.emplace_back("reasoning_content", thoughts);
  if (!calls.empty()) message.more.emplace_back("tool_calls", Value::list(std::move(calls)));
  if (said || message.role == "assistant") out.push_back(std::move(message));
}

void read_system(const Fields& fields, std::vector<ChatMessage>& out) {
  const Value* system = fields.find("system");
  if (system == nullptr) return;
  ChatMessage message;
  message.role = "system";
  if (system->is_list()) {
    for (const Value& block : system->items()) {
      if (!message.content.empty()) message.content += '\n';
      const Value *type = member(block, "type"), *text = member(block, "text");
      if (text == nullptr || !text->is_string() || (type != nullptr && text_of(type) != "text"))
        return fields.fail("system", "holds " + shown(block) +
                                         "; accepted are a string and a list of text blocks: "
                                         "{\"type\": \"text\", \"text\": …}");
      message.content += text->as_string();
    }
  } else if (!read_content(fields, "system", system, message.content)) {
    return;
  }
  if (!message.content.empty()) out.push_back(std::move(message));
}

void read_named_tools(const Fields& fields, ApiRequest& request, serve::ChatPrompt& prompt) {
  const Value* tools = fields.list("tools");
  Value::Items out;
  if (tools != nullptr)
    for (const Value& each : tools->items()) {
      const std::string name = text_of(member(each, "name"));
      const Value* schema = member(each, "input_schema");
      if (name.empty() || schema == nullptr || !schema->is_dict())
        return fields.fail("tools",
                           "holds something else; accepted are {\"name\", \"description\", "
                           "\"input_schema\"}: there are no tools of the server's own");
      Value::Pairs function;
      function.reserve(4);
      function.emplace_back("name", name);
      if (const Value* about = member(each, "description"))
        function.emplace_back("description", *about);
      function.emplace_back("parameters", *schema);
      if (const Value* strict = member(each, "strict")) function.emplace_back("strict", *strict);
      out.push_back(
          Value::dict({{"type", "function"}, {"function", Value::dict(std::move(function))}}));
    }
  const ToolChoice choice = read_tool_choice(fields);
  if (const Value* chosen = fields.object("tool_choice")) {
    const Value* one = member(*chosen, "disable_parallel_tool_use");
    if (one != nullptr && one->is_bool() && one->as_bool()) request.form.max_calls = 1;
  }
  if (!out.empty() && choice.kind != ToolChoice::Kind::kNone)
    set_tools(request, prompt, Value::list(std::move(out)));
  if (fields.ok()) apply_tool_choice(fields, choice, prompt.tools, request);
}

// Thinking is on where it is asked for. An effort of "none" switches it off, other efforts are
// those of chat completions and switch nothing.
void read_thinking(const Fields& fields, ApiRequest& request, serve::ChatPrompt& prompt) {
  prompt.options.enable_thinking = false;
  if (const Value* thinking = fields.object("thinking")) {
    const std::string type = text_of(member(*thinking, "type"));
    if (type != "enabled" && type != "adaptive" && type != "disabled")
      return fields.fail("thinking.type", "is \"" + type.substr(0, 40) +
                                              "\"; accepted are enabled, adaptive and disabled");
    prompt.options.enable_thinking = type != "disabled";
    read_thinking_budget(fields.inside(*thinking, "thinking."), "budget_tokens", request);
  }
  const Value* output = fields.object("output_config");
  if (output == nullptr) return;
  const Fields inside = fields.inside(*output, "output_config.");
  std::string effort;
  inside.text("effort", effort);
  if (!effort.empty()) set_effort(request, prompt, effort);
}

}  // namespace

void read_conversation(const Fields& fields, ApiRequest& request) {
  serve::ChatPrompt prompt;
  request.form.has_reasoning = true;
  for_each_message(fields, [&](const std::string& where, const Value& each) {
    read_message(fields, where, each, prompt.messages);
  });
  read_tools(fields, request, prompt);
  std::string effort;
  fields.text("reasoning_effort", effort);
  if (const Value* reasoning = fields.object("reasoning"))
    if (effort.empty()) fields.inside(*reasoning, "reasoning.").text("effort", effort);
  for (const char* name : {"thinking_budget", "thinking_token_budget"})
    read_thinking_budget(fields, name, request);
  if (!effort.empty()) set_effort(request, prompt, effort);
  bool generation_prompt = true, thinking = false;
  fields.boolean("add_generation_prompt", generation_prompt);
  prompt.options.add_generation_prompt = generation_prompt;
  fields.boolean("enable_thinking", thinking);
  if (fields.find("enable_thinking") != nullptr) prompt.options.enable_thinking = thinking;
  if (const Value* more = fields.object("chat_template_kwargs"))
    for (const auto& [name, value] : more->pairs()) {
      const std::string key = name.as_string();
      if (key == "messages" || key == "tools" || key == "add_generation_prompt")
        return fields.fail("chat_template_kwargs", "sets \"" + key + "\", which has a field");
      if (key == "enable_thinking") prompt.options.enable_thinking.reset();  // theirs wins
      if (key == "reasoning_effort") request.effort.clear();
      if (key == "thinking_budget")
        read_thinking_budget(fields.inside(*more, "chat_template_kwargs."), "thinking_budget",
                             request);
      prompt.options.more.emplace_back(key, value);
    }
  request.prompts.emplace_back(std::move(prompt));
}

void read_messages_api(const Fields& fields, ApiRequest& request) {
  serve::ChatPrompt prompt;
  request.form.has_reasoning = true;
  if (const Value* output = fields.object("output_config"))
    read_output_format(fields.inside(*output, "output_config."), request);
  read_system(fields, prompt.messages);
  for_each_message(fields, [&](const std::string& where, const Value& each) {
    read_blocks(fields, where, each, prompt.messages);
  });
  read_named_tools(fields, request, prompt);
  read_thinking(fields, request, prompt);
  request.prompts.emplace_back(std::move(prompt));
}

}  // namespace tenon::server
