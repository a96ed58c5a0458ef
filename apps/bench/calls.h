// Work that is timed: calls in one graph or one by one, all ranks released together. Not here: what
// a call is, and which calls take turns (timing.h).
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "tenon/comm/bootstrap/bootstrap.h"
#include "tenon/comm/communicator.h"
#include "tenon/device/runtime.h"

namespace tenon::apps {

// What long measurements ask every now and then, on all ranks at the same places: whether to go on.
struct Watch {
  // `share` of the work between 0 and 1 is done. Collective.
  std::function<Result<bool>(double share)> goes_on;
  int calls_between = 4096;
};

// The ranks at the edges of what is timed.
class Gate {
 public:
  static Result<Gate> make(std::shared_ptr<Bootstrap> bootstrap, Communicator& comm,
                           Stream& stream);
  // Host: the largest of the ranks' values, on every rank. Collective; a barrier as well.
  Result<double> slowest(double mine);
  // Enqueues a small all-reduce: what follows it starts at nearly the same moment on all ranks.
  Status align(Stream& stream);

 private:
  Gate() = default;
  std::shared_ptr<Bootstrap> bootstrap_;
  Communicator* comm_ = nullptr;
  Channel mailbox_;
  Buffer words_;
};

// Some work, enqueued `count` times between two events, directly or as a graph.
class Calls {
 public:
  // Records the graph, if one is wanted. Not collective, but allocates: no rank may be waiting in a
  // kernel meanwhile.
  static Result<Calls> make(std::function<Status(int call)> work, int count, bool graph, Gate& gate,
                            Stream& stream);
  // Microseconds per call on this rank. Collective. Calls one by one end early where the watch, if
  // there is one, says so; its shares are those of this run.
  Result<double> run(const Watch* watch = nullptr);
  // Calls of the last run: fewer than wanted where it ended early, perhaps none.
  int called() const { return called_; }
  int count() const { return count_; }

 private:
  Calls(std::function<Status(int call)> work, int count, Gate& gate, Stream& stream)
      : work_(std::move(work)), count_(count), gate_(&gate), stream_(&stream) {}
  Status enqueue_calls(const Watch* watch);
  Status enqueue_timed(const Watch* watch);
  Result<Graph> record(bool timed);

  std::function<Status(int call)> work_;
  int count_, called_ = 0;
  Gate* gate_;
  Stream* stream_;
  std::optional<Graph> graph_;
  bool graph_is_timed_ = false;  // the gate and the events are in the graph
  std::optional<Event> begin_, end_;
};

// The value below which `share` of the values lie. `values` is not empty.
double quantile(std::vector<double> values, double share);

}  // namespace tenon::apps
