// Integers of any size, as Python has them. Those that fit 64 bits are held as std::int64_t, only
// larger ones as a BigInteger; so equal integers have one form. Private to jinja*.cc.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "tenon/text/jinja/value.h"

namespace tenon::jinja {

class Interpreter;

// What a text may hold, as in Python; arithmetic goes up to 65536 bits.
inline constexpr std::size_t kMaxIntegerDigits = 4300;

// int() of a text; nothing if it is not one or is too long.
std::optional<Value> parse_integer(std::string_view text, int base);
// Decimal digits. Fails for too many.
std::string integer_text(const Value& integer);
// Rounded to the nearest. Fails for what is too large.
double integer_to_double(const Value& integer);
// The whole part of a finite number.
Value integer_of_double(double value);
// −1, 0, 1 for any two numbers without NaN, exactly also between an integer and a float.
int compare_numbers(const Value& a, const Value& b);
// a op b for bools and integers; op is one of + - * / // % **.
Value integer_arithmetic(Interpreter& on, std::string_view op, const Value& a, const Value& b);
// As Python's round() to 10 ** -places.
Value round_integer(Interpreter& on, const Value& value, std::int64_t places);
// Clamped to 64 bits: enough for positions in a sequence.
std::int64_t clamped(const Value& integer);

}  // namespace tenon::jinja
