#include "tenon/text/answer_parser.h"

#include <algorithm>
#include <cstdio>
#include <utility>

namespace tenon {
namespace {

using jinja::Value;
using Kind = AnswerPiece::Kind;

constexpr std::string_view kThink = "<think>", kThinkEnd = "</think>";
constexpr std::string_view kCallTag = "<tool_call>", kCallEndTag = "</tool_call>";
constexpr std::string_view kFunctionTag = "<function=", kFunctionEndTag = "</function>";
constexpr std::string_view kParameterTag = "<parameter=", kParameterEndTag = "</parameter>";
constexpr std::string_view kSpace = " \t\r\n";
constexpr std::size_t kMaxNameBytes = 256;  // of the tag with a function's or parameter's name

void put(std::vector<AnswerPiece>& out, Kind kind, std::string text, int call = -1) {
  const bool joins =
      kind == Kind::kReasoning || kind == Kind::kText || kind == Kind::kCallArguments;
  if (joins && text.empty()) return;
  if (joins && !out.empty() && out.back().kind == kind && out.back().call == call) {
    out.back().text += text;
  } else {
    out.push_back({kind, std::move(text), call});
  }
}

// The inside of a JSON string: byte for byte, so that parts may be put together.
std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '"': out += "\\\""; break;
      case '\\': out += "\\\\"; break;
      case '\n': out += "\\n"; break;
      case '\r': out += "\\r"; break;
      case '\t': out += "\\t"; break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          char code[8];
          std::snprintf(code, sizeof code, "\\u%04x", static_cast<unsigned>(c));
          out += code;
        } else {
          out += c;
        }
    }
  }
  return out;
}

std::string_view trimmed(std::string_view text) {
  const auto first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

// What JSON makes of a value's text; empty where it is none. Python's words are taken for JSON's.
std::string json_of(std::string_view text) {
  const std::string_view inside = trimmed(text);
  if (inside == "True") return "true";
  if (inside == "False") return "false";
  if (inside == "None") return "null";
  if (inside.empty() || !jinja::parse_json(inside)) return {};
  return std::string(inside);
}

const Value* member(const Value* value, const char* name) {
  return value != nullptr && value->is_dict() ? value->find(name) : nullptr;
}

struct Types {
  bool string = false, null = false, other = false;
};

void add_type(const Value& name, Types& types) {
  if (!name.is_string()) return;
  const std::string& text = name.as_string();
  (text == "string" ? types.string : text == "null" ? types.null : types.other) = true;
}

// What a schema allows, as far as it matters here. Nesting is bounded by that of values.
void add_types(const Value& schema, Types& types) {
  if (const Value* type = member(&schema, "type")) {
    if (type->is_list()) {
      for (const Value& each : type->items()) add_type(each, types);
    } else {
      add_type(*type, types);
    }
    return;
  }
  if (const Value* values = member(&schema, "enum"); values != nullptr && values->is_list()) {
    for (const Value& each : values->items())
      (each.is_string() ? types.string : each.is_none() ? types.null : types.other) = true;
    return;
  }
  bool found = false;
  for (const char* name : {"anyOf", "oneOf", "allOf"})
    if (const Value* several = member(&schema, name); several != nullptr && several->is_list()) {
      for (const Value& each : several->items()) add_types(each, types);
      found = true;
    }
  if (!found && member(&schema, "$ref") != nullptr) types.other = true;
}

}  // namespace

bool ends_in_reasoning(std::string_view rendered) {
  const auto turn = rendered.rfind("<|im_start|>");
  const std::string_view last = turn == std::string_view::npos ? rendered : rendered.substr(turn);
  const auto open = last.rfind(kThink);
  return open != std::string_view::npos && last.find(kThinkEnd, open) == std::string_view::npos;
}

AnswerParser::AnswerParser(const AnswerForm& form) : form_(form) {
  if (!form_.has_calls || !form_.tools.is_list()) return;
  for (const Value& tool : form_.tools.items()) {
    const Value* function = member(&tool, "function");
    const Value* name = member(function, "name");
    const Value* properties = member(member(function, "parameters"), "properties");
    if (name == nullptr || !name->is_string() || properties == nullptr || !properties->is_dict())
      continue;
    auto& kinds = kinds_[name->as_string()];
    for (const auto& [key, schema] : properties->pairs()) {
      if (!key.is_string()) continue;
      Types types;
      add_types(schema, types);
      kinds[key.as_string()] = types.string && types.null  ? ValueKind::kStringOrNull
                               : types.string              ? ValueKind::kString
                               : types.other || types.null ? ValueKind::kJson
                                                           : ValueKind::kString;
    }
  }
}

AnswerParser::ValueKind AnswerParser::kind_of(const std::string& key) const {
  const auto function = kinds_.find(function_);
  if (function == kinds_.end()) return ValueKind::kString;
  const auto found = function->second.find(key);
  return found == function->second.end() ? ValueKind::kString : found->second;
}

std::vector<AnswerPiece> AnswerParser::push(std::string_view part) {
  std::vector<AnswerPiece> out;
  if (place_ == Place::kOver) return out;
  held_ += part;
  while (!held_.empty() && step(out)) {
  }
  return out;
}

std::vector<AnswerPiece> AnswerParser::finish() {
  std::vector<AnswerPiece> out;
  switch (place_) {
    case Place::kBegin:
      put(out, form_.in_reasoning ? Kind::kReasoning : Kind::kText, std::move(held_));
      break;
    case Place::kReasoningBegin:
    case Place::kReasoning: put(out, Kind::kReasoning, std::move(held_)); break;
    case Place::kTextBegin: break;
    case Place::kText: put(out, Kind::kText, std::move(held_)); break;
    case Place::kCall: put(out, Kind::kText, gap_ + std::string(kCallTag) + held_); break;
    case Place::kValue:
      if (kind_ == ValueKind::kString && !ignored_)
        put(out, Kind::kCallArguments, escaped(held_), begun_ - 1);
      break;
    case Place::kFunction:
    case Place::kCallEnd:
    case Place::kOver: break;
  }
  held_.clear();
  place_ = Place::kOver;
  return out;
}

bool AnswerParser::step(std::vector<AnswerPiece>& out) {
  switch (place_) {
    case Place::kBegin: return begin_of_answer();
    case Place::kReasoningBegin: return skip("\n", Place::kReasoning);
    case Place::kReasoning: return reasoning(out);
    case Place::kTextBegin: return skip(kSpace, Place::kText);
    case Place::kText: return text(out);
    case Place::kCall: return call(out);
    case Place::kFunction: return function(out);
    case Place::kValue: return value(out);
    case Place::kCallEnd: return call_end();
    case Place::kOver: held_.clear(); return false;
  }
  return false;
}

std::string AnswerParser::take(std::size_t bytes) {
  std::string taken = held_.substr(0, bytes);
  held_.erase(0, bytes);
  return taken;
}

// How many bytes stand in front of `tag`, or of what may become it.
std::size_t AnswerParser::safe_before(std::string_view tag) const {
  const auto at = held_.find(tag);
  if (at != std::string::npos) return at;
  std::size_t kept = std::min(held_.size(), tag.size() - 1);
  while (kept > 0 && !held_.ends_with(tag.substr(0, kept))) --kept;
  return held_.size() - kept;
}

bool AnswerParser::begin_of_answer() {
  const Place next = form_.in_reasoning ? Place::kReasoningBegin : Place::kText;
  if (!form_.has_reasoning) {
    place_ = Place::kText;
    return true;
  }
  const auto first = held_.find_first_not_of(kSpace);
  if (first == std::string::npos) return false;
  const std::string_view rest = std::string_view(held_).substr(first);
  if (rest.size() < kThink.size() && kThink.starts_with(rest)) return false;
  place_ = next;
  if (rest.starts_with(kThink)) {  // opened here, or once more
    held_.erase(0, first + kThink.size());
    place_ = Place::kReasoningBegin;
  }
  return true;
}

bool AnswerParser::skip(std::string_view characters, Place next) {
  const auto first = held_.find_first_not_of(characters);
  held_.erase(0, first);
  if (first == std::string::npos) return false;
  place_ = next;
  return true;
}

bool AnswerParser::reasoning(std::vector<AnswerPiece>& out) {
  const std::size_t safe = safe_before(kThinkEnd);
  const bool ends = std::string_view(held_).substr(safe).starts_with(kThinkEnd);
  std::size_t shown = safe;
  while (shown > 0 && held_[shown - 1] == '\n') --shown;
  put(out, Kind::kReasoning, take(shown));
  if (!ends) return false;
  held_.erase(0, safe - shown + kThinkEnd.size());
  place_ = Place::kTextBegin;
  return true;
}

bool AnswerParser::text(std::vector<AnswerPiece>& out) {
  if (!form_.has_calls) {
    put(out, Kind::kText, take(held_.size()));
    return false;
  }
  const std::size_t safe = safe_before(kCallTag);
  const bool ends = std::string_view(held_).substr(safe).starts_with(kCallTag);
  std::size_t shown = safe;
  while (shown > 0 && kSpace.find(held_[shown - 1]) != std::string_view::npos) --shown;
  put(out, Kind::kText, take(shown));
  if (!ends) return false;
  gap_ = take(safe - shown);
  held_.erase(0, kCallTag.size());
  place_ = Place::kCall;
  return true;
}

bool AnswerParser::call(std::vector<AnswerPiece>& out) {
  const auto first = held_.find_first_not_of(kSpace);
  if (first == std::string::npos) return false;
  const std::string_view rest = std::string_view(held_).substr(first);
  const auto end = rest.substr(0, kMaxNameBytes).find_first_of(">\n");
  const bool fits = rest.size() < kFunctionTag.size() ? kFunctionTag.starts_with(rest)
                                                      : rest.starts_with(kFunctionTag);
  if (fits && end == std::string_view::npos && rest.size() < kMaxNameBytes) return false;
  if (!fits || end == std::string_view::npos || rest[end] != '>' || end == kFunctionTag.size()) {
    put(out, Kind::kText, gap_ + std::string(kCallTag));  // no call after all
    place_ = Place::kText;
    return true;
  }
  function_ = trimmed(rest.substr(kFunctionTag.size(), end - kFunctionTag.size()));
  held_.erase(0, first + end + 1);
  keys_.clear();
  place_ = Place::kFunction;
  put(out, Kind::kCallBegin, function_, begun_++);
  return true;
}

// Whatever else stands between parameters is passed over.
bool AnswerParser::function(std::vector<AnswerPiece>& out) {
  held_.erase(0, held_.find('<'));
  if (held_.empty()) return false;
  const std::string_view rest(held_);
  if (rest.starts_with(kFunctionEndTag) || rest.starts_with(kCallEndTag)) {
    put(out, Kind::kCallArguments, keys_.empty() ? "{}" : "}", begun_ - 1);
    put(out, Kind::kCallEnd, {}, begun_ - 1);
    ++ended_;
    place_ = full() ? Place::kOver : Place::kCallEnd;
    return true;
  }
  if (rest.starts_with(kParameterTag)) {
    const auto end = rest.substr(0, kMaxNameBytes).find_first_of(">\n", kParameterTag.size());
    if (end == std::string_view::npos && rest.size() < kMaxNameBytes) return false;
    if (end != std::string_view::npos && rest[end] == '>') {
      std::string key(trimmed(rest.substr(kParameterTag.size(), end - kParameterTag.size())));
      held_.erase(0, end + 1);
      begin_value(std::move(key), out);
      return true;
    }
  }
  for (const std::string_view tag : {kFunctionEndTag, kCallEndTag, kParameterTag})
    if (rest.size() < tag.size() && tag.starts_with(rest)) return false;
  held_.erase(0, 1);
  return true;
}

// Of a key that comes twice the first value counts.
void AnswerParser::begin_value(std::string key, std::vector<AnswerPiece>& out) {
  kind_ = kind_of(key);
  seen_ = 0;
  value_begun_ = false;
  const bool first = keys_.empty();
  ignored_ = !keys_.insert(key).second;
  place_ = Place::kValue;
  if (ignored_) return;
  put(out, Kind::kCallArguments, (first ? "{\"" : ", \"") + escaped(key) + "\": ", begun_ - 1);
  if (kind_ == ValueKind::kString) put(out, Kind::kCallArguments, "\"", begun_ - 1);
}

// One line end behind the opening tag and one in front of the closing one belong to the tags.
bool AnswerParser::value(std::vector<AnswerPiece>& out) {
  if (!value_begun_) {
    value_begun_ = true;
    if (held_.front() == '\n') held_.erase(0, 1);
    return !held_.empty();
  }
  if (kind_ == ValueKind::kString) {
    std::size_t shown = safe_before(kParameterEndTag);
    const bool ends = std::string_view(held_).substr(shown).starts_with(kParameterEndTag);
    const std::size_t tag = shown;
    if (shown > 0 && held_[shown - 1] == '\n') --shown;
    if (!ignored_) put(out, Kind::kCallArguments, escaped(held_.substr(0, shown)), begun_ - 1);
    held_.erase(0, ends ? tag + kParameterEndTag.size() : shown);
    if (!ends) return false;
    if (!ignored_) put(out, Kind::kCallArguments, "\"", begun_ - 1);
    place_ = Place::kFunction;
    return true;
  }
  const auto tag = held_.find(kParameterEndTag, seen_);
  if (tag == std::string::npos) {
    seen_ = held_.size() - std::min(held_.size(), kParameterEndTag.size() - 1);
    return false;
  }
  std::string_view text = std::string_view(held_).substr(0, tag);
  if (text.ends_with('\n')) text.remove_suffix(1);
  if (!ignored_) end_value(text, out);
  held_.erase(0, tag + kParameterEndTag.size());
  place_ = Place::kFunction;
  return true;
}

void AnswerParser::end_value(std::string_view text, std::vector<AnswerPiece>& out) {
  std::string json;
  if (kind_ == ValueKind::kJson)
    json = json_of(text);
  else if (trimmed(text) == "null")
    json = "null";
  if (json.empty()) json = '"' + escaped(text) + '"';
  put(out, Kind::kCallArguments, std::move(json), begun_ - 1);
}

bool AnswerParser::call_end() {
  const std::size_t safe = safe_before(kCallEndTag);
  const bool ends = std::string_view(held_).substr(safe).starts_with(kCallEndTag);
  held_.erase(0, ends ? safe + kCallEndTag.size() : safe);
  if (ends) place_ = Place::kTextBegin;
  return ends;
}

}  // namespace tenon
