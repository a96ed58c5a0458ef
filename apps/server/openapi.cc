#include "apps/server/openapi.h"

#include <limits>

#include "apps/server/fields.h"
#include "apps/server/json_text.h"
#include "apps/server/requests.h"

namespace tenon::server {
namespace {

enum class Kind : std::uint8_t {
  kBoolean,
  kInteger,  // from low to high
  kSeed,     // of 64 bits
  kNumber,   // from low to high
  kAbove,    // above low, to high
  kText,
  kTexts,      // a text or a list of texts
  kIds,        // token ids, at most high
  kIdNumbers,  // an object of token ids, as texts, with numbers from -100 to 100
  kPrompts,    // texts or token ids, one or many
  kObject,     // of any members
  kCount,      // as kInteger, or false
  kRefer,      // to the schema that `schema` names
  kReferList,  // a list of at least `low` of it
};

constexpr double kMaxInt = std::numeric_limits<std::int32_t>::max();

// Which bodies have a field: bits of their schemas.
constexpr unsigned kInChat = 1, kInCompletion = 2, kInMessages = 4, kInCountTokens = 8,
                   kInGenerate = 16, kInSampling = 32, kInTokenize = 64, kInDetokenize = 128,
                   kInStream = 256, kInTokenizeChat = 512;
constexpr unsigned kInOpenAi = kInChat | kInCompletion, kInDrawn = kInOpenAi | kInSampling,
                   kInAnthropic = kInMessages | kInCountTokens,
                   kInAll = kInOpenAi | kInAnthropic | kInGenerate | kInTokenize | kInTokenizeChat |
                            kInDetokenize;

struct DescribedField {
  const char* name;
  unsigned where;
  Kind kind;
  double low = 0, high = 0;
  const char* schema = "";
  unsigned needed = 0;  // the bodies that must have it
};

// What requests.cc and conversation.cc read, and which values they take.
constexpr DescribedField kDescribed[] = {
    {"model", kInAll, Kind::kText},
    {"messages", kInChat, Kind::kReferList, 1, 0, "ChatMessage", kInChat},
    {"messages", kInTokenizeChat, Kind::kReferList, 1, 0, "ChatMessage", kInTokenizeChat},
    {"messages", kInAnthropic, Kind::kReferList, 1, 0, "Message", kInAnthropic},
    {"prompt", kInCompletion, Kind::kPrompts, 0, kMaxChoices, "", kInCompletion},
    {"prompt", kInTokenize, Kind::kText, 0, 0, "", kInTokenize},
    {"text", kInGenerate, Kind::kPrompts, 0, kMaxChoices},
    {"input_ids", kInGenerate, Kind::kPrompts, 0, kMaxChoices},
    {"tokens", kInDetokenize, Kind::kIds, 0, 1 << 20, "", kInDetokenize},
    {"return_token_strs", kInTokenize | kInTokenizeChat, Kind::kBoolean},
    {"sampling_params", kInGenerate, Kind::kRefer, 0, 0, "SamplingParams"},
    {"temperature", kInDrawn | kInMessages, Kind::kNumber, 0, 100},
    {"top_p", kInDrawn | kInMessages, Kind::kAbove, 0, 1},
    {"top_k", kInDrawn, Kind::kInteger, -1, kMaxInt},
    {"top_k", kInMessages, Kind::kInteger, 0, kMaxInt},
    {"min_p", kInDrawn, Kind::kNumber, 0, 1},
    {"repetition_penalty", kInDrawn, Kind::kAbove, 0, 10},
    {"frequency_penalty", kInDrawn, Kind::kNumber, -2, 2},
    {"presence_penalty", kInDrawn, Kind::kNumber, -2, 2},
    {"logit_bias", kInDrawn, Kind::kIdNumbers, 0, kMaxLogitBias},
    {"min_tokens", kInDrawn, Kind::kInteger, 0, kMaxInt},
    {"min_new_tokens", kInDrawn, Kind::kInteger, 0, kMaxInt},
    {"ignore_eos", kInDrawn, Kind::kBoolean},
    {"seed", kInDrawn, Kind::kSeed},
    {"sampling_seed", kInDrawn, Kind::kSeed},
    {"stop_token_ids", kInDrawn, Kind::kIds, 0, kMaxStopIds},
    {"skip_special_tokens", kInDrawn, Kind::kBoolean},
    {"stop", kInDrawn, Kind::kTexts, 0, kMaxStops},
    {"stop_sequences", kInMessages, Kind::kTexts, 0, kMaxStops},
    {"max_tokens", kInChat, Kind::kInteger, 1, kMaxInt},
    {"max_tokens", kInCompletion, Kind::kInteger, 0, kMaxInt},
    {"max_tokens", kInMessages, Kind::kInteger, 1, kMaxInt, "", kInMessages},
    {"max_completion_tokens", kInChat, Kind::kInteger, 1, kMaxInt},
    {"max_completion_tokens", kInCompletion, Kind::kInteger, 0, kMaxInt},
    {"max_new_tokens", kInSampling, Kind::kInteger, 0, kMaxInt},
    {"n", kInDrawn, Kind::kInteger, 1, kMaxChoices},
    {"logprobs", kInChat, Kind::kBoolean},
    {"top_logprobs", kInChat, Kind::kInteger, 0, kMaxLogprobs},
    {"logprobs", kInCompletion, Kind::kCount, 0, kMaxLogprobs},
    {"echo", kInCompletion, Kind::kBoolean},
    {"prompt_logprobs", kInOpenAi, Kind::kInteger, 0, kMaxLogprobs},
    {"return_logprob", kInGenerate, Kind::kBoolean},
    {"logprob_start_len", kInGenerate, Kind::kInteger, -1, kMaxInt},
    {"top_logprobs_num", kInGenerate, Kind::kInteger, 0, kMaxLogprobs},
    {"return_text_in_logprobs", kInGenerate, Kind::kBoolean},
    {"stream", kInOpenAi | kInMessages | kInGenerate, Kind::kBoolean},
    {"stream_options", kInOpenAi | kInGenerate, Kind::kRefer, 0, 0, "StreamOptions"},
    {"include_usage", kInStream, Kind::kBoolean},
    {"continuous_usage_stats", kInStream, Kind::kBoolean},
    {"return_token_ids", kInOpenAi, Kind::kBoolean},
    {"response_format", kInDrawn, Kind::kRefer, 0, 0, "ResponseFormat"},
    {"structured_outputs", kInDrawn, Kind::kRefer, 0, 0, "StructuredOutputs"},
    {"guided_json", kInDrawn, Kind::kRefer, 0, 0, "JsonSchema"},
    {"json_schema", kInDrawn, Kind::kRefer, 0, 0, "JsonSchema"},
    {"guided_regex", kInDrawn, Kind::kText},
    {"regex", kInDrawn, Kind::kText},
    {"guided_grammar", kInDrawn, Kind::kText},
    {"ebnf", kInDrawn, Kind::kText},
    {"guided_choice", kInDrawn, Kind::kTexts, 0, kMaxChoiceTexts},
    {"thinking_budget", kInChat | kInTokenizeChat, Kind::kInteger, 0, kMaxInt},
    {"thinking_token_budget", kInChat | kInTokenizeChat, Kind::kInteger, 0, kMaxInt},
    {"separate_reasoning", kInChat, Kind::kBoolean},
    {"tools", kInChat | kInTokenizeChat, Kind::kReferList, 0, 0, "Tool"},
    {"tools", kInAnthropic, Kind::kReferList, 0, 0, "NamedTool"},
    {"tool_choice", kInChat | kInTokenizeChat, Kind::kRefer, 0, 0, "CallChoice"},
    {"tool_choice", kInAnthropic, Kind::kRefer, 0, 0, "ToolChoice"},
    {"parallel_tool_calls", kInChat | kInTokenizeChat, Kind::kBoolean},
    {"system", kInAnthropic, Kind::kRefer, 0, 0, "System"},
    {"thinking", kInAnthropic, Kind::kRefer, 0, 0, "Thinking"},
    {"output_config", kInAnthropic, Kind::kObject},
    {"reasoning_effort", kInChat | kInTokenizeChat, Kind::kText},
    {"reasoning", kInChat | kInTokenizeChat, Kind::kObject},
    {"add_generation_prompt", kInChat | kInTokenizeChat, Kind::kBoolean},
    {"enable_thinking", kInChat | kInTokenizeChat, Kind::kBoolean},
    {"chat_template_kwargs", kInChat | kInTokenizeChat, Kind::kObject},
};

Json refer(const std::string& name) { return {{"$ref", "#/components/schemas/" + name}}; }
Json of_type(const char* type) { return {{"type", type}}; }
Json list_of(Json items) { return {{"type", "array"}, {"items", std::move(items)}}; }
Json any_of(std::vector<Json> kinds) { return {{"anyOf", Json(std::move(kinds))}}; }
Json exactly(const char* word) { return {{"const", word}}; }
Json word_of(std::vector<const char*> words) { return {{"enum", Json(std::move(words))}}; }

// An object: members that must be there, and others. Further ones are passed over.
Json object_of(std::vector<const char*> needed, Json members) {
  Json out{{"type", "object"}};
  if (!needed.empty()) out["required"] = Json(std::move(needed));
  out["properties"] = std::move(members);
  return out;
}

Json ids(double most) {
  Json out = list_of({{"type", "integer"}, {"minimum", 0}, {"maximum", kMaxInt}});
  if (most > 0) out["maxItems"] = static_cast<std::int64_t>(most);
  return out;
}

Json whole_number(const DescribedField& field) {
  return {{"type", "integer"},
          {"minimum", static_cast<std::int64_t>(field.low)},
          {"maximum", static_cast<std::int64_t>(field.high)}};
}

Json schema_of(const DescribedField& field) {
  switch (field.kind) {
    case Kind::kBoolean: return of_type("boolean");
    case Kind::kInteger: return whole_number(field);
    case Kind::kSeed:
      return {{"type", "integer"},
              {"minimum", std::numeric_limits<std::int64_t>::min()},
              {"maximum", std::numeric_limits<std::int64_t>::max()}};
    case Kind::kCount: return any_of({whole_number(field), {{"const", false}}});
    case Kind::kNumber:
      return {{"type", "number"}, {"minimum", field.low}, {"maximum", field.high}};
    case Kind::kAbove:
      return {{"type", "number"}, {"exclusiveMinimum", field.low}, {"maximum", field.high}};
    case Kind::kText: return of_type("string");
    case Kind::kTexts: {
      Json many = list_of(of_type("string"));
      many["maxItems"] = static_cast<std::int64_t>(field.high);
      return any_of({of_type("string"), many});
    }
    case Kind::kIds: return ids(field.high);
    case Kind::kIdNumbers:
      return {{"type", "object"},
              {"propertyNames", {{"pattern", "^[0-9]+$"}}},
              {"maxProperties", static_cast<std::int64_t>(field.high)},
              {"additionalProperties", {{"type", "number"}, {"minimum", -100}, {"maximum", 100}}}};
    case Kind::kPrompts: {
      Json one = ids(0), many = list_of(any_of({of_type("string"), one}));
      one["minItems"] = many["minItems"] = 1;
      many["maxItems"] = static_cast<std::int64_t>(field.high);
      return any_of({of_type("string"), one, many});
    }
    case Kind::kObject: return of_type("object");
    case Kind::kRefer: return refer(field.schema);
    case Kind::kReferList: {
      Json out = list_of(refer(field.schema));
      if (field.low > 0) out["minItems"] = static_cast<std::int64_t>(field.low);
      return out;
    }
  }
  return Json::object();
}

Json body_schema(unsigned where) {
  Json members = Json::object(), needed = Json::array();
  for (const DescribedField& each : kDescribed) {
    if ((each.where & where) == 0) continue;
    const bool must = (each.needed & where) != 0;
    members[each.name] = must ? schema_of(each) : any_of({schema_of(each), of_type("null")});
    if (must) needed.push_back(each.name);
  }
  Json out{{"type", "object"}, {"properties", std::move(members)}};
  if (!needed.empty()) out["required"] = std::move(needed);
  return out;
}

// ---- what fields hold that are objects ----

// What is handed on as it is, or passed over: its type is not looked at.
Json handed_on(const char* about) { return {{"description", about}}; }

void add_parts(Json& out) {
  const Json text = of_type("string"), name{{"type", "string"}, {"minLength", 1}};
  const Json id = handed_on("a string"), about = handed_on("a string");
  const Json schema = of_type("object");
  // null is as good as nothing, here as everywhere.
  const Json kind_of_text = Json::array({"text", "input_text", nullptr});
  const Json kind_of_block = Json::array({"text", nullptr});
  const Json part = object_of({"text"}, {{"type", {{"enum", kind_of_text}}}, {"text", text}});
  const Json refusal =
      object_of({"type", "refusal"}, {{"type", exactly("refusal")}, {"refusal", text}});
  out["Content"] = any_of({text, list_of(any_of({text, part, refusal}))});
  const Json system = object_of({"text"}, {{"type", {{"enum", kind_of_block}}}, {"text", text}});
  out["System"] = any_of({text, list_of(system)});
  const Json arguments = handed_on("an object, or its JSON as a string");
  const Json called = object_of({"name"}, {{"name", name}, {"arguments", arguments}});
  out["Call"] = object_of({"function"},
                          {{"id", id}, {"type", handed_on("\"function\"")}, {"function", called}});
  const Json calls = list_of(refer("Call"));
  out["ChatMessage"] =
      object_of({"role"}, {{"role", word_of({"system", "developer", "user", "assistant", "tool"})},
                           {"content", any_of({refer("Content"), of_type("null")})},
                           {"reasoning_content", about},
                           {"tool_calls", any_of({calls, of_type("null")})},
                           {"tool_call_id", id}});
  const Json function =
      object_of({"name"}, {{"name", name},
                           {"description", about},
                           {"parameters", handed_on("a JSON schema of an object")},
                           {"strict", handed_on("true or false")}});
  out["Tool"] =
      object_of({"type", "function"}, {{"type", exactly("function")}, {"function", function}});
  out["NamedTool"] = object_of({"name", "input_schema"}, {{"name", name},
                                                          {"description", about},
                                                          {"input_schema", schema},
                                                          {"strict", handed_on("true or false")}});
  out["CallChoice"] = any_of(
      {word_of({"auto", "none", "required"}),
       object_of({"type", "function"}, {{"type", exactly("function")},
                                        {"function", object_of({"name"}, {{"name", name}})}})});
  out["ToolChoice"] =
      object_of({"type"}, {{"type", word_of({"auto", "none", "any", "tool"})},
                           {"name", handed_on("of the tool, where the type is tool")},
                           {"disable_parallel_tool_use", handed_on("true or false")}});
  out["Thinking"] = object_of(
      {"type"},
      {{"type", word_of({"enabled", "adaptive", "disabled"})},
       {"budget_tokens",
        any_of(
            {{{"type", "integer"}, {"minimum", 0}, {"maximum", static_cast<std::int64_t>(kMaxInt)}},
             of_type("null")})}});
  const Json block =
      any_of({object_of({"type"}, {{"type", exactly("text")}, {"text", about}}),
              object_of({"type"}, {{"type", exactly("thinking")}, {"thinking", about}}),
              object_of({"type"}, {{"type", exactly("redacted_thinking")}}),
              object_of({"type", "name"}, {{"type", exactly("tool_use")},
                                           {"id", id},
                                           {"name", name},
                                           {"input", handed_on("an object")}}),
              object_of({"type"}, {{"type", exactly("tool_result")},
                                   {"tool_use_id", id},
                                   {"content", any_of({refer("Content"), of_type("null")})}})});
  out["Message"] = object_of({"role", "content"}, {{"role", word_of({"user", "assistant"})},
                                                   {"content", any_of({text, list_of(block)})}});
}

// What an answer must be.
void add_forms(Json& out) {
  const Json text = of_type("string"), schema = of_type("object");
  const Json flag = any_of({of_type("boolean"), of_type("null")});
  out["JsonSchema"] = any_of({schema, of_type("boolean"), text});
  out["ResponseFormat"] = any_of(
      {object_of({"type"}, {{"type", word_of({"text", "json_object"})}}),
       object_of({"type", "json_schema"},
                 {{"type", exactly("json_schema")},
                  {"json_schema", object_of({"schema"}, {{"schema", refer("JsonSchema")}})}})});
  Json texts = list_of(text);
  texts["maxItems"] = static_cast<std::int64_t>(kMaxChoiceTexts);
  out["StructuredOutputs"] =
      object_of({}, {{"json", any_of({refer("JsonSchema"), of_type("null")})},
                     {"json_object", flag},
                     {"regex", any_of({text, of_type("null")})},
                     {"choice", any_of({text, texts, of_type("null")})},
                     {"grammar", any_of({text, of_type("null")})}});
}

// ---- answers ----

Json usage_schema() {
  const Json count{{"type", "integer"}, {"minimum", 0}};
  return object_of({"prompt_tokens", "completion_tokens", "total_tokens"},
                   {{"prompt_tokens", count},
                    {"completion_tokens", count},
                    {"total_tokens", count},
                    {"prompt_tokens_details", object_of({}, {{"cached_tokens", count}})},
                    {"completion_tokens_details", object_of({}, {{"reasoning_tokens", count}})}});
}

Json answer_of(const char* kind, const char* key, Json value) {
  const Json choice = object_of({"index", key, "finish_reason"},
                                {{"index", of_type("integer")},
                                 {key, std::move(value)},
                                 {"finish_reason", word_of({"stop", "length", "tool_calls"})}});
  return object_of({"id", "object", "created", "model", "choices", "usage"},
                   {{"id", of_type("string")},
                    {"object", exactly(kind)},
                    {"created", of_type("integer")},
                    {"model", of_type("string")},
                    {"choices", list_of(choice)},
                    {"usage", refer("Usage")}});
}

void add_answers(Json& out) {
  const Json text = of_type("string"), whole = of_type("integer");
  const Json maybe_text = any_of({text, of_type("null")});
  out["Usage"] = usage_schema();
  out["ChatAnswer"] =
      answer_of("chat.completion", "message",
                object_of({"role", "content"}, {{"role", exactly("assistant")},
                                                {"content", maybe_text},
                                                {"reasoning_content", text},
                                                {"tool_calls", list_of(refer("Call"))}}));
  out["CompletionAnswer"] = answer_of("text_completion", "text", text);
  out["MessagesAnswer"] = object_of(
      {"id", "type", "role", "model", "content", "stop_reason", "stop_sequence", "usage"},
      {{"id", text},
       {"type", exactly("message")},
       {"role", exactly("assistant")},
       {"model", text},
       {"content",
        list_of(object_of({"type"}, {{"type", word_of({"text", "thinking", "tool_use"})}}))},
       {"stop_reason", word_of({"end_turn", "max_tokens", "stop_sequence", "tool_use"})},
       {"stop_sequence", maybe_text},
       {"usage", object_of({"input_tokens", "output_tokens"},
                           {{"input_tokens", whole}, {"output_tokens", whole}})}});
  const Json generated =
      object_of({"text", "meta_info"},
                {{"text", text}, {"output_ids", ids(0)}, {"meta_info", of_type("object")}});
  out["GenerateAnswer"] = any_of({generated, list_of(generated)});
  out["TokenCount"] = object_of({"input_tokens"}, {{"input_tokens", whole}});
  out["Tokens"] = object_of({"count", "max_model_len", "tokens"},
                            {{"count", whole}, {"max_model_len", whole}, {"tokens", ids(0)}});
  out["Rendered"] = object_of({"request_id", "model", "token_ids"},
                              {{"request_id", text}, {"model", text}, {"token_ids", ids(0)}});
  out["RenderedList"] = list_of(refer("Rendered"));
  out["Text"] = object_of({"prompt"}, {{"prompt", text}});
  out["Model"] = object_of({"id", "object", "max_model_len"}, {{"id", text},
                                                               {"object", exactly("model")},
                                                               {"created", whole},
                                                               {"owned_by", text},
                                                               {"max_model_len", whole}});
  out["Models"] = object_of({"object", "data"},
                            {{"object", exactly("list")}, {"data", list_of(refer("Model"))}});
  out["ModelInfo"] = object_of({"model_path", "is_generation", "max_model_len"},
                               {{"model_path", text},
                                {"is_generation", of_type("boolean")},
                                {"max_model_len", whole},
                                {"vocab_size", whole}});
  out["ServerInfo"] = object_of(
      {"model_path", "served_model_name", "version", "tp_size", "dp_size", "internal_states"},
      {{"model_path", text},
       {"tokenizer_path", text},
       {"served_model_name", text},
       {"version", text},
       {"tp_size", whole},
       {"dp_size", whole},
       {"context_length", whole},
       {"max_running_requests", whole},
       {"max_total_num_tokens", whole},
       {"internal_states", list_of(of_type("object"))}});
  out["Load"] = list_of(object_of({"dp_rank", "num_reqs", "num_waiting_reqs", "num_tokens"},
                                  {{"dp_rank", whole},
                                   {"num_reqs", whole},
                                   {"num_waiting_reqs", whole},
                                   {"num_tokens", whole}}));
  out["Health"] =
      object_of({"status"}, {{"status", word_of({"ok", "unavailable"})}, {"why", text}});
  out["Version"] = object_of({"version"}, {{"version", text}});
  const Json error =
      object_of({"message", "type"}, {{"message", text},
                                      {"type", text},
                                      {"param", maybe_text},
                                      {"code", any_of({text, whole, of_type("null")})}});
  out["Error"] = object_of({"error"}, {{"error", error}});
}

// How the body of a request and its answer are named.
struct DescribedBody {
  ApiBody body;
  const char* about;
  const char* request;  // a schema, or "" where there is no body
  unsigned where;       // its fields in kDescribed
  const char* answer;   // a schema; "" where the answer is a plain text, "*" any object
};

constexpr DescribedBody kBodies[] = {
    {ApiBody::kChat, "An answer in a conversation", "ChatRequest", kInChat, "ChatAnswer"},
    {ApiBody::kCompletion, "What follows after a text", "CompletionRequest", kInCompletion,
     "CompletionAnswer"},
    {ApiBody::kMessages, "An answer in a conversation, as Anthropic's", "MessagesRequest",
     kInMessages, "MessagesAnswer"},
    {ApiBody::kCountTokens, "How long the prompt of a conversation is", "CountTokensRequest",
     kInCountTokens, "TokenCount"},
    {ApiBody::kGenerate, "What follows after a text, as SGLang's", "GenerateRequest", kInGenerate,
     "GenerateAnswer"},
    {ApiBody::kRenderChat, "The prompt that a conversation becomes, without an answer",
     "ChatRequest", kInChat, "Rendered"},
    {ApiBody::kRenderCompletion, "The prompts of a request, without an answer", "CompletionRequest",
     kInCompletion, "RenderedList"},
    {ApiBody::kTokenize, "A text or a conversation to token ids", "TokenizeRequest", kInTokenize,
     "Tokens"},
    {ApiBody::kDetokenize, "Token ids to a text", "DetokenizeRequest", kInDetokenize, "Text"},
    {ApiBody::kHealth, "Whether requests are answered", "", 0, "Health"},
    {ApiBody::kGenerated, "Whether a token is drawn", "", 0, "GenerateAnswer"},
    {ApiBody::kVersion, "Which build this is", "", 0, "Version"},
    {ApiBody::kMetrics, "Measurements, as Prometheus reads them", "", 0, ""},
    {ApiBody::kModels, "The names that requests may use", "", 0, "Models"},
    {ApiBody::kModel, "One of the names", "", 0, "Model"},
    {ApiBody::kModelInfo, "The model that is served", "", 0, "ModelInfo"},
    {ApiBody::kServerInfo, "The server, as routers ask", "", 0, "ServerInfo"},
    {ApiBody::kLoad, "How much there is to do, as routers ask", "", 0, "Load"},
    {ApiBody::kDescription, "This document", "", 0, "*"},
};

const DescribedBody& described(ApiBody body) {
  for (const DescribedBody& each : kBodies)
    if (each.body == body) return each;
  return kBodies[0];
}

Json content_of(const char* type, Json schema) {
  return {{"content", {{type, {{"schema", std::move(schema)}}}}}};
}

Json response(const char* about, Json content) {
  Json out{{"description", about}};
  out.update(content);
  return out;
}

Json responses_of(const ApiPath& path, const DescribedBody& body, bool keys) {
  const Json error = content_of("application/json", refer("Error"));
  const std::string_view answer = body.answer;
  Json good = answer.empty() ? content_of("text/plain", of_type("string"))
                             : content_of("application/json",
                                          answer == "*" ? of_type("object") : refer(body.answer));
  const bool drawn = path.body == ApiBody::kChat || path.body == ApiBody::kCompletion ||
                     path.body == ApiBody::kMessages || path.body == ApiBody::kGenerate;
  if (drawn) good["content"]["text/event-stream"] = {{"schema", of_type("string")}};
  Json out{{"200", response("The answer", good)}};
  const auto add = [&](const char* status, const char* about) {
    out[status] = response(about, error);
  };
  if (*body.request != '\0') {
    add("400", "Malformed, of a wrong type, not supported, or too long for the context");
    add("404", "No such model");
    add("408", "Too slow to send");
    add("413", "Too long");
    add("415", "The body is not application/json");
    add("501", "A transfer-encoding other than chunked");
  }
  if (path.body == ApiBody::kModel) add("404", "No such model");
  if (keys && !path.open) add("401", "No key, or one that is not known");
  add("431", "The header is too long");
  if (drawn || path.body == ApiBody::kGenerated)
    add("429", "Too many requests wait; retry-after says when to ask again");
  if (drawn || path.body == ApiBody::kGenerated) add("500", "The request failed");
  if (path.body == ApiBody::kHealth)
    out["503"] = response("Not now", content_of("application/json", refer("Health")));
  else
    add("503", "Not now: the server ends, or has too many connections");
  return out;
}

Json operation(const ApiPath& path, const DescribedBody& body, bool keys) {
  Json out{{"summary", body.about}};
  if (path.body == ApiBody::kModel)
    out["parameters"] = Json::array({{{"name", "model"},
                                      {"in", "path"},
                                      {"required", true},
                                      {"schema", {{"type", "string"}, {"minLength", 1}}}}});
  if (*body.request != '\0') {
    out["requestBody"] = content_of("application/json", refer(body.request));
    out["requestBody"]["required"] = true;
  }
  out["responses"] = responses_of(path, body, keys);
  if (keys && path.open) out["security"] = Json::array();
  return out;
}

}  // namespace

std::string openapi_document(const std::vector<ApiPath>& paths, const std::string& version,
                             bool keys) {
  Json document{{"openapi", "3.1.0"},
                {"info", {{"title", "tenon serve"}, {"version", version}}},
                {"paths", Json::object()}};
  for (const ApiPath& each : paths) {
    std::string path(each.path), method(each.method);
    if (path.ends_with('/')) path += "{model}";
    for (char& c : method) c = static_cast<char>(c + 32);  // "get"
    document["paths"][path][method] = operation(each, described(each.body), keys);
  }
  Json schemas = Json::object();
  for (const DescribedBody& each : kBodies)
    if (each.where != 0) schemas[each.request] = body_schema(each.where);
  // A conversation comes instead of a text, and only then its fields are read.
  schemas["TokenizeRequest"] = any_of({body_schema(kInTokenize), body_schema(kInTokenizeChat)});
  schemas["SamplingParams"] = body_schema(kInSampling);
  schemas["StreamOptions"] = body_schema(kInStream);
  add_parts(schemas);
  add_forms(schemas);
  add_answers(schemas);
  document["components"]["schemas"] = std::move(schemas);
  if (keys) {
    document["components"]["securitySchemes"] = {
        {"bearer", {{"type", "http"}, {"scheme", "bearer"}}},
        {"header", {{"type", "apiKey"}, {"in", "header"}, {"name", "x-api-key"}}}};
    document["security"] = Json::array({{{"bearer", Json::array()}}, {{"header", Json::array()}}});
  }
  return to_text(document);
}

}  // namespace tenon::server
