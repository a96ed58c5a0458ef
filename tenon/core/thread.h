// Threads of the library: a stack of their own size whatever the process's limit is, a name that
// top -H shows, and an error instead of an exception when the system has no more of them.
#pragma once

#include <pthread.h>

#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <utility>

#include "tenon/core/status.h"

namespace tenon {

// Of every thread that start_thread() starts: what a main thread usually has.
inline constexpr std::size_t kThreadStackBytes = std::size_t{8} << 20;

// A running thread, or none. Joined by the destructor: tell its work to end before.
class Thread {
 public:
  Thread() = default;
  Thread(Thread&& other) noexcept : running_(std::exchange(other.running_, std::nullopt)) {}
  Thread& operator=(Thread&& other) noexcept {  // joins what it held
    join();
    running_ = std::exchange(other.running_, std::nullopt);
    return *this;
  }
  ~Thread() { join(); }
  bool joinable() const { return running_.has_value(); }
  void join();    // at once where there is none
  void detach();  // it ends by itself, whenever that is

 private:
  friend Result<Thread> start_thread(const std::string& name, std::function<void()> work);
  explicit Thread(pthread_t running) : running_(running) {}
  std::optional<pthread_t> running_;
};

// Runs `work` on a new thread, which has the first 15 characters of `name` as its name when this
// returns and when the work begins. The error says why the system has none to give. An exception
// from `work` ends the thread and becomes a line of the log.
Result<Thread> start_thread(const std::string& name, std::function<void()> work);

}  // namespace tenon
