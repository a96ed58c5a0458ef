// Leader and followers. The leader decides, sends each step's bytes and runs rank 0 on the caller's
// thread; followers run the same bytes, as threads of this process or as processes of their own.
//
// clang-format off
//   ranks as threads                                    ranks as processes (TP 2)
//
//   caller's thread        "tenon rank 1/2", ...        process of rank 0        process of rank 1
//   submit, cancel                                      submit, cancel
//   step():                                             step():                  follow():
//     scheduler decides                                   scheduler decides
//     writes the bytes ---> ThreadSteps: receives         writes the bytes ----->  broadcast: receives
//     Rank::run <==== boundaries, gather ====> Rank::run  Rank::run <==========>   Rank::run
//     takes the tokens      reports, waits for more       takes the tokens         waits for more
//
//                                                         "tenon keepalive": while nobody calls step(),
//                                                         it sends idle steps, so that followers' waits
//                                                         do not end by their deadline
// clang-format on
#include "tenon/runtime/engine.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <mutex>
#include <thread>
#include <tuple>
#include <utility>

#include "tenon/comm/bootstrap/bootstrap.h"
#include "tenon/comm/transport/transport.h"
#include "tenon/core/env.h"
#include "tenon/core/guard.h"
#include "tenon/core/thread.h"
#include "tenon/runtime/keep_alive.h"
#include "tenon/runtime/rank.h"
#include "tenon/runtime/thread_steps.h"

namespace tenon {
namespace {

using Clock = std::chrono::steady_clock;

Status check_number(std::string_view what, std::int64_t value, std::int64_t low,
                    std::int64_t high) {
  if (value >= low && value <= high) return Status::ok();
  return Status::error(Code::kInvalidArgument, std::string(what) + " is " + std::to_string(value) +
                                                   "; accepted are " + std::to_string(low) +
                                                   " to " + std::to_string(high));
}

// `free` stands for a free choice.
template <class Entries>
Status check_name(std::string_view what, std::string_view wanted, std::string_view free,
                  const Entries& entries) {
  if (wanted == free) return Status::ok();
  std::string accepted(free);
  for (const auto& each : entries) {
    if (each.name == wanted) return Status::ok();
    accepted += (accepted.empty() ? "" : ", ") + std::string(each.name);
  }
  return Status::error(Code::kInvalidArgument, std::string(what) + " \"" + std::string(wanted) +
                                                   "\" is not known; accepted: " + accepted);
}

// Tells the other ranks. Without the memory for it they notice when this one leaves.
void give_up(Bootstrap& bootstrap, std::string_view doing, const Status& why) {
  std::ignore = guarded([&] { bootstrap.abort(std::string(doing) + std::string(why.message())); });
}

}  // namespace

std::string_view name(Finish finish) {
  switch (finish) {
    case Finish::kNone: return "none";
    case Finish::kStop: return "stop";
    case Finish::kLength: return "length";
    case Finish::kContext: return "context";
    case Finish::kCancelled: return "cancelled";
    case Finish::kFailed: return "failed";
  }
  return "?";
}

struct Engine::State {
  EngineOptions options;
  ModelFactory make_model;
  std::vector<std::shared_ptr<Bootstrap>> bootstraps;  // of the ranks in this process
  std::unique_ptr<Rank> own;                           // rank 0, or this process's
  std::vector<Thread> threads;                         // ranks 1 … tp − 1
  std::unique_ptr<ThreadSteps> steps;                  // to those threads
  std::optional<CachePool> caches;
  std::optional<Scheduler> scheduler;
  std::optional<StepWriter> writer;  // into rank 0's input
  // A step on its way. Its sequences are null once they have gone.
  struct Flight {
    BatchPlan plan;
    bool decodes = false, ahead = false;
    Clock::time_point begin;
  };
  std::array<Flight, StepRunner::kMostInFlight> flights;  // in turns
  std::size_t oldest = 0;                                 // the turn of the oldest on its way
  Clock::time_point last_taken;
  bool runs_ahead = false;
  std::vector<std::byte> idle_step;  // what keeps followers that are processes waiting
  std::vector<std::int32_t> eos;
  EngineStats stats;
  std::uint64_t next_id = 1;
  Status dead = Status::ok();
  std::unique_ptr<KeepAlive> keep_alive;  // only with processes; last: it uses the rest

  ~State() { stop_threads(); }
  bool in_threads() const { return options.bootstrap == nullptr; }
  Status open_in_threads();
  Status open_as_process();
  Status open_leader();
  Status start_threads();
  Status open_rank(int rank, std::unique_ptr<Rank>* opened);
  void follow_in_thread(int rank);
  Status send();
  void send_idle();
  std::unique_lock<std::mutex> step_lock();
  Status check_ids(const std::vector<std::int32_t>& prompt, const SamplingParams& sampling) const;
  Result<std::vector<TokenEvent>> step();
  Status launch(const BatchPlan& plan);
  Result<std::vector<TokenEvent>> collect();
  Status drain();
  void let_go(RequestId id);
  void take_told(const BatchPlan& plan);
  std::vector<TokenEvent> digest(const BatchPlan& plan, std::span<const std::int32_t> drawn);
  std::vector<TokenEvent> drop_cancelled();
  Status die(Status why);
  void stop_threads();
  void stop();
};

// Opens one rank; afterwards either all ranks are open or all know why not.
Status Engine::State::open_rank(int rank, std::unique_ptr<Rank>* opened) {
  auto& bootstrap = bootstraps[in_threads() ? static_cast<std::size_t>(rank) : 0];
  auto result = guarded([&] { return Rank::open(options, rank, bootstrap, make_model); });
  Status mine = result.status();
  if (mine) {
    *opened = *std::move(result);
    // Some ranks may have been done long before.
    const WaitBudget budget(env().load_deadline, options.deadline);
    mine = guarded([&] { return agree(*bootstrap, Status::ok(), "open the engine", budget); });
  } else {
    give_up(*bootstrap, "could not open: ", mine);
  }
  if (!mine) {  // to leave needs no memory, and ends every wait for this rank
    opened->reset();
    bootstrap.reset();
  }
  return mine;
}

void Engine::State::follow_in_thread(int rank) {
  std::unique_ptr<Rank> held;
  Status status = open_rank(rank, &held);
  steps->report(rank, 0, status);
  if (!status) return;
  std::uint32_t number = 0;  // of the last step that was received
  const auto report = [&](const Status& now) {
    status = now;
    const auto done = number - static_cast<std::uint32_t>(held->in_flight());
    steps->report(rank, status ? done : UINT32_MAX, status);
  };
  const auto take = [&] { report(held->take().status()); };
  for (;;) {
    // A step is taken once it has ended, whether or not the next one is here.
    while (status && held->in_flight() > 0 && !steps->has(number + 1)) {
      if (held->has_ended())
        take();
      else
        std::this_thread::yield();
    }
    if (!steps->receive(rank, number + 1, held->input())) return;
    ++number;
    if (!status) continue;  // peers may still look at this rank's memory: it stays until the stop
    const bool ahead = StepReader::header(held->input()).ahead != 0;
    while (status && held->in_flight() > (ahead ? 1 : 0)) take();
    if (status) report(held->launch());
    while (status && held->in_flight() == StepRunner::kMostInFlight) take();
  }
}

Status Engine::State::start_threads() {
  return guarded([this]() -> Status {
    threads.reserve(static_cast<std::size_t>(options.tp));
    for (int rank = 1; rank < options.tp; ++rank) {
      TENON_ASSIGN(Thread thread, start_thread("tenon rank " + std::to_string(rank) + "/" +
                                                   std::to_string(options.tp),
                                               [this, rank] { follow_in_thread(rank); }));
      threads.push_back(std::move(thread));
    }
    return Status::ok();
  });
}

Status Engine::State::open_in_threads() {
  bootstraps = local_bootstrap(options.tp);
  const StepLayout layout(options.max_tokens_per_step, options.max_batch,
                          Scheduler::blocks_per_sequence(options.max_context), options.num_tokens);
  steps = std::make_unique<ThreadSteps>(layout.bytes(), options.tp);
  Status mine = start_threads();
  if (!mine) {
    give_up(*bootstraps[0], "could not start a rank: ", mine);
    bootstraps[0].reset();
  }
  if (mine) mine = open_rank(0, &own);
  if (mine) return Status::ok();
  stop_threads();  // opening ends within the deadline everywhere
  steps->report(0, 0, mine);
  return steps->root_cause({});
}

Status Engine::State::open_as_process() {
  bootstraps = {options.bootstrap};
  if (options.bootstrap->size() != options.tp)
    return Status::error(Code::kInvalidArgument,
                         "tp is " + std::to_string(options.tp) + " but the launcher started " +
                             std::to_string(options.bootstrap->size()) + " processes");
  return open_rank(options.bootstrap->rank(), &own);
}

Status Engine::State::open_leader() {
  const CacheMemory::Room& room = own->room();
  caches.emplace(room.blocks(), kBlockTokens, room.slots());
  Scheduler::Limits limits{options.max_batch, options.max_tokens_per_step, room.context()};
  limits.keeps_prefixes = options.prefix_states > 0;
  limits.max_edits = own->layout().max_edits();
  scheduler.emplace(limits, *caches);
  log(LogLevel::kInfo, "caches for " + std::to_string(room.blocks() * std::int64_t{kBlockTokens}) +
                           " tokens; of prompts " + std::to_string(options.prefix_states) +
                           " states and their blocks are kept");
  writer.emplace(own->layout(), own->input());
  idle_step.resize(own->layout().bytes());
  StepWriter(own->layout(), idle_step).write(StepCommand::kIdle);
  if (!in_threads() && options.tp > 1) {
    TENON_ASSIGN(keep_alive, KeepAlive::start(options.deadline, [this] { send_idle(); }));
  }
  const bool on_device = !is_host(options.target);
  runs_ahead = in_threads() && env().run_ahead &&
               (options.run_ahead == RunAhead::kAlways ||
                (options.run_ahead == RunAhead::kOnDevices && on_device));
  eos = own->model().eos_ids();
  eos.insert(eos.end(), options.eos_ids.begin(), options.eos_ids.end());
  stats.weight_bytes = own->model().weight_bytes();
  stats.memory = own->memory_plan();
  stats.transport = own->comm().transport();
  return Status::ok();
}

Engine::Engine(std::unique_ptr<State> state) : state_(std::move(state)) {}

Status Engine::check(const EngineOptions& options) {
  TENON_TRY(check_number("tp", options.tp, 1, kMaxRanks));
  TENON_TRY(
      Scheduler::check({options.max_batch, options.max_tokens_per_step, options.max_context}));
  TENON_TRY(check_number("num_tokens", options.num_tokens, 0, INT32_MAX));
  // Steps name a token's place in the caches by an int32.
  if (options.cache_tokens != kAutoCacheTokens)
    TENON_TRY(check_number("cache_tokens", options.cache_tokens, 0, INT32_MAX - kBlockTokens));
  if (!(options.memory_fraction > 0 && options.memory_fraction <= 1))
    return Status::error(Code::kInvalidArgument, "memory_fraction is " +
                                                     std::to_string(options.memory_fraction) +
                                                     "; accepted are numbers above 0, up to 1");
  TENON_TRY(check_number("prefix_states", options.prefix_states, 0, kMaxTokensPerStep));
  TENON_TRY(check_number("force_stage", static_cast<int>(options.force_stage), 0, 4));
  for (const StagePolicy each : options.more_stages)
    TENON_TRY(check_number("one of more_stages", static_cast<int>(each), 0, 4));
  TENON_TRY(check_number("max_stage", options.max_stage, 1, 3));
  TENON_TRY(check_number("deadline in ms", options.deadline.count(), 1, INT32_MAX));
  TENON_TRY(nth_device(options.target, 0));
  TENON_TRY(check_name("transport", options.transport, "auto", transport_lines()));
  return check_name("variant", options.force_variant, "", boundary_variants(options.target));
}

Result<std::unique_ptr<Engine>> Engine::open(const EngineOptions& options,
                                             ModelFactory make_model) {
  TENON_TRY(check(options), "open engine");
  auto opened = guarded([&]() -> Result<std::unique_ptr<Engine>> {
    auto state = std::make_unique<State>();
    state->options = options;
    state->make_model = std::move(make_model);
    TENON_TRY(state->in_threads() ? state->open_in_threads() : state->open_as_process());
    std::unique_ptr<Engine> engine(new Engine(std::move(state)));
    if (engine->leads()) TENON_TRY(engine->state_->open_leader());
    return engine;
  });
  TENON_TRY(opened, "open engine");
  return opened;
}

Engine::~Engine() {
  if (state_ != nullptr && leads()) state_->stop();
}

bool Engine::leads() const { return state_->own->comm().rank() == 0; }
int Engine::max_context() const { return state_->own->room().context(); }

// Followers are waiting for a step: the last one they get says stop. Waits for threads, however
// long their present step takes: all waits inside a step end by the deadline.
void Engine::State::stop_threads() {
  if (threads.empty()) return;
  steps->stop();
  threads.clear();  // joins
}

void Engine::State::stop() {
  keep_alive.reset();
  if (own != nullptr) own->settle();  // followers' memory is in use until then
  if (in_threads()) {
    stop_threads();
  } else if (writer && dead) {  // after a failure the followers know already
    writer->write(StepCommand::kStop);
    static_cast<void>(own->broadcast(writer->bytes()));
  }
}

// On the thread of keep_alive, which has locked the channel.
void Engine::State::send_idle() {
  if (!dead) return;
  const Status sent = guarded([this] { return own->broadcast(idle_step); });
  if (!sent) dead = Status(sent).with("while idle");
}

std::unique_lock<std::mutex> Engine::State::step_lock() {
  return keep_alive ? keep_alive->step_lock() : std::unique_lock<std::mutex>();
}

Status Engine::State::send() {
  own->begin_step();
  if (!in_threads()) return own->broadcast(writer->bytes());
  steps->send(writer->used(), writer->used_masks(), own->layout().offset(StepField::masks));
  return Status::ok();
}

Status Engine::follow() {
  TENON_CHECK(!leads() && !state_->in_threads());
  Rank& rank = *state_->own;
  for (;;) {
    const std::span<std::byte> input = rank.input();
    TENON_TRY(rank.broadcast(input), "await the leader's next step");
    const StepCommand command = StepReader::header(input).command;
    if (command == StepCommand::kStop) return Status::ok();
    if (command != StepCommand::kIdle) TENON_TRY(rank.run());
  }
}

Status Engine::State::check_ids(const std::vector<std::int32_t>& prompt,
                                const SamplingParams& sampling) const {
  const auto check = [&](const char* what, std::int32_t id) {
    if (id >= 0 && id < own->num_tokens()) return Status::ok();
    return Status::error(Code::kInvalidArgument, std::string(what) + " has token id " +
                                                     std::to_string(id) + "; accepted are 0 to " +
                                                     std::to_string(own->num_tokens() - 1));
  };
  for (const std::int32_t id : prompt) TENON_TRY(check("the prompt", id));
  for (const auto& [id, bias] : sampling.logit_bias) TENON_TRY(check("logit_bias", id));
  return Status::ok();
}

Status Engine::check_request(const std::vector<std::int32_t>& prompt,
                             const SamplingParams& sampling) const {
  return guarded([&] {
    Status fits = state_->check_ids(prompt, sampling);
    return fits ? state_->scheduler->check(prompt.size(), sampling) : fits;
  });
}

Result<RequestId> Engine::submit(std::vector<std::int32_t> prompt, const SamplingParams& sampling,
                                 std::unique_ptr<TokenConstraint> constraint) {
  return queue(std::move(prompt), sampling, std::move(constraint), false);
}

Result<RequestId> Engine::submit_computed(std::vector<std::int32_t> prompt,
                                          const SamplingParams& sampling) {
  return queue(std::move(prompt), sampling, nullptr, true);
}

Result<RequestId> Engine::queue(std::vector<std::int32_t> prompt, const SamplingParams& sampling,
                                std::unique_ptr<TokenConstraint> constraint, bool computed) {
  {
    const auto lock = state_->step_lock();
    TENON_TRY(Status(state_->dead));
  }
  const RequestId id{state_->next_id};
  const Status queued = guarded([&] {
    Status fits = state_->check_ids(prompt, sampling);
    if (fits && constraint != nullptr && state_->own->layout().mask_words() == 0)
      fits = Status::error(Code::kUnsupported,
                           "the request constrains its tokens, but the engine was opened without "
                           "num_tokens; accepted with it");
    const int done = computed ? std::max(static_cast<int>(prompt.size()) - 1, 0) : 0;
    if (!fits) return fits;
    if (computed && sampling.prompt_logprobs >= 0)
      return Status::error(Code::kInvalidArgument,
                           "prompt_logprobs is " + std::to_string(sampling.prompt_logprobs) +
                               "; of a prompt that is not computed none can be told");
    return state_->scheduler->add(id, std::move(prompt), sampling, done, state_->eos,
                                  std::move(constraint));
  });
  TENON_TRY(queued, "submit");
  ++state_->next_id;
  return id;
}

Status Engine::cancel(RequestId id) {
  if (state_->scheduler->cancel(id)) return Status::ok();
  return Status::error(Code::kInvalidArgument, "cancel: there is no request " +
                                                   std::to_string(static_cast<std::uint64_t>(id)) +
                                                   " on its way");
}

// Steps on their way run on with it, for nothing.
void Engine::State::let_go(RequestId id) {
  for (Flight& flight : flights)
    for (BatchEntry& entry : flight.plan.entries)
      if (entry.sequence != nullptr && entry.sequence->id == id) entry.sequence = nullptr;
  scheduler->remove(id);
}

std::vector<TokenEvent> Engine::State::drop_cancelled() {
  std::vector<TokenEvent> events;
  for (const RequestId id : scheduler->cancelled()) {
    events.push_back({id, -1, Finish::kCancelled, Status::ok()});
    let_go(id);
  }
  return events;
}

// The last event of a sequence that has no logits to draw from, be it in the middle of its prompt.
TokenEvent failed(const Sequence& sequence) {
  const auto id = std::to_string(static_cast<std::uint64_t>(sequence.id));
  const auto made = static_cast<int>(sequence.tokens.size()) - sequence.prompt_tokens;
  std::string why = sequence.constraint == nullptr ? "" : sequence.constraint->trouble();
  if (why.empty())
    why = sequence.constraint == nullptr
              ? "its logits hold no number"
              : "none of the tokens that it may have has a number for its logit";
  return {sequence.id, -1, Finish::kFailed,
          Status::error(Code::kInternal, "request " + id + " ends after " + std::to_string(made) +
                                             " tokens: " + why +
                                             ", so nothing can be drawn; other requests go on")};
}

// What the step has told of prompts, to the sequences whose they are.
void Engine::State::take_told(const BatchPlan& plan) {
  int number = 0;
  for (const BatchEntry& entry : plan.entries) {
    if (entry.sequence == nullptr) continue;
    Sequence& sequence = *entry.sequence;
    const int count = entry.num_told();
    for (int i = 0; i < count; ++i)
      sequence.prompt_logprobs.push_back(own->prompt_logprobs(number++));
    sequence.num_told += count;
  }
}

// Turns drawn tokens into events and lets finished sequences go.
std::vector<TokenEvent> Engine::State::digest(const BatchPlan& plan,
                                              std::span<const std::int32_t> drawn) {
  std::vector<TokenEvent> events;  // the one allocation of a decode step
  events.reserve(plan.entries.size());
  take_told(plan);
  for (std::size_t i = 0; i < plan.entries.size(); ++i) {
    if (plan.entries[i].sequence == nullptr) continue;
    Sequence& sequence = *plan.entries[i].sequence;
    if (drawn[i] < 0) events.push_back(failed(sequence));
    if (drawn[i] < 0 || !plan.entries[i].draws()) continue;
    TokenEvent event{.id = sequence.id, .token = drawn[i]};
    event.cached_tokens = sequence.cached_tokens;
    event.prompt_logprobs = std::exchange(sequence.prompt_logprobs, {});
    if (sequence.max_tokens == 0) {
      event.token = -1;
      event.finish = Finish::kLength;
      events.push_back(std::move(event));
      continue;
    }
    if (sequence.sampling.logprobs >= 0) event.logprobs = own->logprobs(static_cast<int>(i));
    const int made = static_cast<int>(sequence.tokens.size()) + 1 - sequence.prompt_tokens;
    const bool is_eos = std::find(eos.begin(), eos.end(), drawn[i]) != eos.end();
    if (is_eos && !sequence.sampling.ignore_eos) {
      event.finish = Finish::kStop;
    } else if (made >= sequence.max_tokens) {
      const bool all = made >= sequence.sampling.max_tokens;
      event.finish = all ? Finish::kLength : Finish::kContext;
    }
    events.push_back(std::move(event));
  }
  scheduler->apply(plan, drawn);
  for (const TokenEvent& event : events)
    if (event.finish != Finish::kNone) let_go(event.id);
  return events;
}

// The first error is the last word. Where a peer is to blame, its own reason is better.
Status Engine::State::die(Status why) {
  constexpr std::chrono::milliseconds kPatience{500};  // for ranks that are about to notice
  if (in_threads() && why.code() == Code::kPeerLost) {
    steps->report(0, UINT32_MAX, why);
    why = steps->root_cause(std::min(kPatience, options.deadline));
  }
  return dead = std::move(why).with("step");
}

Status Engine::State::launch(const BatchPlan& plan) {
  Flight& flight = flights[(oldest + static_cast<std::size_t>(own->in_flight())) % flights.size()];
  flight.plan = plan;
  flight.decodes = plan.decode_only();
  flight.ahead = own->in_flight() > 0;
  flight.begin = Clock::now();
  writer->use(own->input());
  writer->write(plan, caches->block_tokens());
  TENON_TRY(send());
  return own->launch();
}

// Waits for the oldest step on its way.
Result<std::vector<TokenEvent>> Engine::State::collect() {
  TENON_ASSIGN(const auto drawn, own->take());
  Flight& flight = flights[std::exchange(oldest, (oldest + 1) % flights.size())];
  const auto since = std::max(flight.begin, std::exchange(last_taken, Clock::now()));
  const std::chrono::duration<double> passed = last_taken - since;
  ++stats.steps;
  if (flight.decodes) stats.decode_seconds += passed.count();
  for (std::size_t i = 0; i < drawn.size(); ++i) {
    const BatchEntry& entry = flight.plan.entries[i];
    if (entry.sequence == nullptr) continue;
    if (flight.decodes && drawn[i] >= 0) ++stats.decode_tokens;
    if (flight.ahead && drawn[i] >= 0) ++stats.tokens_ahead;
    if (entry.first < entry.sequence->prompt_tokens) stats.prompt_tokens += entry.count;
  }
  std::vector<TokenEvent> events = digest(flight.plan, drawn);
  flight.plan.entries.clear();
  for (BatchEntry& each : flights[oldest].plan.entries) each.unread = 0;  // it is read now
  return events;
}

// Steps on their way have sequences that have all gone: to end them brings no event.
Status Engine::State::drain() {
  while (own->in_flight() > 0) TENON_TRY(collect().status());
  return Status::ok();
}

Result<std::vector<TokenEvent>> Engine::State::step() {
  std::vector<TokenEvent> events = drop_cancelled();
  const auto has_gone = [](const BatchEntry& entry) { return entry.sequence == nullptr; };
  if (own->in_flight() > 0 && std::ranges::all_of(flights[oldest].plan.entries, has_gone))
    TENON_TRY(drain());
  if (own->in_flight() == 0) {
    const BatchPlan& plan = scheduler->next();
    if (plan.entries.empty()) return events;
    TENON_TRY(launch(plan));
  }
  if (runs_ahead && own->in_flight() == 1) {
    const BatchPlan& ahead = scheduler->ahead(flights[oldest].plan);
    if (!ahead.entries.empty()) TENON_TRY(launch(ahead));
  }
  TENON_ASSIGN(std::vector<TokenEvent> made, collect());
  if (env().check_caches) TENON_TRY(caches->check(), "look at the caches");
  if (events.empty()) return made;
  std::ranges::move(made, std::back_inserter(events));
  return events;
}

Result<std::vector<TokenEvent>> Engine::step() {
  const auto lock = state_->step_lock();
  TENON_TRY(Status(state_->dead));
  auto events = guarded([this] { return state_->step(); });
  if (!events) return state_->die(events.status());
  return events;
}

Status Engine::use_arm(int arm) {
  const int last = static_cast<int>(state_->options.more_stages.size());
  TENON_TRY(check_number("arm", arm, 0, last));
  state_->writer->set_arm(arm);
  return Status::ok();
}

Status Engine::make_caches() {
  const auto lock = state_->step_lock();
  TENON_TRY(Status(state_->dead));
  if (!idle())
    return Status::error(Code::kInvalidArgument,
                         "make caches: requests are on their way; accepted is an idle engine");
  const Status made = guarded([this]() -> Status {
    TENON_TRY(state_->drain());
    state_->writer->use(state_->own->input());
    state_->writer->write(StepCommand::kMakeCaches);
    TENON_TRY(state_->send());
    return state_->own->run().status();
  });
  return made ? made : state_->die(made);
}

void Engine::time_next_step() { state_->own->time_next_step(); }

Result<std::vector<LaunchTimer::Entry>> Engine::launch_times() const {
  return state_->own->launch_times();
}

std::string Engine::whereabouts() const { return tell_places(state_->own->comm().signs()); }

StepCost Engine::step_cost(const StepLoad& load) const {
  return state_->own->model().step_cost(load);
}

bool Engine::idle() const { return state_->scheduler->idle(); }
const std::vector<std::int32_t>& Engine::eos_ids() const { return state_->eos; }

Status Engine::check_caches() const {
  TENON_TRY(state_->caches->check());
  const int leases = state_->caches->num_leases();
  if (!idle() || leases == 0) return Status::ok();
  return Status::error(Code::kInternal, "nothing runs, and " + std::to_string(leases) +
                                            " leases of caches are left");
}

EngineStats Engine::stats() const {
  EngineStats stats = state_->stats;
  stats.boundaries = state_->own->boundary_uses();
  stats.replayed_steps = state_->own->num_replays();
  stats.device_seconds = state_->own->device_seconds();
  stats.prefixes = state_->caches->prefix_stats();
  stats.kv_cache_use = state_->caches->block_use();
  stats.state_slots_used = state_->caches->num_leases();
  stats.preemptions = state_->scheduler->num_preemptions();
  stats.replayed_tokens = state_->scheduler->num_replayed_tokens();
  if (!state_->runs_ahead)
    if (const auto hash = state_->own->logits_fingerprint()) stats.logits_fingerprint = *hash;
  return stats;
}

}  // namespace tenon
