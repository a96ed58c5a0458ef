// The insides of a Tokenizer, filled by tokenizer_file.cc and used by tokenizer.cc. Private to
// them.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tenon/runtime/bpe.h"
#include "tenon/runtime/split_pattern.h"
#include "tenon/runtime/tokenizer.h"

namespace tenon {

// Spellings that become one id wherever they stand in a text.
class AddedTokens {
 public:
  struct Found {
    std::size_t begin = 0, bytes = 0;
    std::int32_t id = -1;
  };
  void add(std::string spelling, std::int32_t id);
  // The first spelling in `text` at or after `from`; the longest of those that begin there.
  std::optional<Found> find(std::string_view text, std::size_t from) const;
  bool empty() const { return count_ == 0; }

 private:
  struct Entry {
    std::string spelling;
    std::int32_t id;
  };
  std::array<std::vector<Entry>, 256> by_first_byte_;  // longest first
  std::size_t count_ = 0;
};

struct Tokenizer::State {
  struct Token {
    std::string bytes;     // what it stands for in text
    bool special = false;  // left out by decode(skip_special)
    bool exists = false;   // false: a hole in the numbering
  };
  std::vector<Token> tokens;                               // by id
  std::unordered_map<std::string, std::int32_t> ids;       // spelling in tokenizer.json → id
  std::unordered_map<std::string, std::int32_t> by_bytes;  // whole pieces, only with ignore_merges
  std::array<std::int32_t, 256> byte_ids{};                // the token of each single byte
  MergeTable merges;
  bool nfc = false;
  bool ignore_merges = false;           // a piece that is a token needs no merging
  AddedTokens raw_added;                // looked for in the text as it is
  AddedTokens normalized_added;         // looked for after normalisation
  std::optional<SplitPattern> pattern;  // none: a text is one piece
};

// `text` in Unicode's composed form NFC. The text is valid UTF-8.
Result<std::string> to_nfc(std::string_view text);

}  // namespace tenon
