// Filters over sequences and mappings.
#include <algorithm>
#include <set>

#include "tenon/text/jinja/integer.h"
#include "tenon/text/jinja/interpreter.h"
#include "tenon/text/python_text.h"
#include "tenon/text/utf8.h"

namespace tenon::jinja {
namespace {

using Given = CallArguments;

// What `attribute=` names: a dotted path of members and positions.
Value path(Interpreter& on, Value value, const Value& attribute) {
  if (attribute.is_integer()) return on.subscript(value, attribute);
  for (const std::string& part : python::split(on.shown(attribute), ".", -1, false)) {
    const bool is_number =
        !part.empty() && part.find_first_not_of("0123456789") == std::string::npos;
    const auto index = is_number ? parse_integer(part, 10) : std::nullopt;
    value = on.subscript(value, index ? *index : Value(part));
  }
  return value;
}

// As do the filters that ignore case unless told otherwise.
Value folded(const Value& value) {
  return value.is_string() ? Value(python::lower(value.as_string())) : value;
}

Value first(Interpreter& on, const Value& value, const Given& given) {
  const Bound none("first", given, {});
  if (value.is_string() && !value.as_string().empty())
    return on.text(std::string(utf8_slice(value.as_string(), 0, 1)));
  const Value::Items items = iterate(value);
  return items.empty() ? Value::undefined("No first item, sequence was empty.") : items.front();
}

Value last(Interpreter& on, const Value& value, const Given& given) {
  const Bound none("last", given, {});
  if (value.is_string() && !value.as_string().empty())
    return on.text(
        std::string(utf8_slice(value.as_string(), utf8_count(value.as_string()) - 1, 1)));
  const Value::Items items = iterate(value);
  return items.empty() ? Value::undefined("No last item, sequence was empty.") : items.back();
}

Value join(Interpreter& on, const Value& value, const Given& given) {
  const Bound bound("join", given, {"d", "attribute"});
  const std::string separator = bound.has(0) ? on.shown(bound[0]) : "";
  std::string made;
  bool is_first = true;
  for (const Value& item : iterate(value)) {
    if (!is_first) made += separator;
    is_first = false;
    made += on.shown(bound.has(1) && !bound[1].is_none() ? path(on, item, bound[1]) : item);
    on.charge(1 + separator.size() / 8);
    on.bound_size(made.size());
  }
  return on.text(std::move(made));
}

Value list(Interpreter& on, const Value& value, const Given& given) {
  const Bound none("list", given, {});
  return on.list(iterate(value));
}

Value items(Interpreter& on, const Value& value, const Given& given) {
  const Bound none("items", given, {});
  if (value.is_undefined()) return Value::list({});
  if (!value.is_dict()) fail("Can only get item pairs from a mapping.");
  return call_method(on, value, "items", {});
}

Value reverse(Interpreter& on, const Value& value, const Given& given) {
  const Bound none("reverse", given, {});
  if (value.is_string()) return slice(on, value, Value(), Value(), Value(-1));
  Value::Items items = iterate(value);
  std::ranges::reverse(items);
  return on.list(std::move(items));
}

Value sum(Interpreter& on, const Value& value, const Given& given) {
  const Bound bound("sum", given, {"attribute", "start"});
  Value total = bound.get(1, Value(0));
  for (const Value& item : iterate(value))
    total = arithmetic(on, "+", total,
                       bound.has(0) && !bound[0].is_none() ? path(on, item, bound[0]) : item);
  return total;
}

// Items with what they are ordered by.
using Keyed = std::vector<std::pair<Value, Value>>;

Keyed keyed(Interpreter& on, const Value& value, bool case_sensitive, const Value& attribute) {
  Keyed made;
  for (const Value& item : iterate(value)) {
    Value key = attribute.is_none() ? item : path(on, item, attribute);
    if (key.is_string()) on.charge(key.weight());
    made.emplace_back(case_sensitive ? key : folded(key), item);
  }
  on.charge(8 * made.size());
  return made;
}

Value extreme(Interpreter& on, const Value& value, const Given& given, std::string_view name,
              int sign) {
  const Bound bound(name, given, {"case_sensitive", "attribute"});
  const Keyed all = keyed(on, value, bound.flag(0, false), bound.get(1, Value()));
  if (all.empty()) return Value::undefined("No aggregated item, sequence was empty.");
  std::size_t best = 0;
  for (std::size_t i = 1; i < all.size(); ++i)
    if (sign * on.compared(all[i].first, all[best].first) > 0) best = i;
  return all[best].second;
}

Value max(Interpreter& on, const Value& value, const Given& given) {
  return extreme(on, value, given, "max", 1);
}
Value min(Interpreter& on, const Value& value, const Given& given) {
  return extreme(on, value, given, "min", -1);
}

// The key of `sort`: all that `attribute` names, with commas between; none names the item.
Value sort_key(Interpreter& on, const Value& item, bool case_sensitive, const Value& attribute) {
  Value::Items parts;
  if (attribute.is_none() || attribute.is_integer()) {
    parts.push_back(attribute.is_none() ? item : path(on, item, attribute));
  } else {
    for (const std::string& name : python::split(on.shown(attribute), ",", -1, false))
      parts.push_back(path(on, item, Value(name)));
  }
  for (Value& part : parts) {
    if (part.is_string()) on.charge(part.weight());
    if (!case_sensitive) part = folded(part);
  }
  return Value::tuple(std::move(parts));
}

void sort_by_key(Interpreter& on, Keyed& all, bool reverse) {
  auto before = [&](const auto& a, const auto& b) {
    return reverse ? on.compared(b.first, a.first) < 0 : on.compared(a.first, b.first) < 0;
  };
  std::ranges::stable_sort(all, before);
}

Value sort(Interpreter& on, const Value& value, const Given& given) {
  const Bound bound("sort", given, {"reverse", "case_sensitive", "attribute"});
  Keyed all;
  for (const Value& item : iterate(value))
    all.emplace_back(sort_key(on, item, bound.flag(1, false), bound.get(2, Value())), item);
  on.charge(8 * all.size());
  sort_by_key(on, all, bound.flag(0, false));
  Value::Items items;
  for (auto& pair : all) items.push_back(std::move(pair.second));
  return on.list(std::move(items));
}

Value dictsort(Interpreter& on, const Value& value, const Given& given) {
  const Bound bound("dictsort", given, {"case_sensitive", "by", "reverse"});
  const std::string by = bound.string(1, "key");
  if (by != "key" && by != "value") fail("You can only sort by either \"key\" or \"value\"");
  if (!value.is_dict()) fail("dictsort needs a dict, not '" + std::string(type_name(value)) + "'");
  Keyed all;
  for (const auto& [key, member] : value.pairs()) {
    const Value& order = by == "key" ? key : member;
    all.emplace_back(bound.flag(0, false) ? order : folded(order), Value::tuple({key, member}));
  }
  sort_by_key(on, all, bound.flag(2, false));
  Value::Items items;
  for (auto& pair : all) items.push_back(std::move(pair.second));
  return on.list(std::move(items));
}

Value unique(Interpreter& on, const Value& value, const Given& given) {
  const Bound bound("unique", given, {"case_sensitive", "attribute"});
  Value::Items items;
  std::set<std::string> seen;  // of what equal keys share
  on.charge(value.weight());
  for (auto& [key, item] : keyed(on, value, bound.flag(0, false), bound.get(1, Value())))
    if (seen.insert(key_text(key)).second) items.push_back(std::move(item));
  return on.list(std::move(items));
}

// The arguments after the first `used` positional ones.
Given rest_of(const Given& given, std::size_t used) {
  Given rest;
  rest.positional.assign(given.positional.begin() + static_cast<std::ptrdiff_t>(used),
                         given.positional.end());
  rest.keywords = given.keywords;
  return rest;
}

Value map(Interpreter& on, const Value& value, const Given& given) {
  if (!truth(value)) return Value::list({});  // also none and 0, which cannot be iterated over
  Value::Items made;
  if (given.positional.empty()) {
    const Bound bound("map", given, {"attribute", "default"}, 1);
    for (const Value& item : iterate(value)) {
      const Value found = path(on, item, bound[0]);
      made.push_back(found.is_undefined() && bound.has(1) ? bound[1] : found);
      on.charge(2);
    }
    return on.list(std::move(made));
  }
  const std::string name = on.shown(given.positional[0]);
  const Given rest = rest_of(given, 1);
  for (const Value& item : iterate(value)) made.push_back(on.filtered(name, item, rest));
  return on.list(std::move(made));
}

// select, reject, selectattr, rejectattr.
Value chosen(Interpreter& on, const Value& value, const Given& given, bool by_attribute,
             bool wanted) {
  if (!truth(value)) return Value::list({});
  if (by_attribute && given.positional.empty()) fail("Missing parameter for attribute name");
  const std::size_t used = by_attribute ? 1 : 0;
  const bool has_test = given.positional.size() > used;
  const std::string test = has_test ? on.shown(given.positional[used]) : "";
  const Given rest = rest_of(given, used + (has_test ? 1 : 0));
  Value::Items kept;
  for (const Value& item : iterate(value)) {
    const Value subject = by_attribute ? path(on, item, given.positional[0]) : item;
    on.charge(2);
    if ((has_test ? on.tested(test, subject, rest) : truth(subject)) == wanted)
      kept.push_back(item);
  }
  return on.list(std::move(kept));
}

Value select(Interpreter& on, const Value& value, const Given& given) {
  return chosen(on, value, given, false, true);
}
Value reject(Interpreter& on, const Value& value, const Given& given) {
  return chosen(on, value, given, false, false);
}
Value selectattr(Interpreter& on, const Value& value, const Given& given) {
  return chosen(on, value, given, true, true);
}
Value rejectattr(Interpreter& on, const Value& value, const Given& given) {
  return chosen(on, value, given, true, false);
}

Value batch(Interpreter& on, const Value& value, const Given& given) {
  const Bound bound("batch", given, {"linecount", "fill_with"}, 1);
  const std::int64_t size = bound.integer(0, 1);
  if (size < 1) fail("batch needs a positive size");
  Value::Items lines, line;
  auto flush = [&] { lines.push_back(on.list(std::exchange(line, {}))); };
  for (Value& item : iterate(value)) {
    if (static_cast<std::int64_t>(line.size()) == size) flush();
    line.push_back(std::move(item));
  }
  if (!line.empty()) {
    if (bound.has(1) && !bound[1].is_none()) {
      on.charge(static_cast<std::size_t>(size));
      while (static_cast<std::int64_t>(line.size()) < size) line.push_back(bound[1]);
    }
    flush();
  }
  return on.list(std::move(lines));
}

}  // namespace

Filter find_sequence_filter(std::string_view name) {
  struct Entry {
    std::string_view name;
    Filter filter;
  };
  static constexpr Entry kFilters[] = {
      {"batch", batch},     {"dictsort", dictsort}, {"first", first},
      {"items", items},     {"join", join},         {"last", last},
      {"list", list},       {"map", map},           {"max", max},
      {"min", min},         {"reject", reject},     {"rejectattr", rejectattr},
      {"reverse", reverse}, {"select", select},     {"selectattr", selectattr},
      {"sort", sort},       {"sum", sum},           {"unique", unique},
  };
  const auto* found = std::ranges::find(kFilters, name, &Entry::name);
  return found == std::end(kFilters) ? nullptr : found->filter;
}

}  // namespace tenon::jinja
