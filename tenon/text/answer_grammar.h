// What an answer must be, as a structural tag for grammar.h: a JSON text by a schema, tool calls in
// the format of answer_parser.h. Pure: nothing is compiled here.
#pragma once

#include <optional>
#include <string>

#include "tenon/core/status.h"
#include "tenon/text/jinja/template.h"

namespace tenon {

// Formats of structural tags, for AnswerGrammar::text.
jinja::Value json_format(const jinja::Value& schema);
jinja::Value any_object_format();  // a JSON object
jinja::Value regex_format(const std::string& pattern);
jinja::Value ebnf_format(const std::string& grammar);  // of GBNF's kind, with a rule "root"
jinja::Value choice_format(const std::vector<std::string>& texts);  // one of them

// Says which keyword of a schema cannot be kept to, and where it stands: what is conditional,
// negated or counts equal items. Others are looked at when the grammar is compiled. oneOf is taken
// as anyOf.
Status check_schema(const jinja::Value& schema);

struct AnswerGrammar {
  // What is said where no tool is called; none: any text.
  std::optional<jinja::Value> text = {};
  // Tools that may be called, as in AnswerForm. Their arguments keep to their "parameters", but
  // where a tool says "strict": false.
  jinja::Value tools = {};
  bool forces_call = false;  // nothing but calls, at least one
  bool one_call = false;     // nothing behind the first call
};

// The structural tag. Where it allows text and calls, the answer is either the text or calls, or,
// without `text`, any text with calls in it.
Result<std::string> structural_tag(const AnswerGrammar& grammar);

}  // namespace tenon
