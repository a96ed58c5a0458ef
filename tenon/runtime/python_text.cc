#include "tenon/runtime/python_text.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>

#include "tenon/runtime/utf8.h"

namespace tenon::python {
namespace {

utf8proc_category_t category(char32_t code) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(code));
}

template <class Map>
std::string mapped(std::string_view text, Map&& map) {
  std::string out;
  out.reserve(text.size());
  for (char32_t code : code_points(text)) utf8_append(out, map(code));
  return out;
}

char32_t to_upper(char32_t code) {
  return static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(code)));
}
char32_t to_lower(char32_t code) {
  return static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(code)));
}
char32_t to_title(char32_t code) {
  return static_cast<char32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(code)));
}
bool is_cased(char32_t code) {
  return is_upper(code) || is_lower(code) || category(code) == UTF8PROC_CATEGORY_LT;
}

// The last character of `text`, which is not empty, and its bytes.
Utf8Character last_character(std::string_view text) {
  std::size_t begin = text.size() - 1;
  while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) --begin;
  return utf8_first(text.substr(begin));
}

}  // namespace

std::u32string code_points(std::string_view text) {
  std::u32string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const Utf8Character next = utf8_first(text);
    out.push_back(next.kind == Utf8Character::Kind::kValid ? next.code : U'\uFFFD');
    text.remove_prefix(static_cast<std::size_t>(next.num_bytes));
  }
  return out;
}

std::string utf8(std::u32string_view codes) {
  std::string out;
  for (char32_t code : codes) utf8_append(out, code);
  return out;
}

bool is_space(char32_t code) {
  return (code >= 0x09 && code <= 0x0D) || (code >= 0x1C && code <= 0x20) || code == 0x85 ||
         code == 0xA0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 ||
         code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

bool is_alpha(char32_t code) {
  const auto kind = category(code);
  return kind >= UTF8PROC_CATEGORY_LU && kind <= UTF8PROC_CATEGORY_LO;
}
bool is_decimal(char32_t code) { return category(code) == UTF8PROC_CATEGORY_ND; }
bool is_upper(char32_t code) { return category(code) == UTF8PROC_CATEGORY_LU; }
bool is_lower(char32_t code) { return category(code) == UTF8PROC_CATEGORY_LL; }
bool is_printable(char32_t code) {
  switch (category(code)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP: return false;
    case UTF8PROC_CATEGORY_ZS: return code == ' ';
    default: return true;
  }
}

std::string upper(std::string_view text) {
  std::string out;
  for (char32_t code : code_points(text)) {
    if (code == U'ß') {
      out += "SS";
    } else {
      utf8_append(out, to_upper(code));
    }
  }
  return out;
}
std::string lower(std::string_view text) { return mapped(text, to_lower); }

std::string title(std::string_view text) {
  bool inside = false;
  return mapped(text, [&](char32_t code) {
    const char32_t out = inside ? to_lower(code) : to_title(code);
    inside = is_cased(code);
    return out;
  });
}

std::string capitalize(std::string_view text) {
  bool inside = false;
  return mapped(text, [&](char32_t code) {
    const char32_t out = inside ? to_lower(code) : to_title(code);
    inside = true;
    return out;
  });
}

std::string_view strip(std::string_view text, Side side,
                       std::optional<std::string_view> characters) {
  const std::u32string wanted = code_points(characters.value_or(""));
  auto goes = [&](char32_t code) {
    return characters ? wanted.find(code) != std::u32string::npos : is_space(code);
  };
  while (side != Side::kRight && !text.empty()) {
    const Utf8Character first = utf8_first(text);
    if (!goes(first.code)) break;
    text.remove_prefix(static_cast<std::size_t>(first.num_bytes));
  }
  while (side != Side::kLeft && !text.empty()) {
    const Utf8Character last = last_character(text);
    if (!goes(last.code)) break;
    text.remove_suffix(static_cast<std::size_t>(last.num_bytes));
  }
  return text;
}

namespace {

std::vector<std::string> split_spaces(std::string_view text, std::int64_t max_splits) {
  std::vector<std::string> parts;
  text = strip(text, Side::kLeft);
  while (!text.empty()) {
    if (max_splits >= 0 && static_cast<std::int64_t>(parts.size()) == max_splits) {
      parts.emplace_back(text);
      break;
    }
    std::size_t end = 0;
    while (end < text.size()) {
      const Utf8Character next = utf8_first(text.substr(end));
      if (is_space(next.code)) break;
      end += static_cast<std::size_t>(next.num_bytes);
    }
    parts.emplace_back(text.substr(0, end));
    text = strip(text.substr(end), Side::kLeft);
  }
  return parts;
}

std::vector<std::string> split_spaces_from_right(std::string_view text, std::int64_t max_splits) {
  std::vector<std::string> parts;
  text = strip(text, Side::kRight);
  while (!text.empty()) {
    if (max_splits >= 0 && static_cast<std::int64_t>(parts.size()) == max_splits) {
      parts.emplace_back(text);
      break;
    }
    std::size_t begin = text.size();
    while (begin > 0) {
      const Utf8Character last = last_character(text.substr(0, begin));
      if (is_space(last.code)) break;
      begin -= static_cast<std::size_t>(last.num_bytes);
    }
    parts.emplace_back(text.substr(begin));
    text = strip(text.substr(0, begin), Side::kRight);
  }
  std::ranges::reverse(parts);
  return parts;
}

}  // namespace

std::vector<std::string> split(std::string_view text, std::optional<std::string_view> separator,
                               std::int64_t max_splits, bool from_right) {
  if (!separator)
    return from_right ? split_spaces_from_right(text, max_splits) : split_spaces(text, max_splits);
  std::vector<std::string> parts;
  for (;;) {
    const bool may = max_splits < 0 || static_cast<std::int64_t>(parts.size()) < max_splits;
    const std::size_t at = !may         ? std::string_view::npos
                           : from_right ? text.rfind(*separator)
                                        : text.find(*separator);
    if (at == std::string_view::npos) break;
    if (from_right) {
      parts.emplace_back(text.substr(at + separator->size()));
      text = text.substr(0, at);
    } else {
      parts.emplace_back(text.substr(0, at));
      text = text.substr(at + separator->size());
    }
  }
  parts.emplace_back(text);
  if (from_right) std::ranges::reverse(parts);
  return parts;
}

std::vector<std::string> split_lines(std::string_view text) {
  auto ends_line = [](char32_t code) {
    return (code >= 0x0A && code <= 0x0D) || (code >= 0x1C && code <= 0x1E) || code == 0x85 ||
           code == 0x2028 || code == 0x2029;
  };
  std::vector<std::string> lines;
  while (!text.empty()) {
    std::size_t end = 0, next = 0;
    while (end < text.size()) {
      const Utf8Character one = utf8_first(text.substr(end));
      next = end + static_cast<std::size_t>(one.num_bytes);
      if (ends_line(one.code)) break;
      end = next;
    }
    lines.emplace_back(text.substr(0, end));
    if (text.substr(end).starts_with("\r\n")) ++next;
    text.remove_prefix(next);
  }
  return lines;
}

std::string replace(std::string_view text, std::string_view from, std::string_view to,
                    std::int64_t max_count) {
  std::string out;
  std::int64_t count = 0;
  if (from.empty()) {  // before every character, and at the end
    for (bool more = true; more && count != max_count; ++count) {
      out += to;
      more = !text.empty();
      if (!more) break;
      const auto bytes = static_cast<std::size_t>(utf8_first(text).num_bytes);
      out += text.substr(0, bytes);
      text.remove_prefix(bytes);
    }
    return out.append(text);
  }
  while (count != max_count) {
    const std::size_t at = text.find(from);
    if (at == std::string_view::npos) break;
    out.append(text.substr(0, at)).append(to);
    text.remove_prefix(at + from.size());
    ++count;
  }
  return out.append(text);
}

std::string quoted(std::string_view text) {
  const bool has_single = text.find('\'') != std::string_view::npos;
  const char quote = has_single && text.find('"') == std::string_view::npos ? '"' : '\'';
  std::string out(1, quote);
  auto hex = [&](char32_t code, int digits) {
    for (int shift = 4 * (digits - 1); shift >= 0; shift -= 4)
      out.push_back("0123456789abcdef"[(code >> shift) & 15]);
  };
  for (char32_t code : code_points(text)) {
    if (code == static_cast<char32_t>(quote) || code == '\\') {
      out += {'\\', static_cast<char>(code)};
    } else if (code == '\n') {
      out += "\\n";
    } else if (code == '\r') {
      out += "\\r";
    } else if (code == '\t') {
      out += "\\t";
    } else if (is_printable(code)) {
      utf8_append(out, code);
    } else if (code < 0x100) {
      out += "\\x", hex(code, 2);
    } else if (code < 0x10000) {
      out += "\\u", hex(code, 4);
    } else {
      out += "\\U", hex(code, 8);
    }
  }
  return out + quote;
}

std::string number(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  std::array<char, 400> text;
  const double size = std::fabs(value);
  const bool plain = size == 0 || (size >= 1e-4 && size < 1e16);
  const auto format = plain ? std::chars_format::fixed : std::chars_format::scientific;
  const auto end = std::to_chars(text.data(), text.data() + text.size(), value, format).ptr;
  std::string out(text.data(), end);
  if (plain && out.find('.') == std::string::npos) out += ".0";
  return out;
}

std::optional<std::int64_t> parse_int(std::string_view text, int base) {
  text = strip(text, Side::kBoth);
  bool negative = false;
  if (text.starts_with('-') || text.starts_with('+')) {
    negative = text.front() == '-';
    text.remove_prefix(1);
  }
  if (text.size() > 2 && text[0] == '0') {
    const char kind = static_cast<char>(text[1] | 0x20);
    const int prefix_base = kind == 'x' ? 16 : kind == 'o' ? 8 : kind == 'b' ? 2 : 0;
    if (prefix_base != 0 && (base == prefix_base || base == 0)) {
      text.remove_prefix(2);
      base = prefix_base;
      if (text.starts_with('_')) text.remove_prefix(1);
    }
  }
  if (base == 0) base = 10;
  if (base < 2 || base > 36 || text.empty() || text.starts_with('_') || text.ends_with('_') ||
      text.find("__") != std::string_view::npos || text.starts_with('-'))
    return std::nullopt;
  std::string digits(text);
  std::erase(digits, '_');
  if (negative) digits.insert(0, 1, '-');
  std::int64_t value = 0;
  const auto [end, error] =
      std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
  if (error != std::errc() || end != digits.data() + digits.size()) return std::nullopt;
  return value;
}

std::optional<double> parse_float(std::string_view text) {
  text = strip(text, Side::kBoth);
  std::string digits = lower(text);
  if (digits.starts_with('_') || digits.ends_with('_')) return std::nullopt;
  std::erase(digits, '_');
  bool negative = false;
  std::string_view rest = digits;
  if (rest.starts_with('-') || rest.starts_with('+')) {
    negative = rest.front() == '-';
    rest.remove_prefix(1);
  }
  double value = 0;
  if (rest == "inf" || rest == "infinity") {
    value = std::numeric_limits<double>::infinity();
  } else if (rest == "nan") {
    value = std::numeric_limits<double>::quiet_NaN();
  } else {
    if (rest.empty() || rest.find_first_not_of("0123456789.e+-") != std::string_view::npos ||
        !(rest[0] == '.' || (rest[0] >= '0' && rest[0] <= '9')))
      return std::nullopt;
    const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), value);
    if (end != rest.data() + rest.size() || error == std::errc::invalid_argument)
      return std::nullopt;
    if (error == std::errc::result_out_of_range)
      value =
          rest.find("e-") != std::string_view::npos ? 0.0 : std::numeric_limits<double>::infinity();
  }
  return negative ? -value : value;
}

}  // namespace tenon::python
