// UTF-8 one character at a time, and the house's rule for malformed text: every maximal ill-formed
// piece becomes one U+FFFD, as in Python's and Rust's lossy decoders. Normalisation is elsewhere
// (tokenizer.cc, through utf8proc).
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace tenon {

// What stands at the beginning of some text.
struct Utf8Character {
  enum class Kind { kValid, kInvalid, kIncomplete };
  Kind kind = Kind::kInvalid;
  int num_bytes = 0;  // of the character, or of the maximal ill-formed piece
  char32_t code = 0;  // when valid
};

// Looks at the first character of `text`, which is not empty. kIncomplete: the text ends inside a
// character that more bytes could complete.
Utf8Character utf8_first(std::string_view text);

// Appends one code point (below 0x110000, not a surrogate).
void utf8_append(std::string& text, char32_t code);

// The text with every ill-formed piece replaced by U+FFFD.
std::string utf8_lossy(std::string_view text);

bool utf8_valid(std::string_view text);

// Number of characters of valid UTF-8.
std::size_t utf8_count(std::string_view text);

// `count` characters of valid UTF-8 from number `begin` on, or as many as there are.
std::string_view utf8_slice(std::string_view text, std::size_t begin, std::size_t count);

}  // namespace tenon
