// Values: construction, comparison, Python's str() and repr(). JSON is in jinja/json.cc.
#include "tenon/text/jinja/value.h"

#include <algorithm>
#include <cmath>

#include "tenon/text/jinja/integer.h"
#include "tenon/text/jinja/object.h"
#include "tenon/text/python_text.h"
#include "tenon/text/utf8.h"

namespace tenon::jinja {
namespace {

constexpr std::size_t kIndexedSize = 8;  // larger dicts get an index of their keys

// Counts `part` as a part of a list or dict.
template <class Container>
void include(Container& container, const Value& part) {
  container.depth = std::max(container.depth, 1 + part.depth());
  container.weight += part.weight();
  if (container.depth > kMaxValueDepth)
    throw Error{"lists and dicts are nested deeper than " + std::to_string(kMaxValueDepth)};
  if (container.weight > kMaxValueWeight) throw Error{"a list or dict is too large"};
}

std::size_t place_of(const Dict& dict, const Value& key) {
  if (!dict.index.empty()) {
    const auto found = dict.index.find(key_text(key));
    return found == dict.index.end() ? dict.pairs.size() : found->second;
  }
  (void)key_text(key);  // fails for what cannot be a key
  const auto found =
      std::ranges::find_if(dict.pairs, [&](const auto& p) { return equal(p.first, key); });
  return static_cast<std::size_t>(found - dict.pairs.begin());
}

std::string join_reprs(const Value::Items& items) {
  std::string text;
  for (const Value& item : items) {
    if (!text.empty()) text += ", ";
    text += to_repr(item);
  }
  return text;
}

}  // namespace

std::string key_text(const Value& key) {
  if (key.is_string()) return "s" + key.as_string();
  if (key.is_none()) return "z";
  if (key.is_undefined()) return "u";
  if (key.is_bool()) return key.as_bool() ? "n1" : "n0";
  if (key.is_integer()) return "n" + integer_text(key);
  if (key.is_float()) {
    const double value = key.as_float();
    if (value == std::floor(value) && !std::isinf(value))
      return "n" + integer_text(integer_of_double(value));
    return "n" + python::number(value);
  }
  if (key.is_tuple()) {
    std::string text = "t";
    for (const Value& item : key.items()) {
      const std::string part = key_text(item);
      text += std::to_string(part.size()) + ":" + part;
    }
    return text;
  }
  fail("unhashable type: '" + std::string(type_name(key)) + "'");
}

void fail(std::string message) { throw Error{std::move(message)}; }

Value Value::undefined(std::string why) {
  Value value;
  value.held_ = Undefined{std::make_shared<const std::string>(std::move(why))};
  return value;
}

Value Value::list(Items items) {
  auto list = std::make_shared<List>();
  for (const Value& item : items) include(*list, item);
  list->items = std::move(items);
  Value value;
  value.held_ = std::shared_ptr<const List>(std::move(list));
  return value;
}

Value Value::tuple(Items items) {
  auto list = std::make_shared<List>();
  for (const Value& item : items) include(*list, item);
  list->items = std::move(items);
  list->is_tuple = true;
  Value value;
  value.held_ = std::shared_ptr<const List>(std::move(list));
  return value;
}

Value Value::dict(Pairs pairs) {
  auto dict = std::make_shared<Dict>();
  dict->pairs.reserve(pairs.size());
  const bool indexed = pairs.size() > kIndexedSize;
  for (auto& pair : pairs) {
    include(*dict, pair.first);
    include(*dict, pair.second);
    const std::size_t at = place_of(*dict, pair.first);
    if (at < dict->pairs.size()) {
      dict->pairs[at].second = std::move(pair.second);
      continue;
    }
    if (indexed) dict->index.emplace(key_text(pair.first), at);
    dict->pairs.push_back(std::move(pair));
  }
  Value value;
  value.held_ = std::shared_ptr<const Dict>(std::move(dict));
  return value;
}

bool Value::is_tuple() const {
  return is_list() && std::get<std::shared_ptr<const List>>(held_)->is_tuple;
}
const Value::Items& Value::items() const {
  return std::get<std::shared_ptr<const List>>(held_)->items;
}
const Value::Pairs& Value::pairs() const {
  return std::get<std::shared_ptr<const Dict>>(held_)->pairs;
}

const Value* Value::find(const Value& key) const {
  if (!is_dict()) return nullptr;
  const Dict& dict = *std::get<std::shared_ptr<const Dict>>(held_);
  const std::size_t at = place_of(dict, key);
  return at < dict.pairs.size() ? &dict.pairs[at].second : nullptr;
}

int Value::depth() const {
  if (is_list()) return std::get<std::shared_ptr<const List>>(held_)->depth;
  if (is_dict()) return std::get<std::shared_ptr<const Dict>>(held_)->depth;
  return 0;
}

std::size_t Value::weight() const {
  if (is_string()) return 1 + as_string().size() / 8;
  if (is_big()) return 1000;
  if (is_list()) return std::get<std::shared_ptr<const List>>(held_)->weight;
  if (is_dict()) return std::get<std::shared_ptr<const Dict>>(held_)->weight;
  return 1;
}

std::string_view type_name(const Value& value) {
  if (value.is_none()) return "NoneType";
  if (value.is_bool()) return "bool";
  if (value.is_integer()) return "int";
  if (value.is_float()) return "float";
  if (value.is_string()) return "str";
  if (value.is_list()) return value.is_tuple() ? "tuple" : "list";
  if (value.is_dict()) return "dict";
  if (value.is_undefined()) return "Undefined";
  return value.as_object()->type_name();
}

bool truth(const Value& value) {
  if (value.is_bool()) return value.as_bool();
  if (value.is_int()) return value.as_int() != 0;
  if (value.is_float()) return value.as_float() != 0;
  if (value.is_big()) return true;
  if (value.is_string()) return !value.as_string().empty();
  if (value.is_list()) return !value.items().empty();
  if (value.is_dict()) return !value.pairs().empty();
  return value.is_object();
}

bool equal(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) {
    if ((a.is_float() && std::isnan(a.as_float())) || (b.is_float() && std::isnan(b.as_float())))
      return false;
    return compare_numbers(a, b) == 0;
  }
  if (a.is_string() && b.is_string()) return a.as_string() == b.as_string();
  if (a.is_list() && b.is_list())
    return a.is_tuple() == b.is_tuple() && std::ranges::equal(a.items(), b.items(), equal);
  if (a.is_dict() && b.is_dict()) {
    if (a.pairs().size() != b.pairs().size()) return false;
    return std::ranges::all_of(a.pairs(), [&](const auto& pair) {
      const Value* other = b.find(pair.first);
      return other && equal(pair.second, *other);
    });
  }
  if (a.is_object() && b.is_object()) return a.as_object() == b.as_object();
  return (a.is_none() && b.is_none()) || (a.is_undefined() && b.is_undefined());
}

int compare(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) return compare_numbers(a, b);
  if (a.is_string() && b.is_string()) {  // bytes of UTF-8 order as code points do
    const int order = a.as_string().compare(b.as_string());
    return order < 0 ? -1 : order > 0 ? 1 : 0;
  }
  if (a.is_list() && b.is_list() && a.is_tuple() == b.is_tuple()) {
    const std::size_t common = std::min(a.items().size(), b.items().size());
    for (std::size_t i = 0; i < common; ++i)
      if (!equal(a.items()[i], b.items()[i])) return compare(a.items()[i], b.items()[i]);
    return a.items().size() < b.items().size() ? -1 : a.items().size() > b.items().size() ? 1 : 0;
  }
  demand_defined(a);
  demand_defined(b);
  fail("'" + std::string(type_name(a)) + "' and '" + std::string(type_name(b)) + "' have no order");
}

std::string to_text(const Value& value) {
  if (value.is_string()) return value.as_string();
  if (value.is_undefined()) return "";
  return to_repr(value);
}

std::string to_repr(const Value& value) {
  if (value.is_none()) return "None";
  if (value.is_bool()) return value.as_bool() ? "True" : "False";
  if (value.is_integer()) return integer_text(value);
  if (value.is_float()) return python::number(value.as_float());
  if (value.is_string()) return python::quoted(value.as_string());
  if (value.is_undefined()) return "Undefined";
  if (value.is_tuple())
    return "(" + join_reprs(value.items()) + (value.items().size() == 1 ? ",)" : ")");
  if (value.is_list()) return "[" + join_reprs(value.items()) + "]";
  if (value.is_object()) return value.as_object()->repr();
  std::string text;
  for (const auto& [key, member] : value.pairs()) {
    if (!text.empty()) text += ", ";
    text += to_repr(key) + ": " + to_repr(member);
  }
  return "{" + text + "}";
}

Value::Items iterate(const Value& value) {
  if (value.is_list()) return value.items();
  if (value.is_undefined()) return {};
  Value::Items items;
  if (value.is_dict()) {
    items.reserve(value.pairs().size());
    for (const auto& pair : value.pairs()) items.push_back(pair.first);
    return items;
  }
  if (value.is_string()) {
    for (std::string_view rest = value.as_string(); !rest.empty();) {
      const auto bytes = static_cast<std::size_t>(utf8_first(rest).num_bytes);
      items.emplace_back(rest.substr(0, bytes));
      rest.remove_prefix(bytes);
    }
    return items;
  }
  fail("'" + std::string(type_name(value)) + "' object is not iterable");
}

void demand_defined(const Value& value) {
  if (value.is_undefined()) fail(value.why_undefined());
}

}  // namespace tenon::jinja
