// The reader's end of a request: text and tokens as they become known, then the outcome, once. Any
// thread may hold one; one thread at a time reads it.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tenon/serve/request.h"

namespace tenon::serve {

class RequestRecord;

// Counts the accepted requests of a queue, from 1.
enum class RequestNumber : std::uint64_t {};

// What has come since the last part was taken.
struct ReplyPart {
  std::string text = {};                     // valid UTF-8; all parts together are the answer
  std::vector<std::int32_t> tokens = {};     // may be ahead of the text, which holds back
  std::vector<TokenLogprobs> logprobs = {};  // one for each token, where sampling.logprobs says so
  // Of the prompt, where sampling.prompt_logprobs says so: all at once, not behind a first token.
  std::vector<TokenLogprobs> prompt_logprobs = {};
  std::optional<Outcome> outcome = {};  // in the last part, and only there
  bool empty() const {
    return tokens.empty() && text.empty() && prompt_logprobs.empty() && !outcome;
  }
};

// A whole answer.
struct Completion {
  std::string text = {};
  std::vector<std::int32_t> tokens = {};
  std::vector<TokenLogprobs> logprobs = {};
  std::vector<TokenLogprobs> prompt_logprobs = {};
  Outcome outcome = {};
};

// Parts wait here until they are taken, added up into one: a slow reader gets fewer and larger
// ones and holds up nobody. What they may hold is bounded by sampling.max_tokens and by
// Request::max_untaken_tokens. A Reply may outlive its queue.
class Reply {
 public:
  Reply() = default;  // of no request
  explicit Reply(std::shared_ptr<RequestRecord> record) : record_(std::move(record)) {}
  Reply(Reply&&) noexcept = default;
  Reply& operator=(Reply&& other) noexcept;
  ~Reply();  // cancels what has not ended

  explicit operator bool() const { return record_ != nullptr; }
  RequestNumber number() const;
  RequestState state() const;
  std::int64_t prompt_tokens() const;

  // What there is now, perhaps nothing. After the outcome was taken there is nothing more.
  ReplyPart take();
  // The same, after waiting until there is something, or nothing will ever come. Every request that
  // a queue has accepted ends, so this does: with its turn, cancel(), or the end of the queue.
  ReplyPart wait();
  // The same, for at most `budget`.
  ReplyPart wait_for(std::chrono::milliseconds budget);
  // Takes everything to the end.
  Completion complete();

  // Asks for the end, from any thread. A request that is still queued ends here; one that runs ends
  // before the engine's next step; one that has ended keeps its outcome.
  void cancel();

 private:
  std::shared_ptr<RequestRecord> record_;
};

}  // namespace tenon::serve
