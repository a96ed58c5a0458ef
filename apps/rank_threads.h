// Ranks as threads of a command: what `tenon env` and `tenon bench` ask a team that lives for one
// question. Not here: the ranks of a model (session.h), ranks that are processes (team.h).
#pragma once

#include <functional>
#include <thread>
#include <vector>

#include "tenon/core/guard.h"
#include "tenon/core/status.h"

namespace tenon::apps {

// Of what the ranks of a team found: the first failure that is not the consequence of another's.
template <class T>
Status first_cause(const std::vector<Result<T>>& found) {
  for (const auto& each : found)
    if (!each && each.status().code() != Code::kPeerLost) return each.status();
  for (const auto& each : found) TENON_TRY(each);
  return Status::ok();
}

// body(rank) on a thread for each of `size` ranks; what they found, in rank order, or
// first_cause().
template <class T>
Result<std::vector<T>> on_rank_threads(int size, const std::function<Result<T>(int rank)>& body) {
  std::vector<Result<T>> found(static_cast<std::size_t>(size),
                               Status::error(Code::kInternal, "the rank did not run"));
  std::vector<std::thread> ranks;
  ranks.reserve(found.size());
  for (int rank = 0; rank < size; ++rank)
    ranks.emplace_back(
        [&, rank] { found[static_cast<std::size_t>(rank)] = guarded([&] { return body(rank); }); });
  for (std::thread& each : ranks) each.join();
  TENON_TRY(first_cause(found));
  std::vector<T> all;
  all.reserve(found.size());
  for (auto& each : found) all.push_back(*std::move(each));
  return all;
}

}  // namespace tenon::apps
