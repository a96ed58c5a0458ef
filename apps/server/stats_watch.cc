#include "apps/server/stats_watch.h"

#include <utility>

#include "tenon/core/guard.h"

namespace tenon::server {

Result<std::unique_ptr<StatsWatch>> StatsWatch::start(serve::RequestQueue& queue,
                                                      std::chrono::milliseconds pause) {
  std::unique_ptr<StatsWatch> watch(new StatsWatch(queue, pause));
  TENON_ASSIGN(watch->thread_,
               start_thread("tenon stats", [watch = watch.get()] { watch->run(); }));
  return watch;
}

StatsWatch::~StatsWatch() {
  {
    const std::scoped_lock lock(mutex_);
    stops_ = true;
  }
  stop_wanted_.notify_all();
  thread_.join();
}

std::optional<EngineStats> StatsWatch::latest() const {
  const std::scoped_lock lock(mutex_);
  return latest_;
}

void StatsWatch::run() {
  std::int64_t ended = -1;  // requests, when the engine was asked last
  for (;;) {
    const serve::QueueCounts now = queue_.counts();
    const std::int64_t ends = now.finished + now.failed + now.cancelled;
    if (now.running > 0 || ends != ended) {
      ended = ends;
      auto stats = guarded([this] { return queue_.engine_stats(); });
      const std::scoped_lock lock(mutex_);
      if (stats) latest_ = *std::move(stats);
    }
    std::unique_lock lock(mutex_);
    if (stop_wanted_.wait_for(lock, pause_, [this] { return stops_; })) return;
  }
}

}  // namespace tenon::server
