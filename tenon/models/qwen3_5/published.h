// The tensors of a Qwen3.5 checkpoint as Qwen publishes them, said by the config alone: what
// --load-format dummy makes. The loader takes each of them exactly once, or refuses.
#pragma once

#include <vector>

#include "tenon/models/dummy.h"
#include "tenon/models/qwen3_5/config.h"

namespace tenon::qwen3_5 {

// Of the text model, without the vision tower and the draft head. bf16 with fused experts, or,
// where the config has a quantization_config, block fp8 with separate ones. Magnitudes are such
// that activations stay of order one: projections about 1 / sqrt(in), norms near neutral.
std::vector<TensorRecipe> published_tensors(const Config& config);

}  // namespace tenon::qwen3_5
