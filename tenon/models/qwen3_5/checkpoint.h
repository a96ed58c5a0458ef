// A checkpoint's directory after everything that can be said of it without reading a weight: what
// loading begins with, and inspecting too.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tenon/models/load_format.h"
#include "tenon/models/qwen3_5/config.h"
#include "tenon/models/weights.h"

namespace tenon::qwen3_5 {

struct Checkpoint {
  Config config;
  std::string json;                   // the text of config.json
  std::vector<std::int32_t> eos_ids;  // of all configs
  Weights files;
  bool fp8 = false;  // some weights are; slices must be whole blocks then
};

// With weights that are made, config.json is all that the directory must hold.
Result<Checkpoint> open_checkpoint(const std::string& directory, const WeightsFrom& from);

}  // namespace tenon::qwen3_5
