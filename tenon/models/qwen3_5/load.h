// One rank's weights of a Qwen3.5 checkpoint as the description of a decoder. Tensor names live in
// load.cc and published.cc, marks of their kinds in inspect.cc. Not here: plans and scratch
// (decoder.cc).
#pragma once

#include <string_view>
#include <vector>

#include "tenon/models/decoder.h"
#include "tenon/models/qwen3_5/config.h"
#include "tenon/models/shard.h"

namespace tenon::qwen3_5 {

// Parts of a checkpoint that are not used: the vision tower and the draft head.
std::vector<std::string_view> skipped_prefixes();

// Takes every tensor of the text model, and refuses leftovers. cos_sin comes from rotary_table().
// What the loader holds (weight_bytes, memory) and eos_ids are left to the caller.
Result<DecoderSpec> load_weights(const Config& config, const Share& share,
                                 const TensorView& cos_sin, ShardLoader& loader);

// [positions, rotary_dim]: rotary_dim / 2 cosines, then as many sines; computed in double.
std::vector<float> rotary_table(const Config& config, int positions);

}  // namespace tenon::qwen3_5
