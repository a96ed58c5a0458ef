#include "tenon/models/qwen3_5/inspect.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <set>

#include "tenon/core/json.h"
#include "tenon/models/eos.h"
#include "tenon/models/qwen3_5/checkpoint.h"
#include "tenon/models/qwen3_5/load.h"

namespace tenon::qwen3_5 {
namespace {

using Json = nlohmann::json;

constexpr std::size_t kMostKeys = 1000;  // of an object: each costs a parse

std::string count(std::int64_t number, const std::string& what) {
  return std::to_string(number) + " " + what + (number == 1 ? "" : "s");
}

std::string plain(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.10g", value);
  return text;
}

// The shortest list of kinds that the layers repeat, and how often.
std::string pattern_of(const std::vector<LayerKind>& layers) {
  std::size_t period = 1;
  for (; period < layers.size(); ++period) {
    if (layers.size() % period != 0) continue;
    bool repeats = true;
    for (std::size_t i = period; i < layers.size() && repeats; ++i)
      repeats = layers[i] == layers[i - period];
    if (repeats) break;
  }
  std::string text;
  for (std::size_t begin = 0; begin < period;) {
    std::size_t end = begin;
    while (end < period && layers[end] == layers[begin]) ++end;
    const char* kind = layers[begin] == LayerKind::kAttention ? " attention" : " delta-net";
    text += (text.empty() ? "" : ", ") + std::to_string(end - begin) + kind;
    begin = end;
  }
  const std::size_t times = layers.empty() ? 0 : layers.size() / period;
  return times > 1 ? std::to_string(times) + " times (" + text + ")" : text;
}

// What a tensor is part of, by its name.
std::string kind_of(std::string_view name) {
  for (const std::string_view prefix : skipped_prefixes())
    if (name.starts_with(prefix)) return "not used";
  struct Mark {
    std::string_view text, kind;
  };
  static constexpr Mark kMarks[] = {{"embed_tokens.", "embedding"},
                                    {"lm_head.", "head"},
                                    {".mlp.experts.", "experts"},
                                    {".mlp.shared_expert", "shared expert"},
                                    {".mlp.gate.", "router"},
                                    {".mlp.", "mlp"},
                                    {".self_attn.", "attention"},
                                    {".linear_attn.", "delta-net"},
                                    {"norm", "norms"}};
  for (const Mark& each : kMarks)
    if (name.find(each.text) != std::string_view::npos) return std::string(each.kind);
  return "other";
}

std::string range(std::int64_t begin, std::int64_t number) {
  if (number <= 0) return "none";
  if (number == 1) return std::to_string(begin);
  return std::to_string(begin) + " to " + std::to_string(begin + number - 1);
}

std::string words_of(const Config& config, const Share& share) {
  std::string text = "query heads " + range(share.first_q_head, share.q_heads) + ", kv heads " +
                     range(share.first_kv_head, share.kv_heads) + ", delta-net value heads " +
                     range(share.first_v_head, share.v_heads);
  if (config.is_moe())
    text += ", experts " + range(share.experts.begin, share.experts.count) + " (columns " +
            range(share.moe_intermediate.begin, share.moe_intermediate.count) +
            "), shared expert " +
            range(share.shared_intermediate.begin, share.shared_intermediate.count);
  else
    text += ", mlp " + range(share.intermediate.begin, share.intermediate.count);
  return text + ", ids " + range(share.vocab.begin, share.vocab.count);
}

void describe_config(const Config& config, bool fp8, ModelSummary& out) {
  const auto number = [&](const char* name, double value) { out.numbers.push_back({name, value}); };
  const auto words = [&](const char* name, std::string text) {
    out.words.push_back({name, std::move(text)});
  };
  words("layers", std::to_string(config.layers.size()) + ": " + pattern_of(config.layers));
  words("width", std::to_string(config.hidden));
  words("vocabulary", std::to_string(config.vocab));
  words("attention", count(config.q_heads, "query head") + " and " +
                         count(config.kv_heads, "kv head") + " of " +
                         std::to_string(config.head_dim));
  words("delta-net", count(config.k_heads, "key head") + " of " + std::to_string(config.key_dim) +
                         " and " + count(config.v_heads, "value head") + " of " +
                         std::to_string(config.value_dim));
  if (config.is_moe())
    words("mlp", count(config.experts, "expert") + " of " +
                     std::to_string(config.moe_intermediate) + ", " + std::to_string(config.top_k) +
                     " for a token, and a shared one of " +
                     std::to_string(config.shared_intermediate));
  else
    words("mlp", "dense, " + std::to_string(config.intermediate));
  words("rotary positions", "theta " + plain(config.rope_theta) + ", " +
                                std::to_string(config.rotary_dim) + " of " +
                                std::to_string(config.head_dim) + " components, up to " +
                                std::to_string(config.max_positions) + " positions");
  words("weights", fp8 ? "fp8 e4m3 with a scale for 128 x 128, activations quantised on the fly; "
                         "the rest in 16 bits or more"
                       : "16 bits");
  number("layers", static_cast<double>(config.layers.size()));
  number("attention_layers",
         static_cast<double>(
             std::count(config.layers.begin(), config.layers.end(), LayerKind::kAttention)));
  number("delta_net_layers",
         static_cast<double>(
             std::count(config.layers.begin(), config.layers.end(), LayerKind::kDeltaNet)));
  number("width", config.hidden);
  number("vocabulary", config.vocab);
  number("query_heads", config.q_heads);
  number("kv_heads", config.kv_heads);
  number("head_dim", config.head_dim);
  number("delta_net_key_heads", config.k_heads);
  number("delta_net_value_heads", config.v_heads);
  number("delta_net_head_dim", config.key_dim);
  number("mlp_width", config.intermediate);
  number("experts", config.experts);
  number("experts_per_token", config.top_k);
  number("expert_width", config.moe_intermediate);
  number("shared_expert_width", config.shared_intermediate);
  number("rope_theta", config.rope_theta);
  number("rotary_dim", config.rotary_dim);
  number("max_positions", config.max_positions);
  number("norm_eps", static_cast<double>(config.eps));
}

// Counts what each rank of a team would load, by loading it without data.
void size_team(Checkpoint& checkpoint, TeamSummary& team) {
  const Config& config = checkpoint.config;
  team.refusals = team_refusals(config, checkpoint.fp8, team.size);
  for (int rank = 0; rank < team.size && team.refusals.empty(); ++rank) {
    const auto mine = share(config, checkpoint.fp8, rank, team.size);
    checkpoint.files.take_back();
    ShardLoader loader(std::move(checkpoint.files), skipped_prefixes());
    const auto loaded = mine ? load_weights(config, *mine, TensorView{}, loader)
                             : Result<DecoderSpec>(mine.status());
    checkpoint.files = loader.release();
    if (!loaded) {
      team.refusals.emplace_back(loaded.status().message());
      return;
    }
    team.weight_bytes.push_back(loader.device_bytes());
    team.shares.push_back(words_of(config, *mine));
    team.caches = cache_layout(*loaded);
  }
}

// All that a config means.
struct Meaning {
  Facts facts;
  std::vector<std::int32_t> eos_ids;
  friend bool operator==(const Meaning&, const Meaning&) = default;
};
Result<Meaning> meaning_of(const Json& json) {
  const std::string text = json.dump(-1, ' ', false, Json::error_handler_t::replace);
  TENON_ASSIGN(const Config config, parse_config(text));
  Meaning meaning{describe(config), {}};
  TENON_ASSIGN(meaning.eos_ids, parse_eos_ids(text, std::nullopt));
  return meaning;
}

}  // namespace

// A key is read if another value in its place, which no key accepts, changes the meaning or makes
// an error of it. So this cannot differ from the parser.
std::vector<std::string> unread_keys(const std::string& json) {
  const auto parsed = parse_json(json);
  if (!parsed || !parsed->is_object()) return {};
  Json root = *parsed;
  const auto before = meaning_of(root);
  std::vector<std::string> unread;
  const auto look_into = [&](Json& object, const std::string& path) {
    if (object.size() > kMostKeys) return;
    for (auto& [key, value] : object.items()) {
      if (path.empty() && key == "architectures") continue;  // chooses the model
      Json kept = std::exchange(value, Json{{"no", "value"}});
      const auto after = meaning_of(root);
      value = std::move(kept);
      if (before && after && *before == *after) unread.push_back(path + key);
    }
  };
  look_into(root, "");
  if (const auto text = root.find("text_config"); text != root.end() && text->is_object())
    look_into(*text, "text_config.");
  return unread;
}

Result<ModelSummary> inspect(const std::string& directory, std::span<const int> sizes,
                             const WeightsFrom& from) {
  TENON_ASSIGN(Checkpoint checkpoint, open_checkpoint(directory, from));
  ModelSummary out;
  describe_config(checkpoint.config, checkpoint.fp8, out);
  const bool has_head = checkpoint.files.has("lm_head.weight");
  out.words.push_back({"head", has_head ? "lm_head.weight" : "the embedding"});
  out.eos_ids = checkpoint.eos_ids;
  out.unread_keys = unread_keys(checkpoint.json);
  checkpoint.files.visit({}, [&](const std::string& name, const StoredTensor& stored) {
    out.tensors.push_back(
        {name, stored.type, stored.shape, static_cast<std::int64_t>(stored.bytes), kind_of(name)});
  });
  out.rope_bytes_per_position = std::int64_t{4} * checkpoint.config.rotary_dim;
  for (const int size : sizes) {
    out.teams.push_back({});
    out.teams.back().size = size;
    size_team(checkpoint, out.teams.back());
  }
  return out;
}

}  // namespace tenon::qwen3_5
