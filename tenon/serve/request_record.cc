#include "tenon/serve/request_record.h"

#include <utility>

#include "tenon/core/env.h"
#include "tenon/core/guard.h"

namespace tenon::serve {

RequestRecord::RequestRecord(RequestNumber number, Request request,
                             std::vector<std::int32_t> prompt,
                             std::unique_ptr<TokenConstraint> constraint,
                             std::weak_ptr<Canceller> canceller)
    : number_(number),
      request_(std::move(request)),
      prompt_tokens_(static_cast<std::int64_t>(prompt.size())),
      canceller_(std::move(canceller)),
      prompt_(std::move(prompt)),
      constraint_(std::move(constraint)) {
  times_.queued = Clock::now();
}

RequestState RequestRecord::state() const {
  const std::scoped_lock lock(mutex_);
  return state_;
}

void RequestRecord::start(Clock::time_point now) {
  const std::scoped_lock lock(mutex_);
  advance(state_, RequestState::kRunning);
  times_.started = now;
}

bool RequestRecord::something_locked() const { return !untaken_.empty(); }

void RequestRecord::put_prompt(std::vector<TokenLogprobs> logprobs) {
  const std::scoped_lock lock(mutex_);
  ring_wanted_ |= !something_locked();
  untaken_.prompt_logprobs = std::move(logprobs);
}

bool RequestRecord::put(std::int32_t token, const std::optional<TokenLogprobs>& logprobs,
                        std::string_view text, Clock::time_point now) {
  {
    const std::scoped_lock lock(mutex_);
    TENON_CHECK(state_ == RequestState::kRunning);
    ring_wanted_ |= !something_locked();
    untaken_.tokens.push_back(token);
    if (logprobs) untaken_.logprobs.push_back(*logprobs);
    untaken_.text += text;
    ++num_tokens_;
    if (!times_.first_token) times_.first_token = now;
    times_.last_token = now;
    const std::int64_t most = request_.max_untaken_tokens;
    if (most > 0 && static_cast<std::int64_t>(untaken_.tokens.size()) > most) return false;
  }
  came_.notify_all();
  return true;
}

void RequestRecord::end(Outcome outcome, std::string_view rest, Clock::time_point now) {
  {
    const std::scoped_lock lock(mutex_);
    untaken_.text += rest;  // first: it may find no memory
    advance(state_, state_of(outcome.reason));
    ring_wanted_ = true;
    times_.ended = now;
    outcome.prompt_tokens = prompt_tokens_;
    outcome.completion_tokens = num_tokens_;
    outcome.times = times_;
    untaken_.outcome.emplace(std::move(outcome));
  }
  came_.notify_all();
}

void RequestRecord::ring() {
  if (!request_.on_ready) return;
  {
    const std::scoped_lock lock(mutex_);
    if (!std::exchange(ring_wanted_, false) || left_) return;
  }
  const Status done = guarded([this] { request_.on_ready(); });
  if (!done) log_failure("on_ready", done);
}

ReplyPart RequestRecord::take_locked() {
  outcome_taken_ |= untaken_.outcome.has_value();
  return std::exchange(untaken_, {});
}

ReplyPart RequestRecord::take() {
  const std::scoped_lock lock(mutex_);
  return take_locked();
}

ReplyPart RequestRecord::wait(const std::chrono::milliseconds* budget) {
  std::unique_lock lock(mutex_);
  const auto ready = [this] { return something_locked() || outcome_taken_; };
  if (budget == nullptr) {
    came_.wait(lock, ready);
  } else {
    came_.wait_for(lock, *budget, ready);
  }
  return take_locked();
}

void RequestRecord::cancel() {
  if (const auto canceller = canceller_.lock()) canceller->cancel(*this);
}

void RequestRecord::leave() {
  {
    const std::scoped_lock lock(mutex_);
    left_ = true;
    if (is_end(state_)) return;
  }
  cancel();
}

}  // namespace tenon::serve
