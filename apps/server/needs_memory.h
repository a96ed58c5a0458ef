// Where a thread could not go on without memory. Asio and its coroutines lose what they were at
// when there is none: nobody would be told, and a client would wait for ever. There the program's
// handler of new (main.cc) ends the process, with one sentence, instead of throwing. A server that
// ends is started again; one that hangs is not.
#pragma once

#include <utility>

#include "tenon/core/guard.h"

namespace tenon::server {

class NeedsMemory {
 public:
  // Until it goes, on this thread. `does` false: within, for what can go on without.
  explicit NeedsMemory(bool does) : before_(std::exchange(now_, does)) {}
  ~NeedsMemory() { now_ = before_; }
  NeedsMemory(const NeedsMemory&) = delete;
  NeedsMemory& operator=(const NeedsMemory&) = delete;
  static bool now() { return now_; }

 private:
  static inline thread_local bool now_ = false;
  const bool before_;
};

// For what a handler does: what it throws is the end of its answer alone.
template <class Work>
Status call_handler(Work&& work) {
  const NeedsMemory needed(false);
  return guarded([&] { work(); });
}

}  // namespace tenon::server
