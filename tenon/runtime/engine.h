// The engine: requests in, tokens out. Ranks are threads of this process (the default), or
// processes of which this is one. Not thread safe: one thread at a time calls submit, cancel, step,
// idle and stats; check_request and eos_ids may be called from any.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tenon/comm/communicator.h"
#include "tenon/device/launch_timer.h"
#include "tenon/models/model.h"
#include "tenon/runtime/memory_plan.h"
#include "tenon/runtime/scheduler.h"

namespace tenon {

// EngineOptions::cache_tokens: on devices as many as memory_fraction leaves room for, at least
// max_batch · max_context; on hosts those.
inline constexpr std::int64_t kAutoCacheTokens = -1;

// Whether a step in which every sequence decodes is launched before the tokens of the one in front
// of it are known: they are on the device. The same tokens, sooner; a request that comes meanwhile
// waits for one more step. Ranks that are processes never do.
enum class RunAhead : std::uint8_t { kOnDevices, kNever, kAlways };

struct EngineOptions {
  std::string model;    // directory of a checkpoint
  WeightsFrom weights;  // as in ModelOptions
  int tp = 1;           // ranks
  Target target = Target::kCpu;
  int max_batch = 16;      // sequences that run together
  int max_context = 4096;  // prompt and completion of one sequence
  // max_context is the most that is wanted: where the caches hold less, it is that.
  bool fits_context = false;
  int max_tokens_per_step = 256;  // at least 64 + max_batch
  // Tokens that the kv cache of each rank holds, of all sequences and kept prefixes together; 0:
  // max_batch · max_context. With fewer, sequences may be preempted: the same tokens, later.
  std::int64_t cache_tokens = 0;
  // Of a device's memory, or of a rank's even part where ranks share one: what all that is counted
  // (MemoryPlan) may take with kAutoCacheTokens. The rest is for what is not: the driver, recorded
  // steps, the transport.
  double memory_fraction = 0.9;
  // Delta-net states that are kept of prompts, beside those of max_batch sequences that run, for
  // prompts that begin alike: the same tokens, sooner. 0: nothing is kept of a prompt.
  int prefix_states = 16;
  int num_tokens = 0;                 // ids at or past this have no token; 0: all the model's ids
  std::vector<std::int32_t> eos_ids;  // end a sequence, as those of the model's configuration do
  StagePolicy force_stage = StagePolicy::kFree;  // as in ModelOptions
  int max_stage = 1;
  std::string force_variant;
  std::vector<StagePolicy> more_stages;  // as in ModelOptions: for use_arm()
  bool time_steps = false;               // EngineStats::device_seconds
  // Record decode steps and replay them, unless TENON_GRAPHS says no: the same tokens and logits
  // either way.
  bool graphs = true;
  RunAhead run_ahead = RunAhead::kOnDevices;  // unless TENON_RUN_AHEAD says never
  std::string transport = "auto";
  std::chrono::milliseconds deadline{30'000};
  // Null: all ranks are threads of this process. Otherwise this process is one rank of the team
  // that the bootstrap joins; rank 0 leads, the others call follow().
  std::shared_ptr<Bootstrap> bootstrap;
  LoadProgress progress;  // while loading, of rank 0's share
};

enum class Finish : std::uint8_t {
  kNone,       // it goes on
  kStop,       // an end-of-sequence token
  kLength,     // its max_tokens
  kContext,    // the engine's max_context, before its max_tokens
  kCancelled,  // cancel()
  kFailed,     // it alone: TokenEvent::why
};
std::string_view name(Finish finish);

// One drawn token. An end-of-sequence token is reported too, with kStop. With kCancelled and
// kFailed there is no token, nor with the kLength of a request that asks for none. Every request
// that was submitted gets one event with a finish, its last, unless the engine dies.
struct TokenEvent {
  RequestId id{};
  std::int32_t token = -1;
  Finish finish = Finish::kNone;
  Status why = Status::ok();                   // of kFailed: names the request
  std::optional<TokenLogprobs> logprobs = {};  // of the token, where they were asked for
  std::int32_t cached_tokens = 0;  // of its prompt, that a kept prefix had: were not computed
  // In its first event with a token, or in that kLength: of the prompt's tokens behind number
  // sampling.prompt_logprobs_from, where they were asked for.
  std::vector<TokenLogprobs> prompt_logprobs = {};
};

struct EngineStats {
  std::int64_t steps = 0;
  std::int64_t prompt_tokens = 0;  // that were computed
  std::int64_t decode_tokens = 0;  // drawn in steps where every sequence decodes
  double decode_seconds = 0;       // wall time of those steps, what overlaps counted once
  std::int64_t tokens_ahead = 0;   // drawn in steps that were launched ahead (RunAhead)
  // Of rank 0, on its device, all steps: from the upload's beginning to the draw's end. 0 unless
  // EngineOptions::time_steps.
  double device_seconds = 0;
  std::int64_t replayed_steps = 0;  // of rank 0: those that ran from a recording
  PrefixStats prefixes;
  std::int64_t preemptions = 0;
  std::int64_t replayed_tokens = 0;  // drawn ones that ran again after a preemption
  // Of the last step. 0 where steps run ahead: it would wait for them, and the last one may be one
  // behind the last token.
  std::uint64_t logits_fingerprint = 0;
  std::int64_t weight_bytes = 0;  // on rank 0
  double kv_cache_use = 0;        // part of the kv cache's blocks that sequences use now, 0 to 1
  std::int64_t state_slots_used = 0;  // delta-net states that sequences hold now
  MemoryPlan memory;                  // of rank 0
  std::string transport;
  std::vector<BoundaryUse> boundaries;
};

class Engine {
 public:
  // Collective over processes. With the model factory, for tests: any Model instead of a
  // checkpoint.
  using ModelFactory = std::function<Result<std::unique_ptr<Model>>(Communicator&, Stream&)>;
  // What can be said of the options before anything is started or read; open() begins with it.
  static Status check(const EngineOptions& options);
  static Result<std::unique_ptr<Engine>> open(const EngineOptions& options,
                                              ModelFactory make_model = {});
  ~Engine();  // tells the other ranks to stop, and waits for those that are threads

  bool leads() const;  // rank 0
  // Of the options, or what fits_context made of it.
  int max_context() const;
  // Followers: run the leader's steps until it stops. The leader's error, or this rank's.
  Status follow();

  // Leader only, all of them. submit says why a request can never run, as check_request does; ids
  // without a token are refused, but for those that are held back. A constraint needs
  // EngineOptions::num_tokens.
  Status check_request(const std::vector<std::int32_t>& prompt,
                       const SamplingParams& sampling) const;
  Result<RequestId> submit(std::vector<std::int32_t> prompt, const SamplingParams& sampling,
                           std::unique_ptr<TokenConstraint> constraint = {});
  Status cancel(RequestId id);
  // One decision, one forward pass, its tokens; where a pass is on its way from the call before,
  // the next one is launched and the tokens are the former's. Empty when there is nothing to do.
  // After an error the engine is dead: every further call returns that error.
  Result<std::vector<TokenEvent>> step();
  bool idle() const;
  EngineStats stats() const;
  // Where the ranks are, for whoever wonders why no step ends: a sentence that names those that are
  // behind, and those of which nothing is heard. Unlike the rest it may be called from any thread
  // at any time, and waits for nothing.
  std::string whereabouts() const;
  // Whether the books of the caches are right: every block and slot is free, kept or leased, and an
  // idle engine leases none. Reads all of them: for tests, and for the end.
  Status check_caches() const;
  // What a step needs at least on rank 0, as the model knows it.
  StepCost step_cost(const StepLoad& load) const;

  // For measurements. Leader only.
  // Steps that are launched from now on follow this policy: 0 is force_stage, 1, 2, … are
  // more_stages.
  Status use_arm(int arm);
  // Every cache of every rank holds one made number from now on, the same each time. Refused while
  // requests are on their way. After an error the engine is dead.
  Status make_caches();
  // As submit(), but of the prompt all tokens but the last count as computed, whatever the caches
  // hold: a sequence of that length decodes in the next step.
  Result<RequestId> submit_computed(std::vector<std::int32_t> prompt,
                                    const SamplingParams& sampling);
  // The next step that rank 0 launches (RunAhead!) runs with a timer around each launch, which
  // makes it longer; launch_times() afterwards says what each one took, in order.
  void time_next_step();
  Result<std::vector<LaunchTimer::Entry>> launch_times() const;
  const std::vector<std::int32_t>& eos_ids() const;

 private:
  struct State;
  explicit Engine(std::unique_ptr<State> state);
  Result<RequestId> queue(std::vector<std::int32_t> prompt, const SamplingParams& sampling,
                          std::unique_ptr<TokenConstraint> constraint, bool computed);
  std::unique_ptr<State> state_;
};

}  // namespace tenon
