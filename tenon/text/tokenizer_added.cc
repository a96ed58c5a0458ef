// Added tokens: those of tokenizer.json, and those that tokenizer_config.json adds by the rules of
// the reference (`transformers`), which numbers them itself.
#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "tenon/text/tokenizer_state.h"
#include "tenon/text/unicode.h"

namespace tenon {
namespace {

using Json = nlohmann::json;
using State = Tokenizer::State;

constexpr const char* kConfig = "tokenizer_config.json";

// An added token as both files spell it.
struct Added {
  std::string content;
  bool special = false, normalized = true, lstrip = false, rstrip = false, single_word = false;
};

Result<Added> read_added(const Json& token, const char* file) {
  const Json& content = member(token, "content");
  if (!content.is_string() || content.get_ref<const std::string&>().empty())
    return malformed("an added token has no \"content\": " + shown(token), file);
  Added added;
  added.content = content.get<std::string>();
  added.special = member(token, "special") == true;
  added.normalized = !added.special;  // the reference's default
  for (const auto& [name, flag] : {std::pair{"normalized", &added.normalized},
                                   {"lstrip", &added.lstrip},
                                   {"rstrip", &added.rstrip},
                                   {"single_word", &added.single_word}}) {
    const Json& value = member(token, name);
    if (value.is_null()) continue;
    if (!value.is_boolean())
      return malformed("added token \"" + added.content + "\" has " + name + " " + shown(value) +
                           "; true or false is needed",
                       file);
    *flag = value.get<bool>();
  }
  return added;
}

// Makes the token `id`, which bears this spelling, an added one.
void mark(const Added& added, std::int32_t id, State& state) {
  State::Token& token = state.tokens[static_cast<std::size_t>(id)];
  const bool was_special = token.special && state.added.contains(added.content);
  token.special = was_special || added.special;
  token.lstrip = added.lstrip;
  token.rstrip = added.rstrip;
  token.single_word = added.single_word;
  const bool is_new = state.added.insert_or_assign(added.content, id).second;
  state.last_added = std::max(state.last_added, id);
  if (was_special && !is_new) return;  // the reference goes on looking for it where it did
  if (!added.normalized) return state.raw_added.add(added.content, id);
  std::string spelling = state.nfc ? to_nfc(added.content) : added.content;
  token.bytes = bytes_of_spelling(spelling);  // so decodes the reference, too
  state.normalized_added.add(std::move(spelling), id);
}

// The number that the reference gives to the next token it does not know.
std::int32_t next_id(const State& state) {
  return state.last_added >= state.vocabulary ? state.last_added + 1 : state.vocabulary;
}

// A token of tokenizer_config.json. `wanted` is the id that stands there, if any.
Status add_from_config(const Added& added, std::optional<std::int64_t> wanted, State& state) {
  const auto known = state.ids.find(added.content);
  const std::int32_t id = known != state.ids.end() ? known->second : next_id(state);
  if (wanted && *wanted != id)
    return malformed("added token \"" + added.content + "\" has the id " + std::to_string(*wanted) +
                         "; " +
                         (known != state.ids.end() ? "tokenizer.json gives it "
                                                   : "the next id that is free is ") +
                         std::to_string(id),
                     kConfig);
  if (known == state.ids.end())
    TENON_TRY(claim(state, added.content, Json(id), bytes_of_spelling(added.content)));
  mark(added, id, state);
  return Status::ok();
}

// A special token by its name: "x", {"content": "x", …}, or null for none.
Result<std::optional<Added>> named_token(const Json& value, const std::string& name) {
  if (value.is_null()) return std::optional<Added>();
  if (value.is_string()) {
    if (value.get_ref<const std::string&>().empty()) return std::optional<Added>();
    return std::optional<Added>(Added{value.get<std::string>(), true, false, false, false, false});
  }
  if (!value.is_object())
    return malformed(name + " is " + shown(value) + "; a string or an added token is needed",
                     kConfig);
  TENON_ASSIGN(Added added, read_added(value, kConfig));
  added.special = true;
  return std::optional<Added>(std::move(added));
}

// All special tokens that the file names, in the order in which the reference adds them.
Result<std::vector<Added>> named_tokens(const Json& config) {
  std::vector<Added> found;
  auto take = [&](const Json& value, const std::string& name) -> Status {
    TENON_ASSIGN(auto token, named_token(value, name));
    if (token) found.push_back(std::move(*token));
    return Status::ok();
  };
  for (const char* name :
       {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"})
    TENON_TRY(take(member(config, name), name));
  for (const char* name : {"extra_special_tokens", "additional_special_tokens"})
    for (const Json& value : member(config, name)) TENON_TRY(take(value, name));
  return found;
}

// "added_tokens_decoder" in order of the ids.
Result<std::vector<std::pair<std::int64_t, Added>>> listed_tokens(const Json& list) {
  std::vector<std::pair<std::int64_t, Added>> found;
  if (!list.is_null() && !list.is_object())
    return malformed("added_tokens_decoder must be an object of ids and tokens, not " + shown(list),
                     kConfig);
  for (const auto& [key, value] : list.items()) {
    std::int64_t id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size() || id < 0)
      return malformed("added_tokens_decoder has the id \"" + key + "\"; a number is needed",
                       kConfig);
    TENON_ASSIGN(Added added, read_added(value, kConfig));
    found.emplace_back(id, std::move(added));
  }
  std::ranges::stable_sort(found, {}, [](const auto& one) { return one.first; });
  return found;
}

}  // namespace

Status read_added_tokens(const Json& list, State& state) {
  if (list.is_null()) return Status::ok();
  if (!list.is_array()) return malformed("added_tokens must be a list, not " + shown(list));
  for (const Json& one : list) {
    TENON_ASSIGN(const Added added, read_added(one, "tokenizer.json"));
    TENON_TRY(claim(state, added.content, member(one, "id"), bytes_of_spelling(added.content)));
    mark(added, state.ids.find(added.content)->second, state);
  }
  return Status::ok();
}

Status read_tokenizer_config(const Json& config, State& state) {
  if (!config.is_object())
    return malformed("it must hold an object, not " + shown(config), kConfig);
  state.splits_special = member(config, "split_special_tokens") == true;
  TENON_ASSIGN(const auto named, named_tokens(config));
  TENON_ASSIGN(auto listed, listed_tokens(member(config, "added_tokens_decoder")));
  for (auto& [id, added] : listed) {
    added.special |= std::ranges::any_of(
        named, [&given = added](const Added& one) { return one.content == given.content; });
    TENON_TRY(add_from_config(added, id, state));
  }
  for (const Added& added : named)
    if (!state.added.contains(added.content))
      TENON_TRY(add_from_config(added, std::nullopt, state));
  TENON_ASSIGN(const auto eos, named_token(member(config, "eos_token"), "eos_token"));
  if (eos) state.eos = state.ids.find(eos->content)->second;
  return Status::ok();
}

}  // namespace tenon
