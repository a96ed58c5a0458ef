#include "tenon/runtime/tokenizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>

#include "tenon/runtime/tokenizer_state.h"
#include "tenon/runtime/utf8.h"

namespace tenon {
namespace {

bool is_ascii(std::string_view text) {
  return std::ranges::all_of(text, [](char c) { return static_cast<unsigned char>(c) < 0x80; });
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
      TENON_ASSIGN(const std::string composed, to_nfc(part));
      return normalized(composed);
    });
  }

 private:
  template <class Encode>
  Status between(const AddedTokens& added, std::string_view text, Encode&& encode) {
    std::size_t from = 0;
    while (const auto found = added.find(text, from)) {
      if (found->begin > from) TENON_TRY(encode(text.substr(from, found->begin - from)));
      ids_.push_back(found->id);
      from = found->begin + found->bytes;
    }
    if (from < text.size()) TENON_TRY(encode(text.substr(from)));
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

Result<std::string> to_nfc(std::string_view text) {
  utf8proc_uint8_t* composed = nullptr;
  const utf8proc_ssize_t bytes =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()), &composed,
                   static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  if (bytes < 0)
    return Status::error(
        bytes == UTF8PROC_ERROR_NOMEM ? Code::kOutOfMemory : Code::kInvalidArgument,
        std::string("normalising the text to NFC: ") + utf8proc_errmsg(bytes));
  std::string out(reinterpret_cast<const char*>(composed), static_cast<std::size_t>(bytes));
  std::free(composed);
  return out;
}

void AddedTokens::add(std::string spelling, std::int32_t id) {
  auto& entries = by_first_byte_[static_cast<unsigned char>(spelling.front())];
  const auto shorter = std::ranges::find_if(
      entries, [&](const Entry& entry) { return entry.spelling.size() < spelling.size(); });
  entries.insert(shorter, Entry{std::move(spelling), id});
  ++count_;
}

std::optional<AddedTokens::Found> AddedTokens::find(std::string_view text, std::size_t from) const {
  if (empty()) return std::nullopt;
  for (std::size_t begin = from; begin < text.size(); ++begin) {
    for (const Entry& entry : by_first_byte_[static_cast<unsigned char>(text[begin])])
      if (text.substr(begin).starts_with(entry.spelling))
        return Found{begin, entry.spelling.size(), entry.id};
  }
  return std::nullopt;
}

Tokenizer::Tokenizer(std::unique_ptr<const State> state) : state_(std::move(state)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Result<std::vector<std::int32_t>> Tokenizer::encode(std::string_view text) const {
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
