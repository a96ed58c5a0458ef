#include "tenon/text/split_pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <cstdio>

#include "tenon/text/unicode.h"
#include "tenon/text/utf8.h"

namespace tenon {
namespace {

// Unicode's White_Space, in a character class. PCRE2's own \s differs in one character: it takes
// U+180E, which stopped being a space in Unicode 6.3.
constexpr std::string_view kWhiteSpace =
    R"(\t-\r\x20\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";

// What the reference counts to a general category ("L", "Lu") and an older PCRE2 does not: ranges
// for a character class.
std::string newer_members(std::string_view category) {
  std::vector<CodeRange> ranges;
  for (const CategoryRange& one : newer_categories()) {
    if (!std::string_view(one.category).starts_with(category)) continue;
    if (!ranges.empty() && ranges.back().last + 1 == one.first) {
      ranges.back().last = one.last;
    } else {
      ranges.push_back({one.first, one.last});
    }
  }
  std::string out;
  for (const CodeRange& range : ranges) {
    std::array<char, 40> text;
    std::snprintf(text.data(), text.size(), "\\x{%X}-\\x{%X}", static_cast<unsigned>(range.first),
                  static_cast<unsigned>(range.last));
    out += text.data();
  }
  return out;
}

// Rewrites a pattern for PCRE2 so that \s, \S, \p and \P mean what they mean in the reference.
class Rewriter {
 public:
  explicit Rewriter(std::string_view pattern) : pattern_(pattern) {}

  Result<std::string> run() {
    while (at_ < pattern_.size()) {
      if (pattern_[at_] == '\\' && at_ + 1 < pattern_.size()) {
        TENON_TRY(escape());
      } else {
        plain();
      }
    }
    return std::move(out_);
  }

 private:
  Status escape() {
    const char kind = pattern_[at_ + 1];
    if (kind == 's') return members(kWhiteSpace, false, "\\s", 2);
    if (kind == 'S') return members(kWhiteSpace, true, "\\S", 2);
    if (kind == 'p' || kind == 'P') return property();
    out_ += pattern_.substr(at_, 2);
    at_ += 2;
    return Status::ok();
  }

  // \pL, \p{Lu}, \p{^Lu}, \P{L}. Other properties than general categories stay PCRE2's.
  Status property() {
    std::string_view name = pattern_.substr(at_ + 2, 1);
    std::size_t bytes = 3;
    if (name == "{") {
      const std::size_t end = pattern_.find('}', at_);
      if (end == std::string_view::npos) return copy(2);  // PCRE2 says what is wrong
      name = pattern_.substr(at_ + 3, end - at_ - 3);
      bytes = end + 1 - at_;
    }
    bool outside = pattern_[at_ + 1] == 'P';
    if (name.starts_with('^')) outside = !outside, name.remove_prefix(1);
    const std::string newer = name.empty() || name.size() > 2 ? "" : newer_members(name);
    if (newer.empty()) return copy(bytes);
    const std::string own = "\\p{" + std::string(name) + "}";
    return members(own + newer, outside, pattern_.substr(at_, bytes), bytes);
  }

  // A set of characters, or what lies outside of it, for the `bytes` of the pattern that named it.
  Status members(std::string_view set, bool outside, std::string_view named, std::size_t bytes) {
    if (in_class_ && outside)
      return Status::error(Code::kUnsupported,
                           "the split pattern has " + std::string(named) +
                               " inside a character class; only outside of classes is it "
                               "implemented");
    if (!in_class_) out_ += outside ? "[^" : "[";
    out_ += set;
    if (!in_class_) out_ += ']';
    at_ += bytes;
    return Status::ok();
  }

  Status copy(std::size_t bytes) {
    out_ += pattern_.substr(at_, bytes);
    at_ += std::min(bytes, pattern_.size() - at_);
    return Status::ok();
  }

  void plain() {
    if (in_class_ && pattern_.substr(at_).starts_with("[:")) {  // a named class: up to its ":]"
      const std::size_t end = pattern_.find(":]", at_);
      if (end != std::string_view::npos) return (void)copy(end + 2 - at_);
    }
    const char c = pattern_[at_];
    (void)copy(1);
    if (!in_class_ && c == '[') {
      in_class_ = true;
      if (at_ < pattern_.size() && pattern_[at_] == '^') (void)copy(1);
      if (at_ < pattern_.size() && pattern_[at_] == ']') (void)copy(1);  // literal when first
    } else if (c == ']') {
      in_class_ = false;
    }
  }

  std::string_view pattern_;
  std::size_t at_ = 0;
  bool in_class_ = false;
  std::string out_;
};

std::string error_text(int code) {
  PCRE2_UCHAR text[256];
  pcre2_get_error_message(code, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

struct MatchDataDeleter {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};

}  // namespace

struct SplitPattern::State {
  pcre2_code* code = nullptr;
  ~State() { pcre2_code_free(code); }
};

SplitPattern::SplitPattern(std::unique_ptr<const State> state) : state_(std::move(state)) {}
SplitPattern::SplitPattern(SplitPattern&&) noexcept = default;
SplitPattern& SplitPattern::operator=(SplitPattern&&) noexcept = default;
SplitPattern::~SplitPattern() = default;

Result<SplitPattern> SplitPattern::compile(std::string_view pattern) {
  TENON_ASSIGN(const std::string rewritten, Rewriter(pattern).run());
  int error = 0;
  PCRE2_SIZE offset = 0;
  auto state = std::make_unique<State>();
  state->code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(rewritten.data()), rewritten.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr);
  if (!state->code)
    return Status::error(Code::kIo, "the split pattern \"" + std::string(pattern) +
                                        "\" does not compile: " + error_text(error) + " (at byte " +
                                        std::to_string(offset) + " of its expansion)");
  // Without a just-in-time compiler the interpreter gives the same matches, slower.
  (void)pcre2_jit_compile(state->code, PCRE2_JIT_COMPLETE);
  return SplitPattern(std::move(state));
}

Status SplitPattern::split(std::string_view text, std::vector<std::string_view>& pieces) const {
  std::unique_ptr<pcre2_match_data, MatchDataDeleter> match(
      pcre2_match_data_create_from_pattern(state_->code, nullptr));
  if (!match)
    return Status::error(Code::kOutOfMemory, "no memory for a match of the split pattern");
  const PCRE2_SIZE* span = pcre2_get_ovector_pointer(match.get());
  std::size_t done = 0, from = 0;
  while (from < text.size()) {
    const int found = pcre2_match(state_->code, reinterpret_cast<PCRE2_SPTR>(text.data()),
                                  text.size(), from, PCRE2_NO_UTF_CHECK, match.get(), nullptr);
    if (found == PCRE2_ERROR_NOMATCH) break;
    if (found < 0)
      return Status::error(Code::kInvalidArgument, "the split pattern failed on the text at byte " +
                                                       std::to_string(from) + ": " +
                                                       error_text(found));
    if (span[1] <= span[0]) {  // an empty match cuts nothing: look again one character later
      from = span[0];
      if (from < text.size())
        from += static_cast<std::size_t>(utf8_first(text.substr(from)).num_bytes);
      else
        break;
      continue;
    }
    if (span[0] > done) pieces.push_back(text.substr(done, span[0] - done));
    pieces.push_back(text.substr(span[0], span[1] - span[0]));
    done = from = span[1];
  }
  if (done < text.size()) pieces.push_back(text.substr(done));
  return Status::ok();
}

}  // namespace tenon
