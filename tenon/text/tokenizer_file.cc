// tokenizer.json → Tokenizer::State. Whatever the file asks for is either done or refused by name.
#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "tenon/core/file.h"
#include "tenon/core/json.h"
#include "tenon/text/tokenizer_state.h"
#include "tenon/text/utf8.h"

namespace tenon {
namespace {

using Json = nlohmann::json;
using State = Tokenizer::State;

constexpr std::int64_t kMaxTokens = 1 << 22;  // a larger id is a broken file, not a vocabulary
constexpr std::uint64_t kMaxFileBytes = std::uint64_t{256} << 20;

std::string type_of(const Json& object) {
  const Json& type = member(object, "type");
  return type.is_string() ? type.get<std::string>() : std::string();
}

// Refuses `object[key]` unless it is missing, null or one of `accepted`.
Status only(const Json& object, const char* where, const char* key,
            std::initializer_list<Json> accepted) {
  const Json& value = member(object, key);
  if (value.is_null() || std::ranges::find(accepted, value) != accepted.end()) return Status::ok();
  std::string choices = "null";
  for (const Json& one : accepted) choices += " or " + shown(one);
  return unsupported(std::string(where) + "." + key + " is " + shown(value) + "; only " + choices +
                     " is implemented");
}

// The 256 characters that stand for bytes in a byte-level vocabulary: printable Latin-1 characters
// stand for themselves, the other 68 bytes are numbered from U+0100.
std::array<char32_t, 256> byte_characters() {
  std::array<char32_t, 256> characters{};
  char32_t next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool itself =
        (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    characters[static_cast<std::size_t>(byte)] = itself ? static_cast<char32_t>(byte) : next++;
  }
  return characters;
}

// The byte that a character stands for, or −1.
class ByteAlphabet {
 public:
  ByteAlphabet() {
    bytes_.fill(-1);
    const auto characters = byte_characters();
    for (int byte = 0; byte < 256; ++byte)
      bytes_[characters[static_cast<std::size_t>(byte)]] = byte;
  }
  int byte_of(char32_t code) const { return code < bytes_.size() ? bytes_[code] : -1; }

 private:
  std::array<int, 0x144> bytes_;
};

Status read_vocabulary(const Json& model, State& state) {
  const Json& vocabulary = member(model, "vocab");
  if (!vocabulary.is_object() || vocabulary.empty())
    return malformed("model.vocab must be an object of tokens and their ids, not " +
                     shown(vocabulary));
  state.ids.reserve(vocabulary.size() + 64);
  for (const auto& [spelling, id] : vocabulary.items())
    TENON_TRY(claim(state, spelling, id, bytes_of_spelling(spelling)));
  state.vocabulary = static_cast<std::int32_t>(vocabulary.size());
  const auto characters = byte_characters();
  for (std::size_t byte = 0; byte < 256; ++byte) {
    std::string spelling;
    utf8_append(spelling, characters[byte]);
    const auto found = state.ids.find(spelling);
    if (found == state.ids.end())
      return malformed("model.vocab has no token for the single byte " + std::to_string(byte) +
                       " (\"" + spelling + "\"); a byte-level vocabulary needs all 256");
    state.byte_ids[byte] = found->second;
  }
  if (state.ignore_merges)
    for (std::size_t id = 0; id < state.tokens.size(); ++id)
      if (state.tokens[id].exists)
        state.by_bytes.emplace(state.tokens[id].bytes, static_cast<std::int32_t>(id));
  return Status::ok();
}

// "left right" or ["left", "right"].
Status split_merge(const Json& merge, std::string& left, std::string& right) {
  if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
    left = merge[0].get<std::string>();
    right = merge[1].get<std::string>();
    return Status::ok();
  }
  if (merge.is_string()) {
    const auto text = merge.get<std::string>();
    const std::size_t space = text.find(' ');
    if (space != std::string::npos && space == text.rfind(' ')) {
      left = text.substr(0, space);
      right = text.substr(space + 1);
      return Status::ok();
    }
  }
  return malformed("a merge must be \"left right\" or [\"left\", \"right\"], not " + shown(merge));
}

Status read_merges(const Json& model, State& state) {
  const Json& merges = member(model, "merges");
  if (!merges.is_array()) return malformed("model.merges must be a list, not " + shown(merges));
  state.merges.reserve(merges.size());
  std::string left, right;
  for (const Json& merge : merges) {
    TENON_TRY(split_merge(merge, left, right));
    std::int32_t id[3];
    const std::string* spelling[3] = {&left, &right, nullptr};
    const std::string made = left + right;
    spelling[2] = &made;
    for (int i = 0; i < 3; ++i) {
      const auto found = state.ids.find(*spelling[i]);
      if (found == state.ids.end())
        return malformed("merge number " + std::to_string(state.merges.size()) + ", " +
                         shown(merge) + ", needs the token \"" + *spelling[i] +
                         "\", which model.vocab does not have");
      id[i] = found->second;
    }
    if (!state.merges.add(id[0], id[1], id[2]))
      return malformed("the merge " + shown(merge) + " is listed twice");
  }
  return Status::ok();
}

Status read_model(const Json& model, State& state) {
  // Files older than the "type" key are recognised by their merges.
  const std::string type = type_of(model);
  if (type != "BPE" && !(type.empty() && member(model, "merges").is_array()))
    return unsupported("the model is \"" + type + "\"; only \"BPE\" is implemented");
  TENON_TRY(only(model, "model", "dropout", {0.0}));
  TENON_TRY(only(model, "model", "continuing_subword_prefix", {""}));
  TENON_TRY(only(model, "model", "end_of_word_suffix", {""}));
  TENON_TRY(only(model, "model", "byte_fallback", {false}));
  TENON_TRY(only(model, "model", "ignore_merges", {false, true}));
  state.ignore_merges = member(model, "ignore_merges") == true;
  // unk_token and fuse_unk never come into play: every byte has a token.
  TENON_TRY(read_vocabulary(model, state));
  return read_merges(model, state);
}

Status read_normalizer(const Json& normalizer, State& state) {
  if (normalizer.is_null()) return Status::ok();
  if (type_of(normalizer) != "NFC")
    return unsupported("the normalizer is " + shown(normalizer) +
                       "; only null and NFC are implemented");
  state.nfc = true;
  return Status::ok();
}

Status read_split(const Json& split, State& state) {
  TENON_TRY(only(split, "pre_tokenizer", "behavior", {"Isolated"}));
  TENON_TRY(only(split, "pre_tokenizer", "invert", {false}));
  const Json& pattern = member(member(split, "pattern"), "Regex");
  if (!pattern.is_string())
    return unsupported("the Split pre-tokenizer has the pattern " +
                       shown(member(split, "pattern")) +
                       "; only {\"Regex\": \"…\"} is implemented");
  TENON_ASSIGN(state.pattern, SplitPattern::compile(pattern.get<std::string>()), "tokenizer.json");
  return Status::ok();
}

// Accepted: ByteLevel alone, or a Sequence of at most one Split and then ByteLevel.
Status read_pre_tokenizer(const Json& pre_tokenizer, State& state) {
  std::vector<Json> parts;
  if (type_of(pre_tokenizer) == "Sequence") {
    const Json& list = member(pre_tokenizer, "pretokenizers");
    if (list.is_array()) parts.assign(list.begin(), list.end());
  } else {
    parts.push_back(pre_tokenizer);
  }
  if (parts.empty() || parts.size() > 2 || type_of(parts.back()) != "ByteLevel" ||
      (parts.size() == 2 && type_of(parts.front()) != "Split"))
    return unsupported("the pre_tokenizer is " + shown(pre_tokenizer) +
                       "; only ByteLevel, or a Sequence of Split and ByteLevel, is implemented");
  const Json& byte_level = parts.back();
  TENON_TRY(only(byte_level, "pre_tokenizer", "add_prefix_space", {false}));
  if (member(byte_level, "use_regex") != false)
    return unsupported("the ByteLevel pre-tokenizer wants its own pattern (use_regex is " +
                       shown(member(byte_level, "use_regex")) + "); only false is implemented");
  if (parts.size() == 2) TENON_TRY(read_split(parts.front(), state));
  return Status::ok();
}

Status read_rest(const Json& file) {
  const std::string decoder = type_of(member(file, "decoder"));
  if (decoder != "ByteLevel")
    return unsupported("the decoder is " + shown(member(file, "decoder")) +
                       "; only ByteLevel is implemented");
  const Json& post = member(file, "post_processor");
  if (!post.is_null() && type_of(post) != "ByteLevel")  // ByteLevel there only trims offsets
    return unsupported("the post_processor is " + shown(post) +
                       "; only null and ByteLevel, which add no tokens, are implemented");
  // "truncation" and "padding" are what was last asked of the tool that wrote the file; encoding
  // one text without asking for them ignores both.
  return Status::ok();
}

}  // namespace

const Json& member(const Json& object, const char* key) {
  static const Json null;
  if (!object.is_object()) return null;
  const auto found = object.find(key);
  return found == object.end() ? null : *found;
}

std::string shown(const Json& value) {
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > 80) text = utf8_lossy(text.substr(0, 77)) + "...";
  return text;
}

Status claim(State& state, const std::string& spelling, const Json& number, std::string bytes) {
  if (!number.is_number_integer() || number.get<std::int64_t>() < 0 ||
      number.get<std::int64_t>() >= kMaxTokens)
    return malformed("token \"" + spelling + "\" has the id " + shown(number) +
                     "; an integer from 0 to " + std::to_string(kMaxTokens - 1) + " is needed");
  const auto id = number.get<std::int32_t>();
  const auto at = static_cast<std::size_t>(id);
  if (at >= state.tokens.size()) state.tokens.resize(at + 1);
  const auto [entry, is_new] = state.ids.emplace(spelling, id);
  if (!is_new && entry->second != id)
    return malformed("token \"" + spelling + "\" has two ids, " + std::to_string(entry->second) +
                     " and " + std::to_string(id));
  if (is_new && state.tokens[at].exists)
    return malformed("id " + std::to_string(id) + " belongs to two tokens; one is \"" + spelling +
                     "\"");
  state.tokens[at].exists = true;
  state.tokens[at].bytes = std::move(bytes);
  return Status::ok();
}

std::string bytes_of_spelling(std::string_view spelling) {
  static const ByteAlphabet alphabet;
  std::string bytes;
  for (std::string_view rest = spelling; !rest.empty();) {
    const Utf8Character next = utf8_first(rest);
    const int byte = next.kind == Utf8Character::Kind::kValid ? alphabet.byte_of(next.code) : -1;
    if (byte < 0) return std::string(spelling);
    bytes.push_back(static_cast<char>(byte));
    rest.remove_prefix(static_cast<std::size_t>(next.num_bytes));
  }
  return bytes;
}

Result<Tokenizer> Tokenizer::parse(std::string_view json, std::string_view config) {
  TENON_ASSIGN(const Json file, parse_json(json), "tokenizer.json");
  if (!file.is_object()) return malformed("it must hold an object, not " + shown(file));
  if (!member(file, "model").is_object()) return malformed("it has no \"model\"");
  auto state = std::make_unique<State>();
  TENON_TRY(read_rest(file));
  TENON_TRY(read_normalizer(member(file, "normalizer"), *state));
  TENON_TRY(read_pre_tokenizer(member(file, "pre_tokenizer"), *state));
  TENON_TRY(read_model(member(file, "model"), *state));
  TENON_TRY(read_added_tokens(member(file, "added_tokens"), *state));
  if (!config.empty()) {
    TENON_ASSIGN(const Json settings, parse_json(config), "tokenizer_config.json");
    TENON_TRY(read_tokenizer_config(settings, *state));
  }
  return Tokenizer(std::move(state));
}

Result<Tokenizer> Tokenizer::load(const std::string& directory) {
  TENON_ASSIGN(const std::string text, read_text(directory + "/tokenizer.json", kMaxFileBytes));
  std::string config;
  const std::string config_path = directory + "/tokenizer_config.json";
  std::error_code ignored;
  if (std::filesystem::exists(config_path, ignored)) {
    TENON_ASSIGN(config, read_text(config_path));
    if (config.empty()) return malformed("it is empty", config_path.c_str());
  }
  auto parsed = parse(text, config);
  if (!parsed) return parsed.status().with(directory);
  return parsed;
}

}  // namespace tenon
