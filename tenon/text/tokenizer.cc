#include "tenon/text/tokenizer.h"

#include <algorithm>

#include "tenon/text/tokenizer_state.h"
#include "tenon/text/unicode.h"
#include "tenon/text/utf8.h"

namespace tenon {
namespace {

bool is_ascii(std::string_view text) {
  return std::ranges::all_of(text, [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

// The beginning of the last character of `text` before `end`.
std::size_t last_character(std::string_view text, std::size_t end) {
  std::size_t begin = end - 1;
  while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) --begin;
  return begin;
}

// Where the white space that ends at `at` begins, but not before `limit`.
std::size_t before_spaces(std::string_view text, std::size_t at, std::size_t limit) {
  while (at > limit) {
    const std::size_t begin = last_character(text, at);
    if (!is_white_space(utf8_first(text.substr(begin)).code)) break;
    at = begin;
  }
  return std::max(at, limit);
}

// Where the white space that begins at `at` ends.
std::size_t after_spaces(std::string_view text, std::size_t at) {
  while (at < text.size()) {
    const Utf8Character next = utf8_first(text.substr(at));
    if (!is_white_space(next.code)) break;
    at += static_cast<std::size_t>(next.num_bytes);
  }
  return at;
}

// Is it no part of a longer word?
bool stands_alone(std::string_view text, const AddedTokens::Found& found) {
  if (found.begin > 0 && is_word(utf8_first(text.substr(last_character(text, found.begin))).code))
    return false;
  return found.end == text.size() || !is_word(utf8_first(text.substr(found.end)).code);
}

// One call of encode(): what it appends to and the memory it works in.
class Encoding {
 public:
  Encoding(const Tokenizer::State& state, std::vector<std::int32_t>& ids)
      : state_(state), ids_(ids) {}

  // Cuts at added tokens, normalises what lies between them, and cuts again at those that are
  // spelled in normalised text.
  Status text(std::string_view text) {
    return between(state_.raw_added, text, [&](std::string_view part) -> Status {
      if (!state_.nfc || is_ascii(part)) return normalized(part);
      return normalized(to_nfc(part));
    });
  }

 private:
  template <class Encode>
  Status between(const AddedTokens& added, std::string_view text, Encode&& encode) {
    std::size_t done = 0, from = 0, spaces_end = 0;
    while (const auto found = added.find(text, from)) {
      const Tokenizer::State::Token& token = state_.tokens[static_cast<std::size_t>(found->id)];
      from = found->end;
      if (state_.splits_special && token.special) continue;
      if (token.single_word && !stands_alone(text, *found)) continue;
      std::size_t begin = found->begin, end = found->end;
      if (token.lstrip) begin = before_spaces(text, begin, done);
      if (token.rstrip) {
        if (end >= spaces_end) spaces_end = after_spaces(text, end);
        end = spaces_end;
      }
      if (begin > done) TENON_TRY(encode(text.substr(done, begin - done)));
      ids_.push_back(found->id);
      done = end;
    }
    if (done < text.size()) TENON_TRY(encode(text.substr(done)));
    return Status::ok();
  }

  Status normalized(std::string_view text) {
    return between(state_.normalized_added, text, [&](std::string_view part) -> Status {
      pieces_.clear();
      if (state_.pattern) {
        TENON_TRY(state_.pattern->split(part, pieces_));
      } else {
        pieces_.push_back(part);
      }
      for (std::string_view one : pieces_) piece(one);
      return Status::ok();
    });
  }

  void piece(std::string_view bytes) {
    if (state_.ignore_merges) {
      if (const auto whole = state_.by_bytes.find(std::string(bytes));
          whole != state_.by_bytes.end()) {
        ids_.push_back(whole->second);
        return;
      }
    }
    symbols_.clear();
    for (char byte : bytes) symbols_.push_back(state_.byte_ids[static_cast<unsigned char>(byte)]);
    merger_.merge(state_.merges, symbols_);
    ids_.insert(ids_.end(), symbols_.begin(), symbols_.end());
  }

  const Tokenizer::State& state_;
  std::vector<std::int32_t>& ids_;
  std::vector<std::string_view> pieces_;
  std::vector<std::int32_t> symbols_;
  BpeMerger merger_;
};

}  // namespace

Tokenizer::Tokenizer(std::unique_ptr<const State> state) : state_(std::move(state)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Tokenizer Tokenizer::none() { return Tokenizer(std::make_unique<State>()); }

Result<std::vector<std::int32_t>> Tokenizer::encode(std::string_view text) const {
  if (state_->tokens.empty())
    return unsupported("there is none, so the prompt cannot be a text; accepted are token ids");
  std::vector<std::int32_t> ids;
  Encoding encoding(*state_, ids);
  if (utf8_valid(text)) {
    TENON_TRY(encoding.text(text));
  } else {
    TENON_TRY(encoding.text(utf8_lossy(text)));
  }
  return ids;
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids, bool skip_special) const {
  std::string bytes;
  for (std::int32_t id : ids)
    if (!skip_special || !is_special(id)) bytes += token_bytes(id);
  return utf8_valid(bytes) ? bytes : utf8_lossy(bytes);
}

std::string_view Tokenizer::token_bytes(std::int32_t id) const {
  if (id < 0 || id >= num_tokens()) return {};
  return state_->tokens[static_cast<std::size_t>(id)].bytes;
}

bool Tokenizer::is_special(std::int32_t id) const {
  return id >= 0 && id < num_tokens() && state_->tokens[static_cast<std::size_t>(id)].special;
}

std::int32_t Tokenizer::id_of(std::string_view spelling) const {
  const auto found = state_->ids.find(std::string(spelling));
  return found == state_->ids.end() ? -1 : found->second;
}

std::int32_t Tokenizer::eos_id() const { return state_->eos; }

std::int32_t Tokenizer::num_tokens() const {
  return static_cast<std::int32_t>(state_->tokens.size());
}

std::string StreamingDetokenizer::push(std::int32_t id) {
  if (skip_special_ && tokenizer_->is_special(id)) return {};
  held_ += tokenizer_->token_bytes(id);
  // Everything up to an unfinished last character can be shown: no later byte changes it.
  std::size_t whole = 0;
  while (whole < held_.size()) {
    const Utf8Character next = utf8_first(std::string_view(held_).substr(whole));
    if (next.kind == Utf8Character::Kind::kIncomplete) break;
    whole += static_cast<std::size_t>(next.num_bytes);
  }
  std::string text = utf8_lossy(std::string_view(held_).substr(0, whole));
  held_.erase(0, whole);
  return text;
}

std::string StreamingDetokenizer::finish() {
  std::string text = utf8_lossy(held_);
  held_.clear();
  return text;
}

}  // namespace tenon
