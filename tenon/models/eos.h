// Ids after which a checkpoint wants generation to end, from all of its configs that name any. Not
// here: the tokenizer's eos_token, which ends a turn where a chat template is used.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tenon/core/status.h"

namespace tenon {

// "eos_token_id", an id or a list, of config.json's text_config and root and, where there is one,
// of generation_config.json: each id once, in this order.
Result<std::vector<std::int32_t>> parse_eos_ids(
    std::string_view config, const std::optional<std::string>& generation_config);

// The same of the files in `directory`.
Result<std::vector<std::int32_t>> read_eos_ids(const std::string& directory);

}  // namespace tenon
