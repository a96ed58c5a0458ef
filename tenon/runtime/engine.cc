// Leader and followers. The leader decides, sends each step's bytes and runs rank 0 on the caller's
// thread; followers run the same bytes, as threads of this process or as processes of their own.
#include "tenon/runtime/engine.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>

#include "tenon/comm/bootstrap.h"
#include "tenon/runtime/rank.h"

namespace tenon {
namespace {

using Clock = std::chrono::steady_clock;

// How a step's bytes reach ranks that are threads of this process. The leader may write the next
// step when it has finished this one: by then every follower has given its part of it, and so has
// read the bytes. Waiting has no deadline here: an idle leader is no failure, and a dead one is us.
class ThreadSteps {
 public:
  explicit ThreadSteps(std::size_t bytes) : bytes_(bytes) {}
  void send(std::span<const std::byte> input) {
    std::memcpy(bytes_.data(), input.data(), input.size());
    number_.fetch_add(1, std::memory_order_release);
    number_.notify_all();
  }
  // Copies step `number` (from 1) once it is there.
  void receive(std::uint32_t number, std::span<std::byte> out) {
    constexpr int kSpins = 2000;  // a step of a small model is about this far away; then park
    for (int spin = 0; spin < kSpins && number_.load(std::memory_order_acquire) < number; ++spin)
      std::this_thread::yield();
    for (std::uint32_t seen; (seen = number_.load(std::memory_order_acquire)) < number;)
      number_.wait(seen, std::memory_order_acquire);
    std::memcpy(out.data(), bytes_.data(), out.size());
  }

 private:
  std::vector<std::byte> bytes_;
  std::atomic<std::uint32_t> number_{0};
};

// The failure that explains the others: one that is not itself "a peer is gone".
Status root_cause(const std::vector<Status>& statuses) {
  const Status* found = nullptr;
  for (const Status& each : statuses)
    if (!each && (found == nullptr || found->code() == Code::kPeerLost)) found = &each;
  return found == nullptr ? Status::ok() : *found;
}

Status check(const EngineOptions& options) {
  if (options.tp < 1 || options.tp > kMaxRanks)
    return Status::error(
        Code::kInvalidArgument,
        "tp is " + std::to_string(options.tp) + "; accepted are 1 to " + std::to_string(kMaxRanks));
  Scheduler::Limits limits{options.max_batch, options.max_tokens_per_step, options.max_context};
  return Scheduler::check(limits);
}

ModelOptions model_options(const EngineOptions& options) {
  ModelOptions out;
  out.max_tokens_per_step = options.max_tokens_per_step;
  out.max_sequences = options.max_batch;
  out.max_context = options.max_context;
  out.force_stage = options.force_stage;
  out.max_stage = options.max_stage;
  out.force_variant = options.force_variant;
  out.progress = options.progress;
  return out;
}

}  // namespace

std::string_view name(Finish finish) {
  switch (finish) {
    case Finish::kNone: return "none";
    case Finish::kStop: return "stop";
    case Finish::kLength: return "length";
    case Finish::kCancelled: return "cancelled";
  }
  return "?";
}

struct Engine::State {
  EngineOptions options;
  ModelFactory make_model;
  std::vector<std::shared_ptr<Bootstrap>> bootstraps;  // of the ranks in this process
  std::unique_ptr<Rank> own;                           // rank 0, or this process's
  std::vector<std::thread> threads;                    // ranks 1 … tp − 1
  std::vector<Status> statuses;                        // of those threads and of rank 0
  std::unique_ptr<ThreadSteps> steps;
  std::optional<CachePool> caches;
  std::optional<Scheduler> scheduler;
  std::optional<StepWriter> writer;
  std::vector<std::int32_t> eos;
  EngineStats stats;
  std::uint64_t next_id = 1;
  Status dead = Status::ok();

  bool in_threads() const { return options.bootstrap == nullptr; }
  Status open_in_threads();
  Status open_as_process();
  void open_leader();
  Status open_rank(int rank, std::unique_ptr<Rank>* opened);
  void follow_in_thread(int rank);
  Status send();
  Status check_prompt(const std::vector<std::int32_t>& prompt) const;
  std::vector<TokenEvent> digest(const BatchPlan& plan, std::span<const std::int32_t> drawn);
  std::vector<TokenEvent> drop_cancelled();
  Status die(Status why);
  void stop();
};

// Opens one rank; afterwards either all ranks are open or all know why not.
Status Engine::State::open_rank(int rank, std::unique_ptr<Rank>* opened) {
  auto& bootstrap = bootstraps[in_threads() ? static_cast<std::size_t>(rank) : 0];
  auto result = Rank::open(options, rank, bootstrap, make_model);
  const Status mine = result.status();
  if (!mine) bootstrap->abort("could not open: " + std::string(mine.message()));
  if (!mine) return mine;
  *opened = *std::move(result);
  return agree(*bootstrap, mine, "open the engine", options.deadline);
}

void Engine::State::follow_in_thread(int rank) {
  Status& status = statuses[static_cast<std::size_t>(rank)];
  std::unique_ptr<Rank> held;
  status = open_rank(rank, &held);
  if (!status) return;
  std::vector<std::byte> input(held->layout().bytes());
  for (std::uint32_t number = 1;; ++number) {
    steps->receive(number, input);
    const StepCommand command = StepReader::command(input);
    if (command == StepCommand::kStop) return;
    if (command == StepCommand::kIdle || !status) continue;  // dead ranks await the stop
    status = held->run(input).status();
  }
}

Status Engine::State::open_in_threads() {
  bootstraps = local_bootstrap(options.tp);
  statuses.resize(static_cast<std::size_t>(options.tp));
  const StepLayout layout(options.max_tokens_per_step, options.max_batch,
                          (options.max_context + 63) / 64);
  steps = std::make_unique<ThreadSteps>(layout.bytes());
  for (int rank = 1; rank < options.tp; ++rank)
    threads.emplace_back([this, rank] { follow_in_thread(rank); });
  statuses[0] = open_rank(0, &own);
  if (statuses[0]) return Status::ok();
  for (std::thread& each : threads) each.join();
  threads.clear();
  return root_cause(statuses);
}

Status Engine::State::open_as_process() {
  bootstraps = {options.bootstrap};
  if (options.bootstrap->size() != options.tp)
    return Status::error(Code::kInvalidArgument,
                         "tp is " + std::to_string(options.tp) + " but the launcher started " +
                             std::to_string(options.bootstrap->size()) + " processes");
  return open_rank(options.bootstrap->rank(), &own);
}

void Engine::State::open_leader() {
  const int blocks = (options.max_context + 63) / 64 * options.max_batch;
  caches.emplace(blocks, 64, options.max_batch);
  scheduler.emplace(
      Scheduler::Limits{options.max_batch, options.max_tokens_per_step, options.max_context},
      *caches);
  writer.emplace(own->layout());
  eos = own->model().eos_ids();
  stats.weight_bytes = own->model().weight_bytes();
  stats.transport = own->comm().transport();
}

Engine::Engine(std::unique_ptr<State> state) : state_(std::move(state)) {}

Result<std::unique_ptr<Engine>> Engine::open(const EngineOptions& options,
                                             ModelFactory make_model) {
  TENON_TRY(check(options), "open engine");
  auto state = std::make_unique<State>();
  state->options = options;
  state->make_model = std::move(make_model);
  if (!state->make_model)
    state->make_model = [raw = state.get()](Communicator& comm, Stream& stream) {
      ModelOptions wanted = model_options(raw->options);
      if (comm.rank() != 0) wanted.progress = {};
      return open_model(raw->options.model, wanted, comm, stream);
    };
  const Status opened = state->in_threads() ? state->open_in_threads() : state->open_as_process();
  TENON_TRY(Status(opened), "open engine");
  std::unique_ptr<Engine> engine(new Engine(std::move(state)));
  if (engine->leads()) engine->state_->open_leader();
  return engine;
}

Engine::~Engine() {
  if (state_ != nullptr && leads()) state_->stop();
}

bool Engine::leads() const { return state_->own->comm().rank() == 0; }

// Followers are waiting for a step: the last one they get says stop.
void Engine::State::stop() {
  if (!writer) return;
  writer->write(StepCommand::kStop);
  if (!in_threads()) {
    // A follower that is gone has been reported already; nothing is left to do about it.
    if (dead) static_cast<void>(own->comm().broadcast(writer->bytes()));
    return;
  }
  steps->send(writer->bytes());
  for (std::thread& each : threads) each.join();
  threads.clear();
}

Status Engine::State::send() {
  if (!in_threads()) return own->comm().broadcast(writer->bytes());
  steps->send(writer->bytes());
  return Status::ok();
}

Status Engine::follow() {
  TENON_CHECK(!leads() && !state_->in_threads());
  Rank& rank = *state_->own;
  std::vector<std::byte> input(rank.layout().bytes());
  for (;;) {
    TENON_TRY(rank.comm().broadcast(input), "await the leader's next step");
    const StepCommand command = StepReader::command(input);
    if (command == StepCommand::kStop) return Status::ok();
    if (command == StepCommand::kRun) TENON_TRY(rank.run(input));
  }
}

Status Engine::State::check_prompt(const std::vector<std::int32_t>& prompt) const {
  const int vocab = own->model().vocab_size();
  for (const std::int32_t id : prompt)
    if (id < 0 || id >= vocab)
      return Status::error(Code::kInvalidArgument, "the prompt has token id " + std::to_string(id) +
                                                       "; accepted are 0 to " +
                                                       std::to_string(vocab - 1));
  return Status::ok();
}

Result<RequestId> Engine::submit(std::vector<std::int32_t> prompt, const SamplingParams& sampling) {
  TENON_TRY(Status(state_->dead));
  TENON_TRY(state_->check_prompt(prompt), "submit");
  const RequestId id{state_->next_id};
  TENON_TRY(state_->scheduler->add(id, std::move(prompt), sampling), "submit");
  ++state_->next_id;
  return id;
}

Status Engine::cancel(RequestId id) {
  if (state_->scheduler->cancel(id)) return Status::ok();
  return Status::error(Code::kInvalidArgument, "cancel: there is no request " +
                                                   std::to_string(static_cast<std::uint64_t>(id)) +
                                                   " on its way");
}

std::vector<TokenEvent> Engine::State::drop_cancelled() {
  std::vector<TokenEvent> events;
  for (const RequestId id : scheduler->cancelled()) {
    events.push_back({id, -1, Finish::kCancelled});
    scheduler->remove(id);
  }
  return events;
}

// Turns drawn tokens into events and lets finished sequences go.
std::vector<TokenEvent> Engine::State::digest(const BatchPlan& plan,
                                              std::span<const std::int32_t> drawn) {
  std::vector<bool> draws;
  for (const BatchEntry& entry : plan.entries) draws.push_back(entry.draws());
  scheduler->apply(plan, {drawn.begin(), drawn.end()});
  std::vector<TokenEvent> events;
  for (std::size_t i = 0; i < plan.entries.size(); ++i) {
    if (!draws[i]) continue;
    const Sequence& sequence = *plan.entries[i].sequence;
    TokenEvent event{sequence.id, drawn[i], Finish::kNone};
    const int made = static_cast<int>(sequence.tokens.size()) - sequence.prompt_tokens;
    const bool is_eos = std::find(eos.begin(), eos.end(), drawn[i]) != eos.end();
    if (is_eos && !sequence.sampling.ignore_eos) {
      event.finish = Finish::kStop;
    } else if (made >= sequence.sampling.max_tokens) {
      event.finish = Finish::kLength;
    }
    events.push_back(event);
  }
  for (const TokenEvent& event : events)
    if (event.finish != Finish::kNone) scheduler->remove(event.id);
  return events;
}

// The first error is the last word. Threads end now, so that their own reasons can be heard.
Status Engine::State::die(Status why) {
  if (in_threads()) {
    dead = why;
    stop();
    statuses[0] = why;
    why = root_cause(statuses);
  }
  return dead = std::move(why).with("step");
}

Result<std::vector<TokenEvent>> Engine::step() {
  State& state = *state_;
  TENON_TRY(Status(state.dead));
  std::vector<TokenEvent> events = state.drop_cancelled();
  const BatchPlan plan = state.scheduler->next();
  if (plan.entries.empty()) return events;
  state.writer->write(plan, state.caches->block_tokens());
  const auto begin = Clock::now();
  if (const Status sent = state.send(); !sent) return state.die(sent);
  const auto drawn = state.own->run(state.writer->bytes());
  if (!drawn) return state.die(drawn.status());
  const std::chrono::duration<double> passed = Clock::now() - begin;
  ++state.stats.steps;
  if (plan.decode_only()) {
    state.stats.decode_tokens += static_cast<std::int64_t>(plan.entries.size());
    state.stats.decode_seconds += passed.count();
  }
  for (std::size_t i = 0; i < plan.entries.size(); ++i) {
    const BatchEntry& entry = plan.entries[i];
    if (entry.first < entry.sequence->prompt_tokens) state.stats.prompt_tokens += entry.count;
    if (entry.draws() && (*drawn)[i] < 0)
      return state.die(Status::error(
          Code::kInternal, "the logits of request " +
                               std::to_string(static_cast<std::uint64_t>(entry.sequence->id)) +
                               " hold no number: nothing can be drawn"));
  }
  for (const TokenEvent& each : state.digest(plan, *drawn)) events.push_back(each);
  return events;
}

bool Engine::idle() const { return state_->scheduler->idle(); }
const std::vector<std::int32_t>& Engine::eos_ids() const { return state_->eos; }

EngineStats Engine::stats() const {
  EngineStats stats = state_->stats;
  stats.boundaries = state_->own->model().boundary_uses();
  if (const auto hash = state_->own->logits_fingerprint()) stats.logits_fingerprint = *hash;
  return stats;
}

}  // namespace tenon
