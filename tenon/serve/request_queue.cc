#include "tenon/serve/request_queue.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "tenon/core/env.h"
#include "tenon/core/guard.h"
#include "tenon/core/thread.h"
#include "tenon/serve/request_record.h"
#include "tenon/serve/text_stream.h"
#include "tenon/text/utf8.h"

namespace tenon::serve {
namespace {

Status refuse(std::string why) { return Status::error(Code::kInvalidArgument, std::move(why)); }

// What can be said of a request without the model.
Status check(const Request& request) {
  for (const std::string& each : request.stops)
    if (each.empty() || !utf8_valid(each))
      return refuse("a stop string has " + std::to_string(each.size()) +
                    " bytes; accepted is valid UTF-8 of at least 1 byte");
  for (const std::int32_t id : request.stop_ids)
    if (id < 0) return refuse("stop id " + std::to_string(id) + "; accepted are 0 and more");
  if (request.max_untaken_tokens < 0)
    return refuse("max_untaken_tokens is " + std::to_string(request.max_untaken_tokens) +
                  "; accepted are 0 (no limit) and more");
  if (request.rule.thinking_budget && *request.rule.thinking_budget < 0)
    return refuse("thinking_budget is " + std::to_string(*request.rule.thinking_budget) +
                  "; accepted are 0 and more");
  if (request.rule.grammar && (request.sampling.ignore_eos || request.sampling.min_tokens > 0))
    return refuse(
        "ignore_eos or min_tokens is given beside a grammar, which says where an answer "
        "ends; accepted is either");
  return Status::ok();
}

FinishReason reason_of(Finish finish) {
  switch (finish) {
    case Finish::kStop: return FinishReason::kStop;
    case Finish::kLength: return FinishReason::kLength;
    case Finish::kContext: return FinishReason::kContext;
    case Finish::kCancelled: return FinishReason::kCancelled;
    case Finish::kFailed:
    case Finish::kNone: break;
  }
  return FinishReason::kFailed;
}

}  // namespace

std::string_view name(Admission admission) {
  switch (admission) {
    case Admission::kAccepted: return "accepted";
    case Admission::kInvalid: return "invalid";
    case Admission::kFull: return "full";
    case Admission::kClosed: return "closed";
    case Admission::kFailed: return "failed";
    case Admission::kNoMemory: return "no memory";
  }
  return "?";
}

class RequestQueue::Loop final : public Canceller,
                                 public std::enable_shared_from_this<RequestQueue::Loop> {
 public:
  Loop(LanguageModel& model, const QueueOptions& options) : model_(model), options_(options) {}

  // ---- any thread ----
  Submission submit(Request request);
  void cancel(RequestRecord& record) override;
  void close();
  bool wait_until_quiet(std::chrono::milliseconds budget);
  QueueCounts counts() const;
  Status health() const;
  void revive();
  std::chrono::milliseconds stalled_for() const;
  Result<EngineStats> ask_for_stats();
  void stop();

  // ---- the engine's thread ----
  void run();   // until stop()
  bool turn();  // true where there is more to do
  void wind_up();
  Result<EngineStats> stats() const;

 private:
  using Record = std::shared_ptr<RequestRecord>;
  struct Running {
    Record record;
    TextStream text;
    std::int64_t cached_tokens = 0;
  };
  using RunningMap = std::unordered_map<RequestId, Running>;
  struct StatsQuestion {
    std::optional<Result<EngineStats>> answer;
  };

  Submission try_submit(Request request);
  std::optional<Submission> refusal_locked() const;
  std::int64_t& count_of(RequestState state);
  void end_locked(RequestRecord& record, Outcome outcome, std::string_view rest);
  void end(RequestRecord& record, Outcome outcome, std::string_view rest = {});
  void end_queued(const Outcome& outcome);

  Status turn_or_fail();
  Status begin_queued(bool& refused);
  void drop_unwanted();
  void take_event(TokenEvent& event, Clock::time_point now);
  void let_go(RequestId id);
  RunningMap::iterator finish(RunningMap::iterator at, FinishReason reason, Status why = {});
  void answer_questions();
  void die(const Status& why);

  LanguageModel& model_;
  const QueueOptions options_;

  // The engine's thread alone. Every id that the engine knows is in one of the two.
  RunningMap running_;
  std::unordered_set<RequestId> leaving_;  // ended here, cancelled there
  Record starting_;                        // no longer queued, not yet in running_

  mutable std::mutex mutex_;
  std::condition_variable wake_;      // for the engine's thread
  std::condition_variable quiet_;     // nothing is queued or running
  std::condition_variable answered_;  // a question
  std::deque<Record> queued_;
  QueueCounts counts_;
  Clock::time_point progress_ = {};  // the last step's end, or when work came after there was none
  bool closed_ = false, stopped_ = false;
  Status dead_ = Status::ok();
  std::vector<StatsQuestion*> questions_;
};

// ---- any thread ----

std::optional<Submission> RequestQueue::Loop::refusal_locked() const {
  if (!dead_) return Submission{Admission::kFailed, dead_, {}};
  if (closed_)
    return Submission{Admission::kClosed,
                      Status::error(Code::kUnsupported, "the queue takes no more requests"),
                      {}};
  if (counts_.queued < options_.max_queued) return std::nullopt;
  return Submission{
      Admission::kFull,
      Status::error(Code::kUnsupported,
                    std::to_string(counts_.queued) + " requests wait for their turn, and " +
                        std::to_string(counts_.running) + " run; accepted are at most " +
                        std::to_string(options_.max_queued) + " that wait: ask again later"),
      {}};
}

Submission RequestQueue::Loop::try_submit(Request request) {
  const auto refused = [](Admission admission, const Status& why) {
    return Submission{admission, Status(why).with("submit"), {}};
  };
  const auto fault_of = [](const Status& why) {
    return why.code() == Code::kOutOfMemory ? Admission::kNoMemory : Admission::kInvalid;
  };
  if (const Status sound = check(request); !sound) return refused(Admission::kInvalid, sound);
  {  // before the work of encoding
    const std::scoped_lock lock(mutex_);
    if (auto refusal = refusal_locked()) return std::move(*refusal);
  }
  if (request.sampling.min_tokens > 0)
    request.sampling.hold_back.insert(request.sampling.hold_back.end(), request.stop_ids.begin(),
                                      request.stop_ids.end());
  auto prompt = model_.text().encode(std::exchange(request.prompt, {}));
  if (!prompt) return Submission{fault_of(prompt.status()), prompt.status(), {}};
  const Status fits = model_.check(*prompt, request.sampling);
  if (!fits) return refused(fault_of(fits), fits);
  auto constraint = make_constraint(request.rule, model_.marks());
  if (!constraint) return refused(fault_of(constraint.status()), constraint.status());
  const std::scoped_lock lock(mutex_);
  if (auto refusal = refusal_locked()) return std::move(*refusal);
  const RequestNumber number{static_cast<std::uint64_t>(counts_.accepted) + 1};
  auto record = std::make_shared<RequestRecord>(number, std::move(request), *std::move(prompt),
                                                *std::move(constraint), weak_from_this());
  queued_.push_back(record);
  if (counts_.queued + counts_.running == 0) progress_ = Clock::now();
  ++counts_.accepted;
  ++counts_.queued;
  wake_.notify_one();
  return Submission{Admission::kAccepted, Status::ok(), Reply(std::move(record))};
}

Submission RequestQueue::Loop::submit(Request request) {
  Submission made;
  const Status done = guarded([&] { made = try_submit(std::move(request)); });
  return done ? std::move(made) : Submission{Admission::kNoMemory, done, {}};
}

std::int64_t& RequestQueue::Loop::count_of(RequestState state) {
  switch (state) {
    case RequestState::kQueued: return counts_.queued;
    case RequestState::kRunning: return counts_.running;
    case RequestState::kFinished: return counts_.finished;
    case RequestState::kFailed: return counts_.failed;
    case RequestState::kCancelled: break;
  }
  return counts_.cancelled;
}

void RequestQueue::Loop::end_locked(RequestRecord& record, Outcome outcome, std::string_view rest) {
  const RequestState before = record.state(), after = state_of(outcome.reason);
  record.end(std::move(outcome), rest, Clock::now());
  --count_of(before);
  ++count_of(after);
  if (counts_.queued + counts_.running == 0) quiet_.notify_all();
}

void RequestQueue::Loop::end(RequestRecord& record, Outcome outcome, std::string_view rest) {
  {
    const std::scoped_lock lock(mutex_);
    end_locked(record, std::move(outcome), rest);
  }
  record.ring();
}

void RequestQueue::Loop::cancel(RequestRecord& record) {
  Record queued;
  {
    const std::scoped_lock lock(mutex_);
    const RequestState state = record.state();
    if (state == RequestState::kRunning) record.want_cancel();
    if (state != RequestState::kQueued) return;
    const auto at = std::find_if(queued_.begin(), queued_.end(),
                                 [&](const Record& each) { return each.get() == &record; });
    TENON_CHECK(at != queued_.end());
    queued = std::move(*at);
    queued_.erase(at);
    end_locked(record, Outcome{FinishReason::kCancelled}, {});
  }
  record.ring();
}

void RequestQueue::Loop::close() {
  const std::scoped_lock lock(mutex_);
  closed_ = true;
}

bool RequestQueue::Loop::wait_until_quiet(std::chrono::milliseconds budget) {
  std::unique_lock lock(mutex_);
  return quiet_.wait_for(lock, budget, [&] { return counts_.queued + counts_.running == 0; });
}

QueueCounts RequestQueue::Loop::counts() const {
  const std::scoped_lock lock(mutex_);
  return counts_;
}

Status RequestQueue::Loop::health() const {
  const std::scoped_lock lock(mutex_);
  return dead_;
}

void RequestQueue::Loop::revive() {
  std::unique_lock lock(mutex_);
  TENON_CHECK(!dead_);
  quiet_.wait(lock, [&] { return counts_.queued + counts_.running == 0; });  // they are failing now
  dead_ = Status::ok();
  ++counts_.revivals;
}

std::chrono::milliseconds RequestQueue::Loop::stalled_for() const {
  const std::scoped_lock lock(mutex_);
  if (counts_.queued + counts_.running == 0) return std::chrono::milliseconds(0);
  return std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - progress_);
}

Result<EngineStats> RequestQueue::Loop::ask_for_stats() {
  StatsQuestion question;
  std::unique_lock lock(mutex_);
  questions_.push_back(&question);
  wake_.notify_one();
  answered_.wait(lock, [&] { return question.answer.has_value(); });
  return *std::move(question.answer);
}

void RequestQueue::Loop::stop() {
  const std::scoped_lock lock(mutex_);
  closed_ = stopped_ = true;
  wake_.notify_one();
}

// ---- the engine's thread ----

void RequestQueue::Loop::run() {
  for (bool more = false;;) {
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return more || stopped_ || !queued_.empty() || !questions_.empty(); });
      if (stopped_) break;
    }
    more = turn();
  }
  wind_up();
}

bool RequestQueue::Loop::turn() {
  const Status done = guarded([this] { return turn_or_fail(); });
  if (!done) die(done);
  return health() && !(running_.empty() && model_.engine().idle());
}

Status RequestQueue::Loop::turn_or_fail() {
  answer_questions();
  TENON_TRY(health());
  drop_unwanted();
  bool refused = false;
  TENON_TRY(begin_queued(refused));
  // An engine that refuses may be dead; then its step says so.
  if (model_.engine().idle() && !refused) return Status::ok();
  TENON_ASSIGN(auto events, model_.engine().step());
  const auto now = Clock::now();
  {
    const std::scoped_lock lock(mutex_);
    progress_ = now;
  }
  for (TokenEvent& event : events) take_event(event, now);
  return Status::ok();
}

void RequestQueue::Loop::answer_questions() {
  std::vector<StatsQuestion*> asked;
  {
    const std::scoped_lock lock(mutex_);
    asked.swap(questions_);
  }
  if (asked.empty()) return;
  const Result<EngineStats> found = stats();
  const std::scoped_lock lock(mutex_);
  for (StatsQuestion* each : asked) {
    const Status copied = guarded([&] { each->answer.emplace(found); });
    if (!copied) each->answer.emplace(copied);
  }
  answered_.notify_all();
}

Result<EngineStats> RequestQueue::Loop::stats() const {
  TENON_TRY(health());
  return guarded([this]() -> Result<EngineStats> { return model_.engine().stats(); });
}

// Requests whose readers want no more.
void RequestQueue::Loop::drop_unwanted() {
  for (auto at = running_.begin(); at != running_.end();) {
    if (!at->second.record->cancel_wanted()) {
      ++at;
      continue;
    }
    let_go(at->first);
    at = finish(at, FinishReason::kCancelled);
  }
}

// Gives the engine as many as run together: what waits stays here, where it can be cancelled at
// once.
Status RequestQueue::Loop::begin_queued(bool& refused) {
  while (running_.size() < static_cast<std::size_t>(model_.max_batch())) {
    {
      const std::scoped_lock lock(mutex_);
      if (queued_.empty()) break;
      starting_ = std::move(queued_.front());
      queued_.pop_front();
      starting_->start(Clock::now());
      --counts_.queued;
      ++counts_.running;
    }
    const Request& request = starting_->request();
    TextStream text(model_.text().tokenizer(), request.stops, request.skip_special);
    const auto id = model_.engine().submit(starting_->take_prompt(), request.sampling,
                                           starting_->take_constraint());
    if (id) {
      running_.try_emplace(*id, Running{starting_, std::move(text), 0});
    } else {
      refused = true;
      end(*starting_, Outcome{FinishReason::kFailed, id.status()});
    }
    starting_ = nullptr;
  }
  return Status::ok();
}

// Takes a sequence from the engine that it would go on with; its next step tells us that it is
// gone.
void RequestQueue::Loop::let_go(RequestId id) {
  leaving_.insert(id);
  TENON_CHECK(model_.engine().cancel(id));
}

void RequestQueue::Loop::take_event(TokenEvent& event, Clock::time_point now) {
  const auto at = running_.find(event.id);
  if (at == running_.end()) {
    TENON_CHECK(event.finish == Finish::kCancelled && leaving_.erase(event.id) == 1);
    return;
  }
  auto& [record, text, cached_tokens] = at->second;
  if (!event.prompt_logprobs.empty()) record->put_prompt(std::move(event.prompt_logprobs));
  if (event.token < 0) {
    finish(at, reason_of(event.finish), event.why);
    return;
  }
  cached_tokens = event.cached_tokens;
  const auto& stop_ids = record->request().stop_ids;
  const bool stops = event.finish == Finish::kStop ||
                     std::find(stop_ids.begin(), stop_ids.end(), event.token) != stop_ids.end();
  const bool in_time =
      record->put(event.token, event.logprobs, stops ? std::string() : text.push(event.token), now);
  std::optional<FinishReason> reason;
  if (!text.stopped_by().empty()) {
    reason = FinishReason::kStopString;
  } else if (stops) {
    reason = FinishReason::kStop;
  } else if (event.finish != Finish::kNone) {
    reason = reason_of(event.finish);
  } else if (!in_time) {
    reason = FinishReason::kReaderBehind;
  }
  if (!reason) return record->ring();
  if (event.finish == Finish::kNone) let_go(event.id);
  finish(at, *reason);
}

// Ends a running request here; the engine has ended it or let it go. What was held back of the text
// is text after all, or completes a stop string.
RequestQueue::Loop::RunningMap::iterator RequestQueue::Loop::finish(RunningMap::iterator at,
                                                                    FinishReason reason,
                                                                    Status why) {
  auto& [record, text, cached_tokens] = at->second;
  const std::string rest = text.finish();
  const bool whole = state_of(reason) == RequestState::kFinished;
  Outcome outcome{reason, std::move(why)};
  outcome.cached_tokens = cached_tokens;
  if (whole && !text.stopped_by().empty()) {
    outcome.reason = FinishReason::kStopString;
    outcome.stop = text.stopped_by();
  }
  end(*record, std::move(outcome), rest);
  return running_.erase(at);
}

void RequestQueue::Loop::end_queued(const Outcome& outcome) {
  for (;;) {
    Record record;
    {
      const std::scoped_lock lock(mutex_);
      if (queued_.empty()) return;
      record = std::move(queued_.front());
      queued_.pop_front();
      end_locked(*record, outcome, {});
    }
    record->ring();
  }
}

// The engine can run nothing any more. Needs no memory.
void RequestQueue::Loop::die(const Status& why) {
  {
    const std::scoped_lock lock(mutex_);
    if (!dead_) return;
    dead_ = why;
  }
  const Outcome outcome{FinishReason::kFailed, why};
  end_queued(outcome);
  if (starting_ != nullptr) end(*std::exchange(starting_, nullptr), outcome);
  for (auto& [id, each] : running_) end(*each.record, outcome);
  running_.clear();
  leaving_.clear();
}

void RequestQueue::Loop::wind_up() {
  end_queued(Outcome{FinishReason::kStopped});
  const Status done = guarded([this]() -> Status {
    TENON_TRY(health());
    for (auto at = running_.begin(); at != running_.end();) {
      let_go(at->first);
      at = finish(at, FinishReason::kStopped);
    }
    if (!leaving_.empty()) {
      TENON_ASSIGN(auto events, model_.engine().step());  // it lets go of what was cancelled
      for (TokenEvent& event : events) take_event(event, Clock::now());
    }
    const Status books = model_.engine().check_caches();
    if (!books) log(LogLevel::kError, "the caches: " + books.to_string());
    return Status::ok();
  });
  if (!done) die(done);
  answer_questions();
}

// ---- the queue ----

RequestQueue::RequestQueue(std::shared_ptr<Loop> loop) : loop_(std::move(loop)) {}

Result<std::unique_ptr<RequestQueue>> RequestQueue::without_thread(LanguageModel& model,
                                                                   const QueueOptions& options) {
  TENON_CHECK(model.leads());
  if (options.max_queued < 1)
    return Status::error(
        Code::kInvalidArgument,
        "max_queued is " + std::to_string(options.max_queued) + "; accepted are 1 and more");
  return guarded([&]() -> Result<std::unique_ptr<RequestQueue>> {
    return std::unique_ptr<RequestQueue>(new RequestQueue(std::make_shared<Loop>(model, options)));
  });
}

Result<std::unique_ptr<RequestQueue>> RequestQueue::start(LanguageModel& model,
                                                          const QueueOptions& options) {
  TENON_ASSIGN(auto queue, without_thread(model, options));
  TENON_ASSIGN(queue->thread_, start_thread("tenon engine", [loop = queue->loop_.get()] {
                 set_log_rank(0);
                 loop->run();
               }));
  return queue;
}

RequestQueue::~RequestQueue() {
  loop_->stop();
  if (thread_.joinable()) {
    thread_.join();
  } else {
    loop_->wind_up();
  }
}

Submission RequestQueue::submit(Request request) { return loop_->submit(std::move(request)); }
void RequestQueue::close() { loop_->close(); }
QueueCounts RequestQueue::counts() const { return loop_->counts(); }
Status RequestQueue::health() const { return loop_->health(); }
void RequestQueue::revive() { loop_->revive(); }
std::chrono::milliseconds RequestQueue::stalled_for() const { return loop_->stalled_for(); }

bool RequestQueue::drain(std::chrono::milliseconds budget) {
  close();
  const auto until = Clock::now() + budget;
  if (!thread_.joinable())
    while (step() && Clock::now() < until) {
    }
  return loop_->wait_until_quiet(thread_.joinable() ? budget : std::chrono::milliseconds(0));
}

Result<EngineStats> RequestQueue::engine_stats() {
  return thread_.joinable() ? loop_->ask_for_stats() : loop_->stats();
}

bool RequestQueue::step() {
  TENON_CHECK(!thread_.joinable());
  return loop_->turn();
}

}  // namespace tenon::serve
