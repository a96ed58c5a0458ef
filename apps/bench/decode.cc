// tenon bench decode: steps of an engine in which every sequence decodes at a given length, by
// stage policy, beside the least time that their bytes need. docs/measure.md says what is timed and
// how.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>

#include "apps/bench/engine_bench.h"
#include "apps/bench/shapes.h"
#include "apps/options.h"
#include "apps/progress.h"
#include "tenon/core/clock.h"

namespace tenon::apps {
namespace {

// Steps of a turn that are not timed. The first is unlike the others, as its tokens come from the
// host; in the first turn of an arm the second one is recorded, and the third replayed first.
constexpr int kWarmUp = 4;

struct Options : EngineBench {
  std::string sequences;  // as parse_sequences() reads them
  int context = 0, steps = 0;
};

std::vector<Column> columns() {
  return {{"sequences", "sequences"},
          {"stages", "stages"},
          {"step_ms", "step, ms", 3},
          {"p10_ms", "p10", 3},
          {"p90_ms", "p90", 3},
          {"device_ms", "on device", 3},
          {"tokens_per_s", "tokens/s", 1},
          {"floor_ms", "floor, ms", 3},
          {"percent_of_floor", "% of floor", 1},
          {"ratio", "x first", 3}};
}

// `sequences` sequences at options.context tokens, from caches that are the same each time.
Result<Turn> decode(const BenchedEngine& bench, const Options& options, int sequences) {
  Engine& engine = bench.engine();
  TENON_TRY(engine.make_caches());
  for (int i = 0; i < sequences; ++i)
    TENON_TRY(engine.submit_computed(bench.prompt(i, options.context),
                                     bench.sampling(i, kWarmUp + options.steps)));
  Turn turn;
  for (int step = 0; step < kWarmUp; ++step) TENON_TRY(bench.step(&turn.tokens));
  const auto begin = std::chrono::steady_clock::now();  // a step may be on its way already
  const double device_before = engine.stats().device_seconds;
  for (int step = 0; step < options.steps; ++step) TENON_TRY(bench.step(&turn.tokens));
  turn.seconds = seconds_since(begin);
  turn.device_seconds = engine.stats().device_seconds - device_before;
  if (engine.idle()) return turn;
  return Status::error(Code::kInternal, "bench decode: sequences are left after their last step");
}

// Milliseconds: the bytes of a step in the middle of a turn over the bandwidth of a copy.
double floor_ms(const BenchedEngine& bench, const Options& options, int sequences) {
  const StepCost cost =
      bench.engine().step_cost({.tokens = sequences,
                                .sequences = sequences,
                                .context = options.context + kWarmUp + options.steps / 2});
  return (cost.weight_bytes + cost.cache_bytes) / bench.rates().memory_gbs * 1e-6;
}

void add_rows(Report& report, const BenchedEngine& bench, const Options& options, int sequences,
              const std::vector<std::vector<Turn>>& turns) {
  const double floor = floor_ms(bench, options, sequences);
  double first = 0;
  for (std::size_t arm = 0; arm < turns.size(); ++arm) {
    if (turns[arm].empty()) continue;
    const Spread wall = spread_of(turns[arm], &Turn::seconds, options.steps);
    const Spread device = spread_of(turns[arm], &Turn::device_seconds, options.steps);
    if (first == 0) first = wall.median;
    report.rows.push_back({{"sequences", sequences},
                           {"context", options.context},
                           {"stages", options.stages[arm]},
                           {"step_ms", wall.median},
                           {"p10_ms", wall.p10},
                           {"p90_ms", wall.p90},
                           {"device_ms", device.median},
                           {"tokens_per_s", sequences / wall.median * 1e3},
                           {"floor_ms", floor},
                           {"percent_of_floor", 100 * floor / wall.median},
                           {"ratio", wall.median / first},
                           {"steps", options.steps},
                           {"turns", turns[arm].size()}});
  }
}

Plot plot_of(const Report& report, const Options& options) {
  Plot plot;
  plot.title = "decode, ms per step: " + report.heading;
  plot.x_label = "sequences";
  plot.y_label = "ms";
  Panel panel;
  panel.title = std::to_string(options.context) + " tokens of context";
  for (std::size_t arm = 0; arm < options.stages.size(); ++arm) {
    Line line{"stages " + options.stages[arm], static_cast<int>(arm) + 1, false, {}};
    for (const auto& row : report.rows)
      if (row.at("stages") == options.stages[arm])
        line.points.push_back({row.at("sequences"), row.at("step_ms")});
    panel.lines.push_back(std::move(line));
  }
  Line floor{"floor by bytes", 0, true, {}};
  for (const auto& row : report.rows)
    if (row.at("stages") == options.stages.front())
      floor.points.push_back({row.at("sequences"), row.at("floor_ms")});
  panel.lines.push_back(std::move(floor));
  plot.panels.push_back(std::move(panel));
  return plot;
}

Status measure(const Options& options, const std::vector<int>& sequences, Report& report) {
  TENON_ASSIGN(
      const BenchedEngine bench,
      BenchedEngine::open(options, options.context + kWarmUp + options.steps, sequences.back()));
  Progress progress("bench decode:");
  const int turns_each = options.repeats * bench.num_arms();
  const double all = static_cast<double>(sequences.size()) * turns_each;
  double done = 0;
  for (const int each : sequences) {
    TENON_ASSIGN(const auto turns,
                 take_turns(
                     bench, options.repeats, [&] { return decode(bench, options, each); },
                     [&](int turn) {
                       progress.update(done + turn, all, std::to_string(each) + " sequences");
                     }));
    add_rows(report, bench, options, each, turns);
    done += turns_each;
  }
  report.about = bench.about();
  report.about["context"] = options.context;
  report.about["clocks"] = {
      {"step_ms", "wall time from the end of the warm-up to the end of the last step, over steps"},
      {"device_ms",
       "of the same steps, rank 0: from the upload's beginning to the draw's end on its device"},
      {"steps_run_ahead", bench.engine().stats().tokens_ahead > 0}};
  report.heading = bench.heading() + "; " + std::to_string(options.context) +
                   " tokens of context; memory " +
                   std::to_string(std::lround(bench.rates().memory_gbs)) + " GB/s";
  return Status::ok();
}

Status run(Options options) {
  if (options.sequences.empty()) options.sequences = options.on_host() ? "1,4" : "1,16,64";
  if (options.context == 0) options.context = options.on_host() ? 512 : 2048;
  if (options.steps == 0) options.steps = options.on_host() ? 16 : 64;
  if (options.repeats == 0) options.repeats = options.on_host() ? 3 : 5;
  TENON_ASSIGN(const std::vector<int> sequences, parse_sequences("--sequences", options.sequences));
  return make_report(options, [&](Report& report) -> Status {
    report.columns = columns();
    TENON_TRY(measure(options, sequences, report));
    report.plot = plot_of(report, options);
    return Status::ok();
  });
}

}  // namespace

Command add_bench_decode(CLI::App& bench) {
  auto options = std::make_shared<Options>();
  CLI::App* app =
      bench.add_subcommand("decode", "steps of an engine in which every sequence decodes");
  const char* group = "Steps";
  app->add_option("--sequences", options->sequences,
                  "how many decode together, as 1,16,64 or 1..64; by default 1,16,64 on devices, "
                  "else 1,4")
      ->group(group);
  app->add_option("--context", options->context,
                  "tokens of each sequence in front of the first step; 2048 on devices, else 512")
      ->check(whole_number(1, kMaxContext / 2))
      ->group(group);
  app->add_option("--steps", options->steps, "of a turn; 64 on devices, else 16")
      ->check(whole_number(1, kMaxContext / 4))
      ->group(group);
  add_engine_bench_options(*app, *options);
  app->footer(
      "Sequences begin over caches that are filled, not computed; all stage policies must draw the "
      "same tokens.\nThe floor is what the step's weights and caches need at the bandwidth of a "
      "copy, measured in the same run.\n\n"
      "  tenon bench decode --model checkpoints/configs/Qwen3.5-27B-FP8 --target cuda --tp 2");
  return {app, [options] { return run(*options); }};
}

}  // namespace tenon::apps
