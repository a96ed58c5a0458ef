// Every JSON text that comes from outside (checkpoints, tokenizers, requests) is parsed here, so
// that all have the same limits and the same sentences. Not here: what the values mean.
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string_view>

#include "tenon/core/status.h"

namespace tenon {

// Copying, comparing and printing a value recurses once per level.
inline constexpr std::size_t kMaxJsonDepth = 256;

enum class JsonKeys : std::uint8_t {
  kLastWins,  // of a key that an object holds twice, as in Python
  kUnique,    // such a key is refused
};

// The value, or what is wrong with the text and where: kIo. Refuses arrays and objects nested
// deeper than kMaxJsonDepth, and names the key of NaN and Infinity, which are no JSON though
// Python writes them.
Result<nlohmann::json> parse_json(std::string_view text, JsonKeys keys = JsonKeys::kLastWins);

}  // namespace tenon
