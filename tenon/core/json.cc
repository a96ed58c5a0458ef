#include "tenon/core/json.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace tenon {
namespace {

using Json = nlohmann::json;

Status malformed(std::string why) { return Status::error(Code::kIo, std::move(why)); }

// " at line 3, column 7", counted from 1; `offset` may be one past the end.
std::string place(std::string_view text, std::size_t offset) {
  const std::string_view before = text.substr(0, std::min(offset, text.size()));
  const auto line = 1 + std::count(before.begin(), before.end(), '\n');
  const std::size_t line_start = before.rfind('\n') + 1;  // npos + 1 is 0
  std::string found = " at line " + std::to_string(line);
  return found.append(", column ").append(std::to_string(before.size() - line_start + 1));
}

// One past the closing quote of the string that opens at `begin`, or the end of the text.
std::size_t end_of_string(std::string_view text, std::size_t begin) {
  std::size_t at = begin + 1;
  while (at < text.size() && text[at] != '"') at += text[at] == '\\' ? 2 : 1;
  return std::min(at + 1, text.size());
}

// What the parser would follow without limit, or would not name.
Status check_before_parsing(std::string_view text) {
  constexpr std::size_t kShown = 60;
  std::string_view last_string, key;
  std::size_t depth = 0;
  for (std::size_t at = 0; at < text.size(); ++at) {
    switch (text[at]) {
      case '"': {
        const std::size_t end = end_of_string(text, at);
        last_string = text.substr(at, end - at);
        at = end - 1;
        break;
      }
      case ':': key = last_string.substr(0, kShown); break;
      case '[':
      case '{':
        if (++depth > kMaxJsonDepth)
          return malformed("is nested more than " + std::to_string(kMaxJsonDepth) + " deep" +
                           place(text, at));
        break;
      case ']':
      case '}':
        if (depth > 0) --depth;
        break;
      case 'N':
      case 'I':
        for (const std::string_view word : {"NaN", "Infinity"}) {
          if (!text.substr(at).starts_with(word)) continue;
          std::string what(key.empty() ? std::string_view("a value") : key);
          what.append(" is ").append(at > 0 && text[at - 1] == '-' ? "-" : "").append(word);
          return malformed(what + place(text, at) + "; accepted: a finite number");
        }
        break;
      default: break;
    }
  }
  return Status::ok();
}

// Keeps the first key that some object holds twice. A pass of its own over a text that is known to
// be right: the parser that calls back while it builds values walks through every object once for
// each object in it.
class RepeatedKeys final : public nlohmann::json_sax<Json> {
 public:
  const std::optional<std::string>& first() const { return first_; }

  bool key(std::string& name) override {
    if (open_.back().insert(name).second) return true;
    first_ = name;
    return false;
  }
  bool start_object(std::size_t) override {
    open_.emplace_back();
    return true;
  }
  bool end_object() override {
    open_.pop_back();
    return true;
  }
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(std::int64_t) override { return true; }
  bool number_unsigned(std::uint64_t) override { return true; }
  bool number_float(double, const std::string&) override { return true; }
  bool string(std::string&) override { return true; }
  bool binary(Json::binary_t&) override { return true; }
  bool start_array(std::size_t) override { return true; }
  bool end_array() override { return true; }
  bool parse_error(std::size_t, const std::string&, const Json::exception&) override {
    return false;
  }

 private:
  std::vector<std::set<std::string>> open_;  // keys of the objects around the present place
  std::optional<std::string> first_;
};

}  // namespace

Result<Json> parse_json(std::string_view text, JsonKeys keys) {
  TENON_TRY(check_before_parsing(text));
  try {
    Json value = Json::parse(text.begin(), text.end());
    if (keys == JsonKeys::kUnique) {
      RepeatedKeys repeated;
      Json::sax_parse(text.begin(), text.end(), &repeated);
      if (repeated.first()) return malformed("holds the key \"" + *repeated.first() + "\" twice");
    }
    return value;
  } catch (const Json::parse_error& error) {
    return malformed("is not valid JSON" + place(text, error.byte > 0 ? error.byte - 1 : 0));
  } catch (const Json::out_of_range&) {
    return malformed("is not valid JSON: it holds a number that no double can hold");
  }
}

}  // namespace tenon
