#include "tenon/text/python_text.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>

#include "tenon/text/unicode.h"
#include "tenon/text/utf8.h"

namespace tenon::python {
namespace {

utf8proc_category_t category(char32_t code) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(code));
}

bool is_cased(char32_t code) { return is_upper(code) || is_lower(code) || is_title(code); }

const SpecialCase* special_case(char32_t code) {
  const auto found = std::ranges::lower_bound(special_cases(), code, {}, &SpecialCase::code);
  return found != special_cases().end() && found->code == code ? &*found : nullptr;
}

void append(std::string& out, std::u32string_view codes) {
  for (char32_t code : codes) utf8_append(out, code);
}
void append_upper(std::string& out, char32_t code) {
  if (const SpecialCase* special = special_case(code)) return append(out, special->upper);
  utf8_append(out, static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(code))));
}
void append_title(std::string& out, char32_t code) {
  if (const SpecialCase* special = special_case(code)) return append(out, special->title);
  utf8_append(out, static_cast<char32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(code))));
}

// Marks, signs and the like that do not end a word for the sake of its last sigma.
bool is_case_ignorable(char32_t code) {
  switch (category(code)) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_SK: return true;
    default: break;
  }
  constexpr std::u32string_view kInWords =
      U"'.:\u00B7\u0387\u055F\u05F4\u2018\u2019\u2024\u2027\uFE13\uFE52\uFE55\uFF07\uFF0E\uFF1A";
  return kInWords.find(code) != std::u32string_view::npos;
}

// Appends lower case of text piece by piece. Only two characters are not mapped one to one.
class Lowering {
 public:
  explicit Lowering(std::u32string_view codes) : codes_(codes) {
    // Whether a cased character follows, ignorable ones left out, for every sigma.
    bool follows = false;
    followed_.resize(codes.find(kSigma) == codes.npos ? 0 : codes.size());
    for (std::size_t i = followed_.size(); i-- > 0;) {
      followed_[i] = follows;
      if (!is_case_ignorable(codes[i])) follows = is_cased(codes[i]);
    }
  }
  // Character `i`, after all before it.
  void append(std::string& out, std::size_t i) {
    const char32_t code = codes_[i];
    if (code == kSigma) {
      utf8_append(out, follows_cased_ && !followed_[i] ? U'\u03C2' : U'\u03C3');
    } else if (code == U'\u0130') {
      out += "i\u0307";
    } else {
      utf8_append(out,
                  static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(code))));
    }
    pass(i);
  }
  // Character `i` was written otherwise.
  void pass(std::size_t i) {
    if (!is_case_ignorable(codes_[i])) follows_cased_ = is_cased(codes_[i]);
  }

 private:
  static constexpr char32_t kSigma = U'\u03A3';
  std::u32string_view codes_;
  std::vector<bool> followed_;
  bool follows_cased_ = false;
};

constexpr std::size_t kShortPart = 32;  // searched plainly

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
bool is_upper(char32_t code) {
  return category(code) == UTF8PROC_CATEGORY_LU ||
         utf8proc_isupper(static_cast<utf8proc_int32_t>(code));
}
bool is_lower(char32_t code) {
  return category(code) == UTF8PROC_CATEGORY_LL ||
         utf8proc_islower(static_cast<utf8proc_int32_t>(code));
}
bool is_title(char32_t code) { return category(code) == UTF8PROC_CATEGORY_LT; }
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
  for (char32_t code : code_points(text)) append_upper(out, code);
  return out;
}

std::string lower(std::string_view text) {
  const std::u32string codes = code_points(text);
  Lowering lowering(codes);
  std::string out;
  out.reserve(text.size());
  for (std::size_t i = 0; i < codes.size(); ++i) lowering.append(out, i);
  return out;
}

std::string swapcase(std::string_view text) {
  const std::u32string codes = code_points(text);
  Lowering lowering(codes);
  std::string out;
  for (std::size_t i = 0; i < codes.size(); ++i) {
    if (is_upper(codes[i])) {
      lowering.append(out, i);
      continue;
    }
    if (is_lower(codes[i])) {
      append_upper(out, codes[i]);
    } else {
      utf8_append(out, codes[i]);
    }
    lowering.pass(i);
  }
  return out;
}

namespace {

// Title case where a word begins (or only the first one), lower case elsewhere.
std::string titled(std::string_view text, bool only_first) {
  const std::u32string codes = code_points(text);
  Lowering lowering(codes);
  std::string out;
  bool inside = false;
  for (std::size_t i = 0; i < codes.size(); ++i) {
    if (inside) {
      lowering.append(out, i);
    } else {
      append_title(out, codes[i]);
      lowering.pass(i);
    }
    inside = only_first || is_cased(codes[i]);
  }
  return out;
}

}  // namespace

std::string title(std::string_view text) { return titled(text, false); }
std::string capitalize(std::string_view text) { return titled(text, true); }

namespace {

// Knuth, Morris and Pratt: where `part` first stands in the text, or the end; reads no byte twice.
template <class Text, class Part>
Text found_in(Text text, Text end, Part part, std::size_t size) {
  // How much of a beginning of the part is also the end of that beginning.
  std::vector<std::uint32_t> border(size + 1, 0);
  for (std::size_t i = 1, k = 0; i < size; ++i) {
    while (k > 0 && part[i] != part[k]) k = border[k];
    border[i + 1] = static_cast<std::uint32_t>(k += part[i] == part[k]);
  }
  for (std::size_t k = 0; text != end;) {
    while (k > 0 && *text != part[k]) k = border[k];
    k += *text == part[k];
    ++text;
    if (k == size) return text - static_cast<std::ptrdiff_t>(size);
  }
  return end;
}

}  // namespace

std::size_t find(std::string_view text, std::string_view part) {
  if (part.size() <= kShortPart || part.size() > text.size()) return text.find(part);
  const auto at = found_in(text.begin(), text.end(), part.begin(), part.size());
  return at == text.end() ? std::string_view::npos : static_cast<std::size_t>(at - text.begin());
}

std::size_t rfind(std::string_view text, std::string_view part) {
  if (part.size() <= kShortPart || part.size() > text.size()) return text.rfind(part);
  const auto at = found_in(text.rbegin(), text.rend(), part.rbegin(), part.size());
  return at == text.rend() ? std::string_view::npos
                           : static_cast<std::size_t>(text.rend() - at) - part.size();
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
                           : from_right ? rfind(text, *separator)
                                        : find(text, *separator);
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

std::vector<std::string> split_lines(std::string_view text, bool keep_ends) {
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
    if (text.substr(end).starts_with("\r\n")) ++next;
    lines.emplace_back(text.substr(0, keep_ends ? next : end));
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
    const std::size_t at = find(text, from);
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

std::optional<IntegerDigits> integer_digits(std::string_view text, int base) {
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
  return IntegerDigits{std::move(digits), base};
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
