// The decoder that every family of models here is: an embedding, layers of a token mixer and an mlp
// with a boundary behind each (2L + 1 in all), a head. A family says in a DecoderSpec what its
// layers are; plans, scratch, boundaries, caches and the forward pass are written here, once.
// Not here: configs, tensor names, slices (a folder for each family).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "tenon/comm/communicator.h"
#include "tenon/device/runtime.h"
#include "tenon/layers/layers.h"
#include "tenon/models/fingerprint.h"
#include "tenon/models/model.h"

namespace tenon {

struct DecoderLayer {
  TensorView first_norm, second_norm;  // in front of the mixer, in front of the mlp
  std::variant<DeltaNetSpec, AttentionSpec> mixer;
  std::variant<DenseSpec, ExpertsSpec> mlp;
};

// A decoder as one rank holds it: sizes, and views of weights. Norms are bf16 or f32 [hidden].
struct DecoderSpec {
  int hidden = 0;         // width of the residual stream
  float eps = 1e-6f;      // of the norms in front of mixers, mlps and head
  float norm_offset = 0;  // added to their weights: 1 where weights are stored around zero, else 0
  int num_ids = 0;        // rows of the embedding over all ranks, padding rows of the file included
  int vocab_width = 0;    // ids of every rank's slice; rank r's begins at r · vocab_width
  TensorView embedding;   // bf16 [rows, hidden]: of the slice; the last one may be short
  TensorView head;        // the same shape; the same memory when tied
  TensorView final_norm;
  std::vector<DecoderLayer> layers;  // at least one
  std::vector<std::int32_t> eos_ids;
  std::int64_t weight_bytes = 0;  // of this rank
  std::vector<Buffer> memory;     // what the views lie in: the decoder keeps it
};

// A checkpoint on its way to a decoder, on one rank. No function is collective.
class DecoderFiles {
 public:
  virtual ~DecoderFiles() = default;
  // Looks without reading weights: why it cannot be loaded, or what all ranks must hold alike.
  virtual Result<Facts> look(const ModelOptions& options, const Communicator& comm) = 0;
  // What load() would give on this device, without memory: views are nowhere (layers.h). Called at
  // most once, after look() and before load().
  virtual Result<DecoderSpec> count(const ModelOptions& options, Device device) = 0;
  // Reads this rank's share onto the device of `stream`. Called once, last.
  virtual Result<DecoderSpec> load(const ModelOptions& options, Stream& stream) = 0;
};

// What a step needs at least on this rank.
StepCost step_cost(const DecoderSpec& spec, const StepLoad& load);

// The caches of one rank, those of a layer behind those of the layers in front of it.
CacheLayout cache_layout(const DecoderSpec& spec);

// Opens a decoder. Collective: a rank that fails alone does not leave the others waiting, and all
// of them have the same files or none opens. `directory` is for messages.
// Whatever stage options.force_stage asks for, the result has the same bits.
Result<std::unique_ptr<Model>> open_decoder(DecoderFiles& files, const std::string& directory,
                                            const ModelOptions& options, Communicator& comm,
                                            Stream& stream);

}  // namespace tenon
