// Spellings that become one id wherever they stand in a text. Private to tokenizer*.cc.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace tenon {

class AddedTokens {
 public:
  struct Found {
    std::size_t begin = 0, end = 0;
    std::int32_t id = -1;
  };
  // A spelling that is there already gets the new id.
  void add(std::string spelling, std::int32_t id);
  // The first spelling in `text` at or after `from`; the longest of those that begin there.
  std::optional<Found> find(std::string_view text, std::size_t from) const;

 private:
  struct Entry {
    std::string spelling;
    std::int32_t id;
  };
  std::vector<Entry> entries_;         // in order of spelling
  std::array<bool, 256> can_begin_{};  // with this byte
};

}  // namespace tenon
