// Qwen3.5, dense and MoE, bf16 and block-fp8: token mixers and mlps in turn with a boundary behind
// each, 2L + 1 in all. The forward pass is meant to be read aloud.
#pragma once

#include <memory>
#include <string>

#include "tenon/models/model.h"

namespace tenon::qwen3_5 {

// Loads this rank's share of the checkpoint in `directory` and makes the layers. Collective.
// Whatever stage options.force_stage asks for, the result has the same bits.
Result<std::unique_ptr<Model>> open(const std::string& directory, const ModelOptions& options,
                                    Communicator& comm, Stream& stream);

}  // namespace tenon::qwen3_5
