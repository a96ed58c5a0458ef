// Answers whose making takes long: they are made on threads of their own, so that those of HTTP
// stay free for everybody else.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "apps/server/http.h"
#include "tenon/core/thread.h"

namespace tenon::server {

// Threads that work one task after the other, in order. They start when there is work for them.
class Workers {
 public:
  // At most `most_waiting` tasks wait beside those that run.
  Workers(int num_threads, std::size_t most_waiting);
  ~Workers();  // lets those that run end, and forgets those that wait
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  // Any thread, at once. The error says why there is no room, or no thread. What a task throws is a
  // line of the log.
  Status post(std::function<void()> task);

 private:
  void work();

  const std::size_t num_threads_, most_waiting_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> waiting_;
  std::size_t idle_ = 0;
  bool stops_ = false;
  std::vector<Thread> threads_;
};

// The exchange that `make` gives back on one of the workers, or what `refuse` gives back where
// there is no room (429) or `make` throws (500). Where the client leaves before its turn, nothing
// is made; where it leaves later, `is_wanted` says so. What both functions refer to outlives the
// workers.
using IsWanted = std::function<bool()>;
using MakeExchange = std::function<std::unique_ptr<HttpExchange>(const IsWanted& is_wanted)>;
using RefuseExchange = std::function<std::unique_ptr<HttpExchange>(int status, std::string why)>;
std::unique_ptr<HttpExchange> answer_later(Workers& workers, MakeExchange make,
                                           RefuseExchange refuse);

}  // namespace tenon::server
