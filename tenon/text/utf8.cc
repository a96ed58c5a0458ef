#include "tenon/text/utf8.h"

#include <algorithm>

namespace tenon {
namespace {

// What the first byte promises: length, and the range of the second byte (Unicode table 3-7).
struct Lead {
  int num_bytes;
  unsigned char second_low, second_high;
};

Lead lead_of(unsigned char first) {
  if (first < 0x80) return {1, 0, 0};
  if (first >= 0xC2 && first <= 0xDF) return {2, 0x80, 0xBF};
  if (first == 0xE0) return {3, 0xA0, 0xBF};
  if (first == 0xED) return {3, 0x80, 0x9F};
  if (first >= 0xE1 && first <= 0xEF) return {3, 0x80, 0xBF};
  if (first == 0xF0) return {4, 0x90, 0xBF};
  if (first >= 0xF1 && first <= 0xF3) return {4, 0x80, 0xBF};
  if (first == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

}  // namespace

Utf8Character utf8_first(std::string_view text) {
  using Kind = Utf8Character::Kind;
  auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const Lead lead = lead_of(byte(0));
  if (lead.num_bytes == 1) return {Kind::kValid, 1, byte(0)};
  if (lead.num_bytes == 0) return {Kind::kInvalid, 1, 0};
  char32_t code = byte(0) & (0xFFu >> (lead.num_bytes + 1));
  for (int i = 1; i < lead.num_bytes; ++i) {
    const auto at = static_cast<std::size_t>(i);
    if (at == text.size()) return {Kind::kIncomplete, i, 0};
    const unsigned char low = i == 1 ? lead.second_low : 0x80;
    const unsigned char high = i == 1 ? lead.second_high : 0xBF;
    if (byte(at) < low || byte(at) > high) return {Kind::kInvalid, i, 0};
    code = (code << 6) | (byte(at) & 0x3Fu);
  }
  return {Kind::kValid, lead.num_bytes, code};
}

void utf8_append(std::string& text, char32_t code) {
  auto put = [&](char32_t byte) { text.push_back(static_cast<char>(byte)); };
  if (code < 0x80) return put(code);
  if (code < 0x800) {
    put(0xC0 | (code >> 6));
  } else if (code < 0x10000) {
    put(0xE0 | (code >> 12));
    put(0x80 | ((code >> 6) & 0x3F));
  } else {
    put(0xF0 | (code >> 18));
    put(0x80 | ((code >> 12) & 0x3F));
    put(0x80 | ((code >> 6) & 0x3F));
  }
  put(0x80 | (code & 0x3F));
}

std::string utf8_lossy(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const Utf8Character next = utf8_first(text);
    if (next.kind == Utf8Character::Kind::kValid) {
      out.append(text.substr(0, static_cast<std::size_t>(next.num_bytes)));
    } else {
      utf8_append(out, 0xFFFD);
    }
    text.remove_prefix(static_cast<std::size_t>(next.num_bytes));
  }
  return out;
}

bool utf8_valid(std::string_view text) {
  while (!text.empty()) {
    const Utf8Character next = utf8_first(text);
    if (next.kind != Utf8Character::Kind::kValid) return false;
    text.remove_prefix(static_cast<std::size_t>(next.num_bytes));
  }
  return true;
}

std::size_t utf8_count(std::string_view text) {
  return static_cast<std::size_t>(std::ranges::count_if(
      text, [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

std::string_view utf8_slice(std::string_view text, std::size_t begin, std::size_t count) {
  auto skip = [&](std::size_t at, std::size_t characters) {
    for (; characters > 0 && at < text.size(); --characters)
      at += static_cast<std::size_t>(utf8_first(text.substr(at)).num_bytes);
    return at;
  };
  const std::size_t from = skip(0, begin);
  return text.substr(from, skip(from, count) - from);
}

}  // namespace tenon
