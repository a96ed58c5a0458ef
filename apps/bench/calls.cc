#include "apps/bench/calls.h"

#include <algorithm>
#include <cmath>
#include <span>

#include "tenon/comm/collectives/collectives.h"

namespace tenon::apps {
namespace {

constexpr int kGateElements = 8;  // one vector of 16 bytes

}  // namespace

double quantile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  const double at = share * static_cast<double>(values.size() - 1);
  return values[static_cast<std::size_t>(std::lround(at))];
}

Result<Gate> Gate::make(std::shared_ptr<Bootstrap> bootstrap, Communicator& comm, Stream& stream) {
  Gate gate;
  gate.bootstrap_ = std::move(bootstrap);
  gate.comm_ = &comm;
  const std::size_t bytes = collectives::all_reduce_mailbox_bytes(comm.size(), kGateElements * 2);
  TENON_ASSIGN(gate.mailbox_, comm.make_channel(bytes, "bench gate"));
  TENON_ASSIGN(gate.words_, Buffer::allocate(comm.device(), kGateElements * 2));
  TENON_TRY(stream.fill(gate.words_.data(), 0, gate.words_.bytes()));
  return gate;
}

Result<double> Gate::slowest(double mine) {
  std::vector<double> all(static_cast<std::size_t>(comm_->size()));
  TENON_TRY(bootstrap_->exchange(std::as_bytes(std::span(&mine, 1)),
                                 std::as_writable_bytes(std::span(all)), "bench gate",
                                 comm_->deadline()));
  return *std::max_element(all.begin(), all.end());
}

Status Gate::align(Stream& stream) {
  const TensorView words = view(words_.data(), DType::kBF16, stream.device(), {kGateElements});
  return collectives::all_reduce(mailbox_, PartialRows{words}, words, stream);
}

Status Calls::enqueue_calls(const Watch* watch) {
  for (called_ = 0; called_ < count_; ++called_) {
    if (watch != nullptr && called_ > 0 && called_ % watch->calls_between == 0) {
      TENON_ASSIGN(const bool goes_on, watch->goes_on(static_cast<double>(called_) / count_));
      if (!goes_on) return Status::ok();
    }
    TENON_TRY(work_(called_));
  }
  return Status::ok();
}

Status Calls::enqueue_timed(const Watch* watch) {
  TENON_TRY(gate_->align(*stream_));
  TENON_TRY(begin_->record(*stream_));
  TENON_TRY(enqueue_calls(watch));
  return end_->record(*stream_);
}

Result<Graph> Calls::record(bool timed) {
  TENON_TRY(Graph::begin(*stream_));
  const Status recorded = timed ? enqueue_timed(nullptr) : enqueue_calls(nullptr);
  auto graph = Graph::end(*stream_);
  TENON_TRY(recorded);
  return graph;
}

Result<Calls> Calls::make(std::function<Status(int call)> work, int count, bool graph, Gate& gate,
                          Stream& stream) {
  Calls calls(std::move(work), count, gate, stream);
  TENON_ASSIGN(Event begin, Event::create(stream.device()));
  TENON_ASSIGN(Event end, Event::create(stream.device()));
  calls.begin_.emplace(std::move(begin));
  calls.end_.emplace(std::move(end));
  if (!graph) return calls;
  // With the events inside, the host's way to the device is not timed. Not every driver does that.
  auto made = calls.record(true);
  calls.graph_is_timed_ = static_cast<bool>(made);
  if (!made) made = calls.record(false);
  TENON_TRY(made.status());
  calls.graph_.emplace(*std::move(made));
  return calls;
}

Result<double> Calls::run(const Watch* watch) {
  if (!graph_) {
    TENON_TRY(enqueue_timed(watch));
  } else if (graph_is_timed_) {
    TENON_TRY(graph_->replay(*stream_));
  } else {
    TENON_TRY(gate_->align(*stream_));
    TENON_TRY(begin_->record(*stream_));
    TENON_TRY(graph_->replay(*stream_));
    TENON_TRY(end_->record(*stream_));
  }
  TENON_TRY(stream_->synchronize());
  TENON_ASSIGN(const double passed, end_->us_since(*begin_));
  return called_ > 0 ? passed / called_ : 0;
}

}  // namespace tenon::apps
