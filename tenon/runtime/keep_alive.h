// Keeps followers that are processes from giving up while the leader has nothing to do: their wait
// for the next step has a deadline, so an idle step is sent when a quarter of it has passed.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>

#include "tenon/core/status.h"
#include "tenon/core/thread.h"

namespace tenon {

class KeepAlive {
 public:
  // `send_idle` is called with the channel locked.
  static Result<std::unique_ptr<KeepAlive>> start(std::chrono::milliseconds deadline,
                                                  std::function<void()> send_idle) {
    std::unique_ptr<KeepAlive> started(new KeepAlive(deadline, std::move(send_idle)));
    TENON_ASSIGN(started->thread_,
                 start_thread("tenon keepalive", [raw = started.get()] { raw->run(); }));
    return started;
  }
  ~KeepAlive() {
    {
      const std::scoped_lock lock(mutex_);
      stopped_ = true;
    }
    wake_.notify_all();
    thread_.join();
  }
  // Impl while the leader uses the channel.
  [[nodiscard]] std::unique_lock<std::mutex> step_lock() {
    std::unique_lock lock(mutex_);
    last_used_ = Clock::now();
    return lock;
  }

 private:
  using Clock = std::chrono::steady_clock;
  KeepAlive(std::chrono::milliseconds deadline, std::function<void()> send_idle)
      : interval_(std::max(deadline / 4, std::chrono::milliseconds(1))),
        send_idle_(std::move(send_idle)) {}
  void run() {
    std::unique_lock lock(mutex_);
    while (!stopped_) {
      wake_.wait_for(lock, interval_);
      if (stopped_ || Clock::now() - last_used_ < interval_) continue;
      send_idle_();
      last_used_ = Clock::now();
    }
  }
  const std::chrono::milliseconds interval_;
  const std::function<void()> send_idle_;
  std::mutex mutex_;
  std::condition_variable wake_;
  Clock::time_point last_used_ = Clock::now();
  bool stopped_ = false;
  Thread thread_;  // last: it uses the rest
};

}  // namespace tenon
