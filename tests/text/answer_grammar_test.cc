// Schemas that a grammar cannot keep to are refused with their place, and names that calls cannot
// have. What the structural tags allow is in grammar_test.cc.
#include "tenon/text/answer_grammar.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>

namespace tenon {
namespace {

using jinja::Value;

Value parsed(const std::string& json) {
  auto value = jinja::parse_json(json);
  EXPECT_TRUE(value) << value.status().to_string();
  return *std::move(value);
}

TEST(AnswerGrammar, SchemasThatCannotBeKeptToAreRefused) {
  for (const auto& [schema, piece] : std::initializer_list<std::pair<const char*, const char*>>{
           {R"({"not": {}})", "\"not\" at #,"},
           {R"({"properties": {"a": {"if": {}, "then": {}}}})", "\"if\" at #/properties/a,"},
           {R"({"items": {"anyOf": [{}, {"contains": {}}]}})", "\"contains\" at #/items/anyOf/1,"},
           {R"({"$defs": {"x": {"uniqueItems": true}}})", "\"uniqueItems\" at #/$defs/x,"},
           {R"({"allOf": [{}, {}]})", "\"allOf\" of several"},
           {R"({"type": "number", "multipleOf": 0.5})", "\"multipleOf\" of what is no integer"},
           {R"({"additionalProperties": {"$ref": "other.json"}})", "another document"},
           {R"({"prefixItems": [{"dependentRequired": {}}]})", "at #/prefixItems/0,"}}) {
    const Status found = check_schema(parsed(schema));
    EXPECT_EQ(found.code(), Code::kInvalidArgument) << schema;
    EXPECT_NE(found.message().find(piece), std::string_view::npos) << found.to_string();
  }
  // Names of properties and values are no keywords.
  for (const char* schema :
       {"true", R"({"properties": {"not": {"type": "integer", "multipleOf": 5}, "if": {}}})",
        R"({"enum": [{"not": 1}], "default": {"if": 1}, "uniqueItems": false})",
        R"({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {}}})"}) {
    const Status found = check_schema(parsed(schema));
    EXPECT_TRUE(found) << found.to_string();
  }
}

TEST(AnswerGrammar, ToolsThatCannotBeCalledAreRefused) {
  const auto tag_of = [](const std::string& function) {
    AnswerGrammar rule;
    rule.forces_call = true;
    rule.tools = parsed(R"([{"type": "function", "function": )" + function + "}]");
    return structural_tag(rule);
  };
  EXPECT_TRUE(tag_of(R"({"name": "a.b-c"})"));
  for (const char* name : {"a>b", "<a", "a\\n", ""})
    EXPECT_NE(tag_of(std::string(R"({"name": ")") + name + "\"}")
                  .status()
                  .message()
                  .find("cannot be named in a call"),
              std::string_view::npos)
        << name;
  const auto conditional = tag_of(R"({"name": "f", "parameters": {"if": {}}})");
  EXPECT_NE(conditional.status().message().find("\"if\" at #"), std::string_view::npos);
  EXPECT_NE(conditional.status().to_string().find("tool \"f\""), std::string::npos);
}

}  // namespace
}  // namespace tenon
