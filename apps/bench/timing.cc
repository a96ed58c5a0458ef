#include "apps/bench/timing.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <span>

#include "tenon/comm/collectives.h"

namespace tenon::apps {
namespace {

constexpr int kGateElements = 8;          // one vector of 16 bytes
constexpr double kLongestRepeatUs = 2e4;  // of the calls of a repeat, where they may be fewer
constexpr int kTrialCalls = 3;

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
  TENON_ASSIGN(gate.mailbox_, comm.mailbox(bytes, "bench gate"));
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

Status Calls::enqueue_calls() {
  for (int call = 0; call < count_; ++call) TENON_TRY(work_(call));
  return Status::ok();
}

Status Calls::enqueue_timed() {
  TENON_TRY(gate_->align(*stream_));
  TENON_TRY(begin_->record(*stream_));
  TENON_TRY(enqueue_calls());
  return end_->record(*stream_);
}

Result<Graph> Calls::record(bool timed) {
  TENON_TRY(Graph::begin(*stream_));
  const Status recorded = timed ? enqueue_timed() : enqueue_calls();
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

Result<double> Calls::run() {
  if (!graph_) {
    TENON_TRY(enqueue_timed());
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
  return passed / count_;
}

namespace {

// The arms of one shape while they are timed.
class Race {
 public:
  Race(const BoundaryBench& options, Mode mode, Bench& bench, Communicator& comm, Gate& gate,
       Stream& stream)
      : options_(options),
        graph_(mode == Mode::kGraph),
        bench_(bench),
        comm_(comm),
        gate_(gate),
        stream_(stream) {}

  Status prepare(const std::vector<Arm>& arms, std::vector<std::string>& why);
  Status run();
  std::vector<Timing> results() const;

 private:
  struct Entry {
    std::optional<Calls> calls;
    int iterations = 0;
    std::vector<double> times;
  };

  Result<Calls> make_calls(std::size_t arm, int count, bool graph) {
    return Calls::make([this, arm](int call) { return bench_.enqueue(arm, call); }, count, graph,
                       gate_, stream_);
  }
  // All ranks end with a stream that has nothing to do.
  Status meet(const Status& mine, std::string_view label) {
    return comm_.agree(mine ? stream_.synchronize() : mine, label);
  }
  Result<int> choose_iterations(std::size_t arm);
  Status run_once(std::size_t arm);

  const BoundaryBench& options_;
  bool graph_;
  Bench& bench_;
  Communicator& comm_;
  Gate& gate_;
  Stream& stream_;
  std::vector<Entry> entries_;
};

// As many as are wanted, or as fit into the longest repeat. The same on all ranks.
Result<int> Race::choose_iterations(std::size_t arm) {
  if (!options_.adapt_iterations) return options_.iterations;
  auto trial = make_calls(arm, kTrialCalls, false);
  TENON_TRY(meet(trial.status(), "bench trial"));
  TENON_TRY(trial->run());
  TENON_ASSIGN(const double mine, trial->run());
  TENON_ASSIGN(const double us, gate_.slowest(mine));
  return std::clamp(static_cast<int>(kLongestRepeatUs / us), 4, options_.iterations);
}

Status Race::prepare(const std::vector<Arm>& arms, std::vector<std::string>& why) {
  entries_.resize(arms.size());
  for (std::size_t arm = 0; arm < arms.size(); ++arm) {
    if (!why[arm].empty()) continue;
    TENON_TRY(bench_.reset());
    TENON_ASSIGN(const int iterations, choose_iterations(arm));
    TENON_TRY(meet(Status::ok(), "bench record"));
    auto calls = make_calls(arm, iterations, graph_);
    const Status made = meet(calls.status(), "bench record");
    if (!made && arms[arm].chain == Chain::kVendor && comm_.health()) {
      why[arm] = std::string(made.message());  // the library's own limits are not an error
      continue;
    }
    TENON_TRY(made);
    entries_[arm].iterations = iterations;
    entries_[arm].calls.emplace(*std::move(calls));
    TENON_TRY(entries_[arm].calls->run());  // the first replay loads the graph
    TENON_TRY(meet(Status::ok(), "bench first replay"));
  }
  return Status::ok();
}

Status Race::run_once(std::size_t arm) {
  TENON_TRY(bench_.reset());
  for (int call = 0; call < options_.warm_up; ++call) TENON_TRY(bench_.enqueue(arm, call));
  TENON_TRY(bench_.flush());
  TENON_TRY(stream_.synchronize());
  TENON_TRY(gate_.slowest(0));
  TENON_ASSIGN(const double mine, entries_[arm].calls->run());
  TENON_ASSIGN(const double us, gate_.slowest(mine));
  entries_[arm].times.push_back(us);
  return Status::ok();
}

Status Race::run() {
  for (int repeat = 0; repeat < options_.repeats; ++repeat) {
    for (std::size_t arm = 0; arm < entries_.size(); ++arm)  // interleaved: drift meets all alike
      if (entries_[arm].calls) TENON_TRY(run_once(arm));
    TENON_TRY(comm_.health());
  }
  return Status::ok();
}

std::vector<Timing> Race::results() const {
  std::vector<Timing> timings(entries_.size());
  for (std::size_t arm = 0; arm < entries_.size(); ++arm) {
    const Entry& entry = entries_[arm];
    if (entry.times.empty()) continue;
    timings[arm] = {quantile(entry.times, 0.5), quantile(entry.times, 0.1),
                    quantile(entry.times, 0.9), entry.iterations};
  }
  return timings;
}

}  // namespace

Result<std::vector<Timing>> time_arms(const BoundaryBench& options, Mode mode, Bench& bench,
                                      const std::vector<Arm>& arms, Communicator& comm, Gate& gate,
                                      Stream& stream, std::vector<std::string>& why) {
  Race race(options, mode, bench, comm, gate, stream);
  TENON_TRY(race.prepare(arms, why));
  TENON_TRY(race.run());
  return race.results();
}

}  // namespace tenon::apps
