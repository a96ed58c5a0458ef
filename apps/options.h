// Checks of command-line values that several subcommands share.
#pragma once

#include <CLI/CLI.hpp>
#include <charconv>
#include <cstdint>
#include <string>

namespace tenon::apps {

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
  return CLI::Validator(check, range);
}

inline constexpr std::uint64_t kMaxCount = INT32_MAX;

}  // namespace tenon::apps
