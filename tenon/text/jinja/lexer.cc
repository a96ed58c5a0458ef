#include "tenon/text/jinja/lexer.h"

#include <array>

#include "tenon/text/jinja/integer.h"
#include "tenon/text/jinja/value.h"
#include "tenon/text/python_text.h"
#include "tenon/text/utf8.h"

namespace tenon::jinja {
namespace {

bool is_name_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
         static_cast<unsigned char>(c) >= 0x80;
}
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name(char c) { return is_name_start(c) || is_digit(c); }

// "\r\n" and "\r" become "\n", and one newline at the end goes.
std::string with_plain_newlines(std::string_view source) {
  std::string out;
  for (std::size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out.push_back('\n');
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out.push_back(source[i]);
    }
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) template_text();
    add(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void fail_here(std::string message) { throw Error{std::move(message), line_}; }
  std::string_view rest() const { return std::string_view(source_).substr(at_); }
  bool sees(std::string_view what) const { return rest().starts_with(what); }

  void advance(std::size_t bytes) {
    for (std::size_t i = 0; i < bytes; ++i) line_ += source_[at_ + i] == '\n';
    at_ += bytes;
  }
  void skip_space() {
    while (at_ < source_.size()) {
      const Utf8Character next = utf8_first(rest());
      if (!python::is_space(next.code) || next.kind != Utf8Character::Kind::kValid) return;
      advance(static_cast<std::size_t>(next.num_bytes));
    }
  }
  void add(TokenKind kind, std::string text) {
    tokens_.push_back({kind, line_, std::move(text), {}, 0});
  }

  // Text up to the next tag, then that tag.
  void template_text() {
    std::size_t tag = at_;
    for (;; ++tag) {
      tag = source_.find('{', tag);
      if (tag == std::string::npos || tag + 1 >= source_.size()) {
        tag = source_.size();
        break;
      }
      const char kind = source_[tag + 1];
      if (kind == '{' || kind == '%' || kind == '#') break;
    }
    std::string_view text = std::string_view(source_).substr(at_, tag - at_);
    if (tag == source_.size()) {
      if (!text.empty()) add(TokenKind::kText, std::string(text));
      advance(text.size());
      return;
    }
    const char kind = source_[tag + 1];
    const char sign = tag + 2 < source_.size() ? source_[tag + 2] : ' ';
    const std::size_t whole = text.size();
    if (sign == '-') {
      text = python::strip(text, python::Side::kRight);
    } else if (sign != '+' && kind != '{') {
      text = without_indent(text);
    }
    if (!text.empty()) add(TokenKind::kText, std::string(text));
    advance(whole + 2 + (sign == '-' || sign == '+' ? 1 : 0));
    if (kind == '#') return comment();
    if (kind == '%' && raw_begins()) return raw();
    tag_contents(kind == '{');
  }

  // lstrip_blocks: a line that holds only white space before the tag loses it.
  std::string_view without_indent(std::string_view text) {
    const std::size_t newline = text.rfind('\n');
    const std::size_t begin = newline == std::string_view::npos ? 0 : newline + 1;
    if (begin == 0 && !at_line_start_) return text;
    return python::strip(text.substr(begin), python::Side::kLeft).empty() ? text.substr(0, begin)
                                                                          : text;
  }

  // After the closing brackets: "-" takes all white space, otherwise trim_blocks takes one newline.
  void after_tag(bool strips, bool keeps, bool is_print) {
    const std::size_t before = at_;
    if (strips) {
      skip_space();
    } else if (!keeps && !is_print && sees("\n")) {
      advance(1);
    }
    at_line_start_ = at_ > before && source_[at_ - 1] == '\n';
  }

  void comment() {
    const std::size_t end = rest().find("#}");
    if (end == std::string_view::npos) fail_here("a comment is not closed by #}");
    const char sign = end > 0 ? source_[at_ + end - 1] : ' ';
    advance(end + 2);
    after_tag(sign == '-', sign == '+', false);
  }

  // "{%" has been read: does "raw %}" follow? Reads it if so.
  bool raw_begins() {
    std::size_t at = at_;
    auto skip = [&] {
      while (at < source_.size() && python::is_space(static_cast<unsigned char>(source_[at]))) ++at;
    };
    skip();
    if (source_.compare(at, 3, "raw") != 0) return false;
    at += 3;
    skip();
    const bool strips = source_.compare(at, 1, "-") == 0;
    if (strips) ++at;
    if (source_.compare(at, 2, "%}") != 0) return false;
    advance(at + 2 - at_);
    at_line_start_ = false;
    if (strips) after_tag(true, false, false);
    return true;
  }

  void raw() {
    for (std::size_t tag = at_;; ++tag) {
      tag = source_.find("{%", tag);
      if (tag == std::string::npos) fail_here("a raw block is not closed by endraw");
      std::size_t at = tag + 2;
      const char sign = at < source_.size() ? source_[at] : ' ';
      if (sign == '-' || sign == '+') ++at;
      while (at < source_.size() && python::is_space(static_cast<unsigned char>(source_[at]))) ++at;
      if (source_.compare(at, 6, "endraw") != 0) continue;
      at += 6;
      while (at < source_.size() && python::is_space(static_cast<unsigned char>(source_[at]))) ++at;
      const char end_sign = at < source_.size() ? source_[at] : ' ';
      if (end_sign == '-' || end_sign == '+') ++at;
      if (source_.compare(at, 2, "%}") != 0) continue;
      std::string_view text = std::string_view(source_).substr(at_, tag - at_);
      if (sign == '-') text = python::strip(text, python::Side::kRight);
      if (sign != '-' && sign != '+') text = without_indent(text);
      if (!text.empty()) add(TokenKind::kText, std::string(text));
      advance(at + 2 - at_);
      return after_tag(end_sign == '-', end_sign == '+', false);
    }
  }

  void tag_contents(bool is_print) {
    add(is_print ? TokenKind::kPrintBegin : TokenKind::kBlockBegin, "");
    const std::string_view end = is_print ? "}}" : "%}";
    std::string open;  // brackets that wait for their partner
    for (;;) {
      skip_space();
      if (at_ == source_.size())
        fail_here(std::string("the template ends inside a tag; \"") + std::string(end) +
                  "\" is missing");
      if (open.empty()) {
        const bool strips = sees("-") && rest().substr(1).starts_with(end);
        const bool keeps = !is_print && sees("+") && rest().substr(1).starts_with(end);
        if (strips || keeps || sees(end)) {
          add(is_print ? TokenKind::kPrintEnd : TokenKind::kBlockEnd, "");
          advance(end.size() + (strips || keeps ? 1 : 0));
          return after_tag(strips, keeps, is_print);
        }
      }
      const char c = source_[at_];
      if (is_digit(c)) {
        number();
      } else if (is_name_start(c)) {
        name();
      } else if (c == '"' || c == '\'') {
        string(c);
      } else {
        operation(open);
      }
    }
  }

  void name() {
    std::size_t end = 0;
    while (end < rest().size() && is_name(rest()[end])) ++end;
    const std::string text(rest().substr(0, end));
    for (char32_t code : python::code_points(text))
      if (code >= 0x80 && !python::is_alpha(code) && !python::is_decimal(code))
        fail_here("unexpected character in the name \"" + text + "\"");
    add(TokenKind::kName, text);
    advance(end);
  }

  void number() {
    std::size_t end = 0;
    bool is_float = false;
    auto digits = [&] {
      const std::size_t begin = end;
      while (end < rest().size() && (is_digit(rest()[end]) || (rest()[end] == '_' && end > begin)))
        ++end;
      return end > begin;
    };
    const char kind =
        rest().size() > 2 && rest()[0] == '0' ? static_cast<char>(rest()[1] | 0x20) : ' ';
    if (kind == 'x' || kind == 'o' || kind == 'b') {
      end = 2;
      while (end < rest().size() && is_name(rest()[end])) ++end;
    } else {
      digits();
      const std::size_t whole = end;
      const bool after_dot = at_ > 0 && source_[at_ - 1] == '.';  // x.0.1 indexes twice
      if (!after_dot && end + 1 < rest().size() && rest()[end] == '.' &&
          is_digit(rest()[end + 1])) {
        ++end;
        is_float = digits();
      }
      const std::size_t mantissa = end;
      if (!after_dot && end < rest().size() && (rest()[end] == 'e' || rest()[end] == 'E')) {
        ++end;
        if (end < rest().size() && (rest()[end] == '+' || rest()[end] == '-')) ++end;
        if (digits()) {
          is_float = true;
        } else {
          end = mantissa;
        }
      }
      if (!is_float) end = whole;
    }
    const std::string_view text = rest().substr(0, end);
    add(is_float ? TokenKind::kFloat : TokenKind::kInteger, std::string(text));
    if (is_float) {
      tokens_.back().real = python::parse_float(text).value_or(0);
    } else {
      const auto value = parse_integer(text, 0);
      if (!value || (text.size() > 1 && text[0] == '0' && kind == ' ' && truth(*value)))
        fail_here("\"" + std::string(text) + "\" is not an integer of at most " +
                  std::to_string(kMaxIntegerDigits) + " digits");
      tokens_.back().integer = *value;
    }
    advance(end);
  }

  void string(char quote) {
    std::string value;
    std::size_t i = 1;
    for (;; ++i) {
      if (i >= rest().size()) fail_here("a string literal is not closed");
      const char c = rest()[i];
      if (c == quote) break;
      if (c == '\\') {
        i = escape(i, value);
      } else {
        value.push_back(c);
      }
    }
    add(TokenKind::kString, std::move(value));
    advance(i + 1);
  }

  // Reads the escape whose backslash is at `i`, as Python's literals do. Returns its last byte.
  std::size_t escape(std::size_t i, std::string& value) {
    if (i + 1 >= rest().size()) fail_here("a string literal is not closed");
    const char kind = rest()[i + 1];
    constexpr std::string_view kLetters = "abfnrtv\\'\"";
    constexpr std::string_view kMeanings = "\a\b\f\n\r\t\v\\'\"";
    if (const std::size_t at = kLetters.find(kind); at != std::string_view::npos) {
      value.push_back(kMeanings[at]);
      return i + 1;
    }
    if (kind == '\n') return i + 1;
    std::size_t digits = kind == 'x' ? 2 : kind == 'u' ? 4 : kind == 'U' ? 8 : 0;
    if (digits > 0) {
      char32_t code = 0;
      for (std::size_t k = 0; k < digits; ++k) {
        const char c = i + 2 + k < rest().size() ? rest()[i + 2 + k] : ' ';
        const std::size_t digit = std::string_view("0123456789abcdef")
                                      .find(is_digit(c) ? c : static_cast<char>(c | 0x20));
        if (digit == std::string_view::npos) fail_here("a string literal has a malformed escape");
        code = code * 16 + static_cast<char32_t>(digit);
      }
      if (code > 0x10FFFF || (code >= 0xD800 && code < 0xE000))
        fail_here("a string literal names a character that does not exist");
      utf8_append(value, code);
      return i + 1 + digits;
    }
    if (kind >= '0' && kind <= '7') {
      char32_t code = 0;
      for (digits = 0; digits < 3; ++digits) {
        const char c = i + 1 + digits < rest().size() ? rest()[i + 1 + digits] : ' ';
        if (c < '0' || c > '7') break;
        code = code * 8 + static_cast<char32_t>(c - '0');
      }
      utf8_append(value, code);
      return i + digits;
    }
    value += {'\\', kind};
    return i + 1;
  }

  void operation(std::string& open) {
    static constexpr std::array<std::string_view, 25> kOperators = {
        "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[",
        "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ","};
    for (std::string_view one : kOperators) {
      if (!sees(one)) continue;
      if (one == "(" || one == "[" || one == "{") open += one == "(" ? ')' : one == "[" ? ']' : '}';
      if (one == ")" || one == "]" || one == "}") {
        if (open.empty() || open.back() != one[0])
          fail_here("unexpected '" + std::string(one) + "'" +
                    (open.empty() ? "" : ", expected '" + open.substr(open.size() - 1) + "'"));
        open.pop_back();
      }
      add(TokenKind::kOperator, std::string(one));
      advance(one.size());
      return;
    }
    fail_here(
        "unexpected character '" +
        std::string(rest().substr(0, static_cast<std::size_t>(utf8_first(rest()).num_bytes))) +
        "'");
  }

  const std::string source_;
  std::size_t at_ = 0;
  int line_ = 1;
  bool at_line_start_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) {
  return Lexer(with_plain_newlines(source)).run();
}

}  // namespace tenon::jinja
