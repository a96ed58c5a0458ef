// How one rank runs a step: its bytes go to the device, the model and the draw are enqueued, the
// drawn tokens come back. Addresses never change, so that what is enqueued can be recorded.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "tenon/comm/collectives/dealt_rows.h"
#include "tenon/comm/communicator.h"
#include "tenon/device/launch_timer.h"
#include "tenon/models/model.h"
#include "tenon/ops/registry.h"
#include "tenon/ops/sampling/sampling.h"
#include "tenon/runtime/graph_cache.h"
#include "tenon/runtime/prompt_teller.h"
#include "tenon/runtime/step_input.h"

namespace tenon {

class StepRunner {
 public:
  struct Parts {  // all of them outlive the runner
    const StepLayout& layout;
    Model& model;
    CacheViews caches;
    Communicator& comm;
    Stream& stream;
  };
  // Ids at or past num_tokens are never drawn. Not collective.
  static Result<std::unique_ptr<StepRunner>> make(const Parts& parts, int num_tokens, bool graphs);

  // What make() allocates of the device's memory, and what this one holds of it; either with the
  // mailboxes of the communicator, through which logits go.
  static std::int64_t count_bytes(const StepLayout& layout, int vocab_size,
                                  const Communicator& comm);
  std::int64_t bytes() const;

  // Host memory for the bytes of the next step: to be filled before upload().
  std::span<std::byte> input() const { return host_input_.bytes(); }
  StepHeader header() const { return StepReader::header(input()); }

  // In this order, once per step. upload() and enqueue() launch only; download() waits for the
  // step and returns the token drawn for each of its sequences, −1 where the logits hold no number.
  Status upload();
  Status enqueue();  // collective
  Result<std::span<const std::int32_t>> download();

  // What the last step's report tells of one of its rows that wanted one.
  TokenLogprobs logprobs(int row) const;

  // Of the last step: PromptTeller has the order.
  TokenLogprobs prompt_logprobs(int number) const { return teller_->logprobs(number); }

  // The next enqueue() runs its step with a timer around each launch, recorded anew where steps are
  // recorded. launch_times() has what it found, after download().
  void time_next() { times_next_ = true; }
  Result<std::vector<LaunchTimer::Entry>> launch_times();

  // The rows of logits that this rank has whole, and draws: all of a step with few of them, else
  // those that are dealt to it (comm/collectives/dealt_rows.h).
  RowRange own_rows(const StepShape& shape) const;
  // Of the last step: [ranks, own rows, slice of the vocabulary].
  TensorView logits(const StepShape& shape) const;
  std::int64_t num_replays() const { return graphs_.num_replays(); }

 private:
  StepRunner(const Parts& parts, int num_tokens, bool graphs)
      : parts_(parts), num_tokens_(num_tokens), graphs_(graphs) {}
  Status allocate();
  Status plan_draws();
  Status launch(const StepShape& shape);
  Status enqueue_timed(const StepShape& shape);
  Status collect_reports(const StepShape& shape);
  TensorView drawn(const StepShape& shape) const;
  sampling::Args draw_args(const StepShape& shape, const RowRange& own) const;
  TensorView logits(std::int64_t rows) const;  // of so many own rows
  sampling::Report report(void* base, const StepShape& shape) const;

  const Parts parts_;
  const int num_tokens_;
  HostBuffer host_input_, host_drawn_, host_report_;
  Buffer input_, logits_, saved_, report_;
  std::vector<Plan> draw_plans_;  // for at most 1, 2, 4, … rows
  std::unique_ptr<PromptTeller> teller_;
  GraphCache graphs_;
  bool times_next_ = false;
  std::optional<LaunchTimer> timer_;
  std::optional<Graph> timed_;  // the last step that was timed
};

}  // namespace tenon
