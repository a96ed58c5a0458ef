// Checks of command-line values, and lists of what they may be, that several subcommands share.
#pragma once

#include <CLI/CLI.hpp>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

namespace tenon::apps {

inline constexpr std::uint64_t kMaxCount = INT32_MAX;
inline constexpr double kUnbounded = std::numeric_limits<double>::infinity();

// Accepts the whole numbers from `low` to `high`.
inline CLI::Validator whole_number(std::uint64_t low, std::uint64_t high) {
  const std::string range = std::to_string(low) + " to " + std::to_string(high);
  const auto check = [low, high, range](std::string& text) {
    std::uint64_t value = 0;
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, value);
    if (error == std::errc() && stop == end && value >= low && value <= high) return std::string();
    return "is \"" + text + "\"; accepted are whole numbers from " + range;
  };
  // What help shows: no bound where there is none that anybody would meet.
  return CLI::Validator(check, high < kMaxCount ? range : std::to_string(low) + " or more");
}

// Accepts the finite numbers from `low` to `high`, without `low` itself where it is open.
inline CLI::Validator number(double low, double high, bool open = false) {
  const bool bounded = high < std::numeric_limits<double>::infinity();
  std::ostringstream range;
  range << (open ? "above " : "") << low;
  if (bounded) range << " to " << high;
  if (!bounded && !open) range << " or more";
  const auto check = [low, high, open, bounded, range = range.str()](std::string& text) {
    char* stop = nullptr;
    const double value = std::strtod(text.c_str(), &stop);
    const bool whole = !text.empty() && stop == text.c_str() + text.size();
    if (whole && (open ? value > low : value >= low) && value <= high && std::isfinite(value))
      return std::string();
    return "is \"" + text + "\"; accepted are numbers" + (open || !bounded ? " " : " from ") +
           range;
  };
  return CLI::Validator(check, range.str());
}

// Refuses an empty text, which is mostly a variable of the shell that was not set. `what`: "a
// path".
inline CLI::Validator not_empty(const std::string& what) {
  return CLI::Validator(
      [what](std::string& text) {
        return text.empty() ? "is \"\"; accepted is " + what : std::string();
      },
      "");
}

inline std::vector<std::string> split_list(const std::string& list) {
  std::vector<std::string> places{""};
  for (const char c : list)
    if (c == ',')
      places.emplace_back();
    else
      places.back() += c;
  return places;
}

// Adds an option that is a list such as "1,2,3", whose values `each` accepts. The parser's own
// lists pass over a place that is empty in silence; here it is refused.
template <class T>
CLI::Option* add_list_option(CLI::App& app, const char* name, std::vector<T>& values,
                             const char* text, const CLI::Validator& each) {
  const auto check = [each](const std::string& list) {
    for (const std::string& value : split_list(list)) {
      if (value.empty() && !list.empty())
        return "is \"" + list + "\"; accepted are values with one comma between two";
      if (std::string why = each(value); !why.empty()) return why;
    }
    return std::string();
  };
  const auto take = [&values](const std::vector<std::string>& lists) {
    values.clear();
    for (const std::string& list : lists)
      for (const std::string& value : split_list(list))
        CLI::detail::lexical_cast(value, values.emplace_back());  // `each` has looked at it
  };
  return app.add_option_function<std::vector<std::string>>(name, take, text)
      ->check(check, each.get_description());
}

inline CLI::Option* add_file_option(CLI::App& app, const char* name, std::string& path,
                                    const char* text) {
  return app.add_option(name, path, text)->type_name("FILE")->check(not_empty("a path"));
}

// "a, b or c"
inline std::string listed(const std::vector<std::string>& names, const std::string& last) {
  std::string text;
  for (std::size_t i = 0; i < names.size(); ++i)
    text += (i == 0 ? "" : i + 1 == names.size() ? " " + last + " " : ", ") + names[i];
  return text;
}

inline std::vector<std::string> target_names() {
  return {
#define TENON_TARGET_ENTRY(enumerator, space, folder, wave) #space,
#include "tenon/core/targets.def"
#undef TENON_TARGET_ENTRY
  };
}

inline std::vector<std::string> transport_names() {
  return {
#define TENON_TRANSPORT(name) #name,
#include "tenon/comm/transport/transports.def"
#undef TENON_TRANSPORT
  };
}

}  // namespace tenon::apps
