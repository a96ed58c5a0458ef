// The text of a config.json, any at all, and of the files beside it that name the same keys. What
// is accepted can be cut for teams without anybody's harm.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "tenon/models/eos.h"
#include "tenon/models/qwen3_5/config.h"

namespace {

void check(bool good) {
  if (!good) std::abort();
}

void cut(const tenon::qwen3_5::Config& config, bool fp8, int size) {
  std::int64_t intermediate = 0, vocab = 0;
  for (int rank = 0; rank < size; ++rank) {
    const auto share = tenon::qwen3_5::share(config, fp8, rank, size);
    if (!share) return check(!share.status().message().empty());
    check(share->q_heads > 0 && share->kv_heads > 0 && share->k_heads > 0 && share->v_heads > 0);
    check(share->first_q_head + share->q_heads <= config.q_heads);
    check(share->first_kv_head + share->kv_heads <= config.kv_heads);
    check(share->intermediate.begin >= 0 && share->intermediate.count >= 0);
    check(share->experts.end() <= config.experts);
    check(share->moe_intermediate.end() <= config.moe_intermediate);
    intermediate += share->intermediate.count;
    vocab += share->vocab.count;
  }
  check(intermediate == config.intermediate && vocab == config.vocab);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  const auto ids = tenon::parse_eos_ids(text, text);
  if (ids)
    for (const std::int32_t id : *ids) check(id >= 0);
  check(!tenon::qwen3_5::refuse_modelopt(text));
  const auto config = tenon::qwen3_5::parse_config(text);
  if (!config) {
    check(!config.status().message().empty());
    return 0;
  }
  check(!config->layers.empty() && config->hidden > 0 && config->max_positions > 0);
  check(config->rotary_dim >= 0 && config->rotary_dim <= config->head_dim);
  check(!tenon::qwen3_5::describe(*config).empty());
  for (const int team : {1, 2, 3, 8})
    for (const bool fp8 : {false, true}) cut(*config, fp8, team);
  return 0;
}
