// What the parts of the template language share about values: containers, errors, printing,
// comparison. Private to jinja*.cc.
#pragma once

#include <string>
#include <string_view>
#include <unordered_map>

#include "tenon/text/jinja/template.h"

namespace tenon::jinja {

// Thrown inside the template language only; Template turns it into a Status.
struct Error {
  std::string message;
  int line = 0;  // 0: not yet known
};
[[noreturn]] void fail(std::string message);

inline constexpr int kMaxValueDepth = 200;
inline constexpr std::size_t kMaxValueWeight = 8'000'000;

struct List {
  Value::Items items;
  bool is_tuple = false;
  int depth = 1;
  std::size_t weight = 1;
};

struct Dict {
  Value::Pairs pairs;
  std::unordered_map<std::string, std::size_t> index;  // of key_text(key); empty for small dicts
  int depth = 1;
  std::size_t weight = 1;
};

// "str", "dict", "NoneType", …: Python's names, for messages.
std::string_view type_name(const Value& value);
bool truth(const Value& value);
// As Python's == ; never fails.
bool equal(const Value& a, const Value& b);
// −1, 0, 1; fails for kinds that have no order.
int compare(const Value& a, const Value& b);
// As Python's str() and repr().
std::string to_text(const Value& value);
std::string to_repr(const Value& value);
// Elements of a list, keys of a dict, characters of a string, nothing of undefined; else fails.
Value::Items iterate(const Value& value);
// Fails with the reason when `value` is undefined.
void demand_defined(const Value& value);

// Equal keys have equal texts and unequal keys have unequal ones. Fails for what cannot be a key.
std::string key_text(const Value& key);

struct JsonStyle {
  std::optional<std::string> indent;  // one level; none: everything on one line
  std::string item_separator = ", ", key_separator = ": ";
  bool sort_keys = false;
  bool ascii = false;
};
std::string dump_json(const Value& value, const JsonStyle& style);

}  // namespace tenon::jinja
