// Tests: what may follow `is`.
#include <algorithm>

#include "tenon/text/jinja/integer.h"
#include "tenon/text/jinja/interpreter.h"
#include "tenon/text/python_text.h"

namespace tenon::jinja {
namespace {

using Given = CallArguments;

// A test without arguments, from a predicate.
template <bool (*kHolds)(const Value&)>
bool plain(Interpreter&, const Value& value, const Given& given) {
  const Bound none("the test", given, {});
  return kHolds(value);
}

bool is_defined(const Value& v) { return !v.is_undefined(); }
bool is_undefined(const Value& v) { return v.is_undefined(); }
bool is_none(const Value& v) { return v.is_none(); }
bool is_boolean(const Value& v) { return v.is_bool(); }
bool is_true(const Value& v) { return v.is_bool() && v.as_bool(); }
bool is_false(const Value& v) { return v.is_bool() && !v.as_bool(); }
bool is_integer(const Value& v) { return v.is_integer(); }
bool is_float(const Value& v) { return v.is_float(); }
bool is_number(const Value& v) { return v.is_number(); }
bool is_string(const Value& v) { return v.is_string(); }
bool is_mapping(const Value& v) { return v.is_dict(); }
bool is_iterable(const Value& v) {
  return v.is_list() || v.is_dict() || v.is_string() || v.is_undefined();
}
bool is_callable(const Value& v) {
  return v.is_undefined() || (v.is_object() && v.as_object()->callable());
}

// All cased characters, of which there is one, are of one case.
bool cased(const Value& value, bool (*wanted)(char32_t), bool (*other)(char32_t)) {
  const std::u32string codes = python::code_points(to_text(value));
  return std::ranges::any_of(codes, wanted) && std::ranges::none_of(codes, other) &&
         std::ranges::none_of(codes, python::is_title);
}
bool is_lower(const Value& v) { return cased(v, python::is_lower, python::is_upper); }
bool is_upper(const Value& v) { return cased(v, python::is_upper, python::is_lower); }

std::int64_t rest_by(Interpreter& on, const Value& value, const Value& by) {
  const Value rest = arithmetic(on, "%", value, by);
  if (rest.is_float()) return rest.as_float() == 0 ? 0 : rest.as_float() == 1 ? 1 : 2;
  return clamped(rest);
}
bool is_odd(Interpreter& on, const Value& value, const Given&) {
  return rest_by(on, value, Value(2)) == 1;
}
bool is_even(Interpreter& on, const Value& value, const Given&) {
  return rest_by(on, value, Value(2)) == 0;
}
bool is_divisible(Interpreter& on, const Value& value, const Given& given) {
  const Bound bound("divisibleby", given, {"num"}, 1);
  return rest_by(on, value, bound[0]) == 0;
}

bool is_in(Interpreter& on, const Value& value, const Given& given) {
  const Bound bound("in", given, {"seq"}, 1);
  return contains(on, bound[0], value);
}

// Small integers, strings and constants are the same object when they are equal.
bool is_same(Interpreter& on, const Value& value, const Given& given) {
  const Bound bound("sameas", given, {"other"}, 1);
  return type_name(value) == type_name(bound[0]) && on.same(value, bound[0]);
}

bool is_filter(Interpreter& on, const Value& value, const Given&) {
  const std::string name = on.shown(value);
  return find_filter(name) || find_sequence_filter(name);
}
bool is_test(Interpreter& on, const Value& value, const Given&) {
  return find_test(on.shown(value));
}

bool is_eq(Interpreter& on, const Value& value, const Given& given) {
  return on.same(value, Bound("eq", given, {"other"}, 1)[0]);
}
bool is_ne(Interpreter& on, const Value& value, const Given& given) {
  return !on.same(value, Bound("ne", given, {"other"}, 1)[0]);
}
bool is_gt(Interpreter& on, const Value& value, const Given& given) {
  return on.compared(value, Bound("gt", given, {"other"}, 1)[0]) > 0;
}
bool is_ge(Interpreter& on, const Value& value, const Given& given) {
  return on.compared(value, Bound("ge", given, {"other"}, 1)[0]) >= 0;
}
bool is_lt(Interpreter& on, const Value& value, const Given& given) {
  return on.compared(value, Bound("lt", given, {"other"}, 1)[0]) < 0;
}
bool is_le(Interpreter& on, const Value& value, const Given& given) {
  return on.compared(value, Bound("le", given, {"other"}, 1)[0]) <= 0;
}

}  // namespace

Test find_test(std::string_view name) {
  struct Entry {
    std::string_view name;
    Test test;
  };
  static constexpr Entry kTests[] = {
      {"!=", is_ne},
      {"<", is_lt},
      {"<=", is_le},
      {"==", is_eq},
      {">", is_gt},
      {">=", is_ge},
      {"boolean", plain<is_boolean>},
      {"callable", plain<is_callable>},
      {"defined", plain<is_defined>},
      {"divisibleby", is_divisible},
      {"eq", is_eq},
      {"equalto", is_eq},
      {"even", is_even},
      {"false", plain<is_false>},
      {"filter", is_filter},
      {"float", plain<is_float>},
      {"ge", is_ge},
      {"greaterthan", is_gt},
      {"gt", is_gt},
      {"in", is_in},
      {"integer", plain<is_integer>},
      {"iterable", plain<is_iterable>},
      {"le", is_le},
      {"lessthan", is_lt},
      {"lower", plain<is_lower>},
      {"lt", is_lt},
      {"mapping", plain<is_mapping>},
      {"ne", is_ne},
      {"none", plain<is_none>},
      {"number", plain<is_number>},
      {"odd", is_odd},
      {"sameas", is_same},
      {"sequence", plain<is_iterable>},
      {"string", plain<is_string>},
      {"test", is_test},
      {"true", plain<is_true>},
      {"undefined", plain<is_undefined>},
      {"upper", plain<is_upper>},
  };
  const auto* found = std::ranges::find(kTests, name, &Entry::name);
  return found == std::end(kTests) ? nullptr : found->test;
}

}  // namespace tenon::jinja
