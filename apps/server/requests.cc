#include "apps/server/requests.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <utility>

#include "apps/server/answer_rules.h"

namespace tenon::server {
namespace {

using jinja::Value;

constexpr std::int64_t kMaxInt = std::numeric_limits<std::int32_t>::max();

// Ids as the keys of an object, as JSON has them: texts.
void read_bias(const Fields& fields, ApiRequest& request) {
  const Value* biases = fields.object("logit_bias");
  if (biases == nullptr) return;
  if (biases->pairs().size() > static_cast<std::size_t>(kMaxLogitBias))
    return fields.fail("logit_bias", "has " + std::to_string(biases->pairs().size()) +
                                         " ids; accepted are " + std::to_string(kMaxLogitBias));
  for (const auto& [key, value] : biases->pairs()) {
    const std::string& text = key.as_string();
    std::int32_t id = -1;
    const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), id);
    const double bias = value.is_int()     ? static_cast<double>(value.as_int())
                        : value.is_float() ? value.as_float()
                                           : 1000;
    // An id has one spelling, so that no id comes twice.
    if (error != std::errc() || stop != text.data() + text.size() || id < 0 ||
        text != std::to_string(id) || !(bias >= -100 && bias <= 100))
      return fields.fail("logit_bias", "holds " + shown(key) + ": " + shown(value) +
                                           "; accepted are token ids, 0 and more, with numbers "
                                           "from -100 to 100");
    request.sampling.logit_bias.emplace_back(id, static_cast<float>(bias));
  }
}

// How many of the likeliest tokens are told: a switch and a number in a chat, a number elsewhere.
void read_logprobs(const Fields& fields, ApiRequest& request) {
  std::int64_t likeliest = 0;
  if (request.dialect == Dialect::kChat) {
    bool wanted = false;
    fields.boolean("logprobs", wanted);
    fields.integer("top_logprobs", 0, kMaxLogprobs, likeliest);
    if (!wanted && likeliest > 0)
      return fields.fail("top_logprobs", "is given, but \"logprobs\" is not true");
    if (!wanted) return;
  } else {
    const Value* found = fields.find("logprobs");
    if (found == nullptr || (found->is_bool() && !found->as_bool())) return;
    fields.integer("logprobs", 0, kMaxLogprobs, likeliest);
  }
  request.sampling.logprobs = static_cast<int>(likeliest);
}

// vLLM's: of the prompt, beside the answer.
void read_prompt_logprobs(const Fields& fields, ApiRequest& request) {
  if (fields.find("prompt_logprobs") == nullptr) return;
  std::int64_t likeliest = 0;
  fields.integer("prompt_logprobs", 0, kMaxLogprobs, likeliest);
  bool stream = false;
  fields.boolean("stream", stream);
  if (stream)
    return fields.fail("prompt_logprobs", "is given, but answers that are streamed do not have it");
  request.shows_prompt_logprobs = true;
  request.prompt_likeliest = request.sampling.prompt_logprobs = static_cast<int>(likeliest);
}

// SGLang's: of the answer, and of the prompt from a place on.
void read_generate_logprobs(const Fields& fields, ApiRequest& request) {
  bool wanted = false;
  fields.boolean("return_logprob", wanted);
  std::int64_t from = -1, likeliest = 0;
  fields.integer("logprob_start_len", -1, kMaxInt, from);
  fields.integer("top_logprobs_num", 0, kMaxLogprobs, likeliest);
  fields.boolean("return_text_in_logprobs", request.shows_token_texts);
  if (!wanted) return;
  request.sampling.logprobs = static_cast<int>(likeliest);
  if (from < 0) return;
  request.sampling.prompt_logprobs = static_cast<int>(likeliest);
  request.sampling.prompt_logprobs_from = static_cast<int>(from);
}

void read_sampling(const Fields& fields, ApiRequest& request) {
  fields.number("temperature", 0, 100, false, request.sampling.temperature);
  fields.number("top_p", 0, 1, true, request.sampling.top_p);
  std::int64_t top_k = request.sampling.top_k;
  fields.integer("top_k", -1, kMaxInt, top_k);
  request.sampling.top_k = top_k < 0 ? 0 : static_cast<int>(top_k);  // −1 is "all" elsewhere
  fields.number("min_p", 0, 1, false, request.sampling.min_p);
  fields.number("repetition_penalty", 0, 10, true, request.sampling.repetition_penalty);
  fields.number("frequency_penalty", -2, 2, false, request.sampling.frequency_penalty);
  fields.number("presence_penalty", -2, 2, false, request.sampling.presence_penalty);
  read_bias(fields, request);
  for (const char* name : {"min_tokens", "min_new_tokens"}) {
    std::int64_t least = request.sampling.min_tokens;
    fields.integer(name, 0, kMaxInt, least);
    request.sampling.min_tokens = static_cast<int>(least);
  }
  fields.boolean("ignore_eos", request.sampling.ignore_eos);
  for (const char* name : {"seed", "sampling_seed"})
    if (fields.find(name) != nullptr) {
      std::int64_t seed = 0;
      fields.integer(name, std::numeric_limits<std::int64_t>::min(),
                     std::numeric_limits<std::int64_t>::max(), seed);
      request.seed = static_cast<std::uint64_t>(seed);
    }
  fields.ids("stop_token_ids", kMaxStopIds, request.stop_ids);
  fields.boolean("skip_special_tokens", request.skip_special);
}

void read_stops(const Fields& fields, const char* name, ApiRequest& request) {
  fields.texts(name, kMaxStops, request.stops);
  std::erase(request.stops, "");  // some clients send "" for none
}

void read_max_tokens(const Fields& fields, const char* name, int low, ApiRequest& request) {
  if (fields.find(name) == nullptr) return;
  std::int64_t most = 0;
  fields.integer(name, low, kMaxInt, most);
  request.max_tokens = static_cast<int>(most);
}

// Behind what says how long an answer may be.
void check_min_tokens(const Fields& fields, const ApiRequest& request) {
  const int most = std::max(1, request.max_tokens.value_or(kMaxInt));
  if (request.sampling.min_tokens <= most) return;
  fields.fail(fields.find("min_new_tokens") != nullptr ? "min_new_tokens" : "min_tokens",
              "is " + std::to_string(request.sampling.min_tokens) +
                  "; accepted are whole numbers from 0 to " + std::to_string(most) +
                  ", as many as the answer may have");
}

void read_count(const Fields& fields, ApiRequest& request) {
  std::int64_t n = 1;
  fields.integer("n", 1, kMaxChoices, n);
  request.n = static_cast<int>(n);
  if (request.choices() > kMaxChoices)
    fields.fail("n", "asks for " + std::to_string(request.choices()) +
                         " answers in all; accepted are " + std::to_string(kMaxChoices));
}

void read_stream(const Fields& fields, ApiRequest& request) {
  fields.boolean("stream", request.stream);
  const Value* options = fields.object("stream_options");
  if (options == nullptr) return;
  if (!request.stream) return fields.fail("stream_options", "is given, but \"stream\" is not true");
  const Fields inside = fields.inside(*options, "stream_options.");
  inside.boolean("include_usage", request.include_usage);
  inside.boolean("continuous_usage_stats", request.continuous_usage);
}

void read_openai(const Fields& fields, ApiRequest& request) {
  fields.refuse_unsupported(request.dialect);
  fields.text("model", request.model);
  read_sampling(fields, request);
  read_logprobs(fields, request);
  read_prompt_logprobs(fields, request);
  read_stops(fields, "stop", request);
  const int low = request.dialect == Dialect::kCompletion ? 0 : 1;
  read_max_tokens(fields, "max_tokens", low, request);
  read_max_tokens(fields, "max_completion_tokens", low, request);  // the newer name wins
  read_stream(fields, request);
  fields.boolean("return_token_ids", request.return_ids);
}

void read_chat(const Fields& fields, ApiRequest& request) {
  read_openai(fields, request);
  read_answer_format(fields, request);
  read_conversation(fields, request);
  check_answer_rules(fields, request);
  fields.boolean("separate_reasoning", request.form.has_reasoning);
  check_min_tokens(fields, request);
  read_count(fields, request);
}

void read_completion(const Fields& fields, ApiRequest& request) {
  read_openai(fields, request);
  read_answer_format(fields, request);
  check_answer_rules(fields, request);
  read_prompts(fields, "prompt", request);
  fields.boolean("echo", request.echo);
  if (request.echo && request.sampling.logprobs >= 0)
    request.sampling.prompt_logprobs =
        std::max(request.sampling.prompt_logprobs, request.sampling.logprobs);
  if (!request.max_tokens) request.max_tokens = 16;  // as OpenAI's
  check_min_tokens(fields, request);
  read_count(fields, request);
}

void read_generate(const Fields& fields, ApiRequest& request) {
  fields.refuse_unsupported(request.dialect);
  fields.text("model", request.model);
  read_stream(fields, request);
  read_generate_logprobs(fields, request);
  request.return_ids = true;
  request.max_tokens = 128;
  request.bias_field = "sampling_params.logit_bias";
  request.n_field = "sampling_params.n";
  if (fields.find("text") != nullptr && fields.find("input_ids") != nullptr)
    fields.fail("text", "and \"input_ids\" are both given; accepted is one of them");
  read_prompts(fields, fields.find("input_ids") != nullptr ? "input_ids" : "text", request);
  const Value none = Value::dict({});
  const Value* params = fields.object("sampling_params");
  const Fields inside = fields.inside(params != nullptr ? *params : none, "sampling_params.");
  inside.refuse_unsupported(request.dialect);
  read_sampling(inside, request);
  read_answer_format(inside, request);
  check_answer_rules(inside, request);
  read_stops(inside, "stop", request);
  read_max_tokens(inside, "max_new_tokens", 0, request);
  check_min_tokens(inside, request);
  read_count(inside, request);
}

void read_messages(const Fields& fields, ApiRequest& request) {
  fields.text("model", request.model);
  if (fields.need("max_tokens") != nullptr) read_max_tokens(fields, "max_tokens", 1, request);
  fields.number("temperature", 0, 100, false, request.sampling.temperature);
  fields.number("top_p", 0, 1, true, request.sampling.top_p);
  std::int64_t top_k = request.sampling.top_k;
  fields.integer("top_k", 0, kMaxInt, top_k);
  request.sampling.top_k = static_cast<int>(top_k);
  read_stops(fields, "stop_sequences", request);
  fields.boolean("stream", request.stream);
  read_messages_api(fields, request);
}

}  // namespace

void read_prompts(const Fields& fields, const char* name, ApiRequest& request) {
  request.prompt_field = name;
  const Value* found = fields.need(name);
  if (found == nullptr) return;
  const auto refuse = [&](const std::string& what) {
    fields.fail(name, what +
                          "; accepted are a string, a list of token ids (0 and more), and a list "
                          "of strings or of such lists, of at least 1");
  };
  if (found->is_string()) {
    request.prompts.emplace_back(found->as_string());
    return;
  }
  if (!found->is_list() || found->items().empty()) return refuse("is " + shown(*found));
  const auto& items = found->items();
  if (!items[0].is_string() && !items[0].is_list()) {
    auto ids = ids_of(*found);
    if (!ids) return refuse("holds " + shown(*find_no_id(*found)));
    request.prompts.emplace_back(*std::move(ids));
    return;
  }
  request.is_batch = true;
  if (items.size() > kMaxChoices)
    return fields.fail(name, "has " + std::to_string(items.size()) + " prompts; accepted are " +
                                 std::to_string(kMaxChoices));
  for (const Value& each : items) {
    if (each.is_string()) {
      request.prompts.emplace_back(each.as_string());
      continue;
    }
    auto ids = each.is_list() ? ids_of(each) : std::nullopt;
    if (!ids) return refuse("holds " + shown(each.is_list() ? *find_no_id(each) : each));
    request.prompts.emplace_back(*std::move(ids));
  }
}

ApiResult<Value> parse_body(std::string_view body) {
  auto parsed = jinja::parse_json(body);
  if (!parsed) return ApiError{400, std::string(parsed.status().message()), {}, {}};
  if (!parsed->is_dict())
    return ApiError{
        400, "the body is " + std::string(kind_name(*parsed)) + "; accepted is an object", {}, {}};
  return *std::move(parsed);
}

ApiResult<ApiRequest> parse_request(Dialect dialect, std::string_view body,
                                    const ApiDefaults& defaults) {
  auto parsed = parse_body(body);
  if (auto* error = std::get_if<ApiError>(&parsed)) return std::move(*error);
  std::optional<ApiError> error;
  const Fields fields(std::get<Value>(parsed), error);
  ApiRequest request;
  request.dialect = dialect;
  request.sampling = defaults.sampling;
  switch (dialect) {
    case Dialect::kChat: read_chat(fields, request); break;
    case Dialect::kCompletion: read_completion(fields, request); break;
    case Dialect::kMessages: read_messages(fields, request); break;
    case Dialect::kGenerate: read_generate(fields, request); break;
  }
  if (error) return *std::move(error);
  return request;
}

}  // namespace tenon::server
