// Unicode as the reference tokenizer knows it: composition, words, and which characters have a
// category that the installed libraries do not know yet.
//
// In Debian 12 utf8proc 2.8 is of Unicode 15 and PCRE2 10.42 of Unicode 14. The reference (the PyPI
// package `tokenizers`) composes by Unicode 9 and cuts by Unicode 16. Where these differ the lists
// of unicode_tables.cc, asked from the reference itself, decide: token ids are the reference's and
// do not depend on the versions installed. What Unicode 17 and later add has no category here, as
// in the reference.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace tenon {

struct CodeRange {
  char32_t first, last;
};
struct CategoryRange {
  char32_t first, last;
  const char* category;  // "Lo", "Mn", …
};

// What upper and title case make of a character where that is not one character.
struct SpecialCase {
  char32_t code;
  std::u32string_view upper, title;
};

// Marks and composites that exist since Unicode 10 only, in order: NFC leaves them as they are, and
// nothing composes or moves across them.
std::span<const CodeRange> inert_in_nfc();
// Characters that exist since Unicode 15 or 16 only, in order.
std::span<const CategoryRange> newer_categories();

// In order of the characters.
std::span<const SpecialCase> special_cases();

// `text` in the composed form NFC of Unicode 9. The text is valid UTF-8; n bytes take O(n log n).
std::string to_nfc(std::string_view text);

// Part of a word: a letter, a mark, a decimal digit, a connector or a joiner.
bool is_word(char32_t code);
// White_Space.
bool is_white_space(char32_t code);

}  // namespace tenon
