// Expressions.
#include <algorithm>

#include "tenon/text/jinja/integer.h"
#include "tenon/text/jinja/interpreter.h"
#include "tenon/text/utf8.h"

namespace tenon::jinja {
namespace {

using Kind = ExpressionKind;

// value.method, not yet called.
struct BoundMethod : Object {
  BoundMethod(Value of, std::string named) : self(std::move(of)), name(std::move(named)) {}
  std::string_view type_name() const override { return "builtin_function_or_method"; }
  bool callable() const override { return true; }
  Value call(Interpreter& on, const CallArguments& given) override {
    return call_method(on, self, name, given);
  }
  Value self;
  std::string name;
};

struct Function : Object {
  explicit Function(Value (*function)(Interpreter&, const CallArguments&)) : body(function) {}
  std::string_view type_name() const override { return "function"; }
  bool callable() const override { return true; }
  Value call(Interpreter& on, const CallArguments& given) override { return body(on, given); }
  Value (*body)(Interpreter&, const CallArguments&);
};

std::string subject(const Value& value) {
  if (value.is_none()) return "'None'";
  return "'" + std::string(type_name(value)) + " object'";
}

// How much a filter or a method touches at least.
std::size_t extent(const Value& value) {
  if (value.is_string()) return value.as_string().size() / 8;
  if (value.is_list()) return value.items().size();
  return value.is_dict() ? value.pairs().size() : 0;
}

Value no_attribute(const Value& value, std::string_view name) {
  return Value::undefined(subject(value) + " has no attribute '" + std::string(name) + "'");
}

// Position `index` of a sequence of `size`, or −1.
std::int64_t position(const Value& index, std::size_t size) {
  std::int64_t at = clamped(index);
  if (at < 0) at += static_cast<std::int64_t>(size);
  return at >= 0 && at < static_cast<std::int64_t>(size) ? at : -1;
}

}  // namespace

Value Interpreter::look_up(std::string_view name) {
  for (const Scope* scope = scope_; scope; scope = scope->parent) {
    charge(scope->names.size() / 8);
    for (const auto& pair : scope->names)
      if (pair.first == name) return pair.second;
  }
  if (auto* function = find_function(name)) return own<Function>(function);
  return Value::undefined("'" + std::string(name) + "' is undefined");
}

Value Interpreter::attribute(const Value& value, std::string_view name) {
  demand_defined(value);
  if (has_method(value, name)) return own<BoundMethod>(value, std::string(name));
  if (value.is_object()) {
    auto found = value.as_object()->attribute(name);
    return found ? std::move(*found) : no_attribute(value, name);
  }
  if (value.is_dict())
    if (const Value* found = value.find(Value(name))) return *found;
  return no_attribute(value, name);
}

Value Interpreter::subscript(const Value& value, const Value& key) {
  demand_defined(value);
  charge(key.weight());
  if (value.is_dict() && !key.is_list() && !key.is_dict() && !key.is_object() &&
      !key.is_undefined()) {
    if (const Value* found = value.find(key)) return *found;
  } else if (value.is_dict() && key.is_tuple()) {
    if (const Value* found = value.find(key)) return *found;
  } else if ((value.is_list() || value.is_string()) && (key.is_integer() || key.is_bool())) {
    if (value.is_list()) {
      const std::int64_t at = position(key, value.items().size());
      if (at >= 0) return value.items()[static_cast<std::size_t>(at)];
    } else {
      charge(value.as_string().size() / 8);
      const std::string& characters = value.as_string();
      const std::int64_t at = position(key, utf8_count(characters));
      if (at >= 0) return Value(utf8_slice(characters, static_cast<std::size_t>(at), 1));
    }
  }
  if (key.is_string()) {
    if (has_method(value, key.as_string())) return own<BoundMethod>(value, key.as_string());
    if (value.is_object())
      if (auto found = value.as_object()->attribute(key.as_string())) return std::move(*found);
    return no_attribute(value, key.as_string());
  }
  return Value::undefined(subject(value) + " has no element " + to_repr(key));
}

Value Interpreter::call(const Value& callee, const CallArguments& arguments) {
  demand_defined(callee);
  if (!callee.is_object()) fail("'" + std::string(type_name(callee)) + "' object is not callable");
  return callee.as_object()->call(*this, arguments);
}

Value Interpreter::filtered(std::string_view name, const Value& value,
                            const CallArguments& arguments) {
  charge(2 + extent(value));
  Filter filter = find_filter(name);
  if (!filter) filter = find_sequence_filter(name);
  if (!filter) fail("there is no filter named '" + std::string(name) + "'");
  return filter(*this, value, arguments);
}

bool Interpreter::tested(std::string_view name, const Value& value,
                         const CallArguments& arguments) {
  charge(2 + extent(value));
  const Test test = find_test(name);
  if (!test) fail("there is no test named '" + std::string(name) + "'");
  return test(*this, value, arguments);
}

Value::Items Interpreter::evaluate_all(const std::vector<ExpressionPtr>& expressions) {
  Value::Items values;
  values.reserve(expressions.size());
  for (const auto& expression : expressions) values.push_back(evaluate(*expression));
  return values;
}

CallArguments Interpreter::evaluate(const Arguments& arguments) {
  CallArguments made;
  made.positional = evaluate_all(arguments.positional);
  for (const auto& [name, value] : arguments.keywords) {
    charge(made.keywords.size() / 8);
    const auto same = [&given = name](const auto& pair) { return pair.first == given; };
    if (std::ranges::any_of(made.keywords, same))
      fail("keyword argument '" + name + "' is given twice");
    made.keywords.emplace_back(name, evaluate(*value));
  }
  if (arguments.more_positional)
    for (Value& item : iterate(evaluate(*arguments.more_positional)))
      made.positional.push_back(std::move(item));
  if (arguments.more_keywords) {
    const Value more = evaluate(*arguments.more_keywords);
    if (!more.is_dict())
      fail("the argument after ** must be a dict, not " + std::string(type_name(more)));
    for (const auto& [key, value] : more.pairs()) {
      if (!key.is_string()) fail("keywords must be strings");
      made.keywords.emplace_back(key.as_string(), value);
    }
  }
  return made;
}

Value Interpreter::evaluate_call(const Expression& expression) {
  const Expression& callee = *expression.children[0];
  if (callee.kind == Kind::kAttribute) {  // a method call needs no object for the bound method
    const Value self = evaluate(*callee.children[0]);
    if (has_method(self, callee.text))
      return call_method(*this, self, callee.text, evaluate(expression.arguments));
    return call(attribute(self, callee.text), evaluate(expression.arguments));
  }
  const Value function = evaluate(callee);
  return call(function, evaluate(expression.arguments));
}

Value Interpreter::compare_chain(const Expression& expression) {
  Value left = evaluate(*expression.children[0]);
  for (std::size_t i = 0; i < expression.texts.size(); ++i) {
    Value right = evaluate(*expression.children[i + 1]);
    const std::string& op = expression.texts[i];
    bool holds = false;
    if (op == "==" || op == "!=") {
      holds = same(left, right) == (op == "==");
    } else if (op == "in" || op == "not in") {
      holds = contains(*this, right, left) == (op == "in");
    } else {
      const bool has_nan = (left.is_float() && left.as_float() != left.as_float()) ||
                           (right.is_float() && right.as_float() != right.as_float());
      const int order = compared(left, right);
      holds = op == "<" ? order < 0 : op == "<=" ? order <= 0 : op == ">" ? order > 0 : order >= 0;
      holds = holds && !has_nan;
    }
    if (!holds) return Value(false);
    left = std::move(right);
  }
  return Value(true);
}

Value Interpreter::concatenate(const Expression& expression) {
  std::string made;
  for (const auto& child : expression.children) {
    const Value value = evaluate(*child);
    if (value.is_string()) {
      made += value.as_string();
    } else {
      made += shown(value);
    }
    bound_size(made.size());
  }
  return text(std::move(made));
}

Value Interpreter::evaluate_slice(const Expression& expression) {
  const Value value = evaluate(*expression.children[0]);
  Value bounds[3];
  for (std::size_t i = 0; i < 3; ++i)
    if (expression.children[i + 1]) bounds[i] = evaluate(*expression.children[i + 1]);
  return slice(*this, value, bounds[0], bounds[1], bounds[2]);
}

Value Interpreter::evaluate_conditional(const Expression& expression) {
  if (truth(evaluate(*expression.children[0]))) return evaluate(*expression.children[1]);
  if (expression.children[2]) return evaluate(*expression.children[2]);
  return Value::undefined("the inline if-expression on line " + std::to_string(expression.line) +
                          " evaluated to false and no else section was defined.");
}

Value Interpreter::evaluate(const Expression& expression) {
  if (++depth_ > limits_.max_depth)
    throw Error{"the rendering is nested deeper than " + std::to_string(limits_.max_depth),
                expression.line};
  charge(1);
  try {
    Value value = evaluate_inner(expression);
    --depth_;
    return value;
  } catch (Error& error) {
    if (error.line == 0) error.line = expression.line;
    throw;
  }
}

Value Interpreter::evaluate_inner(const Expression& expression) {
  auto child = [&](std::size_t i) { return evaluate(*expression.children[i]); };
  switch (expression.kind) {
    case Kind::kConstant: return expression.constant;
    case Kind::kName: return look_up(expression.text);
    case Kind::kList: return list(evaluate_all(expression.children));
    case Kind::kTuple: return Value::tuple(evaluate_all(expression.children));
    case Kind::kDict: {
      Value::Pairs pairs;
      for (std::size_t i = 0; i + 1 < expression.children.size(); i += 2) {
        Value key = child(i);
        pairs.emplace_back(std::move(key), child(i + 1));
      }
      return Value::dict(std::move(pairs));
    }
    case Kind::kAttribute: return attribute(child(0), expression.text);
    case Kind::kSubscript: {
      const Value value = child(0);
      return subscript(value, child(1));
    }
    case Kind::kSlice: return evaluate_slice(expression);
    case Kind::kCall: return evaluate_call(expression);
    case Kind::kFilter: {
      const Value value = expression.children[0] ? child(0) : piped_;
      return filtered(expression.text, value, evaluate(expression.arguments));
    }
    case Kind::kTest: {
      const Value value = child(0);
      return Value(tested(expression.text, value, evaluate(expression.arguments)));
    }
    case Kind::kNot: return Value(!truth(child(0)));
    case Kind::kNegative: return negative(*this, child(0));
    case Kind::kPositive: {
      Value value = child(0);
      demand_defined(value);
      if (!value.is_number())
        fail("bad operand type for unary +: '" + std::string(type_name(value)) + "'");
      return value.is_bool() ? Value(value.as_bool() ? 1 : 0) : value;
    }
    case Kind::kAnd: {
      Value left = child(0);
      return truth(left) ? child(1) : left;
    }
    case Kind::kOr: {
      Value left = child(0);
      return truth(left) ? left : child(1);
    }
    case Kind::kArithmetic: {
      const Value left = child(0);
      return arithmetic(*this, expression.text, left, child(1));
    }
    case Kind::kConcatenate: return concatenate(expression);
    case Kind::kCompare: return compare_chain(expression);
    case Kind::kConditional: return evaluate_conditional(expression);
  }
  fail("an expression of unknown kind");
}

}  // namespace tenon::jinja
