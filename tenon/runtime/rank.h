// One rank of an engine: its communicator, model shard, caches and runner, and what a step leaves
// behind besides tokens. Every rank runs the same step on the same bytes and draws the same tokens.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "tenon/comm/communicator.h"
#include "tenon/models/model.h"
#include "tenon/runtime/cache_memory.h"
#include "tenon/runtime/memory_plan.h"
#include "tenon/runtime/step_input.h"
#include "tenon/runtime/step_place.h"
#include "tenon/runtime/step_runner.h"

namespace tenon {

struct EngineOptions;

class Rank {
 public:
  // Makes the model behind an engine. Collective over the ranks.
  using ModelFactory = std::function<Result<std::unique_ptr<Model>>(Communicator&, Stream&)>;

  // Collective: every rank opens with the same options. Without a factory the model is that of
  // options.model.
  static Result<std::unique_ptr<Rank>> open(const EngineOptions& options, int rank,
                                            std::shared_ptr<Bootstrap> bootstrap,
                                            const ModelFactory& make_model);

  ~Rank() { settle(); }

  // Waits until nothing of this rank runs. Not collective: what waits for peers ends by the
  // deadline.
  void settle();

  const StepLayout& layout() const { return layout_; }
  Model& model() { return *model_; }
  Communicator& comm() { return *comm_; }
  // Rank 0's step reaches the other ranks: what it uses of layout().bytes() bytes. Collective.
  Status broadcast(std::span<std::byte> step);
  // Room for the bytes of the next step.
  std::span<std::byte> input() const { return runner_->input(); }

  // The room for caches, the same on all ranks.
  const CacheMemory::Room& room() const { return room_; }
  const MemoryPlan& memory_plan() const { return memory_plan_; }
  // What it holds by now: as planned.
  MemoryPlan held_memory() const;

  // Ids that may be asked with and drawn: 0 … num_tokens() − 1.
  int num_tokens() const { return num_tokens_; }

  // Tells the other ranks that this one is in the next step, which launch() does otherwise: for a
  // leader, which may wait for them before it.
  void begin_step();

  // Launches the step that input() holds, with at most one other on its way. Where input() asks to
  // make caches, it does that, and no step is on its way. Collective. An error of this function and
  // of the next ones has already told the other ranks to give up.
  Status launch();
  int in_flight() const { return runner_->in_flight(); }
  // Whether the oldest step on its way has ended, or failed: take() would not wait. Does not wait.
  bool has_ended() const;
  // Waits for the oldest step on its way and returns the token drawn for each of its sequences: −1
  // where the logits hold no number. Such a sequence cannot go on; what it has alone of the caches
  // is empty again in the next step that is not launched ahead.
  Result<std::span<const std::int32_t>> take();
  // launch(), then take() if there is a step.
  Result<std::span<const std::int32_t>> run();

  // Of a sequence of the last step that drew and asked for them.
  TokenLogprobs logprobs(int row) const { return runner_->logprobs(row); }

  // Of tokens of prompts that the last step told of, numbered in order of its sequences.
  TokenLogprobs prompt_logprobs(int number) const { return runner_->prompt_logprobs(number); }

  // As StepRunner has them: of the next step, on this rank.
  void time_next_step() { runner_->time_next(); }
  Result<std::vector<LaunchTimer::Entry>> launch_times() { return runner_->launch_times(); }

  // How the boundaries of all steps so far ran.
  std::vector<BoundaryUse> boundary_uses() const { return model_->boundary_uses(steps_); }
  std::int64_t num_replays() const { return runner_->num_replays(); }
  // On the device, from the beginning of the upload to the end of the draw, of all steps so far.
  // 0 without EngineOptions::time_steps.
  double device_seconds() const { return device_seconds_; }

  // A hash (FNV-1a) of the logits of the last sequence of the last step that was launched, in order
  // of ids; where the rows were dealt to the ranks, of the last one that this rank drew, or 0 where
  // it drew none. 0 before the first step. Waits for the stream.
  Result<std::uint64_t> logits_fingerprint();

 private:
  explicit Rank(const EngineOptions& options);
  Status make_model(const EngineOptions& options, const ModelFactory& factory);
  Status plan_memory(const EngineOptions& options, const ModelPlan& model);
  Status prepare(const EngineOptions& options);
  Status launch_on_stream();
  Status clear_left();
  void tell_if_all_ended();
  Result<std::span<const std::int32_t>> take_from_stream();
  Status give_up(Status why);

  int num_tokens_;
  StepLayout layout_;
  std::unique_ptr<Communicator> comm_;
  std::optional<Stream> stream_;
  std::unique_ptr<Model> model_;
  CacheMemory::Room room_;
  MemoryPlan memory_plan_;
  CacheMemory caches_;
  std::unique_ptr<StepRunner> runner_;
  StepCounts steps_;
  StepHeader last_;  // of the last step that was launched
  StepPlace place_;
  std::int64_t num_launched_ = 0;
  // What sequences that failed had of the caches: to be cleared before somebody else has it.
  struct Left {
    std::vector<std::int32_t> blocks;
    std::int32_t state_slot;
  };
  std::vector<Left> left_;
  // Where steps are timed, in turns as StepRunner has them.
  struct Times {
    Event begin, end;
  };
  std::vector<Times> times_;
  double device_seconds_ = 0;
};

}  // namespace tenon
