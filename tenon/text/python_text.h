// Python's string functions over UTF-8, as templates expect them. Categories and case are those of
// utf8proc (Unicode 15 in Debian 12; the reference's are those of its Python), case of one to
// several characters is that of Python (unicode.h).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace tenon::python {

std::u32string code_points(std::string_view text);
std::string utf8(std::u32string_view code_points);

bool is_space(char32_t code);  // str.isspace
bool is_alpha(char32_t code);
bool is_decimal(char32_t code);
bool is_upper(char32_t code);
bool is_lower(char32_t code);
bool is_title(char32_t code);  // such as U+01C5, neither of the two
bool is_printable(char32_t code);

std::string upper(std::string_view text);
std::string lower(std::string_view text);
std::string title(std::string_view text);
std::string capitalize(std::string_view text);
std::string swapcase(std::string_view text);

enum class Side { kBoth, kLeft, kRight };
// Without `characters`: white space.
std::string_view strip(std::string_view text, Side side,
                       std::optional<std::string_view> characters = {});

// Without a separator: runs of white space separate and empty parts vanish. max_splits < 0: no
// limit.
std::vector<std::string> split(std::string_view text, std::optional<std::string_view> separator,
                               std::int64_t max_splits, bool from_right);
std::vector<std::string> split_lines(std::string_view text, bool keep_ends = false);
// The first and the last place of a part, or npos, in linear time.
std::size_t find(std::string_view text, std::string_view part);
std::size_t rfind(std::string_view text, std::string_view part);
// max_count < 0: all.
std::string replace(std::string_view text, std::string_view from, std::string_view to,
                    std::int64_t max_count);

// repr() of a string and of a float.
std::string quoted(std::string_view text);
std::string number(double value);

// The digits of an integer as int() reads it, with a minus if it has one, and their base; nothing
// if a prefix, an underscore or the base is out of place. Whether they are digits is left to look
// at.
struct IntegerDigits {
  std::string text;
  int base = 10;
};
std::optional<IntegerDigits> integer_digits(std::string_view text, int base);
// float() of a string; nothing if it is not one.
std::optional<double> parse_float(std::string_view text);

}  // namespace tenon::python
