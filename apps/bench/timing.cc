#include "apps/bench/timing.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <span>

#include "tenon/comm/collectives/collectives.h"

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

namespace {

// The arms of one shape while they are timed.
class Race {
 public:
  Race(const BoundaryBench& options, Mode mode, Bench& bench, Communicator& comm, Gate& gate,
       Stream& stream, const Watch& watch)
      : options_(options),
        graph_(mode == Mode::kGraph),
        bench_(bench),
        comm_(comm),
        gate_(gate),
        stream_(stream),
        watch_(watch) {}

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
  // Asks the watch, `part` into the present turn. All ranks stop at the same place.
  Result<bool> goes_on(double part);
  Result<int> choose_iterations(std::size_t arm);
  Status warm_up(std::size_t arm);
  Status run_once(std::size_t arm, bool counts);

  const BoundaryBench& options_;
  bool graph_;
  Bench& bench_;
  Communicator& comm_;
  Gate& gate_;
  Stream& stream_;
  const Watch& watch_;
  std::vector<Entry> entries_;
  double turns_ = 0, turn_ = 0;  // of arms, each with its calls: all there are, and those done
  bool stopped_ = false;
};

Result<bool> Race::goes_on(double part) {
  TENON_ASSIGN(const bool answer, watch_.goes_on(turns_ > 0 ? (turn_ + part) / turns_ : 0));
  stopped_ = stopped_ || !answer;
  return answer;
}

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
  const auto able = std::count(why.begin(), why.end(), std::string());
  turns_ = static_cast<double>(able) * (1.0 + options_.repeats);
  for (std::size_t arm = 0; arm < arms.size() && !stopped_; ++arm) {
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
    TENON_TRY(run_once(arm, false));  // the first replay loads the graph
    TENON_TRY(meet(Status::ok(), "bench first replay"));
  }
  return Status::ok();
}

Status Race::warm_up(std::size_t arm) {
  for (int call = 0; call < options_.warm_up && !stopped_; ++call) {
    if (call > 0 && call % watch_.calls_between == 0) TENON_TRY(goes_on(0));
    TENON_TRY(bench_.enqueue(arm, call));
  }
  return Status::ok();
}

// A turn of an arm. One that does not count is kept only where it is the last.
Status Race::run_once(std::size_t arm, bool counts) {
  Entry& entry = entries_[arm];
  if (counts) {
    TENON_TRY(bench_.reset());
    TENON_TRY(warm_up(arm));
    TENON_TRY(bench_.flush());
  }
  TENON_TRY(stream_.synchronize());
  TENON_ASSIGN(const bool begins, goes_on(0));
  if (!begins) return Status::ok();
  const Watch within{[this](double share) { return goes_on(share); }, watch_.calls_between};
  TENON_ASSIGN(const double mine, entry.calls->run(&within));
  TENON_ASSIGN(const double us, gate_.slowest(mine));
  turn_ += 1;
  if (entry.calls->called() == 0 || !(counts || stopped_)) return Status::ok();
  if (entry.times.empty()) entry.iterations = entry.calls->called();
  entry.times.push_back(us);
  return Status::ok();
}

Status Race::run() {
  for (int repeat = 0; repeat < options_.repeats && !stopped_; ++repeat) {
    for (std::size_t arm = 0; arm < entries_.size() && !stopped_; ++arm)
      if (entries_[arm].calls) TENON_TRY(run_once(arm, true));  // in turns: drift meets all alike
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
                    quantile(entry.times, 0.9), entry.iterations,
                    static_cast<int>(entry.times.size())};
  }
  return timings;
}

}  // namespace

Result<std::vector<Timing>> time_arms(const BoundaryBench& options, Mode mode, Bench& bench,
                                      const std::vector<Arm>& arms, Communicator& comm, Gate& gate,
                                      Stream& stream, const Watch& watch,
                                      std::vector<std::string>& why) {
  Race race(options, mode, bench, comm, gate, stream, watch);
  TENON_TRY(race.prepare(arms, why));
  TENON_TRY(race.run());
  return race.results();
}

}  // namespace tenon::apps
