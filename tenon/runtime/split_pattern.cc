#include "tenon/runtime/split_pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "tenon/runtime/utf8.h"

namespace tenon {
namespace {

// Unicode's White_Space, in a character class. PCRE2's own \s differs in one character: it takes
// U+180E, which stopped being a space in Unicode 6.3.
constexpr std::string_view kWhiteSpace =
    R"(\t-\r\x20\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";

// Rewrites \s and \S by kWhiteSpace. \S inside a class cannot be written that way and is refused.
Result<std::string> with_unicode_spaces(std::string_view pattern) {
  std::string out;
  bool in_class = false;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const char escaped = pattern[++i];
      if (escaped == 's') {
        if (!in_class) out += '[';
        out += kWhiteSpace;
        if (!in_class) out += ']';
      } else if (escaped == 'S') {
        if (in_class)
          return Status::error(
              Code::kUnsupported,
              "the split pattern has \\S inside a character class; only \\S outside of "
              "classes is implemented");
        out.append("[^").append(kWhiteSpace).append("]");
      } else {
        out += c;
        out += escaped;
      }
      continue;
    }
    if (in_class && pattern.substr(i).starts_with("[:")) {  // a named class: up to its ":]"
      const std::size_t end = pattern.find(":]", i);
      if (end != std::string_view::npos) {
        out += pattern.substr(i, end + 2 - i);
        i = end + 1;
        continue;
      }
    }
    out += c;
    if (!in_class && c == '[') {
      in_class = true;
      if (i + 1 < pattern.size() && pattern[i + 1] == '^') out += pattern[++i];
      if (i + 1 < pattern.size() && pattern[i + 1] == ']')
        out += pattern[++i];  // literal when first
    } else if (c == ']') {
      in_class = false;
    }
  }
  return out;
}

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
  TENON_ASSIGN(const std::string rewritten, with_unicode_spaces(pattern));
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
