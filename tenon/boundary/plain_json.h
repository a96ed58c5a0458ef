// A reader of small JSON files: objects, lists, texts, whole numbers. For the boundary library,
// which holds no JSON library, so that a program that links it gets none; all else reads JSON by
// core/json.h. Not here: what the values mean.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tenon/core/status.h"

namespace tenon {

struct PlainJson {
  enum class Kind : std::uint8_t { kText, kNumber, kList, kObject };

  Kind kind = Kind::kObject;
  std::string text;  // of a text; of anything else, how it is written
  std::int64_t number = 0;
  std::vector<PlainJson> items;   // of a list, or the values of an object
  std::vector<std::string> keys;  // of an object, each once

  // The value under this key, or null.
  const PlainJson* find(std::string_view key) const;
  // As it might be written: for messages.
  std::string describe() const;
};

// kIo: what is wrong, and at which byte. Refused besides what is no JSON: numbers that
// are not whole, true, false and null, escapes of a text by \u, a key twice in an object, more than
// eight levels.
Result<PlainJson> parse_plain_json(std::string_view text);

// The text in quotes, with escapes.
std::string in_quotes(std::string_view text);

}  // namespace tenon
