// Methods of strings, lists and dicts. Those that would change their object are refused: templates
// work on immutable values.
#include <algorithm>
#include <array>

#include "tenon/text/jinja/interpreter.h"
#include "tenon/text/python_text.h"
#include "tenon/text/utf8.h"

namespace tenon::jinja {
namespace {

using Given = CallArguments;
using Method = Value (*)(Interpreter&, const Value&, const Given&);

const std::string& text_of(const Value& value) { return value.as_string(); }

template <python::Side kSide>
Value strip(Interpreter& on, const Value& self, const Given& given) {
  const Bound bound("strip", given, {"chars"});
  if (!bound.has(0) || bound[0].is_none())
    return on.text(std::string(python::strip(text_of(self), kSide)));
  const std::string characters = bound.string(0, "");
  on.charge(text_of(self).size() * (1 + characters.size() / 64) / 8);
  return on.text(std::string(python::strip(text_of(self), kSide, characters)));
}

// text[begin:end] by arguments `at` and `at` + 1 of a method; nothing where it begins past its end.
struct Part {
  std::string_view text;
  std::int64_t begin = 0;  // in characters
};
std::optional<Part> part_of(Interpreter& on, const std::string& text, const Bound& bound,
                            std::size_t at) {
  const auto has = [&](std::size_t i) { return bound.has(i) && !bound[i].is_none(); };
  if (!has(at) && !has(at + 1)) return Part{text, 0};
  on.charge(text.size() / 8);
  const auto size = static_cast<std::int64_t>(utf8_count(text));
  auto clamp = [&](std::int64_t i) { return i < 0 ? std::max<std::int64_t>(i + size, 0) : i; };
  const std::int64_t begin = has(at) ? clamp(bound.integer(at, 0)) : 0;
  const std::int64_t end = has(at + 1) ? std::min(clamp(bound.integer(at + 1, 0)), size) : size;
  if (begin > end) return std::nullopt;
  return Part{
      utf8_slice(text, static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin)),
      begin};
}

template <bool kAtStart>
Value affix(Interpreter& on, const Value& self, const Given& given) {
  const Bound bound(kAtStart ? "startswith" : "endswith", given, {"affix", "start", "end"}, 1);
  const std::optional<Part> part = part_of(on, text_of(self), bound, 1);
  auto has = [&](const Value& affix) {
    demand_defined(affix);
    if (!affix.is_string())
      fail("startswith and endswith need a string or a tuple of strings, not '" +
           std::string(type_name(affix)) + "'");
    if (!part) return false;
    return kAtStart ? part->text.starts_with(affix.as_string())
                    : part->text.ends_with(affix.as_string());
  };
  if (bound[0].is_tuple()) return Value(std::ranges::any_of(bound[0].items(), has));
  return Value(has(bound[0]));
}

Value listed(Interpreter& on, std::vector<std::string> parts) {
  Value::Items items;
  for (std::string& part : parts) items.push_back(on.text(std::move(part)));
  return on.list(std::move(items));
}

template <bool kFromRight>
Value split(Interpreter& on, const Value& self, const Given& given) {
  const Bound bound("split", given, {"sep", "maxsplit"});
  std::optional<std::string> separator;
  if (bound.has(0) && !bound[0].is_none()) separator = bound.string(0, "");
  if (separator && separator->empty()) fail("empty separator");
  on.charge(text_of(self).size());
  return listed(on, python::split(text_of(self), separator, bound.integer(1, -1), kFromRight));
}

Value splitlines(Interpreter& on, const Value& self, const Given& given) {
  const Bound bound("splitlines", given, {"keepends"});
  on.charge(text_of(self).size());
  return listed(on, python::split_lines(text_of(self), bound.flag(0, false)));
}

// What stands before a separator, the separator, what stands behind it.
template <bool kFromRight>
Value partition(Interpreter& on, const Value& self, const Given& given) {
  const Bound bound("partition", given, {"sep"}, 1);
  const std::string separator = bound.string(0, "");
  if (separator.empty()) fail("empty separator");
  const std::string_view text = text_of(self);
  on.charge(text.size() / 8);
  const std::size_t at =
      kFromRight ? python::rfind(text, separator) : python::find(text, separator);
  Value::Items parts(3, Value(""));
  if (at == std::string_view::npos) {
    parts[kFromRight ? 2 : 0] = self;
  } else {
    parts = {on.text(std::string(text.substr(0, at))), Value(separator),
             on.text(std::string(text.substr(at + separator.size())))};
  }
  return Value::tuple(std::move(parts));
}

// Padded to a width: kLeft and kRight say where the text stays, kBoth centres it.
template <python::Side kStays>
Value justified(Interpreter& on, const Value& self, const Given& given) {
  const Bound bound("ljust, rjust and center", given, {"width", "fillchar"}, 1);
  const std::string fill = bound.string(1, " ");
  if (utf8_count(fill) != 1) fail("The fill character must be exactly one character long");
  const std::int64_t width = bound.integer(0, 0);
  const auto size = static_cast<std::int64_t>(utf8_count(text_of(self)));
  if (width <= size) return self;
  const std::int64_t missing = width - size;
  if (missing > 1'000'000) throw Error{"a string is padded to too great a width"};
  std::int64_t before = kStays == python::Side::kRight ? missing : 0;
  // Python leaves the odd one on the left where the width is odd.
  if (kStays == python::Side::kBoth) before = missing / 2 + (missing & width & 1);
  std::string made;
  for (std::int64_t i = 0; i < before; ++i) made += fill;
  made += text_of(self);
  for (std::int64_t i = before; i < missing; ++i) made += fill;
  return on.text(std::move(made));
}

Value replace(Interpreter& on, const Value& self, const Given& given) {
  const Bound bound("replace", given, {"old", "new", "count"}, 2);
  const std::string from = bound.string(0, ""), to = bound.string(1, "");
  on.charge((text_of(self).size() + 1) * (1 + to.size() / (from.size() + 1)) / 8);
  return on.text(python::replace(text_of(self), from, to, bound.integer(2, -1)));
}

template <std::string (*kMap)(std::string_view)>
Value mapped(Interpreter& on, const Value& self, const Given& given) {
  const Bound none("a case method", given, {});
  return on.text(kMap(text_of(self)));
}

template <bool kFromRight>
std::int64_t position(Interpreter& on, const Value& self, const Given& given) {
  const Bound bound(kFromRight ? "rfind" : "find", given, {"sub", "start", "end"}, 1);
  on.charge(text_of(self).size() / 8);
  const std::string wanted = bound.string(0, "");
  const std::optional<Part> part = part_of(on, text_of(self), bound, 1);
  if (!part) return -1;
  const std::size_t at =
      kFromRight ? python::rfind(part->text, wanted) : python::find(part->text, wanted);
  if (at == std::string_view::npos) return -1;
  return part->begin + static_cast<std::int64_t>(utf8_count(part->text.substr(0, at)));
}

template <bool kFromRight>
Value find(Interpreter& on, const Value& self, const Given& given) {
  return Value(position<kFromRight>(on, self, given));
}
template <bool kFromRight>
Value index(Interpreter& on, const Value& self, const Given& given) {
  const std::int64_t found = position<kFromRight>(on, self, given);
  if (found < 0) fail("substring not found");
  return Value(found);
}

Value count(Interpreter& on, const Value& self, const Given& given) {
  const Bound bound("count", given, {"sub", "start", "end"}, 1);
  const std::string wanted = bound.string(0, "");
  on.charge(text_of(self).size() / 8);
  const std::optional<Part> part = part_of(on, text_of(self), bound, 1);
  if (!part) return Value(0);
  if (wanted.empty()) return Value(static_cast<std::int64_t>(utf8_count(part->text)) + 1);
  return Value(static_cast<std::int64_t>(python::split(part->text, wanted, -1, false).size()) - 1);
}

Value join(Interpreter& on, const Value& self, const Given& given) {
  const Bound bound("join", given, {"iterable"}, 1);
  std::string made;
  bool is_first = true;
  for (const Value& item : iterate(bound[0])) {
    if (!item.is_string())
      fail("join: expected a string, found '" + std::string(type_name(item)) + "'");
    if (!is_first) made += text_of(self);
    is_first = false;
    made += item.as_string();
    on.charge(1 + text_of(self).size() / 8);
    on.bound_size(made.size());
  }
  return on.text(std::move(made));
}

template <bool kAtStart>
Value without_affix(Interpreter& on, const Value& self, const Given& given) {
  const Bound bound("removeprefix", given, {"affix"}, 1);
  const std::string affix = bound.string(0, "");
  std::string_view text = text_of(self);
  if (kAtStart && text.starts_with(affix)) text.remove_prefix(affix.size());
  if (!kAtStart && text.ends_with(affix)) text.remove_suffix(affix.size());
  return on.text(std::string(text));
}

template <bool (*kHolds)(char32_t)>
Value all_are(Interpreter&, const Value& self, const Given&) {
  const std::u32string codes = python::code_points(text_of(self));
  return Value(!codes.empty() && std::ranges::all_of(codes, kHolds));
}
bool is_alnum(char32_t code) { return python::is_alpha(code) || python::is_decimal(code); }

Value is_ascii(Interpreter&, const Value& self, const Given&) {
  return Value(std::ranges::all_of(text_of(self),
                                   [](char c) { return static_cast<unsigned char>(c) < 0x80; }));
}
Value is_printable(Interpreter&, const Value& self, const Given&) {
  return Value(std::ranges::all_of(python::code_points(text_of(self)), python::is_printable));
}

template <bool (*kWanted)(char32_t), bool (*kOther)(char32_t)>
Value cased(Interpreter&, const Value& self, const Given&) {
  const std::u32string codes = python::code_points(text_of(self));
  return Value(std::ranges::any_of(codes, kWanted) && std::ranges::none_of(codes, kOther) &&
               std::ranges::none_of(codes, python::is_title));
}

Value zfill(Interpreter& on, const Value& self, const Given& given) {
  const Bound bound("zfill", given, {"width"}, 1);
  std::string text = text_of(self);
  const std::int64_t missing = bound.integer(0, 0) - static_cast<std::int64_t>(utf8_count(text));
  if (missing > 1'000'000) throw Error{"zfill makes too long a string"};
  const bool has_sign = text.starts_with('-') || text.starts_with('+');
  if (missing > 0) text.insert(has_sign ? 1 : 0, static_cast<std::size_t>(missing), '0');
  return on.text(std::move(text));
}

Value dict_items(Interpreter& on, const Value& self, const Given& given) {
  const Bound none("items", given, {});
  Value::Items pairs;
  for (const auto& [key, value] : self.pairs()) pairs.push_back(Value::tuple({key, value}));
  on.charge(4 * pairs.size());
  return on.list(std::move(pairs));
}
Value dict_keys(Interpreter& on, const Value& self, const Given& given) {
  const Bound none("keys", given, {});
  return on.list(iterate(self));
}
Value dict_values(Interpreter& on, const Value& self, const Given& given) {
  const Bound none("values", given, {});
  Value::Items values;
  for (const auto& pair : self.pairs()) values.push_back(pair.second);
  return on.list(std::move(values));
}
Value dict_get(Interpreter&, const Value& self, const Given& given) {
  const Bound bound("get", given, {"key", "default"}, 1);
  if (const Value* found = self.find(bound[0])) return *found;
  return bound.get(1, Value());
}
Value same(Interpreter&, const Value& self, const Given& given) {
  const Bound none("copy", given, {});
  return self;
}

Value list_index(Interpreter& on, const Value& self, const Given& given) {
  const Bound bound("index", given, {"value"}, 1);
  on.charge(self.items().size() + self.weight() / 4);
  for (std::size_t i = 0; i < self.items().size(); ++i)
    if (equal(self.items()[i], bound[0])) return Value(static_cast<std::int64_t>(i));
  fail(to_repr(bound[0]) + " is not in list");
}
Value list_count(Interpreter& on, const Value& self, const Given& given) {
  const Bound bound("count", given, {"value"}, 1);
  on.charge(self.items().size() + self.weight() / 4);
  return Value(static_cast<std::int64_t>(std::ranges::count_if(
      self.items(), [&](const Value& item) { return equal(item, bound[0]); })));
}

Value refused(Interpreter&, const Value& self, const Given&) {
  fail("a method that changes a " + std::string(type_name(self)) +
       " was called; templates cannot change values (use a namespace)");
}

struct Entry {
  std::string_view name;
  Method method;
};

constexpr Entry kStringMethods[] = {
    {"capitalize", mapped<python::capitalize>},
    {"center", justified<python::Side::kBoth>},
    {"count", count},
    {"endswith", affix<false>},
    {"find", find<false>},
    {"index", index<false>},
    {"isalnum", all_are<is_alnum>},
    {"isalpha", all_are<python::is_alpha>},
    {"isdecimal", all_are<python::is_decimal>},
    {"isascii", is_ascii},
    {"isdigit", all_are<python::is_decimal>},
    {"islower", cased<python::is_lower, python::is_upper>},
    {"isprintable", is_printable},
    {"isspace", all_are<python::is_space>},
    {"isupper", cased<python::is_upper, python::is_lower>},
    {"join", join},
    {"ljust", justified<python::Side::kLeft>},
    {"lower", mapped<python::lower>},
    {"lstrip", strip<python::Side::kLeft>},
    {"partition", partition<false>},
    {"removeprefix", without_affix<true>},
    {"removesuffix", without_affix<false>},
    {"replace", replace},
    {"rfind", find<true>},
    {"rindex", index<true>},
    {"rjust", justified<python::Side::kRight>},
    {"rpartition", partition<true>},
    {"rsplit", split<true>},
    {"rstrip", strip<python::Side::kRight>},
    {"split", split<false>},
    {"splitlines", splitlines},
    {"startswith", affix<true>},
    {"strip", strip<python::Side::kBoth>},
    {"swapcase", mapped<python::swapcase>},
    {"title", mapped<python::title>},
    {"upper", mapped<python::upper>},
    {"zfill", zfill},
};
constexpr Entry kDictMethods[] = {
    {"clear", refused},  {"copy", same},          {"get", dict_get},    {"items", dict_items},
    {"keys", dict_keys}, {"pop", refused},        {"popitem", refused}, {"setdefault", refused},
    {"update", refused}, {"values", dict_values},
};
constexpr Entry kListMethods[] = {
    {"append", refused}, {"clear", refused},    {"copy", same},      {"count", list_count},
    {"extend", refused}, {"index", list_index}, {"insert", refused}, {"pop", refused},
    {"remove", refused}, {"reverse", refused},  {"sort", refused},
};

Method find_method(const Value& value, std::string_view name) {
  auto in = [&](const auto& table) -> Method {
    const auto* found = std::ranges::find(table, name, &Entry::name);
    return found == std::end(table) ? nullptr : found->method;
  };
  if (value.is_string()) return in(kStringMethods);
  if (value.is_dict()) return in(kDictMethods);
  if (value.is_list()) return in(kListMethods);
  return nullptr;
}

}  // namespace

bool has_method(const Value& value, std::string_view name) {
  return find_method(value, name) != nullptr;
}

Value call_method(Interpreter& on, const Value& self, std::string_view name,
                  const CallArguments& given) {
  const Method method = find_method(self, name);
  if (!method)
    fail("'" + std::string(type_name(self)) + "' has no method '" + std::string(name) + "'");
  on.charge(self.is_string() ? self.as_string().size() / 16 : 1);
  return method(on, self, given);
}

}  // namespace tenon::jinja
