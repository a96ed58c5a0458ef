#include "tenon/text/answer_grammar.h"

#include <string_view>
#include <utility>
#include <vector>

namespace tenon {
namespace {

using jinja::Value;

// White space between the parts of a JSON text: enough to indent by, and no way to go on for ever.
constexpr std::int64_t kMaxWhiteSpace = 20;
constexpr const char* kCallBegin = "<tool_call>\n<function=";
constexpr const char* kCallEnd = "</function>\n</tool_call>";

Status refuse(std::string why) { return Status::error(Code::kInvalidArgument, std::move(why)); }

const Value* member(const Value& value, const char* name) {
  return value.is_dict() ? value.find(name) : nullptr;
}

bool is_text(const Value* value, std::string_view text) {
  return value != nullptr && value->is_string() && value->as_string() == text;
}

Value schema_format(const Value& schema, const char* style) {
  return Value::dict({{"type", "json_schema"},
                      {"style", style},
                      {"max_whitespace_cnt", kMaxWhiteSpace},
                      {"json_schema", schema}});
}

// Keywords that hold schemas: one, a list of them, or one for each name.
constexpr const char* kOne[] = {"items",         "additionalProperties",  "additionalItems",
                                "propertyNames", "unevaluatedProperties", "unevaluatedItems"};
constexpr const char* kSeveral[] = {"anyOf", "oneOf", "allOf", "prefixItems", "items"};
constexpr const char* kNamed[] = {"properties", "patternProperties", "$defs", "definitions"};
constexpr const char* kNever[] = {"not",
                                  "if",
                                  "then",
                                  "else",
                                  "dependentRequired",
                                  "dependentSchemas",
                                  "dependencies",
                                  "contains",
                                  "minContains",
                                  "maxContains"};

Status check_at(const Value& schema, const std::string& where) {
  if (!schema.is_dict()) return Status::ok();
  const auto no = [&](const std::string& what) {
    return refuse("the schema has " + what + " at " + where + ", which a grammar cannot keep to");
  };
  for (const char* name : kNever)
    if (schema.find(name) != nullptr) return no('"' + std::string(name) + '"');
  if (const Value* unique = schema.find("uniqueItems"))
    if (unique->is_bool() && unique->as_bool()) return no("\"uniqueItems\"");
  if (schema.find("multipleOf") != nullptr && !is_text(schema.find("type"), "integer"))
    return no("\"multipleOf\" of what is no integer");
  if (const Value* all = schema.find("allOf"))
    if (all->is_list() && all->items().size() > 1) return no("\"allOf\" of several schemas");
  if (const Value* ref = schema.find("$ref"))
    if (ref->is_string() && !ref->as_string().starts_with('#'))
      return no("a \"$ref\" to another document");
  for (const char* name : kOne)
    if (const Value* one = schema.find(name)) TENON_TRY(check_at(*one, where + "/" + name));
  for (const char* name : kSeveral)
    if (const Value* list = schema.find(name); list != nullptr && list->is_list())
      for (std::size_t i = 0; i < list->items().size(); ++i)
        TENON_TRY(check_at(list->items()[i], where + "/" + name + "/" + std::to_string(i)));
  for (const char* name : kNamed)
    if (const Value* named = schema.find(name); named != nullptr && named->is_dict())
      for (const auto& [key, each] : named->pairs())
        TENON_TRY(check_at(
            each, where + "/" + name + "/" + (key.is_string() ? key.as_string() : std::string())));
  return Status::ok();
}

// One call of a tool. Its name stands in a tag, so it must not hold what ends one.
Result<Value> call_format(const Value& tool) {
  const Value* function = member(tool, "function");
  const Value* name = function == nullptr ? nullptr : member(*function, "name");
  if (name == nullptr || !name->is_string()) return refuse("a tool has no function.name");
  const std::string& text = name->as_string();
  if (text.empty() || text.find_first_of("<>\n") != std::string::npos)
    return refuse("the tool \"" + text.substr(0, 60) +
                  "\" cannot be named in a call: accepted are names without <, > and line ends");
  const Value* strict = member(*function, "strict");
  const bool is_free = strict != nullptr && strict->is_bool() && !strict->as_bool();
  const Value* parameters = member(*function, "parameters");
  const bool has_schema = !is_free && parameters != nullptr && parameters->is_dict();
  if (has_schema)
    TENON_TRY(Status(check_schema(*parameters)).with("tool \"" + text.substr(0, 60) + '"'));
  const Value* properties = has_schema ? member(*parameters, "properties") : nullptr;
  const bool takes_none =
      properties != nullptr && properties->is_dict() && properties->pairs().empty();
  Value content = takes_none ? Value::dict({{"type", "const_string"}, {"value", ""}})
                             : schema_format(has_schema ? *parameters : Value(true), "qwen_xml");
  const std::string end = kCallEnd;
  return Value::dict({{"type", "tag"},
                      {"begin", kCallBegin + text + ">\n"},
                      {"content", std::move(content)},
                      {"end", Value::list({end, "\n" + end})}});
}

}  // namespace

Value json_format(const Value& schema) { return schema_format(schema, "json"); }

Value any_object_format() {
  return json_format(Value::dict({{"type", "object"}, {"additionalProperties", true}}));
}

Value regex_format(const std::string& pattern) {
  return Value::dict({{"type", "regex"}, {"pattern", pattern}});
}

Value ebnf_format(const std::string& grammar) {
  return Value::dict({{"type", "grammar"}, {"grammar", grammar}});
}

Value choice_format(const std::vector<std::string>& texts) {
  Value::Items elements;
  for (const std::string& text : texts)
    elements.push_back(Value::dict({{"type", "const_string"}, {"value", text}}));
  return Value::dict({{"type", "or"}, {"elements", Value::list(std::move(elements))}});
}

Status check_schema(const Value& schema) { return check_at(schema, "#"); }

Result<std::string> structural_tag(const AnswerGrammar& grammar) {
  Value format = grammar.text.value_or(Value());
  if (grammar.tools.is_list() && !grammar.tools.items().empty()) {
    Value::Items tags;
    for (const Value& tool : grammar.tools.items()) {
      TENON_ASSIGN(Value tag, call_format(tool));
      tags.push_back(std::move(tag));
    }
    Value list = Value::list(std::move(tags));
    if (!grammar.forces_call && !grammar.text) {
      format = Value::dict({{"type", "triggered_tags"},
                            {"triggers", Value::list({kCallBegin})},
                            {"tags", std::move(list)},
                            {"stop_after_first", grammar.one_call}});
    } else {
      Value calls = Value::dict({{"type", "tags_with_separator"},
                                 {"separator", "\n"},
                                 {"tags", std::move(list)},
                                 {"at_least_one", true},
                                 {"stop_after_first", grammar.one_call}});
      format = grammar.forces_call
                   ? std::move(calls)
                   : Value::dict({{"type", "or"}, {"elements", Value::list({format, calls})}});
    }
  }
  return jinja::to_json(Value::dict({{"type", "structural_tag"}, {"format", std::move(format)}}));
}

}  // namespace tenon
