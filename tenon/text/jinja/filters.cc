// Filters over single values. Those over sequences are in jinja/sequences.cc.
#include <algorithm>
#include <array>
#include <cmath>

#include "tenon/text/jinja/integer.h"
#include "tenon/text/jinja/interpreter.h"
#include "tenon/text/python_text.h"
#include "tenon/text/utf8.h"

namespace tenon::jinja {
namespace {

using Given = CallArguments;

Value upper(Interpreter& on, const Value& value, const Given& given) {
  const Bound none("upper", given, {});
  return on.text(python::upper(on.shown(value)));
}

Value lower(Interpreter& on, const Value& value, const Given& given) {
  const Bound none("lower", given, {});
  return on.text(python::lower(on.shown(value)));
}

Value capitalize(Interpreter& on, const Value& value, const Given& given) {
  const Bound none("capitalize", given, {});
  return on.text(python::capitalize(on.shown(value)));
}

// Words begin after white space, hyphens and opening brackets; apostrophes do not end a word.
Value title(Interpreter& on, const Value& value, const Given& given) {
  const Bound none("title", given, {});
  std::string made, word;
  auto flush = [&] {
    if (word.empty()) return;
    const auto first = static_cast<std::size_t>(utf8_first(word).num_bytes);
    made += python::upper(std::string_view(word).substr(0, first));
    made += python::lower(std::string_view(word).substr(first));
    word.clear();
  };
  for (char32_t code : python::code_points(on.shown(value))) {
    if (python::is_space(code) || code == '-' || code == '(' || code == '{' || code == '[' ||
        code == '<') {
      flush();
      utf8_append(made, code);
    } else {
      utf8_append(word, code);
    }
  }
  flush();
  return on.text(std::move(made));
}

Value trim(Interpreter& on, const Value& value, const Given& given) {
  const Bound bound("trim", given, {"chars"});
  const std::string text = on.shown(value);
  if (!bound.has(0) || bound[0].is_none())
    return on.text(std::string(python::strip(text, python::Side::kBoth)));
  return on.text(std::string(python::strip(text, python::Side::kBoth, bound.string(0, ""))));
}

Value replace(Interpreter& on, const Value& value, const Given& given) {
  const Bound bound("replace", given, {"old", "new", "count"}, 2);
  const std::string text = on.shown(value), from = on.shown(bound[0]), to = on.shown(bound[1]);
  const bool all = !bound.has(2) || bound[2].is_none();
  on.charge((text.size() + 1) * (1 + to.size() / (from.size() + 1)) / 8);
  return on.text(python::replace(text, from, to, all ? -1 : bound.integer(2, -1)));
}

Value string(Interpreter& on, const Value& value, const Given& given) {
  const Bound none("string", given, {});
  return value.is_string() ? value : on.text(on.shown(value));
}

Value safe(Interpreter& on, const Value& value, const Given& given) {
  return string(on, value, given);
}

Value escape(Interpreter& on, const Value& value, const Given& given) {
  const Bound none("escape", given, {});
  std::string made;
  for (char c : on.shown(value)) {
    switch (c) {
      case '&': made += "&amp;"; break;
      case '<': made += "&lt;"; break;
      case '>': made += "&gt;"; break;
      case '\'': made += "&#39;"; break;
      case '"': made += "&#34;"; break;
      default: made += c;
    }
  }
  return on.text(std::move(made));
}

Value default_value(Interpreter&, const Value& value, const Given& given) {
  const Bound bound("default", given, {"default_value", "boolean"});
  if (value.is_undefined() || (bound.flag(1, false) && !truth(value)))
    return bound.get(0, Value(""));
  return value;
}

Value length(Interpreter&, const Value& value, const Given& given) {
  const Bound none("length", given, {});
  auto counted = [](std::size_t count) { return Value(static_cast<std::int64_t>(count)); };
  if (value.is_string()) return counted(utf8_count(value.as_string()));
  if (value.is_list()) return counted(value.items().size());
  if (value.is_dict()) return counted(value.pairs().size());
  if (value.is_undefined()) return Value(0);
  fail("object of type '" + std::string(type_name(value)) + "' has no len()");
}

Value to_int(Interpreter& on, const Value& value, const Given& given) {
  const Bound bound("int", given, {"default", "base"});
  demand_defined(value);
  if (value.is_integer()) return value;
  if (value.is_bool()) return Value(value.as_bool() ? 1 : 0);
  std::optional<double> real;
  if (value.is_string()) {
    const std::size_t digits = std::min(value.as_string().size(), kMaxIntegerDigits);
    on.charge(digits * digits / 64);
    if (auto whole = parse_integer(value.as_string(), static_cast<int>(bound.integer(1, 10))))
      return std::move(*whole);
    real = python::parse_float(value.as_string());
  } else if (value.is_float()) {
    real = value.as_float();
    if (std::isinf(*real)) fail("cannot convert float infinity to integer");
  }
  if (!real || std::isnan(*real) || std::isinf(*real)) return bound.get(0, Value(0));
  return integer_of_double(*real);
}

Value to_float(Interpreter&, const Value& value, const Given& given) {
  const Bound bound("float", given, {"default"});
  demand_defined(value);
  if (value.is_float()) return value;
  if (value.is_number()) return Value(integer_to_double(value));
  if (value.is_string())
    if (auto real = python::parse_float(value.as_string())) return Value(*real);
  return bound.get(0, Value(0.0));
}

Value absolute(Interpreter& on, const Value& value, const Given& given) {
  const Bound none("abs", given, {});
  demand_defined(value);
  if (value.is_float()) return Value(std::fabs(value.as_float()));
  if (!value.is_number())
    fail("bad operand type for abs(): '" + std::string(type_name(value)) + "'");
  if (value.is_bool()) return Value(value.as_bool() ? 1 : 0);
  return compare_numbers(value, Value(0)) < 0 ? negative(on, value) : value;
}

// Python rounds the exact decimal expansion, ties to even: so does printing with few digits.
double rounded(double value, std::int64_t places) {
  if (value == 0 || !std::isfinite(value) || places > 400) return value;
  std::array<char, 800> text;
  if (places >= 0) {
    std::snprintf(text.data(), text.size(), "%.*f", static_cast<int>(places), value);
  } else {
    // As many significant digits as stand before the place; none leaves 0 or one unit.
    const auto digits =
        static_cast<std::int64_t>(std::floor(std::log10(std::fabs(value)))) + places;
    if (digits < -1) return std::copysign(0.0, value);
    if (digits < 0) {
      const double unit = std::pow(10.0, static_cast<double>(-places));
      return std::copysign(std::fabs(value) > unit / 2 ? unit : 0.0, value);
    }
    std::snprintf(text.data(), text.size(), "%.*e", static_cast<int>(digits), value);
  }
  return python::parse_float(text.data()).value_or(value);
}

Value round(Interpreter& on, const Value& value, const Given& given) {
  const Bound bound("round", given, {"precision", "method"});
  demand_defined(value);
  const std::int64_t precision = bound.integer(0, 0);
  const std::string method = bound.string(1, "common");
  if (method != "common" && method != "ceil" && method != "floor")
    fail("method must be common, ceil or floor");
  if (!value.is_number()) fail("'" + std::string(type_name(value)) + "' cannot be rounded");
  if (method == "common") {
    if (!value.is_float()) return round_integer(on, value, precision);
    return Value(rounded(value.as_float(), precision));
  }
  if (std::llabs(precision) > 300) fail("round: a precision of at most 300 is implemented");
  const Value scale = arithmetic(on, "**", Value(10), Value(precision));
  Value scaled = arithmetic(on, "*", value, scale);
  if (scaled.is_float()) {
    if (!std::isfinite(scaled.as_float())) fail("cannot convert float infinity or NaN to integer");
    scaled = integer_of_double(method == "ceil" ? std::ceil(scaled.as_float())
                                                : std::floor(scaled.as_float()));
  }
  return arithmetic(on, "/", scaled, scale);
}

Value tojson(Interpreter& on, const Value& value, const Given& given) {
  const Bound bound("tojson", given, {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  style.ascii = bound.flag(0, false);
  style.sort_keys = bound.flag(3, false);
  if (bound.has(1) && !bound[1].is_none()) {
    if (bound[1].is_string()) {
      style.indent = bound[1].as_string();
    } else {
      const std::int64_t width = bound.integer(1, 0);
      if (width > 64) fail("tojson: an indent of at most 64 is implemented");
      style.indent = std::string(static_cast<std::size_t>(std::max<std::int64_t>(width, 0)), ' ');
    }
    style.item_separator = ",";
  }
  if (bound.has(2) && !bound[2].is_none()) {
    const Value::Items pair = iterate(bound[2]);
    if (pair.size() != 2) fail("tojson: separators must be a pair of strings");
    style.item_separator = on.shown(pair[0]);
    style.key_separator = on.shown(pair[1]);
  }
  on.charge(value.weight() * (1 + style.indent.value_or("").size()));
  return on.text(dump_json(value, style));
}

Value indent(Interpreter& on, const Value& value, const Given& given) {
  const Bound bound("indent", given, {"width", "first", "blank"});
  std::string margin;
  if (bound.has(0) && bound[0].is_string()) {
    margin = bound[0].as_string();
  } else {
    const std::int64_t width = std::clamp<std::int64_t>(bound.integer(0, 4), 0, 1000);
    margin.assign(static_cast<std::size_t>(width), ' ');
  }
  const bool blank = bound.flag(2, false);
  const auto lines = python::split_lines(on.shown(value) + "\n");
  on.charge(lines.size() * (1 + margin.size() / 8));
  std::string made = bound.flag(1, false) ? margin : "";
  for (std::size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) made += "\n";
    if (i > 0 && (blank || !lines[i].empty())) made += margin;
    made += lines[i];
  }
  return on.text(std::move(made));
}

Value wordcount(Interpreter& on, const Value& value, const Given& given) {
  const Bound none("wordcount", given, {});
  std::int64_t words = 0;
  bool inside = false;
  for (char32_t code : python::code_points(on.shown(value))) {
    const bool part = python::is_alpha(code) || python::is_decimal(code) || code == '_';
    words += part && !inside;
    inside = part;
  }
  return Value(words);
}

Value attr(Interpreter& on, const Value& value, const Given& given) {
  const Bound bound("attr", given, {"name"}, 1);
  // Unlike a dot, this filter does not look into dicts.
  if (value.is_dict() && !has_method(value, on.shown(bound[0])))
    return Value::undefined("'dict object' has no attribute '" + on.shown(bound[0]) + "'");
  return on.attribute(value, on.shown(bound[0]));
}

}  // namespace

Filter find_filter(std::string_view name) {
  struct Entry {
    std::string_view name;
    Filter filter;
  };
  static constexpr Entry kFilters[] = {
      {"abs", absolute},
      {"attr", attr},
      {"capitalize", capitalize},
      {"count", length},
      {"d", default_value},
      {"default", default_value},
      {"e", escape},
      {"escape", escape},
      {"float", to_float},
      {"indent", indent},
      {"int", to_int},
      {"length", length},
      {"lower", lower},
      {"replace", replace},
      {"round", round},
      {"safe", safe},
      {"string", string},
      {"title", title},
      {"tojson", tojson},
      {"trim", trim},
      {"upper", upper},
      {"wordcount", wordcount},
  };
  const auto* found = std::ranges::find(kFilters, name, &Entry::name);
  return found == std::end(kFilters) ? nullptr : found->filter;
}

}  // namespace tenon::jinja
