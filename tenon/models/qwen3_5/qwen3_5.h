// Qwen3.5, dense and MoE, bf16 and block-fp8: a decoder (models/decoder.h) whose layers are gated
// attention and Gated DeltaNet in turn.
#pragma once

#include <memory>
#include <string>

#include "tenon/models/model.h"

namespace tenon::qwen3_5 {

// Loads this rank's share of the checkpoint in `directory` and makes the decoder. Collective.
Result<std::unique_ptr<Model>> open(const std::string& directory, const ModelOptions& options,
                                    Communicator& comm, Stream& stream);

}  // namespace tenon::qwen3_5
