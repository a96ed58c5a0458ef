#include "apps/server/answer_rules.h"

#include <limits>
#include <utility>

#include "apps/server/requests.h"

namespace tenon::server {
namespace {

using jinja::Value;

constexpr const char* kFormats =
    "{\"type\": \"text\"}, {\"type\": \"json_object\"} and {\"type\": \"json_schema\", "
    "\"json_schema\": {\"schema\": {…}}}";

std::string type_of(const Value& object) {
  const Value* type = object.is_dict() ? object.find("type") : nullptr;
  return type != nullptr && type->is_string() ? type->as_string() : std::string();
}

// A schema, or the text of one.
void take_schema(const Fields& fields, const char* name, const Value& found, ApiRequest& request) {
  Value schema = found;
  if (found.is_string()) {
    auto parsed = jinja::parse_json(found.as_string());
    if (!parsed)
      return fields.fail(name, "is no JSON text: " + std::string(parsed.status().message()));
    schema = *std::move(parsed);
  }
  if (!schema.is_dict() && !schema.is_bool())
    return fields.fail(name, "is " + shown(found) + "; accepted is a JSON schema");
  if (const Status sound = check_schema(schema); !sound)
    return fields.fail(name, std::string(sound.message()));
  request.grammar.text = json_format(schema);
}

void take_choice(const Fields& fields, const char* name, ApiRequest& request) {
  std::vector<std::string> texts;
  fields.texts(name, kMaxChoiceTexts, texts);
  if (texts.empty()) return fields.fail(name, "is empty; accepted is at least 1 string");
  request.grammar.text = choice_format(texts);
}

void take_response_format(const Fields& fields, const Value& format, ApiRequest& request) {
  const std::string type = type_of(format);
  if (type == "text") return;
  if (type == "json_object") {
    request.grammar.text = any_object_format();
  } else if (type == "json_schema") {
    const Fields outer = fields.inside(format, "response_format.");
    if (outer.need("json_schema") == nullptr) return;
    const Value* named = outer.object("json_schema");
    if (named == nullptr) return;
    const Fields inside = outer.inside(*named, "json_schema.");
    if (const Value* schema = inside.need("schema"))
      take_schema(inside, "schema", *schema, request);
  } else {
    fields.fail("response_format", "is " + shown(format) + "; accepted are " + kFormats);
  }
}

enum class Form : std::uint8_t { kSchema, kObject, kRegex, kChoice, kEbnf };
struct FormField {
  const char* name;
  Form form;
};
// vLLM's and SGLang's own names, beside response_format.
constexpr FormField kPlain[] = {
    {"guided_json", Form::kSchema},
    {"guided_regex", Form::kRegex},
    {"guided_choice", Form::kChoice},
    {"guided_grammar", Form::kEbnf},
    {"json_schema", Form::kSchema},
    {"regex", Form::kRegex},
    {"ebnf", Form::kEbnf},
};
constexpr FormField kStructured[] = {
    {"json", Form::kSchema},   {"json_object", Form::kObject}, {"regex", Form::kRegex},
    {"choice", Form::kChoice}, {"grammar", Form::kEbnf},
};

void take(const Fields& fields, const FormField& field, ApiRequest& request) {
  std::string text;
  switch (field.form) {
    case Form::kSchema: return take_schema(fields, field.name, *fields.find(field.name), request);
    case Form::kObject: {
      bool wanted = false;
      fields.boolean(field.name, wanted);
      if (wanted) request.grammar.text = any_object_format();
      return;
    }
    case Form::kChoice: return take_choice(fields, field.name, request);
    case Form::kRegex:
      fields.text(field.name, text);
      request.grammar.text = regex_format(text);
      return;
    case Form::kEbnf:
      fields.text(field.name, text);
      request.grammar.text = ebnf_format(text);
      return;
  }
}

// Texts and lists that hold nothing ask for nothing.
bool is_empty(const Value& value) {
  if (value.is_string()) return value.as_string().empty();
  return value.is_list() && value.items().empty();
}

}  // namespace

void read_answer_format(const Fields& fields, ApiRequest& request) {
  std::string first;
  const auto begins = [&](const std::string& name) {
    if (!first.empty())
      fields.fail(name, "is given beside \"" + first + "\"; accepted is one of them");
    first = name;
    request.grammar_field = fields.name_of(name);
  };
  if (const Value* format = fields.find("response_format"); format != nullptr) {
    if (type_of(*format) != "text") begins("response_format");
    take_response_format(fields, *format, request);
  }
  for (const FormField& each : kPlain) {
    const Value* found = fields.find(each.name);
    if (found == nullptr || is_empty(*found)) continue;
    begins(each.name);
    take(fields, each, request);
  }
  const Value* outputs = fields.object("structured_outputs");
  if (outputs == nullptr) return;
  const Fields inside = fields.inside(*outputs, "structured_outputs.");
  for (const FormField& each : kStructured) {
    const Value* found = inside.find(each.name);
    if (found == nullptr || is_empty(*found)) continue;
    begins("structured_outputs");
    take(inside, each, request);
  }
  if (inside.find("structural_tag") != nullptr)
    inside.fail("structural_tag",
                "is not supported: accepted are json, json_object, regex, choice "
                "and grammar");
}

void read_output_format(const Fields& inside, ApiRequest& request) {
  const Value* format = inside.find("format");
  if (format == nullptr) return;
  request.grammar_field = inside.name_of("format");
  if (type_of(*format) != "json_schema")
    return inside.fail("format", "is " + shown(*format) +
                                     "; accepted is {\"type\": \"json_schema\", \"schema\": {…}}");
  const Fields deeper = inside.inside(*format, "format.");
  if (const Value* schema = deeper.need("schema")) take_schema(deeper, "schema", *schema, request);
}

ToolChoice read_tool_choice(const Fields& fields) {
  using Kind = ToolChoice::Kind;
  const Value* chosen = fields.find("tool_choice");
  if (chosen == nullptr) return {};
  const std::string word = chosen->is_string() ? chosen->as_string() : type_of(*chosen);
  if (chosen->is_string() || word != "function") {
    if (word == "auto") return {Kind::kAuto};
    if (word == "none") return {Kind::kNone};
    if (word == "required" || word == "any") return {Kind::kRequired};
  }
  // {"type": "function", "function": {"name": …}}, or Anthropic's {"type": "tool", "name": …}.
  const Value* function =
      word == "function" && chosen->is_dict() ? chosen->find("function") : chosen;
  const Value* name = function != nullptr && function->is_dict() ? function->find("name") : nullptr;
  const bool is_named = (word == "function" || word == "tool") && !chosen->is_string();
  if (is_named && name != nullptr && name->is_string()) return {Kind::kNamed, name->as_string()};
  fields.fail("tool_choice",
              "is " + shown(*chosen) +
                  "; accepted are auto, none, a call of some tool (\"required\", {\"type\": "
                  "\"any\"}), and that of one by its name");
  return {};
}

void apply_tool_choice(const Fields& fields, const ToolChoice& choice, const Value& tools,
                       ApiRequest& request) {
  using Kind = ToolChoice::Kind;
  const bool has_tools = tools.is_list() && !tools.items().empty();
  if (choice.kind == Kind::kAuto) {
    if (!has_tools) return;
    bool is_strict = request.grammar.text.has_value();
    for (const Value& tool : tools.items()) {
      const Value* function = tool.find("function");
      const Value* strict = function->find("strict");
      is_strict |= strict != nullptr && strict->is_bool() && strict->as_bool();
    }
    if (is_strict) request.grammar.tools = tools;
  } else if (choice.kind == Kind::kRequired || choice.kind == Kind::kNamed) {
    if (!has_tools) return fields.fail("tool_choice", "asks for a call, but there are no tools");
    request.grammar.forces_call = true;
    request.grammar.tools = tools;
    if (choice.kind == Kind::kNamed) {
      Value::Items only;
      for (const Value& tool : tools.items())
        if (tool.find("function")->find("name")->as_string() == choice.named) only.push_back(tool);
      if (only.size() != 1)
        return fields.fail("tool_choice", "names the tool \"" + choice.named.substr(0, 60) +
                                              "\", of which there are " +
                                              std::to_string(only.size()) + "; accepted is 1");
      request.grammar.tools = Value::list(std::move(only));
      request.form.max_calls = 1;
    }
    request.grammar_field = "tool_choice";
  }
  if (request.grammar.tools.is_list() && request.grammar_field.empty())
    request.grammar_field = "tools";
  request.grammar.one_call = request.form.max_calls == 1;
}

void read_thinking_budget(const Fields& fields, const char* name, ApiRequest& request) {
  if (fields.find(name) == nullptr) return;
  std::int64_t budget = 0;
  fields.integer(name, 0, std::numeric_limits<std::int32_t>::max(), budget);
  request.thinking_budget = budget;
}

void check_answer_rules(const Fields& fields, const ApiRequest& request) {
  if (request.grammar_field.empty()) return;
  if (request.sampling.ignore_eos)
    fields.fail("ignore_eos", "is true, but \"" + request.grammar_field +
                                  "\" says where the answer ends; accepted is either");
  if (request.sampling.min_tokens > 0)
    fields.fail("min_tokens", "is above 0, but \"" + request.grammar_field +
                                  "\" says where the answer ends; accepted is either");
}

}  // namespace tenon::server
