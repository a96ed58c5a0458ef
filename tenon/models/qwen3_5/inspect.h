// A Qwen3.5 checkpoint without its weights: tenon/models/inspect.h.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tenon/models/inspect.h"

namespace tenon::qwen3_5 {

Result<ModelSummary> inspect(const std::string& directory, std::span<const int> sizes,
                             const WeightsFrom& from);

// Keys of config.json and of its text_config whose values change nothing: those that the parser
// does not look at. Of a config that parses.
std::vector<std::string> unread_keys(const std::string& json);

}  // namespace tenon::qwen3_5
