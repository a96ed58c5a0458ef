// Ranks are threads of this process: they make what a shape needs, check every arm against the
// oracle and time it, together. Rank 0 keeps what was found.
#include "apps/bench/boundary.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "apps/bench/baseline.h"
#include "apps/bench/report.h"
#include "apps/bench/results.h"
#include "apps/bench/tables.h"
#include "apps/bench/tune.h"
#include "apps/interrupt.h"
#include "apps/progress.h"
#include "apps/rank_threads.h"
#include "apps/table.h"
#include "tenon/boundary/tuned_json.h"
#include "tenon/comm/collectives/collectives.h"
#include "tenon/core/guard.h"

namespace tenon::apps {
namespace {

namespace fused = fused_allreduce_rmsnorm_quant;

constexpr std::size_t kSumChunkBytes = std::size_t{8} << 20;  // of the two-kernel arms' own mailbox

// Everything that the rank threads share. Rank 0 writes between two meetings.
struct Shared {
  Results results;
  Oracle oracle, timed_oracle;  // of Inputs::kCancelling, and of what is timed
  Progress progress{"bench boundary:"};
};

// About how long a shape takes, next to others.
double weight_of(Shape shape) { return (1 << 16) + 1.0 * shape.rows * shape.hidden; }

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
  Result<bool> goes_on(Shape shape, double share);
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
  double weight_ = 0, all_weight_ = 0;  // of the shapes that are done, and of all
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
  if (rank_ == 0) shared_.results.complete = false;
  TENON_TRY(open_vendor());
  TENON_ASSIGN(Stream stream, Stream::create(comm_->device()));
  stream_.emplace(std::move(stream));
  channels_.comm = comm_.get();
  TENON_ASSIGN(channels_.sum, comm_->make_channel(collectives::all_reduce_mailbox_bytes(
                                                      options_.tp, kSumChunkBytes),
                                                  "bench all-reduce"));
  TENON_ASSIGN(Gate gate, Gate::make(bootstrap_, *comm_, *stream_));
  gate_.emplace(std::move(gate));
  const Rates told{options_.link_gbs, options_.memory_gbs, 0};
  TENON_ASSIGN(const Rates rates, measure_rates(told, *comm_, *gate_, *stream_));
  if (rank_ == 0) {
    shared_.results.rates = rates;
    shared_.results.transport = comm_->transport();
    shared_.results.slowest_link_gbs = comm_->slowest_link_gbs();
  }
  for (const int hidden : options_.hidden)
    for (const int rows : options_.rows)
      all_weight_ += weight_of({rows, hidden}) * (options_.warm + options_.cold);
  const int most_rows = *std::max_element(options_.rows.begin(), options_.rows.end());
  for (const int hidden : options_.hidden) {
    const std::size_t bytes = fused::mailbox_bytes(
        {most_rows, hidden, options_.tp, is_host(comm_->device().target) ? 1 : comm_->max_blocks(),
         options_.spread_residual});
    TENON_ASSIGN(channels_.fused, comm_->make_channel(bytes, "bench"));
    for (const int rows : options_.rows) {
      const Shape shape{rows, hidden};
      const auto oracle = [&](Inputs inputs) {
        return make_oracle(shape, options_.dtype, inputs, options_.tp);
      };
      if (rank_ == 0) shared_.oracle = oracle(Inputs::kCancelling);
      if (rank_ == 0 && is_checked_twice()) shared_.timed_oracle = oracle(options_.inputs);
      TENON_TRY(comm_->agree(Status::ok(), "bench oracle"));
      for (const bool cold : {false, true}) {
        if (!(cold ? options_.cold : options_.warm)) continue;
        TENON_ASSIGN(const bool begins, goes_on(shape, 0));
        if (!begins) return Status::ok();
        TENON_TRY(run_shape(shape, cold));
        weight_ += weight_of(shape);
      }
    }
  }
  TENON_ASSIGN(const bool ended, goes_on({most_rows, options_.hidden.back()}, 0));
  if (rank_ == 0) shared_.results.complete = ended;  // a signal may have cut the last shape
  return Status::ok();
}

// Tells how far the run is, and asks whether a signal came. All ranks get the same answer.
Result<bool> Rank::goes_on(Shape shape, double share) {
  const int signal = rank_ == 0 ? interrupted_by() : 0;
  if (rank_ == 0 && signal == 0)
    shared_.progress.update(weight_ + share * weight_of(shape), all_weight_,
                            std::to_string(shape.rows) + " x " + std::to_string(shape.hidden));
  TENON_ASSIGN(const double stops, gate_->slowest(signal));
  return stops == 0;
}

// What the ranks agree on about an arm: that it equals the oracle on all of them, or who differs.
Status Rank::check(const Bench& bench, std::size_t arm, const std::string& difference, Row& row) {
  const Status mine =
      difference.empty() ? Status::ok() : Status::error(Code::kInternal, difference);
  const Status all = comm_->agree(mine, "bench check");
  TENON_TRY(comm_->health());
  ArmResult& found = row.arms[arm];
  if (found.equals == Equality::kNo) return Status::ok();  // with other inputs already
  const bool own_order = arms_[arm].chain == Chain::kVendor && options_.tp > 2;
  found.equals = all ? Equality::kYes : own_order ? Equality::kOwnOrder : Equality::kNo;
  if (found.equals == Equality::kNo) found.why_not = std::string(all.message());
  const Plan& plan = bench.plan(arm);
  found.variant = plan.variant_name;
  found.blocks = plan.launches.front().shape.blocks;
  found.threads = plan.launches.front().shape.threads;
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
  for (const bool bf16 : {false, true}) row.default_choice[bf16] = bench.default_choice(bf16);
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
  Watch watch{[&](double share) { return goes_on(shape, share); }};
  if (is_host(options_.target))  // whose calls of many rows take long
    watch.calls_between = std::clamp((1 << 24) / (shape.rows * shape.hidden), 1, 4096);
  TENON_ASSIGN(const std::vector<Timing> timings,
               time_arms(options_, row.mode, bench, arms_, *comm_, *gate_, *stream_, watch, why));
  for (std::size_t arm = 0; arm < arms_.size(); ++arm) {
    row.arms[arm].timing = timings[arm];
    if (row.arms[arm].why_not.empty()) row.arms[arm].why_not = why[arm];
  }
  const bool timed = std::any_of(timings.begin(), timings.end(),
                                 [](const Timing& each) { return each.iterations > 0; });
  const bool absent =
      std::none_of(why.begin(), why.end(), [](const std::string& each) { return each.empty(); });
  if (rank_ == 0 && (timed || absent)) shared_.results.rows.push_back(std::move(row));
  return comm_->agree(stream_->synchronize(), "bench shape");  // buffers end here, on all ranks
}

Status run_ranks(Shared& shared) {
  const int tp = shared.results.options.tp;
  const auto bootstraps = local_bootstrap(tp), vendor_bootstraps = local_bootstrap(tp);
  const auto ran = on_rank_threads<bool>(tp, [&](int rank) -> Result<bool> {
    const auto at = static_cast<std::size_t>(rank);
    TENON_TRY(Rank(shared, rank, bootstraps[at], vendor_bootstraps[at]).run());
    return true;
  });
  return ran ? Status::ok() : ran.status();
}

void print_table(const Results& results) {
  const BoundaryBench& options = results.options;
  std::printf("%s, %d ranks (%s), %s; %s inputs; links %s GB/s, memory %s GB/s, latency %s us\n",
              results.device.name.c_str(), options.tp, results.transport.c_str(),
              results.date.c_str(), name(options.inputs), fixed(results.rates.link_gbs, 1).c_str(),
              fixed(results.rates.memory_gbs, 1).c_str(),
              fixed(results.rates.latency_us, 2).c_str());
  if (!options.wide && !results.rows.empty()) {
    const Row& first = results.rows.front();
    std::printf("%s, L2 %s where no column says else; µs per call\n",
                std::string(name(first.mode)).c_str(), std::string(l2_of(first)).c_str());
  }
  const std::size_t columns = terminal_columns(STDOUT_FILENO);
  std::fputs(table_text(results, options.wide, columns).c_str(), stdout);
  for (const std::string& each : absences(results)) std::printf("not run: %s\n", each.c_str());
  if (columns > 0) std::fputs(("\n" + key_text()).c_str(), stdout);
}

// Prints first, and writes every file that can be written; the first that could not is the error.
// `tables`: what the file of --tune holds already.
Status write(const Results& results, const std::optional<Comparison>& found, TunedTables tables,
             ResultFiles& files) {
  const BoundaryBench& options = results.options;
  nlohmann::json all = json_of(results);
  if (found) all["check"] = json_of(*found, options.tolerance_percent);
  const std::string json = text_of(all);
  std::FILE* const people = options.json_to_stdout ? stderr : stdout;
  if (options.json_to_stdout) {
    std::fputs(json.c_str(), stdout);
  } else {
    print_table(results);
  }
  if (found) std::fputs(slower_text(*found, options.tolerance_percent).c_str(), people);
  files.save("--csv", csv_of(results));
  files.save("--json-file", json);
  files.save("--svg", svg(plot_of(results)));
  if (!options.sweep_variants) return files.saved();
  if (!results.complete) {
    std::fputs("no table of choices is made from a part of the shapes\n", stderr);
    return files.saved();
  }
  const std::vector<Tuning> tunings = tune(results);
  std::fputs(regrets_text(tunings, regret_of_defaults(results)).c_str(), people);
  TunedTables newer;
  for (const Tuning& each : tunings) newer.tables.push_back(each.table);
  tables.put(newer);
  files.save("--tune", text_of(tables));
  return files.saved();
}

// What was measured before a signal or a failure ended the run.
void say_incomplete(const Results& results) {
  const BoundaryBench& options = results.options;
  const std::size_t all = options.rows.size() * options.hidden.size() *
                          static_cast<std::size_t>(options.warm + options.cold);
  std::fprintf(stderr, "bench boundary: stopped with %zu of %zu rows of the table%s\n",
               results.rows.size(), all, results.rows.empty() ? "" : ", the last perhaps in part");
}

}  // namespace

Status run(const BoundaryBench& asked, int* exit_code) {
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
    TENON_TRY(check_comparable(baseline, results));
  }
  TENON_TRY(tuned_status());
  std::optional<Interruptible> interruptible;
  {
    std::vector<ResultFiles::Wanted> wanted = asked.files();
    wanted.push_back({"--tune", asked.tune_path});
    TENON_ASSIGN(ResultFiles files, ResultFiles::open(std::move(wanted)));
    TENON_ASSIGN(TunedTables tables, read_tables(asked.tune_path));
    interruptible.emplace();
    const Status ran = run_ranks(shared);
    results.complete = ran && results.complete;
    if (!results.complete) say_incomplete(results);
    const bool compares = !asked.baseline_path.empty() && results.complete;
    Result<Comparison> found = Comparison{};
    if (compares) found = compare(baseline, results, asked.tolerance_percent);
    std::optional<Comparison> shown;
    if (compares && found) shown = *found;
    Status written = Status::ok();
    if (results.complete || !results.rows.empty())
      written = write(results, shown, std::move(tables), files);
    TENON_TRY(ran);
    TENON_TRY(written);
    TENON_TRY(check_equal(results));
    if (results.complete) TENON_TRY(found);
    if (results.complete && !found->slower.empty()) *exit_code = 1;
  }
  std::fflush(stdout);
  end_if_interrupted();  // the files are closed
  return Status::ok();
}

}  // namespace tenon::apps
