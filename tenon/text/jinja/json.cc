// JSON in and out of the template language's values.
#include <nlohmann/json.hpp>

#include <algorithm>

#include "tenon/text/jinja/integer.h"
#include "tenon/text/jinja/value.h"
#include "tenon/text/python_text.h"
#include "tenon/text/utf8.h"

namespace tenon::jinja {
namespace {

using Json = nlohmann::json;
constexpr std::size_t kMaxJsonDepth = kMaxValueDepth / 2;  // leaves room to wrap a parsed value

// Builds values while the text is being read, so that objects keep their order and nesting is
// bounded.
class Builder : public nlohmann::json_sax<Json> {
 public:
  bool null() override { return put(Value()); }
  bool boolean(bool given) override { return put(Value(given)); }
  bool number_integer(number_integer_t given) override { return put(Value(std::int64_t{given})); }
  bool number_unsigned(number_unsigned_t given) override {
    if (given <= static_cast<number_unsigned_t>(INT64_MAX))
      return put(Value(static_cast<std::int64_t>(given)));
    return integer(std::to_string(given));
  }
  // Also what no 64 bits hold: an integer keeps all its digits.
  bool number_float(number_float_t given, const string_t& text) override {
    if (text.find_first_of(".eE") == string_t::npos) return integer(text);
    return put(Value(given));
  }
  bool string(string_t& given) override { return put(Value(std::move(given))); }
  bool binary(binary_t&) override { return false; }
  bool start_object(std::size_t) override { return open(); }
  bool start_array(std::size_t) override { return open(); }
  bool key(string_t& given) override {
    open_.back().keys.push_back(std::move(given));
    return true;
  }
  bool end_object() override {
    Level level = std::move(open_.back());
    open_.pop_back();
    Value::Pairs pairs;
    pairs.reserve(level.values.size());
    for (std::size_t i = 0; i < level.values.size(); ++i)
      pairs.emplace_back(Value(std::move(level.keys[i])), std::move(level.values[i]));
    return put(Value::dict(std::move(pairs)));
  }
  bool end_array() override {
    Level level = std::move(open_.back());
    open_.pop_back();
    return put(Value::list(std::move(level.values)));
  }
  bool parse_error(std::size_t position, const std::string&, const Json::exception& why) override {
    constexpr int kNoDouble = 406;
    problem_ = why.id == kNoDouble
                   ? "the JSON text has a number that no double can hold, before byte "
                   : "the JSON text is malformed at byte ";
    problem_ += std::to_string(position);
    return false;
  }
  Value value;
  const std::string& problem() const { return problem_; }

 private:
  struct Level {
    std::vector<std::string> keys;
    Value::Items values;
  };
  bool open() {
    if (open_.size() >= kMaxJsonDepth) {
      problem_ = "the JSON text is nested deeper than " + std::to_string(kMaxJsonDepth);
      return false;
    }
    open_.emplace_back();
    return true;
  }
  bool integer(const std::string& text) { return put(parse_integer(text, 10).value()); }
  bool put(Value made) {
    (open_.empty() ? value : open_.back().values.emplace_back()) = std::move(made);
    return true;
  }
  std::vector<Level> open_;
  std::string problem_ = "the JSON text is malformed";
};

void append_escape(std::string& out, char32_t unit) {
  out += "\\u";
  for (int shift = 12; shift >= 0; shift -= 4)
    out.push_back("0123456789abcdef"[(unit >> shift) & 15]);
}

void append_string(std::string& out, std::string_view text, bool ascii) {
  out.push_back('"');
  for (char32_t code : python::code_points(text)) {
    switch (code) {
      case U'"': out += "\\\""; continue;
      case U'\\': out += "\\\\"; continue;
      case U'\n': out += "\\n"; continue;
      case U'\r': out += "\\r"; continue;
      case U'\t': out += "\\t"; continue;
      case U'\b': out += "\\b"; continue;
      case U'\f': out += "\\f"; continue;
      default: break;
    }
    if (code >= 0x20 && (!ascii || code <= 0x7E)) {
      utf8_append(out, code);
    } else if (code >= 0x10000) {
      append_escape(out, 0xD800 + ((code - 0x10000) >> 10));
      append_escape(out, 0xDC00 + ((code - 0x10000) & 0x3FF));
    } else {
      append_escape(out, code);
    }
  }
  out.push_back('"');
}

class Writer {
 public:
  explicit Writer(const JsonStyle& style) : style_(style) {}

  void value(const Value& value) {
    if (value.is_none()) {
      out_ += "null";
    } else if (value.is_bool()) {
      out_ += value.as_bool() ? "true" : "false";
    } else if (value.is_float()) {
      out_ += number(value.as_float());
    } else if (value.is_integer()) {
      out_ += integer_text(value);
    } else if (value.is_string()) {
      string(value.as_string());
    } else if (value.is_list()) {
      list(value);
    } else if (value.is_dict()) {
      dict(value);
    } else {
      fail("Object of type " + std::string(type_name(value)) + " is not JSON serializable");
    }
  }
  std::string out_;

 private:
  static std::string number(double value) {
    if (value != value) return "NaN";
    if (value - value != 0) return value < 0 ? "-Infinity" : "Infinity";
    return python::number(value);
  }
  void string(std::string_view text) { append_string(out_, text, style_.ascii); }
  void list(const Value& value) {
    begin('[');
    for (const Value& item : value.items()) {
      separate(&item == &value.items().front());
      this->value(item);
    }
    end(']', value.items().empty());
  }
  void dict(const Value& value) {
    std::vector<const std::pair<Value, Value>*> pairs;
    for (const auto& pair : value.pairs()) pairs.push_back(&pair);
    if (style_.sort_keys)
      std::ranges::stable_sort(pairs,
                               [](auto* a, auto* b) { return compare(a->first, b->first) < 0; });
    begin('{');
    for (const auto* pair : pairs) {
      separate(pair == pairs.front());
      key(pair->first);
      out_ += style_.key_separator;
      this->value(pair->second);
    }
    end('}', pairs.empty());
  }
  void key(const Value& key) {
    if (key.is_string()) return string(key.as_string());
    if (key.is_list()) fail("keys must be str, int, float, bool or None, not tuple");
    out_ += '"';
    value(key);
    out_ += '"';
  }
  void begin(char bracket) {
    out_ += bracket;
    ++level_;
  }
  void separate(bool is_first) {
    if (!is_first) out_ += style_.item_separator;
    new_line();
  }
  void end(char bracket, bool is_empty) {
    --level_;
    if (!is_empty) new_line();
    out_ += bracket;
  }
  void new_line() {
    if (!style_.indent) return;
    out_ += '\n';
    for (int i = 0; i < level_; ++i) out_ += *style_.indent;
  }
  const JsonStyle& style_;
  int level_ = 0;
};

}  // namespace

std::string dump_json(const Value& value, const JsonStyle& style) {
  Writer writer(style);
  writer.value(value);
  return std::move(writer.out_);
}

Result<Value> parse_json(std::string_view text) {
  Builder builder;
  try {
    if (!Json::sax_parse(text, &builder))
      return Status::error(Code::kInvalidArgument, builder.problem());
  } catch (const Error& error) {  // a container outgrew the limits of values
    return Status::error(Code::kInvalidArgument, "the JSON text is too large: " + error.message);
  }
  return std::move(builder.value);
}

Result<std::string> to_json(const Value& value) {
  try {
    return dump_json(value, JsonStyle{});
  } catch (const Error& error) {
    return Status::error(Code::kInvalidArgument, error.message);
  }
}

}  // namespace tenon::jinja
