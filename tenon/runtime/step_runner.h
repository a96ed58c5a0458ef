// How one rank runs a step: its bytes go to the device, the model and the draw are enqueued, the
// drawn tokens come back. Addresses on the device never change, so that what is enqueued can be
// recorded. Two steps may be on their way, one behind the other.
#pragma once

#include <array>
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

  // Host memory for the bytes of the next step: to be filled before upload(), while at most one
  // step is on its way.
  std::span<std::byte> input() const { return slot(launched_).input.bytes(); }
  StepHeader header() const { return StepReader::header(input()); }

  // In this order, once per step; they launch only. After fetch() the step is on its way.
  Status upload();
  Status enqueue();  // collective
  Status fetch();

  // Steps that are on their way.
  static constexpr int kMostInFlight = 2;
  int in_flight() const { return static_cast<int>(launched_ - taken_); }
  // Whether the oldest has ended. Does not wait.
  Result<bool> has_ended() const { return slot(taken_).ended->has_happened(); }
  // Waits for the oldest, which is "the last step" from then on: the token drawn for each of its
  // sequences, −1 where the logits hold no number.
  Result<std::span<const std::int32_t>> take();
  // The bytes of the last step.
  std::span<const std::byte> taken() const { return slot(taken_ - 1).input.bytes(); }
  // Steps take turns with what the host keeps of them: whose the next one is, and the last one's.
  std::size_t turn() const { return launched_ % kMostInFlight; }
  std::size_t turn_of_taken() const { return (taken_ - 1) % kMostInFlight; }

  // What the last step's report tells of one of its rows that wanted one.
  TokenLogprobs logprobs(int row) const;

  // Of the last step, if none is on its way behind it: PromptTeller has the order.
  TokenLogprobs prompt_logprobs(int number) const { return teller_->logprobs(number); }

  // The next enqueue() runs its step with a timer around each launch, recorded anew where steps are
  // recorded. launch_times() has what it found, after take().
  void time_next() { times_next_ = true; }
  Result<std::vector<LaunchTimer::Entry>> launch_times();

  // The rows of logits that this rank has whole, and draws: all of a step with few of them, else
  // those that are dealt to it (comm/collectives/dealt_rows.h).
  RowRange own_rows(const StepShape& shape) const;
  // Of the last step that was launched: [ranks, own rows, slice of the vocabulary].
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

  // What the host has of a step.
  struct Slot {
    HostBuffer input, drawn, report;
    std::optional<Event> ended;
  };
  const Slot& slot(std::uint64_t number) const { return slots_[number % slots_.size()]; }
  Slot& slot(std::uint64_t number) { return slots_[number % slots_.size()]; }

  const Parts parts_;
  const int num_tokens_;
  std::array<Slot, kMostInFlight> slots_;
  std::uint64_t launched_ = 0, taken_ = 0;
  Buffer input_, logits_, saved_, report_;
  std::vector<Plan> draw_plans_;  // for at most 1, 2, 4, … rows
  std::unique_ptr<PromptTeller> teller_;
  GraphCache graphs_;
  bool times_next_ = false;
  std::optional<LaunchTimer> timer_;
  std::optional<Graph> timed_;  // the last step that was timed
};

}  // namespace tenon
