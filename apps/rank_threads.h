// Ranks as threads of a command: what `tenon env` and `tenon bench` ask a team that lives for one
// question. Not here: the ranks of a model (session.h), ranks that are processes (team.h).
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "tenon/core/guard.h"
#include "tenon/core/status.h"
#include "tenon/core/thread.h"

namespace tenon::apps {

// Of what the ranks of a team found: the first failure that is not the consequence of another's.
template <class T>
Status first_cause(const std::vector<Result<T>>& found) {
  for (const auto& each : found)
    if (!each && each.status().code() != Code::kPeerLost) return each.status();
  for (const auto& each : found) TENON_TRY(each);
  return Status::ok();
}

// Threads that begin when all of them are there, or never. Joined at the end.
struct RankThreads {
  enum Verdict { kNone, kBegin, kEnd };
  std::atomic<Verdict> verdict{kNone};
  std::vector<Thread> threads;

  ~RankThreads() { tell(kEnd); }
  void tell(Verdict now) {
    Verdict none = kNone;
    if (verdict.compare_exchange_strong(none, now)) verdict.notify_all();
  }
  bool may_begin() const {
    verdict.wait(kNone);
    return verdict == kBegin;
  }
};

// body(rank) on a thread for each of `size` ranks; what they found, in rank order, or
// first_cause().
template <class T>
Result<std::vector<T>> on_rank_threads(int size, const std::function<Result<T>(int rank)>& body) {
  std::vector<Result<T>> found(static_cast<std::size_t>(size),
                               Status::error(Code::kInternal, "the rank did not run"));
  Status started;
  {
    RankThreads ranks;
    ranks.threads.reserve(found.size());
    for (int rank = 0; rank < size && started; ++rank) {
      auto thread = start_thread("tenon rank " + std::to_string(rank), [&, rank] {
        if (!ranks.may_begin()) return;
        found[static_cast<std::size_t>(rank)] = guarded([&] { return body(rank); });
      });
      started = thread.status();
      if (thread) ranks.threads.push_back(*std::move(thread));
    }
    if (started) ranks.tell(RankThreads::kBegin);
  }  // joined
  TENON_TRY(started);
  TENON_TRY(first_cause(found));
  std::vector<T> all;
  all.reserve(found.size());
  for (auto& each : found) all.push_back(*std::move(each));
  return all;
}

}  // namespace tenon::apps
