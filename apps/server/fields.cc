#include "apps/server/fields.h"

#include <cmath>
#include <limits>
#include <utility>

namespace tenon::server {
namespace {

using jinja::Value;

// The value of a field that asks for nothing.
enum class Neutral : std::uint8_t { kZero, kOne, kFalse, kTrue, kEmpty, kTextModality };

struct RefusedField {
  const char* name;
  Neutral neutral;
  const char* why;
};

constexpr const char* kSampling = "the engine does not draw with it";

// Fields that are known and not supported. To support one: take its line out here and read it where
// its API's other fields are read.
constexpr RefusedField kRefused[] = {
    {"length_penalty", Neutral::kOne, "there is no beam search"},
    {"use_beam_search", Neutral::kFalse, "there is no beam search"},
    {"best_of", Neutral::kOne, "answers are not ranked; n gives several"},
    {"suffix", Neutral::kEmpty, "text cannot be filled in"},
    {"allowed_token_ids", Neutral::kEmpty, kSampling},
    {"bad_words", Neutral::kEmpty, kSampling},
    {"include_stop_str_in_output", Neutral::kFalse, "answers never show what stopped them"},
    {"no_stop_trim", Neutral::kFalse, "answers never show what stopped them"},
    {"spaces_between_special_tokens", Neutral::kTrue, "there are no such spaces"},
    {"truncate_prompt_tokens", Neutral::kEmpty, "prompts are never cut"},
    {"continue_final_message", Neutral::kFalse, "the last message cannot be continued"},
    {"prompt_embeds", Neutral::kEmpty, "prompts are texts or token ids"},
    {"input_embeds", Neutral::kEmpty, "prompts are texts or token ids"},
    {"image_data", Neutral::kEmpty, "this server reads text only"},
    {"functions", Neutral::kEmpty, "tools is its successor"},
    {"function_call", Neutral::kEmpty, "tool_choice is its successor"},
    {"modalities", Neutral::kTextModality, "answers are texts"},
    {"audio", Neutral::kEmpty, "answers are texts"},
};

bool is_number(const Value& value, double wanted) {
  if (value.is_int()) return static_cast<double>(value.as_int()) == wanted;
  return value.is_float() && value.as_float() == wanted;
}

bool is_empty(const Value& value) {
  if (value.is_string()) return value.as_string().empty();
  if (value.is_list()) return value.items().empty();
  return value.is_dict() && value.pairs().empty();
}

bool asks_for_nothing(const Value& value, Neutral neutral) {
  const auto is = [&](bool wanted) { return value.is_bool() && value.as_bool() == wanted; };
  switch (neutral) {
    case Neutral::kZero: return is_number(value, 0);
    case Neutral::kOne: return is_number(value, 1);
    case Neutral::kFalse: return is(false);
    case Neutral::kTrue: return is(true);
    case Neutral::kEmpty: return is_empty(value);
    case Neutral::kTextModality:
      return value.is_list() && value.items().size() == 1 && value.items()[0].is_string() &&
             value.items()[0].as_string() == "text";
  }
  return false;
}

std::string decimal(double value) {
  if (value == std::floor(value) && std::abs(value) < 1e15)
    return std::to_string(static_cast<std::int64_t>(value));
  std::string text = std::to_string(value);
  return text.substr(0, text.find_last_not_of('0') + 1);
}

// A whole number, also one that is written 5.0.
std::optional<std::int64_t> whole(const Value& value) {
  if (value.is_int()) return value.as_int();
  if (!value.is_float()) return std::nullopt;
  const double number = value.as_float();
  if (number != std::floor(number) || std::abs(number) > 9e15) return std::nullopt;
  return static_cast<std::int64_t>(number);
}

}  // namespace

std::string_view kind_name(const Value& value) {
  if (value.is_none()) return "null";
  if (value.is_bool()) return "true or false";
  if (value.is_number()) return "a number";
  if (value.is_string()) return "a string";
  if (value.is_list()) return "a list";
  return "an object";
}

std::string shown(const Value& value) {
  const auto json = jinja::to_json(value);
  if (!json) return std::string(kind_name(value));
  return json->size() <= 60 ? *json : std::string(kind_name(value));
}

const Value* find_no_id(const Value& list) {
  for (const Value& each : list.items())
    if (!each.is_int() || each.as_int() < 0 ||
        each.as_int() > std::numeric_limits<std::int32_t>::max())
      return &each;
  return nullptr;
}

std::optional<std::vector<std::int32_t>> ids_of(const Value& list) {
  if (find_no_id(list) != nullptr) return std::nullopt;
  std::vector<std::int32_t> ids;
  ids.reserve(list.items().size());
  for (const Value& each : list.items()) ids.push_back(static_cast<std::int32_t>(each.as_int()));
  return ids;
}

Fields::Fields(const Value& object, std::optional<ApiError>& error, std::string where)
    : object_(object), error_(&error), where_(std::move(where)) {}

void Fields::fail(std::string_view name, std::string why, int status) const {
  if (error_->has_value()) return;
  const std::string param = where_ + std::string(name);
  error_->emplace(ApiError{status, "\"" + param + "\" " + std::move(why), param, {}});
}

const Value* Fields::find(const char* name) const {
  const Value* found = object_.is_dict() ? object_.find(name) : nullptr;
  return found == nullptr || found->is_none() ? nullptr : found;
}

const Value* Fields::need(const char* name) const {
  const Value* found = find(name);
  if (found == nullptr) fail(name, "is missing");
  return found;
}

void Fields::boolean(const char* name, bool& out) const {
  const Value* found = find(name);
  if (found == nullptr) return;
  if (!found->is_bool()) return fail(name, "is " + shown(*found) + "; accepted are true and false");
  out = found->as_bool();
}

void Fields::integer(const char* name, std::int64_t low, std::int64_t high,
                     std::int64_t& out) const {
  const Value* found = find(name);
  if (found == nullptr) return;
  const auto value = whole(*found);
  if (!value || *value < low || *value > high)
    return fail(name, "is " + shown(*found) + "; accepted are whole numbers from " +
                          std::to_string(low) + " to " + std::to_string(high));
  out = *value;
}

void Fields::number(const char* name, double low, double high, bool open, float& out) const {
  const Value* found = find(name);
  if (found == nullptr) return;
  const bool is_one = found->is_int() || found->is_float();
  const double value = found->is_int()     ? static_cast<double>(found->as_int())
                       : found->is_float() ? found->as_float()
                                           : 0;
  // In the precision that is drawn with: what rounds to the bound is the bound.
  const auto rounded = static_cast<float>(value);
  if (!is_one || !(open ? rounded > low : rounded >= low) || !(value <= high))
    return fail(name, "is " + shown(*found) + "; accepted are numbers " +
                          (open ? "above " : "from ") + decimal(low) + " to " + decimal(high));
  out = rounded;
}

void Fields::text(const char* name, std::string& out) const {
  const Value* found = find(name);
  if (found == nullptr) return;
  if (!found->is_string()) return fail(name, "is " + shown(*found) + "; accepted is a string");
  out = found->as_string();
}

void Fields::texts(const char* name, std::size_t most, std::vector<std::string>& out) const {
  const Value* found = find(name);
  if (found == nullptr) return;
  if (found->is_string()) {
    out.push_back(found->as_string());
    return;
  }
  if (!found->is_list())
    return fail(name, "is " + shown(*found) + "; accepted are a string and a list of strings");
  if (found->items().size() > most)
    return fail(name, "has " + std::to_string(found->items().size()) + " strings; accepted are " +
                          std::to_string(most));
  for (const Value& each : found->items()) {
    if (!each.is_string()) return fail(name, "holds " + shown(each) + "; accepted are strings");
    out.push_back(each.as_string());
  }
}

void Fields::ids(const char* name, std::size_t most, std::vector<std::int32_t>& out) const {
  const Value* found = list(name);
  if (found == nullptr) return;
  auto ids = ids_of(*found);
  if (!ids)
    return fail(name,
                "holds " + shown(*find_no_id(*found)) + "; accepted are token ids, 0 and more");
  if (ids->size() > most)
    return fail(name, "has " + std::to_string(ids->size()) + " token ids; accepted are " +
                          std::to_string(most));
  out = *std::move(ids);
}

const Value* Fields::object(const char* name) const {
  const Value* found = find(name);
  if (found == nullptr || found->is_dict()) return found;
  fail(name, "is " + shown(*found) + "; accepted is an object");
  return nullptr;
}

const Value* Fields::list(const char* name) const {
  const Value* found = find(name);
  if (found == nullptr || found->is_list()) return found;
  fail(name, "is " + shown(*found) + "; accepted is a list");
  return nullptr;
}

void Fields::refuse_unsupported(Dialect dialect) const {
  for (const RefusedField& each : kRefused) {
    const Value* found = find(each.name);
    if (found == nullptr || asks_for_nothing(*found, each.neutral)) continue;
    return fail(each.name, "is " + shown(*found) + ", which is not supported: " + each.why);
  }
  const Value* echo = find("echo");
  if (dialect != Dialect::kCompletion && echo != nullptr &&
      !asks_for_nothing(*echo, Neutral::kFalse))
    fail("echo", "is supported by /v1/completions only");
}

}  // namespace tenon::server
