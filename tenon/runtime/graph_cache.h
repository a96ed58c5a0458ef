// Recorded steps. A decode step launches some hundred small kernels, whose launches cost more than
// what they do; of each shape it is recorded once and replayed from then on.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <utility>

#include "tenon/core/guard.h"
#include "tenon/device/runtime.h"
#include "tenon/layers/step.h"

namespace tenon {

class GraphCache {
 public:
  explicit GraphCache(bool enabled = false) : enabled_(enabled) {}

  // Calls `enqueue`, a Status() that launches on `stream` the same work for every step of `shape`,
  // with arguments that never change. A shape of decoding sequences runs as it is the first time,
  // is recorded the second time, and replayed without a call from then on. Other shapes always run
  // as they are, and so do all of them once the target has refused to record, which is logged.
  template <class Enqueue>
  Status run(const StepShape& shape, Stream& stream, Enqueue&& enqueue) {
    if (!enabled_ || !shape.decode) return enqueue();
    Entry& entry = entries_[shape];
    if (!entry.graph && entry.seen && begin(stream)) {
      const Status enqueued = guarded(enqueue);
      end(stream, enqueued, entry);  // the recording ends, whatever comes of it
      TENON_TRY(enqueued);
    }
    entry.seen = true;
    if (!entry.graph) return enqueue();
    ++num_replays_;
    return entry.graph->replay(stream);
  }

  std::int64_t num_replays() const { return num_replays_; }
  bool enabled() const { return enabled_; }

 private:
  struct Entry {
    bool seen = false;
    std::optional<Graph> graph;
  };
  bool begin(Stream& stream);
  void end(Stream& stream, const Status& enqueued, Entry& entry);
  void give_up(const Status& why);

  bool enabled_;
  std::int64_t num_replays_ = 0;
  std::map<StepShape, Entry> entries_;  // as many as StepLayout::padded() has decode shapes
};

}  // namespace tenon
