// Text to token ids and back, as tokenizer.json says: byte-level BPE, the split pattern of the
// file, NFC, added tokens. Anything else a tokenizer.json may ask for is refused with a sentence.
// What does not live here: the chat format (chat_template.h), stopping (engine.h).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tenon/core/status.h"

namespace tenon {

// Immutable after load and safe to share between threads. Malformed UTF-8 in the text to encode is
// replaced by U+FFFD, one for each maximal ill-formed piece, before anything else happens.
// Composition and the categories of characters are the reference's: unicode.h says which.
class Tokenizer {
 public:
  // Reads tokenizer.json in `directory`, and tokenizer_config.json if there is one: added tokens
  // that only it lists (added_tokens_decoder, named and extra special tokens) count as well.
  // Older files (special_tokens_map.json, added_tokens.json) are not read.
  static Result<Tokenizer> load(const std::string& directory);
  // The same from the texts of the two files; an empty `config` is none.
  static Result<Tokenizer> parse(std::string_view json, std::string_view config = {});
  // One without tokens: encode() refuses every text, and no id has a text.
  static Tokenizer none();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // Token ids of `text`. The spelling of an added token becomes its one id. Nothing is put in front
  // or behind. Fails only where the split pattern exhausts its match limit, or where there are no
  // tokens (kUnsupported).
  Result<std::vector<std::int32_t>> encode(std::string_view text) const;

  // The text of `ids`, always valid UTF-8: broken pieces become U+FFFD. Ids without a token (the
  // padding rows of a head) have no text. skip_special leaves out the tokens marked special.
  std::string decode(std::span<const std::int32_t> ids, bool skip_special = true) const;

  // The bytes that one token stands for: not always whole characters. Empty for unknown ids.
  std::string_view token_bytes(std::int32_t id) const;
  bool is_special(std::int32_t id) const;
  // The id of a token by its spelling in tokenizer.json, such as "<|im_end|>"; −1 if there is none.
  std::int32_t id_of(std::string_view spelling) const;
  // What ends the answers of a chat: eos_token of tokenizer_config.json; −1 if there is none.
  std::int32_t eos_id() const;
  // One more than the largest id that has a token.
  std::int32_t num_tokens() const;

  struct State;  // private to tokenizer*.cc

 private:
  explicit Tokenizer(std::unique_ptr<const State> state);
  std::unique_ptr<const State> state_;
};

// Text from tokens that arrive one by one. Bytes that end inside a character are held back until it
// is complete or certainly broken. All parts together are what Tokenizer::decode gives at once.
class StreamingDetokenizer {
 public:
  // `tokenizer` must outlive this object.
  explicit StreamingDetokenizer(const Tokenizer& tokenizer, bool skip_special = true)
      : tokenizer_(&tokenizer), skip_special_(skip_special) {}

  // The text that `id` completes; often empty in scripts that need several tokens per character.
  std::string push(std::int32_t id);
  // What is still held back, as U+FFFD. Call once at the end.
  std::string finish();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  std::string held_;
};

}  // namespace tenon
