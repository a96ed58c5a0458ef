// One rank of an engine: its communicator, model shard, caches and buffers, and how it runs a step.
// Every rank runs the same step on the same bytes and draws the same tokens.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "tenon/comm/communicator.h"
#include "tenon/models/model.h"
#include "tenon/ops/registry.h"
#include "tenon/runtime/cache_memory.h"
#include "tenon/runtime/step_input.h"

namespace tenon {

struct EngineOptions;

class Rank {
 public:
  // Makes the model behind an engine. Collective over the ranks.
  using ModelFactory = std::function<Result<std::unique_ptr<Model>>(Communicator&, Stream&)>;

  // Collective: every rank opens with the same options.
  static Result<std::unique_ptr<Rank>> open(const EngineOptions& options, int rank,
                                            std::shared_ptr<Bootstrap> bootstrap,
                                            const ModelFactory& make_model);

  const StepLayout& layout() const { return layout_; }
  Model& model() { return *model_; }
  Communicator& comm() { return *comm_; }
  // Followers: room for one step's bytes.
  std::span<std::byte> received() { return received_; }

  // Ids that may be asked with and drawn: 0 … num_tokens() − 1.
  int num_tokens() const { return num_tokens_; }

  // Runs the step that `input` holds and returns the token drawn for each of its sequences: −1
  // where the logits hold no number. Such a sequence cannot go on; its caches are empty again.
  // Collective. An error has already told the other ranks to give up.
  Result<std::span<const std::int32_t>> run(std::span<const std::byte> input);

  // A hash (FNV-1a) of the logits of the last sequence of the last step, in order of ids. 0 before
  // the first step. Waits for the stream.
  Result<std::uint64_t> logits_fingerprint();

 private:
  explicit Rank(const EngineOptions& options);
  Status allocate();
  Status plan_sampling();
  TensorView gathered_logits(int rows) const;
  Status run_on_stream(std::span<const std::byte> input);

  int max_batch_, max_context_, num_tokens_;
  StepLayout layout_;
  std::unique_ptr<Communicator> comm_;
  std::optional<Stream> stream_;
  std::unique_ptr<Model> model_;
  Buffer input_, logits_, drawn_;
  CacheMemory caches_;
  Plan sampling_plan_;
  std::vector<std::byte> received_;
  std::vector<std::int32_t> drawn_host_;
  int last_rows_ = 0;  // sequences of the last step
};

}  // namespace tenon
