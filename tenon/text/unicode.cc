#include "tenon/text/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "tenon/text/utf8.h"

namespace tenon {
namespace {

template <class Range>
const Range* range_of(std::span<const Range> ranges, char32_t code) {
  const auto after = std::ranges::upper_bound(ranges, code, {}, &Range::first);
  if (after == ranges.begin() || (after - 1)->last < code) return nullptr;
  return &*(after - 1);
}

int class_of(std::int32_t code) { return utf8proc_get_property(code)->combining_class; }

// Normalises text between two characters that take no part in it.
class Composer {
 public:
  void add(char32_t code) {
    std::array<utf8proc_int32_t, 32> parts;
    int boundary = 0;
    const utf8proc_ssize_t count = utf8proc_decompose_char(
        static_cast<utf8proc_int32_t>(code), parts.data(), parts.size(),
        static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE), &boundary);
    if (count < 0 || count > static_cast<utf8proc_ssize_t>(parts.size())) {  // not in Unicode
      codes_.push_back(static_cast<std::int32_t>(code));
      return;
    }
    codes_.insert(codes_.end(), parts.begin(), parts.begin() + count);
  }

  void flush(std::string& out) {
    order();
    const utf8proc_ssize_t count = utf8proc_normalize_utf32(
        codes_.data(), static_cast<utf8proc_ssize_t>(codes_.size()),
        static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    for (utf8proc_ssize_t i = 0; i < count; ++i)
      utf8_append(out, static_cast<char32_t>(codes_[static_cast<std::size_t>(i)]));
    codes_.clear();
  }

 private:
  // Every run of marks by class, equal classes as they came.
  void order() {
    for (std::size_t begin = 0; begin < codes_.size();) {
      if (class_of(codes_[begin]) == 0) {
        ++begin;
        continue;
      }
      std::size_t end = begin + 1;
      while (end < codes_.size() && class_of(codes_[end]) != 0) ++end;
      std::stable_sort(codes_.begin() + static_cast<std::ptrdiff_t>(begin),
                       codes_.begin() + static_cast<std::ptrdiff_t>(end),
                       [](std::int32_t a, std::int32_t b) { return class_of(a) < class_of(b); });
      begin = end;
    }
  }
  std::vector<std::int32_t> codes_;
};

}  // namespace

std::string to_nfc(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  Composer composer;
  while (!text.empty()) {
    const Utf8Character next = utf8_first(text);
    const auto bytes = static_cast<std::size_t>(next.num_bytes);
    if (next.kind != Utf8Character::Kind::kValid || range_of(inert_in_nfc(), next.code)) {
      composer.flush(out);
      out += text.substr(0, bytes);
    } else {
      composer.add(next.code);
    }
    text.remove_prefix(bytes);
  }
  composer.flush(out);
  return out;
}

bool is_word(char32_t code) {
  if (const CategoryRange* newer = range_of(newer_categories(), code)) {
    const std::string_view category = newer->category;
    return category[0] == 'L' || category[0] == 'M' || category == "Nd" || category == "Nl" ||
           category == "Pc";
  }
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(code))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC: return true;
    default: break;
  }
  // Letters in circles and squares, and the two joiners.
  return (code >= 0x24B6 && code <= 0x24E9) || (code >= 0x1F130 && code <= 0x1F149) ||
         (code >= 0x1F150 && code <= 0x1F169) || (code >= 0x1F170 && code <= 0x1F189) ||
         code == 0x200C || code == 0x200D;
}

bool is_white_space(char32_t code) {
  return (code >= 0x09 && code <= 0x0D) || code == 0x20 || code == 0x85 || code == 0xA0 ||
         code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 ||
         code == 0x202F || code == 0x205F || code == 0x3000;
}

}  // namespace tenon
