// Walks the tree of a template. One object per rendering. Private to jinja*.cc.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tenon/text/jinja/ast.h"
#include "tenon/text/jinja/object.h"

namespace tenon::jinja {

// Names and their values. A scope in which a macro was defined stays until the rendering ends.
struct Scope {
  Scope* parent = nullptr;
  std::vector<std::pair<std::string_view, Value>> names;  // names point into the tree
  bool captured = false;
};

class Interpreter {
 public:
  explicit Interpreter(const RenderOptions& options);
  ~Interpreter();

  // Throws Error.
  std::string run(const Body& body, const Value& variables);

  // For filters, tests, methods and objects.
  Value call(const Value& callee, const CallArguments& arguments);
  Value filtered(std::string_view name, const Value& value, const CallArguments& arguments);
  bool tested(std::string_view name, const Value& value, const CallArguments& arguments);
  Value attribute(const Value& value, std::string_view name);  // value.name
  Value subscript(const Value& value, const Value& key);       // value[key]
  void charge(std::size_t work);                 // fails when the rendering has done too much
  std::string shown(const Value& value);         // to_text, charged
  int compared(const Value& a, const Value& b);  // compare, charged
  bool same(const Value& a, const Value& b);     // equal, charged
  void bound_size(std::size_t bytes) const;      // fails for too long a string
  Value text(std::string made);                  // charges for a new string
  Value list(Value::Items items);                // charges for a new list
  std::string strftime(const std::string& format) const;
  template <class T, class... Parts>
  Value own(Parts&&... parts) {
    charge(200);
    objects_.push_back(std::make_unique<T>(std::forward<Parts>(parts)...));
    return Value(objects_.back().get());
  }

  // For macros and loops.
  std::string call_macro(const MacroDefinition& macro, Scope* closure, const CallArguments& given);
  std::string run_for(const Statement& loop, Scope* around, Value::Items items, int depth);

 private:
  enum class Flow { kOn, kBreak, kContinue };
  class Inside;  // enters and leaves a scope
  class Deeper;  // counts nesting

  Flow run_body(const Body& body);
  Flow run_statement(const Statement& statement);
  Flow run_if(const Statement& statement);
  Flow run_loop(const Statement& loop, Value::Items items, int depth);
  void run_set_block(const Statement& statement);
  void run_call_block(const Statement& statement);
  void run_with(const Statement& statement);
  void define_macro(const Statement& statement);
  Value macro_of(const MacroDefinition& macro);
  std::string captured(const Body& body);
  void print(const Value& value);
  void write(std::string_view text);
  void assign(const Target& target, const Value& value);

  Value evaluate(const Expression& expression);
  Value evaluate_inner(const Expression& expression);
  Value compare_chain(const Expression& expression);
  Value evaluate_call(const Expression& expression);
  Value evaluate_slice(const Expression& expression);
  Value evaluate_conditional(const Expression& expression);
  Value concatenate(const Expression& expression);
  CallArguments evaluate(const Arguments& arguments);
  Value::Items evaluate_all(const std::vector<ExpressionPtr>& expressions);

  Value look_up(std::string_view name);
  void set_name(std::string_view name, Value value);

  const Limits limits_;
  const std::optional<std::time_t> now_;
  std::int64_t work_ = 0;
  int depth_ = 0;
  std::string* out_ = nullptr;
  Scope* scope_ = nullptr;
  Value piped_;  // what the filters of a filter block or a block assignment work on
  std::vector<std::unique_ptr<Object>> objects_;
  std::vector<std::unique_ptr<Scope>> scopes_, free_scopes_;
};

// Filters, tests and methods by name; null or nothing when there is none of that name.
using Filter = Value (*)(Interpreter&, const Value&, const CallArguments&);
using Test = bool (*)(Interpreter&, const Value&, const CallArguments&);
Filter find_filter(std::string_view name);
Filter find_sequence_filter(std::string_view name);
Test find_test(std::string_view name);
bool has_method(const Value& value, std::string_view name);
Value call_method(Interpreter& on, const Value& self, std::string_view name,
                  const CallArguments& given);
// range, dict, namespace, raise_exception, strftime_now; null when there is none.
Value (*find_function(std::string_view name))(Interpreter&, const CallArguments&);

// a op b; op is one of + - * / // % **.
Value arithmetic(Interpreter& on, std::string_view op, const Value& a, const Value& b);
Value negative(Interpreter& on, const Value& value);
bool contains(Interpreter& on, const Value& container, const Value& item);
Value slice(Interpreter& on, const Value& value, const Value& begin, const Value& end,
            const Value& step);

struct Namespace : Object {
  std::vector<std::pair<std::string, Value>> members;
  std::string_view type_name() const override { return "Namespace"; }
  std::string repr() const override;
  std::optional<Value> attribute(std::string_view name) override;
  void set(std::string_view name, Value value);
  mutable bool being_shown = false;
};

}  // namespace tenon::jinja
