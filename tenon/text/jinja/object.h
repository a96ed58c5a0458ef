// What is neither data nor text: namespaces, macros, loops, functions. Objects belong to one
// rendering, which frees them all at its end. Private to jinja*.cc.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tenon/text/jinja/value.h"

namespace tenon::jinja {

class Interpreter;

struct CallArguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> keywords;
};

struct Object {
  virtual ~Object() = default;
  virtual std::string_view type_name() const = 0;
  virtual std::string repr() const { return "<" + std::string(type_name()) + ">"; }
  virtual bool callable() const { return false; }
  virtual Value call(Interpreter&, const CallArguments&) {
    fail("'" + std::string(type_name()) + "' object is not callable");
  }
  virtual std::optional<Value> attribute(std::string_view) { return std::nullopt; }
};

// Arguments matched to the names of parameters. Fails on unknown, doubled, missing and extra ones.
class Bound {
 public:
  Bound(std::string_view what, const CallArguments& given,
        std::initializer_list<std::string_view> names, std::size_t num_required = 0);
  bool has(std::size_t i) const { return values_[i] != nullptr; }
  const Value& operator[](std::size_t i) const { return *values_[i]; }
  Value get(std::size_t i, const Value& otherwise) const {
    return has(i) ? *values_[i] : otherwise;
  }
  // Of the kind named, or `otherwise` when absent; fails for another kind.
  std::int64_t integer(std::size_t i, std::int64_t otherwise) const;
  std::string string(std::size_t i, std::string otherwise) const;
  bool flag(std::size_t i, bool otherwise) const { return has(i) ? truth(*values_[i]) : otherwise; }

 private:
  std::string what_;
  std::vector<const Value*> values_;
};

}  // namespace tenon::jinja
