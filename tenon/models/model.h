// A model as the runtime sees it: caches it needs, one forward pass, how its boundaries ran.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tenon/boundary/boundary.h"
#include "tenon/comm/communicator.h"
#include "tenon/device/runtime.h"
#include "tenon/layers/caches.h"
#include "tenon/layers/step.h"
#include "tenon/models/load_format.h"

namespace tenon {

// Bytes of a device's memory that a model takes, on one rank.
struct ModelMemory {
  std::int64_t weights = 0;     // with the rotary table
  std::int64_t scratch = 0;     // of one step, shared by all layers
  std::int64_t boundaries = 0;  // mailboxes and sums
};

// What a model will be, known before any of its memory is allocated.
struct ModelPlan {
  ModelMemory memory;
  CacheLayout caches;
  int vocab_size = 0;  // as Model has it
};

struct ModelOptions {
  WeightsFrom weights;
  int max_tokens_per_step = 256;  // rows of the largest step
  int max_sequences = 16;
  int max_logits = 0;      // rows of logits of the largest step; 0: one per sequence
  int max_context = 4096;  // positions that the rotary table covers
  // Of every boundary.
  StagePolicy force_stage = StagePolicy::kFree;
  int max_stage = 1;  // the most fused stage allowed
  std::string force_variant;
  // Further policies, for steps with StepShape::arm 1, 2, …; arm 0 is force_stage. To compare them
  // in one process: the weights are there once.
  std::vector<StagePolicy> more_stages;
  // Called on every rank, which has the same caches everywhere but its own bytes, before anything
  // of the model is allocated. May be collective; an error ends the opening. May be empty on all
  // ranks.
  std::function<Status(const ModelPlan&)> planned;
  LoadProgress progress;  // called while loading; may be empty
};

class Model {
 public:
  virtual ~Model() = default;
  virtual CacheLayout cache_layout() const = 0;
  virtual int vocab_size() const = 0;  // over all ranks, padding rows included
  // Ids that the checkpoint has a row for: 0 … num_ids() − 1. At or past it is only padding, which
  // makes the ranks' slices equal.
  virtual int num_ids() const = 0;
  virtual std::vector<std::int32_t> eos_ids() const = 0;
  // Collective: every rank runs the same step. Launches only.
  virtual Result<StepOutput> forward(const StepView& step, CacheViews caches, Stream& stream) = 0;
  // Logits of these rows of the last forward(), by the same head, so of the same bits: i32 [rows],
  // numbers of tokens of that step, as many as a step may have rows of logits. Overwrites the
  // logits that forward() left. Collective; launches only. kUnsupported: the model has no others.
  virtual Result<LogitsShard> logits_of(const TensorView& rows, Stream& stream) {
    static_cast<void>(rows), static_cast<void>(stream);
    return Status::error(Code::kUnsupported, "the model tells no logits of further rows");
  }
  // Whether forward() does nothing but launch on its stream, the same work for every step of one
  // shape: such steps can be recorded and replayed.
  virtual bool launches_only() const { return true; }
  // How the boundaries of these steps ran: `count` is steps times boundaries.
  virtual std::vector<BoundaryUse> boundary_uses(const StepCounts& steps) const = 0;
  virtual std::int64_t weight_bytes() const = 0;  // on this rank
  // What it holds, on this rank: what was planned.
  virtual ModelMemory memory() const { return {.weights = weight_bytes()}; }
  // What a step needs at least on this rank; zeros where the model does not know.
  virtual StepCost step_cost(const StepLoad&) const { return {}; }
};

// The directory that `model` names: itself, or where it is a file called config.json the one in
// which that lies.
std::string checkpoint_directory(const std::string& model);

// Reads config.json in the directory of `model`, finds its architecture in models.def and loads
// this rank's shard. Collective. Every tensor is demanded by name, dtype and shape, and taken
// exactly once.
Result<std::unique_ptr<Model>> open_model(const std::string& model, const ModelOptions& options,
                                          Communicator& comm, Stream& stream);

}  // namespace tenon
