#include "tenon/text/jinja/integer.h"

#include <algorithm>
#include <boost/multiprecision/cpp_int.hpp>
#include <charconv>
#include <cmath>
#include <limits>

#include "tenon/text/jinja/interpreter.h"
#include "tenon/text/python_text.h"

namespace tenon::jinja {

using Big = boost::multiprecision::cpp_int;

struct BigInteger {
  Big value;
};

namespace {

constexpr unsigned kMaxBits = 1 << 16;

unsigned num_bits(const Big& value) {  // of the magnitude
  return value == 0 ? 0 : boost::multiprecision::msb(abs(value)) + 1;
}

Value value_of(Big value) {
  if (value >= std::numeric_limits<std::int64_t>::min() &&
      value <= std::numeric_limits<std::int64_t>::max())
    return Value(static_cast<std::int64_t>(value));
  if (num_bits(value) > kMaxBits)
    throw Error{"an integer has more than " + std::to_string(kMaxBits) + " bits"};
  return Value(std::make_shared<const BigInteger>(BigInteger{std::move(value)}));
}

std::int64_t small(const Value& value) {
  return value.is_int() ? value.as_int() : value.as_bool() ? 1 : 0;
}

Big big(const Value& value) { return value.is_big() ? value.as_big().value : Big(small(value)); }

// numerator / denominator, positive, rounded to the nearest double, ties to even.
double quotient_of(const Big& numerator, const Big& denominator) {
  // The quotient is made 64 or 65 bits long, so that what is cut off only breaks ties.
  const int shift =
      65 + static_cast<int>(num_bits(denominator)) - static_cast<int>(num_bits(numerator));
  const Big up = shift > 0 ? Big(numerator << shift) : numerator;
  const Big down = shift < 0 ? Big(denominator << -shift) : denominator;
  Big quotient, rest;
  divide_qr(up, down, quotient, rest);
  const int extra = static_cast<int>(num_bits(quotient)) - 63;
  if (extra > 0) {
    const Big cut = quotient >> extra;
    if ((cut << extra) != quotient) rest = 1;
    quotient = cut;
  }
  const auto bits = static_cast<std::uint64_t>(quotient);
  const double made =
      std::ldexp(static_cast<double>(bits << 1 | (rest != 0)), std::max(extra, 0) - shift - 1);
  return made;
}

double to_double(const Big& value, const char* failure) {
  if (value == 0) return 0;
  const double made = quotient_of(abs(value), 1);
  if (std::isinf(made)) fail(failure);
  return value < 0 ? -made : made;
}

Value divided(const Big& a, const Big& b) {
  if (a == 0) return Value(b < 0 ? -0.0 : 0.0);
  const double made = quotient_of(abs(a), abs(b));
  if (std::isinf(made)) fail("integer division result too large for a float");
  return Value((a < 0) != (b < 0) ? -made : made);
}

// Rounded towards minus infinity, as in Python.
std::pair<Big, Big> floor_divided(const Big& a, const Big& b) {
  Big quotient, rest;
  divide_qr(a, b, quotient, rest);
  if (rest != 0 && (rest < 0) != (b < 0)) {
    quotient -= 1;
    rest += b;
  }
  return {quotient, rest};
}

Big power(Interpreter& on, Big base, const Big& exponent) {
  if (exponent > kMaxBits && abs(base) > 1)
    throw Error{"an integer has more than " + std::to_string(kMaxBits) + " bits"};
  if (abs(base) <= 1)
    return base == -1 && exponent % 2 == 0 ? Big(1) : exponent == 0 ? Big(1) : base;
  Big made = 1;
  for (auto left = static_cast<unsigned>(exponent); left > 0; left >>= 1) {
    on.charge(1 + (num_bits(base) / 256) * (num_bits(base) / 256));
    if (num_bits(made) + num_bits(base) > 2 * kMaxBits)
      throw Error{"an integer has more than " + std::to_string(kMaxBits) + " bits"};
    if (left & 1) made *= base;
    if (left > 1) base *= base;
  }
  return made;
}

Value large(Interpreter& on, std::string_view op, const Big& a, const Big& b) {
  on.charge(2 + (num_bits(a) / 256) * (num_bits(b) / 256) + (num_bits(a) + num_bits(b)) / 64);
  if (op == "+") return value_of(a + b);
  if (op == "-") return value_of(a - b);
  if (op == "*") return value_of(a * b);
  if (op == "**" && b >= 0) return value_of(power(on, a, b));
  if (op == "**") {
    if (a == 0) fail("0.0 cannot be raised to a negative power");
    const char* const failure = "int too large to convert to float";
    return Value(std::pow(to_double(a, failure), to_double(b, failure)));
  }
  if (b == 0) fail("division by zero");
  if (op == "/") return divided(a, b);
  const auto [quotient, rest] = floor_divided(a, b);
  return value_of(op == "//" ? quotient : rest);
}

}  // namespace

std::optional<Value> parse_integer(std::string_view text, int base) {
  const auto digits = python::integer_digits(text, base);
  if (!digits) return std::nullopt;
  const char* const begin = digits->text.data();
  const char* const end = begin + digits->text.size();
  std::int64_t value = 0;
  const auto [stop, error] = std::from_chars(begin, end, value, digits->base);
  if (stop != end) return std::nullopt;
  if (error == std::errc()) return Value(value);
  const bool negative = digits->text.front() == '-';
  if (digits->text.size() - negative > kMaxIntegerDigits) return std::nullopt;
  Big made = 0;
  for (char digit : std::string_view(digits->text).substr(negative ? 1 : 0)) {
    int worth = 0;
    (void)std::from_chars(&digit, &digit + 1, worth, digits->base);
    made = made * digits->base + worth;
  }
  return value_of(negative ? Big(-made) : made);
}

std::string integer_text(const Value& integer) {
  if (!integer.is_big()) return std::to_string(small(integer));
  // log10(2) is a little more than 0.3010.
  if (num_bits(integer.as_big().value) * 0.3010 <= kMaxIntegerDigits + 1) {
    std::string text = integer.as_big().value.str();
    if (text.size() <= kMaxIntegerDigits + (text.front() == '-')) return text;
  }
  fail("Exceeds the limit (" + std::to_string(kMaxIntegerDigits) +
       " digits) for integer string conversion");
}

double integer_to_double(const Value& integer) {
  if (!integer.is_big()) return static_cast<double>(small(integer));
  return to_double(integer.as_big().value, "int too large to convert to float");
}

Value integer_of_double(double value) {
  if (std::fabs(value) < 9.2e18) return Value(static_cast<std::int64_t>(value));
  int exponent = 0;
  const auto mantissa = static_cast<std::int64_t>(std::ldexp(std::frexp(value, &exponent), 53));
  return value_of(Big(mantissa) << (exponent - 53));
}

int compare_numbers(const Value& a, const Value& b) {
  auto order = [](const auto& x, const auto& y) { return x < y ? -1 : x > y ? 1 : 0; };
  if (a.is_float() && b.is_float()) return order(a.as_float(), b.as_float());
  if (b.is_float()) return -compare_numbers(b, a);
  if (!a.is_float())
    return a.is_big() || b.is_big() ? order(big(a), big(b)) : order(small(a), small(b));
  const double x = a.as_float();
  if (std::isinf(x)) return x < 0 ? -1 : 1;
  const Value whole = integer_of_double(x);
  if (const int by_whole = compare_numbers(whole, b)) return by_whole;
  return order(x, std::trunc(x));
}

Value integer_arithmetic(Interpreter& on, std::string_view op, const Value& a, const Value& b) {
  if (!a.is_big() && !b.is_big()) {
    const std::int64_t x = small(a), y = small(b);
    std::int64_t made = 0;
    if (op == "+" && !__builtin_add_overflow(x, y, &made)) return Value(made);
    if (op == "-" && !__builtin_sub_overflow(x, y, &made)) return Value(made);
    if (op == "*" && !__builtin_mul_overflow(x, y, &made)) return Value(made);
    if ((op == "//" || op == "%") && y != 0 && y != -1) {
      const bool rounds = x % y != 0 && (x < 0) != (y < 0);  // C++ towards zero, Python down
      return Value(op == "//" ? x / y - (rounds ? 1 : 0) : x % y + (rounds ? y : 0));
    }
  }
  return large(on, op, big(a), big(b));
}

Value round_integer(Interpreter& on, const Value& value, std::int64_t places) {
  if (places >= 0) return value.is_bool() ? Value(value.as_bool() ? 1 : 0) : value;
  if (places < -static_cast<std::int64_t>(kMaxBits)) return Value(0);
  const Big given = big(value), unit = power(on, 10, -places);
  auto [quotient, rest] = floor_divided(given, unit);
  const Big twice = rest * 2;
  if (twice > unit || (twice == unit && quotient % 2 != 0)) quotient += 1;
  return value_of(quotient * unit);
}

std::int64_t clamped(const Value& integer) {
  if (!integer.is_big()) return small(integer);
  return integer.as_big().value < 0 ? std::numeric_limits<std::int64_t>::min()
                                    : std::numeric_limits<std::int64_t>::max();
}

}  // namespace tenon::jinja
