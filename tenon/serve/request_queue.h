// Many callers, one engine: requests from any thread, answers through their replies. One thread
// steps the engine while there is work and sleeps when there is none. Not here: what a request is
// (request.h), how its reader reads (reply.h), connections.
//
//   callers, any thread              the engine's thread
//   submit ── queued ──────────────> running ── Engine::step ──> text, tokens, outcome
//   Reply::cancel ── queued: ends here; running: a mark that is seen before the next step
//   Reply::take <── what has come since the last take
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>

#include "tenon/core/status.h"
#include "tenon/core/thread.h"
#include "tenon/serve/language_model.h"
#include "tenon/serve/reply.h"
#include "tenon/serve/request.h"

namespace tenon::serve {

struct QueueOptions {
  int max_queued = 1024;  // requests that wait for their turn, at least 1
};

// Whether a request was taken, for callers that answer by kind.
enum class Admission : std::uint8_t {
  kAccepted,
  kInvalid,  // it can never run, whenever it is asked
  kFull,     // max_queued requests wait: later it may be taken
  kClosed,   // the queue takes no more
  kFailed,   // the engine is dead
  kNoMemory,
};
std::string_view name(Admission admission);

struct Submission {
  Admission admission = Admission::kFailed;
  Status why = Status::ok();  // where it was not accepted
  Reply reply = {};           // where it was
  explicit operator bool() const { return admission == Admission::kAccepted; }
};

// A consistent view of all accepted requests: accepted is the sum of the five states.
struct QueueCounts {
  std::int64_t accepted = 0;
  std::int64_t queued = 0, running = 0, finished = 0, failed = 0, cancelled = 0;
  std::int64_t revivals = 0;  // of the queue, each with another engine; no requests
};

// Every function may be called from any thread, but for step(). Every accepted request ends exactly
// once, whatever happens: with its answer, by its reader, by the failure of the engine, at the
// latest when the queue is destroyed.
class RequestQueue {
 public:
  // Over a model that leads and outlives the queue; nobody else uses its engine meanwhile. Starts
  // the thread that steps.
  static Result<std::unique_ptr<RequestQueue>> start(LanguageModel& model,
                                                     const QueueOptions& options = {});
  // The same without a thread: the owner calls step().
  static Result<std::unique_ptr<RequestQueue>> without_thread(LanguageModel& model,
                                                              const QueueOptions& options = {});
  // Ends everything with kStopped and waits for the engine's present step. Nothing else may be
  // called from then on, but replies live on.
  ~RequestQueue();
  RequestQueue(const RequestQueue&) = delete;
  RequestQueue& operator=(const RequestQueue&) = delete;

  // The prompt is encoded on the caller's thread.
  Submission submit(Request request);

  // Takes no more requests from now on; those that were accepted go on.
  void close();
  // close(), then waits until nothing is queued or running. False where `budget` ended before.
  bool drain(std::chrono::milliseconds budget);

  QueueCounts counts() const;
  // Why the engine is dead, or ok. A failure while idle is known from the next request on.
  Status health() const;
  // After LanguageModel::reopen(): takes requests again, for the new engine. Only where health() is
  // an error; from then on and until here the queue leaves the engine alone, so that it may be
  // closed. What was accepted before has failed.
  void revive();
  // Since when there has been work without the end of a step; 0 where there is no work. Waits for
  // no step: what tells whether the engine makes progress.
  std::chrono::milliseconds stalled_for() const;
  // Asked between two steps. The error of a dead engine.
  Result<EngineStats> engine_stats();

  // Cancels, begins and steps once. True where there is more to do. Only for the one thread that
  // owns a queue without a thread.
  bool step();

 private:
  class Loop;
  explicit RequestQueue(std::shared_ptr<Loop> loop);
  std::shared_ptr<Loop> loop_;
  Thread thread_;  // uses loop_
};

}  // namespace tenon::serve
