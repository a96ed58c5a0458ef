// Ranks are threads of this process: they make what a shape needs, check every arm against the
// oracle and time it, together. Rank 0 keeps what was found.
#include "apps/bench/boundary.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "apps/bench/baseline.h"
#include "apps/bench/results.h"
#include "apps/bench/tune.h"
#include "apps/rank_threads.h"
#include "tenon/comm/collectives.h"
#include "tenon/core/guard.h"

namespace tenon::apps {
namespace {

namespace fused = fused_allreduce_rmsnorm_quant;

constexpr std::size_t kSumChunkBytes = std::size_t{8} << 20;  // of the two-kernel arms' own mailbox

// Everything that the rank threads share. Rank 0 writes between two meetings.
struct Shared {
  Results results;
  Oracle oracle, timed_oracle;  // of Inputs::kCancelling, and of what is timed
  std::chrono::steady_clock::time_point start = std::chrono::steady_clock::now();
};

// One rank of the bench.
class Rank {
 public:
  Rank(Shared& shared, int rank, std::shared_ptr<Bootstrap> bootstrap,
       std::shared_ptr<Bootstrap> vendor_bootstrap)
      : shared_(shared),
        options_(shared.results.options),
        arms_(shared.results.arms),
        rank_(rank),
        bootstrap_(std::move(bootstrap)),
        vendor_bootstrap_(std::move(vendor_bootstrap)) {}

  Status run();

 private:
  Result<std::unique_ptr<Communicator>> open(std::shared_ptr<Bootstrap> bootstrap, bool vendor);
  Status open_vendor();
  Status run_all();
  Status run_shape(Shape shape, bool cold);
  Status check_arms(Bench& bench, const Oracle& oracle, Row& row, std::vector<std::string>& why);
  Status check(const Bench& bench, std::size_t arm, const std::string& difference, Row& row);
  void report_progress(Shape shape);
  bool is_checked_twice() const { return options_.inputs != Inputs::kCancelling; }

  Shared& shared_;
  const BoundaryBench& options_;
  const std::vector<Arm>& arms_;
  int rank_;
  std::shared_ptr<Bootstrap> bootstrap_, vendor_bootstrap_;
  std::unique_ptr<Communicator> comm_, vendor_;
  std::string why_no_vendor_;
  Channels channels_;
  std::optional<Stream> stream_;
  std::optional<Gate> gate_;
};

Result<std::unique_ptr<Communicator>> Rank::open(std::shared_ptr<Bootstrap> bootstrap,
                                                 bool vendor) {
  CommOptions options;
  options.rank = rank_;
  options.size = options_.tp;
  options.bootstrap = std::move(bootstrap);
  if (vendor) options.transport = "ccl";
  options.vendor_sum = vendor;
  TENON_ASSIGN(const Device device, nth_device(options_.target, rank_));
  return Communicator::create(options, device);
}

// Without the vendor's library its arm is missing, and says why.
Status Rank::open_vendor() {
  const bool wanted = std::any_of(arms_.begin(), arms_.end(),
                                  [](const Arm& arm) { return arm.chain == Chain::kVendor; });
  if (!wanted) return Status::ok();
  auto opened = open(vendor_bootstrap_, true);
  const Status found = comm_->agree(opened.status(), "vendor library");
  TENON_TRY(comm_->health());
  if (found) {
    vendor_ = *std::move(opened);
  } else {
    why_no_vendor_ = std::string(found.message());
  }
  channels_.vendor = vendor_.get();
  return Status::ok();
}

Status Rank::run() {
  TENON_ASSIGN(comm_, open(bootstrap_, false));
  Status done = guarded([this] { return run_all(); });
  if (!done) comm_->abort(done.message());  // nobody must wait for this rank any more
  return done;
}

Status Rank::run_all() {
  TENON_TRY(open_vendor());
  TENON_ASSIGN(Stream stream, Stream::create(comm_->device()));
  stream_.emplace(std::move(stream));
  channels_.comm = comm_.get();
  TENON_ASSIGN(channels_.sum,
               comm_->mailbox(collectives::all_reduce_mailbox_bytes(options_.tp, kSumChunkBytes),
                              "bench all-reduce"));
  TENON_ASSIGN(Gate gate, Gate::make(bootstrap_, *comm_, *stream_));
  gate_.emplace(std::move(gate));
  TENON_ASSIGN(const Rates rates, measure_rates(options_, *comm_, *gate_, *stream_));
  if (rank_ == 0) {
    shared_.results.rates = rates;
    shared_.results.transport = comm_->transport();
  }
  const int most_rows = *std::max_element(options_.rows.begin(), options_.rows.end());
  for (const int hidden : options_.hidden) {
    const std::size_t bytes = fused::mailbox_bytes(
        {most_rows, hidden, options_.tp, is_host(comm_->device().target) ? 1 : comm_->max_blocks(),
         options_.spread_residual});
    TENON_ASSIGN(channels_.fused, comm_->mailbox(bytes, "bench"));
    for (const int rows : options_.rows) {
      const Shape shape{rows, hidden};
      const auto oracle = [&](Inputs inputs) {
        return make_oracle(shape, options_.dtype, inputs, options_.tp);
      };
      if (rank_ == 0) shared_.oracle = oracle(Inputs::kCancelling);
      if (rank_ == 0 && is_checked_twice()) shared_.timed_oracle = oracle(options_.inputs);
      TENON_TRY(comm_->agree(Status::ok(), "bench oracle"));
      if (options_.warm) TENON_TRY(run_shape(shape, false));
      if (options_.cold) TENON_TRY(run_shape(shape, true));
      if (rank_ == 0) report_progress(shape);
    }
  }
  return Status::ok();
}

// What the ranks agree on about an arm: that it equals the oracle on all of them, or who differs.
Status Rank::check(const Bench& bench, std::size_t arm, const std::string& difference, Row& row) {
  const Status mine =
      difference.empty() ? Status::ok() : Status::error(Code::kInternal, difference);
  const Status all = comm_->agree(mine, "bench check");
  TENON_TRY(comm_->health());
  ArmResult& found = row.arms[arm];
  if (found.equals == "NO") return Status::ok();  // with other inputs already
  const bool own_order = arms_[arm].chain == Chain::kVendor && options_.tp > 2;
  found.equals = all ? "yes" : own_order ? "own order" : "NO";
  if (found.equals == "NO") found.why_not = std::string(all.message());
  const Plan& plan = bench.plan(arm);
  found.variant = plan.variant_name;
  found.blocks = plan.shape.blocks;
  found.threads = plan.shape.threads;
  return Status::ok();
}

// Runs every arm once against the oracle. `why` says of an arm why it does not run.
Status Rank::check_arms(Bench& bench, const Oracle& oracle, Row& row,
                        std::vector<std::string>& why) {
  for (std::size_t arm = 0; arm < arms_.size(); ++arm) {
    if (!why[arm].empty()) continue;
    const Status& able = bench.can_run(arm);
    const bool forced = arms_[arm].chain == Chain::kOneKernel && !options_.variant.empty();
    if (!able && forced) return able;
    const bool vendor = arms_[arm].chain == Chain::kVendor;
    if (!able) why[arm] = vendor ? why_no_vendor_ : std::string(able.message());
    if (!able) continue;
    const auto difference = bench.difference(arm, oracle);
    const Status ran = comm_->agree(difference.status(), "bench check");
    if (!ran && vendor && comm_->health()) {
      why[arm] = std::string(ran.message());  // the library's failures are not ours
      continue;
    }
    TENON_TRY(ran);
    TENON_TRY(check(bench, arm, *difference, row));
  }
  return Status::ok();
}

Status Rank::run_shape(Shape shape, bool cold) {
  auto made = Bench::make(options_, shape, cold, arms_, channels_, *stream_);
  TENON_TRY(comm_->agree(made.status(), "bench buffers"));
  Bench& bench = *made;
  Row row;
  row.shape = shape;
  row.cold = cold;
  row.mode = mode_of(options_, shape.rows);
  row.copies = bench.copies();
  row.checked_rows = static_cast<int>(shared_.oracle.rows.size());
  row.fp8 = bench.traffic(false);
  row.both = bench.traffic(true);
  row.arms.resize(arms_.size());
  std::vector<std::string> why(arms_.size());
  TENON_TRY(check_arms(bench, shared_.oracle, row, why));
  if (is_checked_twice()) {
    TENON_TRY(comm_->agree(bench.fill_addends(options_.inputs), "bench inputs"));
    TENON_TRY(check_arms(bench, shared_.timed_oracle, row, why));
  }
  TENON_ASSIGN(const std::vector<Timing> timings,
               time_arms(options_, row.mode, bench, arms_, *comm_, *gate_, *stream_, why));
  for (std::size_t arm = 0; arm < arms_.size(); ++arm) {
    row.arms[arm].timing = timings[arm];
    if (row.arms[arm].why_not.empty()) row.arms[arm].why_not = why[arm];
  }
  if (rank_ == 0) shared_.results.rows.push_back(std::move(row));
  return comm_->agree(stream_->synchronize(), "bench shape");  // buffers end here, on all ranks
}

void Rank::report_progress(Shape shape) {
  const bool screen = isatty(STDERR_FILENO) != 0;
  if (!screen && shape.rows != options_.rows.back()) return;  // a line per width is enough
  const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - shared_.start;
  std::fprintf(stderr, "%sbench boundary: %d x %d done after %.1f s%s", screen ? "\r" : "",
               shape.rows, shape.hidden, passed.count(), screen ? "   " : "\n");
}

Status run_ranks(Shared& shared) {
  const int tp = shared.results.options.tp;
  const auto bootstraps = local_bootstrap(tp), vendor_bootstraps = local_bootstrap(tp);
  const auto ran = on_rank_threads<bool>(tp, [&](int rank) -> Result<bool> {
    const auto at = static_cast<std::size_t>(rank);
    TENON_TRY(Rank(shared, rank, bootstraps[at], vendor_bootstraps[at]).run());
    return true;
  });
  if (isatty(STDERR_FILENO) != 0) std::fprintf(stderr, "\r%60s\r", "");
  return ran ? Status::ok() : ran.status();
}

Status write(const Results& results) {
  const BoundaryBench& options = results.options;
  const Table table = table_of(results);
  const std::string json = json_of(results).dump(2) + "\n";
  if (options.json_to_stdout) {
    std::fputs(json.c_str(), stdout);
  } else {
    std::printf(
        "%s, %d ranks (%s), %s; %s inputs; links %s GB/s, memory %s GB/s, latency %s us\n%s",
        results.device.name.c_str(), options.tp, results.transport.c_str(), results.date.c_str(),
        name(options.inputs), fixed(results.rates.link_gbs, 1).c_str(),
        fixed(results.rates.memory_gbs, 1).c_str(), fixed(results.rates.latency_us, 2).c_str(),
        table.text().c_str());
    for (const std::string& each : absences(results)) std::printf("not run: %s\n", each.c_str());
  }
  if (!options.csv_path.empty()) TENON_TRY(write_file(options.csv_path, table.csv()));
  if (!options.json_path.empty()) TENON_TRY(write_file(options.json_path, json));
  if (!options.svg_path.empty()) TENON_TRY(write_file(options.svg_path, svg(plot_of(results))));
  if (options.tune_path.empty()) return Status::ok();
  const Tuning tuning = tune(results);
  std::fputs(regret(tuning).c_str(), options.json_to_stdout ? stderr : stdout);
  return write_file(options.tune_path, tuned_lines(results, tuning));
}

}  // namespace

Status run(const BoundaryBench& asked) {
  Shared shared;
  Results& results = shared.results;
  results.options = asked;
  TENON_TRY(complete(results.options));
  TENON_ASSIGN(results.arms, chosen_arms(results.options));
  TENON_ASSIGN(const Device device, nth_device(results.options.target, 0));
  TENON_ASSIGN(results.device, properties(device));
  results.date = date_now();
  results.command = own_command();
  nlohmann::json baseline;
  if (!asked.baseline_path.empty()) {
    TENON_ASSIGN(baseline, read_baseline(asked.baseline_path, results.device.name));
  }
  TENON_TRY(run_ranks(shared));
  TENON_TRY(write(results));
  TENON_TRY(check_equal(results));
  if (asked.baseline_path.empty()) return Status::ok();
  return check_against(baseline, results, asked.tolerance_percent);
}

}  // namespace tenon::apps
