// tenon bench ops: the ops of a decoder layer, each by itself, many calls in a row over weights
// that no cache holds. docs/measure.md says what is timed and how.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>

#include "apps/bench/engine_bench.h"
#include "apps/bench/op_cases.h"
#include "apps/bench/shapes.h"
#include "apps/checkpoint.h"
#include "apps/interrupt.h"
#include "apps/options.h"
#include "apps/progress.h"
#include "apps/version.h"

namespace tenon::apps {
namespace {

struct Options : ReportOptions {
  std::string model = default_model(), target = "cpu";
  int tp = 1, repeats = 0;
  std::string rows;  // as parse_numbers() reads them
  std::string only;  // in the names of parts; empty: all
};

constexpr double kTurnUs = 3000;                   // as long as a turn's calls should take
constexpr int kLeastCalls = 16, kMostCalls = 512;  // of a turn
constexpr int kTrial = 4;                          // calls that say how many

std::vector<Column> columns() {
  return {{"part", "part"},        {"shape", "n x k"},
          {"rows", "rows"},        {"variant", "variant"},
          {"us", "us", 2},         {"p10", "p10", 2},
          {"p90", "p90", 2},       {"mbytes", "MB", 2},
          {"gbs", "GB/s", 0},      {"percent_of_copy", "% of copy", 0},
          {"tflops", "TFLOP/s", 1}};
}

// What all measurements share: a team of one, for its clock.
struct Clock {
  std::shared_ptr<Bootstrap> bootstrap;
  std::unique_ptr<Communicator> comm;
  std::unique_ptr<Stream> stream;
  std::unique_ptr<Gate> gate;
  Rates rates;
};

Result<Clock> open_clock(Device device) {
  Clock clock;
  clock.bootstrap = local_bootstrap(1).front();
  CommOptions options;
  options.bootstrap = clock.bootstrap;
  TENON_ASSIGN(clock.comm, Communicator::create(options, device));
  TENON_ASSIGN(Stream stream, Stream::create(device));
  clock.stream = std::make_unique<Stream>(std::move(stream));
  TENON_ASSIGN(Gate gate, Gate::make(clock.bootstrap, *clock.comm, *clock.stream));
  clock.gate = std::make_unique<Gate>(std::move(gate));
  TENON_ASSIGN(clock.rates, measure_rates({}, *clock.comm, *clock.gate, *clock.stream));
  return clock;
}

// Microseconds a call, by turn. The copies take turns.
Result<std::vector<double>> time_calls(const OpPart& part, const OpCall& call, int repeats,
                                       Clock& clock) {
  const auto work = [&](int number) { return call.run(number % part.copies); };
  const bool graph = !is_host(clock.stream->device().target);
  TENON_ASSIGN(Calls trial, Calls::make(work, kTrial, false, *clock.gate, *clock.stream));
  TENON_TRY(trial.run());
  TENON_ASSIGN(const double guess, trial.run());
  const int count = static_cast<int>(
      std::clamp(kTurnUs / std::max(guess, 0.5), double{kLeastCalls}, double{kMostCalls}));
  TENON_ASSIGN(Calls calls, Calls::make(work, count, graph, *clock.gate, *clock.stream));
  TENON_TRY(calls.run());  // the first replay loads the graph
  std::vector<double> times;
  for (int turn = 0; turn < repeats && interrupted_by() == 0; ++turn) {
    TENON_ASSIGN(const double us, calls.run());
    times.push_back(us);
  }
  return times;
}

void add_row(Report& report, const std::string& name, const OpPart& part, const OpCall& call,
             int rows, const std::vector<double>& times, const Rates& rates) {
  const double us = quantile(times, 0.5);
  const double gbs = call.traffic.memory_bytes / us * 1e-3;
  report.rows.push_back({{"part", name},
                         {"op", part.op},
                         {"shape", part.shape},
                         {"rows", rows},
                         {"variant", call.variant},
                         {"us", us},
                         {"p10", quantile(times, 0.1)},
                         {"p90", quantile(times, 0.9)},
                         {"mbytes", call.traffic.memory_bytes * 1e-6},
                         {"gbs", gbs},
                         {"percent_of_copy", 100 * gbs / rates.memory_gbs},
                         {"tflops", call.traffic.flops / us * 1e-6},
                         {"copies", part.copies},
                         {"turns", times.size()}});
}

Result<OpCall> call_of(const OpPart& part, int rows) {
  if (rows <= part.most_rows) return part.at(rows);
  return Status::error(Code::kUnsupported, "at most " + std::to_string(part.most_rows) +
                                               " rows are timed: " + part.why_most_rows);
}

void leave_out(Report& report, const std::string& name, int rows, const std::string& why) {
  report.notes.push_back("not timed: " + name + ", " + std::to_string(rows) +
                         (rows == 1 ? " row: " : " rows: ") + why);
}

Status check_only(const std::string& only, const std::vector<OpMaker>& makers) {
  std::vector<std::string> names;
  for (const OpMaker& each : makers) {
    if (each.name.find(only) != std::string::npos) return Status::ok();
    names.push_back("\"" + each.name + "\"");
  }
  return Status::error(
      Code::kInvalidArgument,
      "bench ops: --only is \"" + only + "\"; accepted are pieces of " + listed(names, "and"));
}

Status measure(const Options& options, const std::vector<int>& rows, Report& report) {
  TENON_ASSIGN(const qwen3_5::Config config, config_of(options.model));
  TENON_ASSIGN(const qwen3_5::Share share, qwen3_5::share(config, config.quantized, 0, options.tp));
  TENON_ASSIGN(const Device device, nth_device(*target_named(options.target), 0));
  TENON_ASSIGN(const PlanContext where, plan_context(device));
  const auto makers = op_makers(config, share, where, rows.back());
  TENON_TRY(check_only(options.only, makers));
  TENON_ASSIGN(Clock clock, open_clock(device));
  Progress progress("bench ops:");
  double done = 0;
  const double all = static_cast<double>(makers.size() * rows.size());
  for (const OpMaker& maker : makers) {
    if (interrupted_by() != 0) break;
    if (!options.only.empty() && maker.name.find(options.only) == std::string::npos) {
      done += static_cast<double>(rows.size());
      continue;
    }
    TENON_ASSIGN(const OpPart part, maker.make(*clock.stream));
    for (const int count : rows) {
      progress.update(done, all, maker.name);
      done += 1;
      if (interrupted_by() != 0) continue;
      const auto call = call_of(part, count);
      if (!call && call.status().code() == Code::kUnsupported) {
        leave_out(report, maker.name, count, std::string(call.status().message()));
        continue;
      }
      TENON_TRY(call.status());
      TENON_ASSIGN(const auto times, time_calls(part, *call, options.repeats, clock));
      if (!times.empty()) add_row(report, maker.name, part, *call, count, times, clock.rates);
    }
    TENON_TRY(clock.stream->synchronize());
  }
  const std::string name = model_name(options.model);
  report.about = {{"model", name},
                  {"device", where.properties.name},
                  {"target", options.target},
                  {"ranks", options.tp},
                  {"date", date_now()},
                  {"command", own_command()},
                  {"version", version_name()},
                  {"memory_gbs", clock.rates.memory_gbs}};
  report.heading = name + ", ops of one of " + std::to_string(options.tp) +
                   (options.tp == 1 ? " rank, " : " ranks, ") + where.properties.name + ", " +
                   date_now().substr(0, 10) +
                   "; a copy in memory: " + std::to_string(std::lround(clock.rates.memory_gbs)) +
                   " GB/s";
  return Status::ok();
}

Plot plot_of(const Report& report) {
  Plot plot;
  plot.title = report.heading;
  plot.x_label = "rows";
  plot.y_label = "us";
  Panel panel;
  for (const auto& row : report.rows) {
    const std::string part = row.at("part");
    if (panel.lines.empty() || panel.lines.back().name != part)
      panel.lines.push_back({part, static_cast<int>(panel.lines.size()), false, {}});
    panel.lines.back().points.push_back({row.at("rows"), row.at("us")});
  }
  plot.panels.push_back(std::move(panel));
  return plot;
}

Status run(Options options) {
  const bool host = is_host(*target_named(options.target));
  if (options.rows.empty()) options.rows = host ? "1,4" : "1,16,64";
  if (options.repeats == 0) options.repeats = host ? 3 : 7;
  TENON_ASSIGN(const std::vector<int> rows, parse_numbers("--rows", options.rows));
  TENON_TRY(check_checkpoint(options.model, LoadFormat::kDummy));
  TENON_TRY(check_team(options.model, options.tp));
  return make_report(options, [&](Report& report) -> Status {
    report.columns = columns();
    TENON_TRY(measure(options, rows, report));
    report.plot = plot_of(report);
    return Status::ok();
  });
}

}  // namespace

Command add_bench_ops(CLI::App& bench) {
  auto options = std::make_shared<Options>();
  CLI::App* app = bench.add_subcommand(
      "ops", "products, experts and delta net of a decoder layer, each by itself");
  app->add_option("--model", options->model, "a checkpoint's directory; its config.json is enough")
      ->type_name("DIR")
      ->default_str(kDefaultModel);
  app->add_option("--tp", options->tp, "ranks; the first one's share is timed")
      ->capture_default_str()
      ->check(whole_number(1, kMaxRanks));
  app->add_option("--target,--device", options->target, "target of tenon env")
      ->capture_default_str()
      ->check(CLI::IsMember(target_names()));
  app->add_option("--rows", options->rows,
                  "tokens of a call, as 1,16,64 or 1..64; by default 1,16,64 on devices, else 1,4");
  app->add_option("--only", options->only, "only parts with this in their name");
  app->add_option("--repeats", options->repeats, "turns of each; 7 on devices, else 3")
      ->check(whole_number(1, kMaxCount));
  add_report_options(*app, *options, "Options");
  app->footer(
      "Bytes are those that a call cannot do without, beside the bandwidth of a copy in the same "
      "run.\n\n  tenon bench ops --model checkpoints/configs/Qwen3.5-27B-FP8 --target cuda --tp 2");
  return {app, [options] { return run(*options); }};
}

}  // namespace tenon::apps
