// Arithmetic, membership, slices and the functions a template can call.
#include <algorithm>
#include <cmath>

#include "tenon/text/jinja/integer.h"
#include "tenon/text/jinja/interpreter.h"
#include "tenon/text/python_text.h"

namespace tenon::jinja {
namespace {

constexpr std::int64_t kMaxRange = 100'000;  // as Jinja2's sandbox

bool is_index(const Value& value) { return value.is_integer() || value.is_bool(); }
double real(const Value& value) {
  return value.is_float() ? value.as_float() : integer_to_double(value);
}

Value reals(std::string_view op, double a, double b) {
  if (op == "+") return Value(a + b);
  if (op == "-") return Value(a - b);
  if (op == "*") return Value(a * b);
  if (op == "**") {
    if (a == 0 && b < 0) fail("0.0 cannot be raised to a negative power");
    const double made = std::pow(a, b);
    if (std::isnan(made) && !std::isnan(a) && !std::isnan(b))
      fail("a negative number to a power that is not whole has no real value");
    if (std::isinf(made) && !std::isinf(a) && !std::isinf(b)) fail("Numerical result out of range");
    return Value(made);
  }
  if (b == 0) fail("division by zero");
  if (op == "/") return Value(a / b);
  double rest = std::fmod(a, b);
  if (rest != 0 && (rest < 0) != (b < 0)) rest += b;
  if (op == "%") return Value(rest == 0 ? std::copysign(0.0, b) : rest);
  const double quotient = (a - rest) / b;
  if (quotient == 0) return Value(std::copysign(0.0, a / b));
  const double floor = std::floor(quotient);
  return Value(quotient - floor > 0.5 ? floor + 1 : floor);
}

Value repeated(Interpreter& on, const Value& value, std::int64_t times) {
  times = std::max<std::int64_t>(times, 0);
  const std::size_t unit = value.is_string() ? value.as_string().size() : 4 * value.items().size();
  if (unit > 0 && times > (std::int64_t{1} << 40) / static_cast<std::int64_t>(unit))
    throw Error{"a repetition makes too long a value"};
  on.charge(unit * static_cast<std::size_t>(times) / 8);
  if (value.is_string()) {
    std::string made;
    if (unit > 0)
      for (std::int64_t i = 0; i < times; ++i) made += value.as_string();
    return on.text(std::move(made));
  }
  Value::Items items;
  if (unit > 0)
    for (std::int64_t i = 0; i < times; ++i)
      items.insert(items.end(), value.items().begin(), value.items().end());
  on.charge(4 * items.size());
  return value.is_tuple() ? Value::tuple(std::move(items)) : Value::list(std::move(items));
}

Value range(Interpreter& on, const CallArguments& given) {
  const auto& values = given.positional;
  if (values.empty() || values.size() > 3 || !given.keywords.empty())
    fail("range takes 1 to 3 numbers");
  for (const Value& value : values) {
    demand_defined(value);
    if (!is_index(value))
      fail("range: '" + std::string(type_name(value)) +
           "' object cannot be interpreted as an integer");
  }
  const std::int64_t begin = values.size() > 1 ? clamped(values[0]) : 0;
  const std::int64_t end = values.size() > 1 ? clamped(values[1]) : clamped(values[0]);
  const std::int64_t step = values.size() > 2 ? clamped(values[2]) : 1;
  if (step == 0) fail("range() arg 3 must not be zero");
  Value::Items items;
  for (std::int64_t at = begin; step > 0 ? at < end : at > end;) {
    if (static_cast<std::int64_t>(items.size()) >= kMaxRange)
      throw Error{"range is longer than " + std::to_string(kMaxRange)};
    items.emplace_back(at);
    if (__builtin_add_overflow(at, step, &at)) break;
  }
  return on.list(std::move(items));
}

Value dict(Interpreter&, const CallArguments& given) {
  Value::Pairs pairs;
  if (given.positional.size() > 1) fail("dict expected at most 1 argument");
  if (!given.positional.empty()) {
    const Value& from = given.positional[0];
    if (from.is_dict()) {
      pairs = from.pairs();
    } else {
      for (const Value& item : iterate(from)) {
        const Value::Items pair = iterate(item);
        if (pair.size() != 2) fail("dict: every element must be a pair");
        pairs.emplace_back(pair[0], pair[1]);
      }
    }
  }
  for (const auto& [name, value] : given.keywords) pairs.emplace_back(Value(name), value);
  return Value::dict(std::move(pairs));
}

Value make_namespace(Interpreter& on, const CallArguments& given) {
  const Value members = dict(on, given);
  Value made = on.own<Namespace>();
  for (const auto& [name, value] : members.pairs())
    static_cast<Namespace*>(made.as_object())->set(to_text(name), value);
  return made;
}

Value raise_exception(Interpreter& on, const CallArguments& given) {
  const Bound bound("raise_exception", given, {"message"}, 1);
  fail(on.shown(bound[0]));
}

Value strftime_now(Interpreter& on, const CallArguments& given) {
  const Bound bound("strftime_now", given, {"format"}, 1);
  return on.text(on.strftime(bound.string(0, "")));
}

// A bound of a slice, clamped as Python does; `absent` when it is none.
std::int64_t slice_bound(const Value& bound, std::int64_t size, std::int64_t absent,
                         bool backwards) {
  if (bound.is_none()) return absent;
  if (!is_index(bound))
    fail("slice indices must be integers or None, not " + std::string(type_name(bound)));
  std::int64_t at = clamped(bound);
  if (at < 0) at = at < -size ? -1 : at + size;
  const std::int64_t low = backwards ? -1 : 0;
  return std::clamp(at < 0 ? low : at, low, backwards ? size - 1 : size);
}

}  // namespace

Value arithmetic(Interpreter& on, std::string_view op, const Value& a, const Value& b) {
  demand_defined(a);
  demand_defined(b);
  if (a.is_number() && b.is_number()) {
    if (a.is_float() || b.is_float()) return reals(op, real(a), real(b));
    return integer_arithmetic(on, op, a, b);
  }
  if (op == "+" && a.is_string() && b.is_string()) return on.text(a.as_string() + b.as_string());
  if (op == "+" && a.is_list() && b.is_list() && a.is_tuple() == b.is_tuple()) {
    Value::Items items = a.items();
    items.insert(items.end(), b.items().begin(), b.items().end());
    on.charge(4 * items.size());
    return a.is_tuple() ? Value::tuple(std::move(items)) : Value::list(std::move(items));
  }
  if (op == "*" && (a.is_string() || a.is_list()) && is_index(b))
    return repeated(on, a, clamped(b));
  if (op == "*" && (b.is_string() || b.is_list()) && is_index(a))
    return repeated(on, b, clamped(a));
  if (op == "%" && a.is_string()) fail("formatting a string with % is not implemented");
  fail("unsupported operand types for " + std::string(op) + ": '" + std::string(type_name(a)) +
       "' and '" + std::string(type_name(b)) + "'");
}

Value negative(Interpreter& on, const Value& value) {
  demand_defined(value);
  if (value.is_float()) return Value(-value.as_float());
  if (!value.is_number())
    fail("bad operand type for unary -: '" + std::string(type_name(value)) + "'");
  return integer_arithmetic(on, "-", Value(0), value);
}

bool contains(Interpreter& on, const Value& container, const Value& item) {
  if (container.is_string()) {
    if (!item.is_string())
      fail("'in <string>' requires string as left operand, not " + std::string(type_name(item)));
    on.charge(container.as_string().size() / 8);
    return python::find(container.as_string(), item.as_string()) != std::string::npos;
  }
  if (container.is_list()) {
    const bool deep = item.is_list() || item.is_dict();
    on.charge(deep ? container.weight() : container.items().size() * item.weight());
    return std::ranges::any_of(container.items(),
                               [&](const Value& one) { return equal(one, item); });
  }
  if (container.is_dict()) return !item.is_undefined() && container.find(item) != nullptr;
  if (container.is_undefined()) return false;
  fail("argument of type '" + std::string(type_name(container)) + "' is not iterable");
}

Value slice(Interpreter& on, const Value& value, const Value& begin, const Value& end,
            const Value& step) {
  demand_defined(value);
  if (!value.is_list() && !value.is_string())
    return Value::undefined("'" + std::string(type_name(value)) + " object' cannot be sliced");
  if (!step.is_none() && !is_index(step))
    fail("slice indices must be integers or None, not " + std::string(type_name(step)));
  const std::int64_t stride = step.is_none() ? 1 : clamped(step);
  if (stride == 0) fail("slice step cannot be zero");
  const Value::Items all = iterate(value);
  on.charge(all.size());
  const auto size = static_cast<std::int64_t>(all.size());
  const bool backwards = stride < 0;
  const std::int64_t from = slice_bound(begin, size, backwards ? size - 1 : 0, backwards);
  const std::int64_t to = slice_bound(end, size, backwards ? -1 : size, backwards);
  Value::Items kept;
  for (std::int64_t at = from; backwards ? at > to : at < to;) {
    kept.push_back(all[static_cast<std::size_t>(at)]);
    if (__builtin_add_overflow(at, stride, &at)) break;
  }
  if (value.is_tuple()) return Value::tuple(std::move(kept));
  if (value.is_list()) return on.list(std::move(kept));
  std::string made;
  for (const Value& character : kept) made += character.as_string();
  return on.text(std::move(made));
}

Value (*find_function(std::string_view name))(Interpreter&, const CallArguments&) {
  if (name == "range") return range;
  if (name == "dict") return dict;
  if (name == "namespace") return make_namespace;
  if (name == "raise_exception") return raise_exception;
  if (name == "strftime_now") return strftime_now;
  return nullptr;
}

Bound::Bound(std::string_view what, const CallArguments& given,
             std::initializer_list<std::string_view> names, std::size_t num_required)
    : what_(what), values_(names.size(), nullptr) {
  if (given.positional.size() > names.size())
    fail(what_ + " takes at most " + std::to_string(names.size()) + " argument(s), not " +
         std::to_string(given.positional.size()));
  for (std::size_t i = 0; i < given.positional.size(); ++i) values_[i] = &given.positional[i];
  for (const auto& [name, value] : given.keywords) {
    const auto found = std::ranges::find(names, name);
    if (found == names.end()) fail(what_ + " has no parameter named '" + name + "'");
    const auto at = static_cast<std::size_t>(found - names.begin());
    if (values_[at]) fail(what_ + " got two values for '" + name + "'");
    values_[at] = &value;
  }
  for (std::size_t i = 0; i < num_required; ++i)
    if (!values_[i]) fail(what_ + " needs '" + std::string(*(names.begin() + i)) + "'");
}

std::int64_t Bound::integer(std::size_t i, std::int64_t otherwise) const {
  if (!has(i)) return otherwise;
  demand_defined(*values_[i]);
  if (!is_index(*values_[i]))
    fail(what_ + " needs an integer, not '" + std::string(type_name(*values_[i])) + "'");
  return clamped(*values_[i]);
}

std::string Bound::string(std::size_t i, std::string otherwise) const {
  if (!has(i)) return otherwise;
  demand_defined(*values_[i]);
  if (!values_[i]->is_string())
    fail(what_ + " needs a string, not '" + std::string(type_name(*values_[i])) + "'");
  return values_[i]->as_string();
}

}  // namespace tenon::jinja
