// What the engine says of itself, asked from time to time and kept: an engine answers between two
// steps, and whoever wants the numbers may not be able to wait.
#pragma once

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>

#include "tenon/core/thread.h"
#include "tenon/serve/request_queue.h"

namespace tenon::server {

class StatsWatch {
 public:
  // Asks while there is work, and once after it. `queue` outlives this.
  static Result<std::unique_ptr<StatsWatch>> start(
      serve::RequestQueue& queue,
      std::chrono::milliseconds pause = std::chrono::milliseconds(1'000));
  ~StatsWatch();  // waits for the present step where it has just asked
  StatsWatch(const StatsWatch&) = delete;
  StatsWatch& operator=(const StatsWatch&) = delete;

  // The last answer; nothing before the first. Any thread, at once.
  std::optional<EngineStats> latest() const;

 private:
  StatsWatch(serve::RequestQueue& queue, std::chrono::milliseconds pause)
      : queue_(queue), pause_(pause) {}
  void run();

  serve::RequestQueue& queue_;
  const std::chrono::milliseconds pause_;
  mutable std::mutex mutex_;
  std::condition_variable stop_wanted_;
  bool stops_ = false;
  std::optional<EngineStats> latest_;
  Thread thread_;
};

}  // namespace tenon::server
