// The insides of a Tokenizer, filled by tokenizer_file.cc and tokenizer_added.cc, used by
// tokenizer.cc. Private to them.
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tenon/text/added_tokens.h"
#include "tenon/text/bpe.h"
#include "tenon/text/split_pattern.h"
#include "tenon/text/tokenizer.h"

namespace tenon {

struct Tokenizer::State {
  struct Token {
    std::string bytes;     // what it stands for in text
    bool special = false;  // left out by decode(skip_special)
    bool exists = false;   // false: a hole in the numbering
    // Of added tokens: the white space before or behind it belongs to it; only between no letters.
    bool lstrip = false, rstrip = false, single_word = false;
  };
  std::vector<Token> tokens;                               // by id
  std::unordered_map<std::string, std::int32_t> ids;       // spelling in tokenizer.json → id
  std::unordered_map<std::string, std::int32_t> by_bytes;  // whole pieces, only with ignore_merges
  std::array<std::int32_t, 256> byte_ids{};                // the token of each single byte
  MergeTable merges;
  std::int32_t vocabulary = 0;  // number of entries of model.vocab
  std::int32_t eos = -1;        // of tokenizer_config.json
  bool nfc = false;
  bool ignore_merges = false;                           // a piece that is a token needs no merging
  bool splits_special = false;                          // special tokens are ordinary text
  std::unordered_map<std::string, std::int32_t> added;  // spelling → id, of added tokens only
  std::int32_t last_added = -1;                         // the largest of these ids
  AddedTokens raw_added;                                // looked for in the text as it is
  AddedTokens normalized_added;                         // looked for after normalisation
  std::optional<SplitPattern> pattern;                  // none: a text is one piece
};

// Refusals that name the file.
inline Status malformed(std::string what, const char* file = "tokenizer.json") {
  return Status::error(Code::kIo, file + (": " + std::move(what)));
}
inline Status unsupported(std::string what, const char* file = "tokenizer.json") {
  return Status::error(Code::kUnsupported, file + (": " + std::move(what)));
}

// The member `key` of an object, or null when it is missing.
const nlohmann::json& member(const nlohmann::json& object, const char* key);
// A value as a message shows it.
std::string shown(const nlohmann::json& value);
// Gives `spelling` the number `id`; it stands for `bytes`.
Status claim(Tokenizer::State& state, const std::string& spelling, const nlohmann::json& id,
             std::string bytes);
// The bytes that a vocabulary entry stands for. An entry with a character outside the byte alphabet
// stands for its own spelling, as in the reference.
std::string bytes_of_spelling(std::string_view spelling);

// "added_tokens" of tokenizer.json, after the vocabulary.
Status read_added_tokens(const nlohmann::json& list, Tokenizer::State& state);
// What tokenizer_config.json adds: "added_tokens_decoder", named special tokens, eos_token.
Status read_tokenizer_config(const nlohmann::json& config, Tokenizer::State& state);

}  // namespace tenon
