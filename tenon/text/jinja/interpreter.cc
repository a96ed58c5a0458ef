// Statements: output, loops, scopes, macros. Expressions are in jinja/evaluate.cc.
#include "tenon/text/jinja/interpreter.h"

#include <algorithm>
#include <array>

#include "tenon/text/jinja/template.h"

namespace tenon::jinja {
namespace {

using Kind = StatementKind;

struct Macro : Object {
  Macro(const MacroDefinition& with, Scope* around) : definition(with), closure(around) {}
  std::string_view type_name() const override { return "Macro"; }
  std::string repr() const override { return "<Macro '" + definition.name + "'>"; }
  bool callable() const override { return true; }
  Value call(Interpreter& on, const CallArguments& given) override {
    return on.text(on.call_macro(definition, closure, given));
  }
  std::optional<Value> attribute(std::string_view name) override {
    if (name == "name") return Value(definition.name);
    if (name == "arguments") {
      Value::Items names(definition.parameters.begin(), definition.parameters.end());
      return Value::tuple(std::move(names));
    }
    if (name == "catch_kwargs") return Value(definition.uses_kwargs);
    if (name == "catch_varargs") return Value(definition.uses_varargs);
    if (name == "caller") return Value(definition.uses_caller);
    return std::nullopt;
  }
  const MacroDefinition& definition;
  Scope* closure;
};

// The variable `loop`.
struct Loop : Object {
  struct Cycle : Object {
    explicit Cycle(const Loop& of) : loop(of) {}
    std::string_view type_name() const override { return "method"; }
    bool callable() const override { return true; }
    Value call(Interpreter&, const CallArguments& given) override {
      if (given.positional.empty()) fail("no items for cycling given");
      return given.positional[loop.index % given.positional.size()];
    }
    const Loop& loop;
  };
  struct Changed : Object {
    explicit Changed(Loop& of) : loop(of) {}
    std::string_view type_name() const override { return "method"; }
    bool callable() const override { return true; }
    Value call(Interpreter& on, const CallArguments& given) override {
      Value now = on.list(given.positional);
      const bool changed = !loop.last_seen || !on.same(*loop.last_seen, now);
      loop.last_seen = std::move(now);
      return Value(changed);
    }
    Loop& loop;
  };

  Loop(Interpreter& interpreter, const Statement& of, Scope* scope, Value::Items over, int level)
      : on(interpreter), statement(of), around(scope), items(std::move(over)), depth(level) {}
  std::string_view type_name() const override { return "LoopContext"; }
  std::string repr() const override {
    return "<LoopContext " + std::to_string(index + 1) + "/" + std::to_string(items.size()) + ">";
  }
  bool callable() const override { return true; }
  Value call(Interpreter& by, const CallArguments& given) override {
    if (!statement.recursive)
      fail("The loop must have the 'recursive' marker to be called recursively.");
    const Bound bound("loop", given, {"iterable"}, 1);
    return by.text(by.run_for(statement, around, iterate(bound[0]), depth + 1));
  }
  std::optional<Value> attribute(std::string_view name) override {
    const auto at = static_cast<std::int64_t>(index),
               size = static_cast<std::int64_t>(items.size());
    if (name == "index") return Value(at + 1);
    if (name == "index0") return Value(at);
    if (name == "revindex") return Value(size - at);
    if (name == "revindex0") return Value(size - at - 1);
    if (name == "first") return Value(index == 0);
    if (name == "last") return Value(at + 1 == size);
    if (name == "length") return Value(size);
    if (name == "depth") return Value(depth + 1);
    if (name == "depth0") return Value(depth);
    if (name == "previtem")
      return index > 0 ? items[index - 1] : Value::undefined("there is no previous item");
    if (name == "nextitem")
      return at + 1 < size ? items[index + 1] : Value::undefined("there is no next item");
    if (name == "cycle") return on.own<Cycle>(*this);
    if (name == "changed") return on.own<Changed>(*this);
    return std::nullopt;
  }

  Interpreter& on;
  const Statement& statement;
  Scope* around;
  Value::Items items;
  int depth = 0;
  std::size_t index = 0;
  std::optional<Value> last_seen;
};

}  // namespace

// Enters a scope and leaves it. Scopes that no macro has captured are used again.
class Interpreter::Inside {
 public:
  Inside(Interpreter& on, Scope* parent) : on_(on), before_(on.scope_) {
    on.charge(4);
    if (on.free_scopes_.empty()) on.free_scopes_.push_back(std::make_unique<Scope>());
    scope_ = on.free_scopes_.back().get();
    on.scopes_.push_back(std::move(on.free_scopes_.back()));
    on.free_scopes_.pop_back();
    scope_->parent = parent;
    on.scope_ = scope_;
  }
  explicit Inside(Interpreter& on) : Inside(on, on.scope_) {}
  Inside(const Inside&) = delete;
  ~Inside() {
    on_.scope_ = before_;
    if (scope_->captured) return;
    // Captured scopes may have piled up above; among uncaptured ones this is the last.
    for (std::size_t i = on_.scopes_.size(); i-- > 0;) {
      if (on_.scopes_[i].get() != scope_) continue;
      scope_->names.clear();
      on_.free_scopes_.push_back(std::move(on_.scopes_[i]));
      on_.scopes_.erase(on_.scopes_.begin() + static_cast<std::ptrdiff_t>(i));
      return;
    }
  }

 private:
  Interpreter& on_;
  Scope* before_;
  Scope* scope_;
};

class Interpreter::Deeper {
 public:
  explicit Deeper(Interpreter& on) : on_(on) {
    if (++on.depth_ > on.limits_.max_depth) {
      --on.depth_;
      throw Error{"the rendering is nested deeper than " + std::to_string(on.limits_.max_depth)};
    }
  }
  Deeper(const Deeper&) = delete;
  ~Deeper() { --on_.depth_; }

 private:
  Interpreter& on_;
};

Interpreter::Interpreter(const RenderOptions& options)
    : limits_(options.limits), now_(options.now) {}
Interpreter::~Interpreter() = default;

void Interpreter::charge(std::size_t work) {
  work_ += static_cast<std::int64_t>(work);
  if (work_ > limits_.max_work)
    throw Error{"the rendering takes more than " + std::to_string(limits_.max_work) + " steps"};
}

std::string Interpreter::shown(const Value& value) {
  charge(value.weight());
  return to_text(value);
}

int Interpreter::compared(const Value& a, const Value& b) {
  charge(std::min(a.weight(), b.weight()));
  return compare(a, b);
}

bool Interpreter::same(const Value& a, const Value& b) {
  charge(std::min(a.weight(), b.weight()));
  return equal(a, b);
}

void Interpreter::bound_size(std::size_t bytes) const {
  if (bytes > limits_.max_output_bytes)
    throw Error{"a string is longer than " + std::to_string(limits_.max_output_bytes) + " bytes"};
}

Value Interpreter::text(std::string made) {
  bound_size(made.size());
  charge(made.size() / 8);
  return Value(std::move(made));
}

Value Interpreter::list(Value::Items items) {
  charge(4 * items.size());
  return Value::list(std::move(items));
}

// As Python's datetime.strftime of a time without a zone: %Z and %z are empty, %f is microseconds.
std::string Interpreter::strftime(const std::string& format) const {
  std::timespec clock{};
  std::timespec_get(&clock, TIME_UTC);
  const std::time_t when = now_.value_or(clock.tv_sec);
  const std::string micros =
      std::to_string(1'000'000 + (now_ ? 0 : clock.tv_nsec / 1000)).substr(1);
  std::tm parts{};
  localtime_r(&when, &parts);
  std::string own;
  for (std::size_t i = 0; i < format.size(); ++i) {
    const char kind = format[i] == '%' && i + 1 < format.size() ? format[i + 1] : '\0';
    if (kind == 'f') own += micros;
    if (kind == 'f' || kind == 'Z' || kind == 'z') {
      ++i;
      continue;
    }
    own += format[i];
    if (kind != '\0') own += format[++i];
  }
  own += '.';  // so that no text means one that is too long
  std::string out(own.size() + 4096, '\0');
  const std::size_t bytes = std::strftime(out.data(), out.size(), own.c_str(), &parts);
  if (bytes == 0)
    fail("strftime_now: the format \"" + format.substr(0, 80) + "\" gives too long a text");
  return out.substr(0, bytes - 1);
}

std::string Interpreter::run(const Body& body, const Value& variables) {
  std::string out;
  out_ = &out;
  Scope given;
  for (const auto& [name, value] : variables.pairs())
    if (name.is_string()) given.names.emplace_back(name.as_string(), value);
  const Inside scope(*this, &given);
  run_body(body);
  return out;
}

void Interpreter::write(std::string_view text) {
  if (out_->size() + text.size() > limits_.max_output_bytes)
    throw Error{"the output is longer than " + std::to_string(limits_.max_output_bytes) + " bytes"};
  charge(1 + text.size() / 8);
  *out_ += text;
}

void Interpreter::print(const Value& value) {
  if (value.is_string()) return write(value.as_string());
  write(shown(value));
}

Interpreter::Flow Interpreter::run_body(const Body& body) {
  for (const auto& statement : body) {
    try {
      const Flow flow = run_statement(*statement);
      if (flow != Flow::kOn) return flow;
    } catch (Error& error) {
      if (error.line == 0) error.line = statement->line;
      throw;
    }
  }
  return Flow::kOn;
}

Interpreter::Flow Interpreter::run_statement(const Statement& statement) {
  const Deeper deeper(*this);
  charge(1);
  switch (statement.kind) {
    case Kind::kText: write(statement.text); break;
    case Kind::kPrint:
      for (const auto& expression : statement.expressions) print(evaluate(*expression));
      break;
    case Kind::kIf: return run_if(statement);
    case Kind::kFor: return run_loop(statement, iterate(evaluate(*statement.expressions[0])), 0);
    case Kind::kSet: assign(statement.targets[0], evaluate(*statement.expressions[0])); break;
    case Kind::kSetBlock: run_set_block(statement); break;
    case Kind::kMacro: define_macro(statement); break;
    case Kind::kCallBlock: run_call_block(statement); break;
    case Kind::kFilterBlock: {
      piped_ = text(captured(statement.bodies[0]));
      print(evaluate(*statement.expressions[0]));
      break;
    }
    case Kind::kWith: run_with(statement); break;
    case Kind::kScope: {
      const Inside scope(*this);
      return run_body(statement.bodies[0]);
    }
    case Kind::kBreak: return Flow::kBreak;
    case Kind::kContinue: return Flow::kContinue;
  }
  return Flow::kOn;
}

Interpreter::Flow Interpreter::run_if(const Statement& statement) {
  for (std::size_t i = 0; i < statement.expressions.size(); ++i)
    if (truth(evaluate(*statement.expressions[i]))) return run_body(statement.bodies[i]);
  return run_body(statement.otherwise);
}

Interpreter::Flow Interpreter::run_loop(const Statement& loop, Value::Items items, int depth) {
  Scope* const around = scope_;
  if (loop.expressions[1]) {
    Value::Items kept;
    for (Value& item : items) {
      const Inside scope(*this);
      charge(1);
      assign(loop.targets[0], item);
      if (truth(evaluate(*loop.expressions[1]))) kept.push_back(std::move(item));
    }
    items = std::move(kept);
  }
  if (items.empty()) {
    const Inside scope(*this);
    return run_body(loop.otherwise);
  }
  charge(4 * items.size());
  const Value self = own<Loop>(*this, loop, around, std::move(items), depth);
  auto& state = static_cast<Loop&>(*self.as_object());
  for (state.index = 0; state.index < state.items.size(); ++state.index) {
    const Inside scope(*this);
    charge(1);
    set_name("loop", self);
    assign(loop.targets[0], state.items[state.index]);
    if (run_body(loop.bodies[0]) == Flow::kBreak) break;
  }
  state.items = {};  // the object itself may still be held by a namespace
  state.index = 0;
  return Flow::kOn;
}

std::string Interpreter::run_for(const Statement& loop, Scope* around, Value::Items items,
                                 int depth) {
  const Deeper deeper(*this);
  std::string made;
  std::string* const before = std::exchange(out_, &made);
  Scope* const scope = std::exchange(scope_, around);
  run_loop(loop, std::move(items), depth);
  out_ = before;
  scope_ = scope;
  return made;
}

// Exceptions leave out_ and scope_ as they are: the rendering is over then.
std::string Interpreter::captured(const Body& body) {
  std::string made;
  std::string* const before = std::exchange(out_, &made);
  {
    const Inside scope(*this);
    run_body(body);
  }
  out_ = before;
  return made;
}

void Interpreter::run_set_block(const Statement& statement) {
  Value made = text(captured(statement.bodies[0]));
  if (statement.expressions[0]) {
    piped_ = std::move(made);
    made = evaluate(*statement.expressions[0]);
  }
  assign(statement.targets[0], made);
}

void Interpreter::run_with(const Statement& statement) {
  Value::Items values;
  for (const auto& expression : statement.expressions) values.push_back(evaluate(*expression));
  const Inside scope(*this);
  for (std::size_t i = 0; i < values.size(); ++i) assign(statement.targets[i], values[i]);
  run_body(statement.bodies[0]);
}

Value Interpreter::macro_of(const MacroDefinition& macro) {
  for (Scope* scope = scope_; scope && !scope->captured; scope = scope->parent)
    scope->captured = true;
  return own<Macro>(macro, scope_);
}

void Interpreter::define_macro(const Statement& statement) {
  set_name(statement.macro.name, macro_of(statement.macro));
}

void Interpreter::run_call_block(const Statement& statement) {
  const Expression& call = *statement.expressions[0];
  const Value callee = evaluate(*call.children[0]);
  CallArguments given = evaluate(call.arguments);
  const Inside scope(*this);
  given.keywords.emplace_back("caller", macro_of(statement.macro));
  print(this->call(callee, given));
}

std::string Interpreter::call_macro(const MacroDefinition& macro, Scope* closure,
                                    const CallArguments& given) {
  const Deeper deeper(*this);
  std::string made;
  std::string* const before_out = std::exchange(out_, &made);
  Scope* const before_scope = scope_;
  {
    const Inside scope(*this, closure);
    std::vector<std::pair<std::string, Value>> keywords = given.keywords;
    auto taken = [&](std::string_view name) -> std::optional<Value> {
      charge(keywords.size() / 8);
      const auto found = std::ranges::find(
          keywords, name, [](auto& pair) -> std::string_view { return pair.first; });
      if (found == keywords.end()) return std::nullopt;
      Value value = std::move(found->second);
      keywords.erase(found);
      return value;
    };
    const std::size_t count = macro.parameters.size();
    const std::size_t first_default = count - macro.defaults.size();
    for (std::size_t i = 0; i < count; ++i) {
      const std::string& name = macro.parameters[i];
      std::optional<Value> value;
      if (i < given.positional.size()) {
        value = given.positional[i];
      } else {
        value = taken(name);
      }
      if (!value && i >= first_default) value = evaluate(*macro.defaults[i - first_default]);
      set_name(name, value ? std::move(*value)
                           : Value::undefined("parameter '" + name + "' was not provided"));
    }
    if (macro.uses_caller &&
        std::ranges::find(macro.parameters, "caller") == macro.parameters.end()) {
      auto caller = taken("caller");
      set_name("caller", caller ? std::move(*caller) : Value::undefined("No caller defined"));
    }
    if (macro.uses_kwargs) {
      Value::Pairs pairs;
      for (auto& [name, value] : keywords) pairs.emplace_back(Value(name), std::move(value));
      set_name("kwargs", Value::dict(std::move(pairs)));
    } else if (!keywords.empty()) {
      fail("macro '" + macro.name + "' takes no keyword argument '" + keywords.front().first + "'");
    }
    const std::size_t used = std::min(count, given.positional.size());
    if (macro.uses_varargs) {
      set_name("varargs",
               Value::tuple({given.positional.begin() + static_cast<std::ptrdiff_t>(used),
                             given.positional.end()}));
    } else if (given.positional.size() > count) {
      fail("macro '" + macro.name + "' takes not more than " + std::to_string(count) +
           " argument(s)");
    }
    run_body(macro.body);
  }
  out_ = before_out;
  scope_ = before_scope;
  return made;
}

void Interpreter::assign(const Target& target, const Value& value) {
  if (target.is_tuple) {
    const Value::Items parts = iterate(value);
    if (parts.size() != target.parts.size())
      fail("cannot unpack " + std::to_string(parts.size()) + " values into " +
           std::to_string(target.parts.size()) + " names");
    for (std::size_t i = 0; i < parts.size(); ++i) assign(target.parts[i], parts[i]);
    return;
  }
  if (target.attribute.empty()) return set_name(target.name, value);
  const Value owner = look_up(target.name);
  auto* space = owner.is_object() ? dynamic_cast<Namespace*>(owner.as_object()) : nullptr;
  if (!space) fail("cannot assign attribute on non-namespace object '" + target.name + "'");
  space->set(target.attribute, value);
}

void Interpreter::set_name(std::string_view name, Value value) {
  charge(scope_->names.size() / 8);
  for (auto& pair : scope_->names) {
    if (pair.first != name) continue;
    pair.second = std::move(value);
    return;
  }
  scope_->names.emplace_back(name, std::move(value));
}

std::string Namespace::repr() const {
  if (being_shown) return "<Namespace {...}>";
  being_shown = true;
  std::string text;
  for (const auto& [name, value] : members)
    text += (text.empty() ? "" : ", ") + to_repr(Value(name)) + ": " + to_repr(value);
  being_shown = false;
  return "<Namespace {" + text + "}>";
}

std::optional<Value> Namespace::attribute(std::string_view name) {
  for (const auto& [key, value] : members)
    if (key == name) return value;
  return std::nullopt;
}

void Namespace::set(std::string_view name, Value value) {
  for (auto& [key, held] : members) {
    if (key != name) continue;
    held = std::move(value);
    return;
  }
  members.emplace_back(std::string(name), std::move(value));
}

}  // namespace tenon::jinja
