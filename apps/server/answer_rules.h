// What a request says of the form of its answer: response_format and its older and other names,
// tool_choice, the budget of thoughts. Read into values; compile_grammar() (generation.h) compiles
// them.
#pragma once

#include "apps/server/fields.h"

namespace tenon::server {

// response_format, structured_outputs, guided_json and their like, whichever of them is there.
// More than one is an error.
void read_answer_format(const Fields& fields, ApiRequest& request);
// output_config.format of /v1/messages; `inside` is output_config.
void read_output_format(const Fields& inside, ApiRequest& request);

// What tool_choice says. `named`: the tool that must be called.
struct ToolChoice {
  enum class Kind : std::uint8_t { kAuto, kNone, kRequired, kNamed } kind = Kind::kAuto;
  std::string named = {};
};
ToolChoice read_tool_choice(const Fields& fields);
// `tools` as templates get them. Sets what calls the answer may have, and must.
void apply_tool_choice(const Fields& fields, const ToolChoice& choice, const jinja::Value& tools,
                       ApiRequest& request);

// A number of tokens of thoughts from the field `name`, where it is there.
void read_thinking_budget(const Fields& fields, const char* name, ApiRequest& request);

// Behind all others: what cannot go together.
void check_answer_rules(const Fields& fields, const ApiRequest& request);

}  // namespace tenon::server
