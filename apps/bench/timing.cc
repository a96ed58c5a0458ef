#include "apps/bench/timing.h"

#include <algorithm>

namespace tenon::apps {
namespace {

constexpr double kLongestRepeatUs = 2e4;  // of the calls of a repeat, where they may be fewer
constexpr int kTrialCalls = 3;

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
