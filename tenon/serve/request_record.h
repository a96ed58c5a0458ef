// What a queue and a Reply share of one request. Private to the floor: callers see reply.h.
//
// Order of locks: the queue's mutex, then a record's. No callback runs under either.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "tenon/serve/reply.h"
#include "tenon/serve/request.h"
#include "tenon/serve/request_state.h"

namespace tenon::serve {

// Whoever can end a request on its reader's behalf. A Reply holds it weakly.
class Canceller {
 public:
  virtual ~Canceller() = default;
  virtual void cancel(RequestRecord& record) = 0;
};

class RequestRecord {
 public:
  // `prompt` are the ids of request.prompt, which is not looked at.
  RequestRecord(RequestNumber number, Request request, std::vector<std::int32_t> prompt,
                std::unique_ptr<TokenConstraint> constraint, std::weak_ptr<Canceller> canceller);

  RequestNumber number() const { return number_; }
  std::int64_t prompt_tokens() const { return prompt_tokens_; }
  const Request& request() const { return request_; }
  RequestState state() const;

  // ---- the queue's side ----
  // The ids, once: the engine keeps them from then on.
  std::vector<std::int32_t> take_prompt() { return std::move(prompt_); }
  std::unique_ptr<TokenConstraint> take_constraint() { return std::move(constraint_); }
  void start(Clock::time_point now);
  // What is told of the prompt, once: in front of the first token, or of the end.
  void put_prompt(std::vector<TokenLogprobs> logprobs);
  // One token and the text that it made certain. False when the reader is too far behind.
  bool put(std::int32_t token, const std::optional<TokenLogprobs>& logprobs, std::string_view text,
           Clock::time_point now);
  // The last text and the outcome, whose counts and times are filled in here. Exactly once; needs
  // no memory where `rest` is empty.
  void end(Outcome outcome, std::string_view rest, Clock::time_point now);
  // Calls on_ready if something came since the last call and the reader had taken all before. With
  // no lock held.
  void ring();
  bool cancel_wanted() const { return cancel_wanted_.load(std::memory_order_relaxed); }
  void want_cancel() { cancel_wanted_.store(true, std::memory_order_relaxed); }

  // ---- the reader's side ----
  ReplyPart take();
  ReplyPart wait(const std::chrono::milliseconds* budget);
  void cancel();
  void leave();  // no reader any more: cancels, and calls on_ready no more

 private:
  ReplyPart take_locked();
  bool something_locked() const;

  const RequestNumber number_;
  const Request request_;
  const std::int64_t prompt_tokens_;
  const std::weak_ptr<Canceller> canceller_;
  std::vector<std::int32_t> prompt_;
  std::unique_ptr<TokenConstraint> constraint_;
  std::atomic<bool> cancel_wanted_{false};

  mutable std::mutex mutex_;
  std::condition_variable came_;
  RequestState state_ = RequestState::kQueued;
  ReplyPart untaken_;
  std::int64_t num_tokens_ = 0;
  TimeMarks times_;
  bool outcome_taken_ = false, left_ = false, ring_wanted_ = false;
};

}  // namespace tenon::serve
