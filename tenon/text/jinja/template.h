// A compact Jinja: what chat templates need, with the meaning Jinja2 gives it in the environment in
// which they are usually rendered (sandboxed, trim_blocks, lstrip_blocks, loop controls, no
// escaping). Values are immutable and JSON-shaped. Rendering is bounded: no template can hang or
// overflow.
//
// Not there: template inheritance, include and import, auto-escaping, string formatting by % or
// format, complex numbers, integers past 65536 bits, the filters filesizeformat, format, groupby,
// pprint, random, slice, striptags, truncate, urlencode, urlize, wordwrap and xmlattr. They are
// refused with the line they stand on. Filters that give a generator in Jinja2 give a list, and
// `safe` changes nothing: nothing is escaped here, not even when text that is marked safe is added
// to other text.
#pragma once

#include <cstdint>
#include <ctime>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "tenon/core/status.h"

namespace tenon::jinja {

struct List;
struct Dict;
struct BigInteger;
struct Object;  // namespaces, macros, loops: they live only while a template is being rendered

// A value of the template language. Copies are cheap: strings and containers are shared. Lists and
// dicts nest at most 200 deep and have a bounded weight.
class Value {
 public:
  using Items = std::vector<Value>;
  using Pairs = std::vector<std::pair<Value, Value>>;

  Value() = default;  // none
  template <class T>
  requires std::is_same_v<T, bool> Value(T value) : held_(value) {}
  Value(int value) : held_(std::int64_t{value}) {}
  Value(std::int64_t value) : held_(value) {}
  Value(double value) : held_(value) {}
  Value(std::string value) : held_(std::make_shared<const std::string>(std::move(value))) {}
  Value(std::string_view value) : Value(std::string(value)) {}
  Value(const char* value) : Value(std::string(value)) {}
  explicit Value(std::shared_ptr<const BigInteger> value) : held_(std::move(value)) {}
  explicit Value(Object* object) : held_(object) {}

  // What a missing variable gives: prints as nothing, false; most other uses fail and say `why`.
  static Value undefined(std::string why);
  static Value list(Items items);
  static Value tuple(Items items);
  // A later pair with an equal key replaces the value of an earlier one.
  static Value dict(Pairs pairs);

  bool is_undefined() const { return holds<Undefined>(); }
  bool is_none() const { return holds<std::monostate>(); }
  bool is_bool() const { return holds<bool>(); }
  bool is_int() const { return holds<std::int64_t>(); }
  bool is_big() const { return holds<std::shared_ptr<const BigInteger>>(); }  // does not fit one
  bool is_integer() const { return is_int() || is_big(); }
  bool is_float() const { return holds<double>(); }
  bool is_number() const { return is_bool() || is_integer() || is_float(); }
  bool is_string() const { return holds<Text>(); }
  bool is_list() const { return holds<std::shared_ptr<const List>>(); }  // or tuple
  bool is_tuple() const;
  bool is_dict() const { return holds<std::shared_ptr<const Dict>>(); }
  bool is_object() const { return holds<Object*>(); }

  // Each only for its own kind.
  bool as_bool() const { return std::get<bool>(held_); }
  std::int64_t as_int() const { return std::get<std::int64_t>(held_); }
  const BigInteger& as_big() const { return *std::get<std::shared_ptr<const BigInteger>>(held_); }
  double as_float() const { return std::get<double>(held_); }
  const std::string& as_string() const { return *std::get<Text>(held_); }
  const Items& items() const;
  const Pairs& pairs() const;
  Object* as_object() const { return std::get<Object*>(held_); }
  const std::string& why_undefined() const { return *std::get<Undefined>(held_).why; }

  // The member of a dict, or null.
  const Value* find(const Value& key) const;
  // Nesting of lists and dicts; bounded so that every walk over a value may be recursive.
  int depth() const;
  // About how long a walk over all of it takes; shared parts count as often as they are reached.
  std::size_t weight() const;

 private:
  using Text = std::shared_ptr<const std::string>;
  struct Undefined {
    Text why;
  };
  template <class T>
  bool holds() const {
    return std::holds_alternative<T>(held_);
  }
  std::variant<std::monostate, bool, std::int64_t, std::shared_ptr<const BigInteger>, double, Text,
               std::shared_ptr<const List>, std::shared_ptr<const Dict>, Undefined, Object*>
      held_;
};

// JSON text to a value and back. Integers may have up to 308 digits. Objects keep the order of
// their keys. Refuses malformed text and nesting deeper than 100.
Result<Value> parse_json(std::string_view text);
// As Python's json.dumps with ensure_ascii off; none for what JSON cannot hold is an error.
Result<std::string> to_json(const Value& value);

struct Limits {
  std::int64_t max_work = 40'000'000;       // evaluation steps, and bytes made / 8
  std::size_t max_output_bytes = 32 << 20;  // also of every single string
  int max_depth = 800;                      // of nested statements, expressions and calls
};

struct RenderOptions {
  Limits limits;
  std::optional<std::time_t> now;  // for strftime_now; the clock if not given
};

// A parsed template. Immutable and safe to share between threads.
class Template {
 public:
  // Errors say "line N: …".
  static Result<Template> parse(std::string_view source);
  Template(Template&&) noexcept;
  Template& operator=(Template&&) noexcept;
  ~Template();
  // `variables` is a dict: the names the template sees.
  Result<std::string> render(const Value& variables, const RenderOptions& options = {}) const;

 private:
  struct State;
  explicit Template(std::unique_ptr<const State> state);
  std::unique_ptr<const State> state_;
};

}  // namespace tenon::jinja
