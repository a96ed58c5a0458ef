// tenon bench prefill: prompts of given lengths until their first token, by stage policy.
// docs/measure.md says what is timed and how.
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

struct Options : EngineBench {
  std::string prompts, tokens;  // as parse_numbers() reads them
};

struct Load {
  int prompts = 0, tokens = 0;  // of each prompt
};

std::vector<Column> columns() {
  return {{"prompts", "prompts"},
          {"tokens", "tokens each"},
          {"stages", "stages"},
          {"first_token_ms", "all first tokens, ms", 2},
          {"p10_ms", "p10", 2},
          {"p90_ms", "p90", 2},
          {"device_ms", "on device", 2},
          {"tokens_per_s", "tokens/s", 0},
          {"tflops", "TFLOP/s a rank", 1},
          {"ratio", "x first", 3}};
}

// Prompts that arrive together, until the last one's first token.
Result<Turn> prefill(const BenchedEngine& bench, Load load) {
  Engine& engine = bench.engine();
  for (int i = 0; i < load.prompts; ++i)
    TENON_TRY(engine.submit(bench.prompt(i, load.tokens), bench.sampling(i, 1)));
  Turn turn;
  const double device_before = engine.stats().device_seconds;
  const auto begin = std::chrono::steady_clock::now();
  while (!engine.idle()) TENON_TRY(bench.step(&turn.tokens));
  turn.seconds = seconds_since(begin);
  turn.device_seconds = engine.stats().device_seconds - device_before;
  return turn;
}

void add_rows(Report& report, const BenchedEngine& bench, const Options& options, Load load,
              const std::vector<std::vector<Turn>>& turns) {
  const double tokens = static_cast<double>(load.prompts) * load.tokens;
  const StepCost cost =
      bench.engine().step_cost({.tokens = std::int64_t{load.prompts} * load.tokens,
                                .sequences = load.prompts,
                                .context = load.tokens});
  double first = 0;
  for (std::size_t arm = 0; arm < turns.size(); ++arm) {
    if (turns[arm].empty()) continue;
    const Spread wall = spread_of(turns[arm], &Turn::seconds, 1);
    const Spread device = spread_of(turns[arm], &Turn::device_seconds, 1);
    if (first == 0) first = wall.median;
    report.rows.push_back({{"prompts", load.prompts},
                           {"tokens", load.tokens},
                           {"stages", options.stages[arm]},
                           {"first_token_ms", wall.median},
                           {"p10_ms", wall.p10},
                           {"p90_ms", wall.p90},
                           {"device_ms", device.median},
                           {"tokens_per_s", tokens / wall.median * 1e3},
                           {"tflops", cost.flops / wall.median * 1e-9},
                           {"ratio", wall.median / first},
                           {"turns", turns[arm].size()}});
  }
}

Plot plot_of(const Report& report, const Options& options, const std::vector<int>& prompts) {
  Plot plot;
  plot.title = "prefill, ms until all first tokens: " + report.heading;
  plot.x_label = "tokens of each prompt";
  plot.y_label = "ms";
  for (const int count : prompts) {
    Panel panel;
    panel.title = std::to_string(count) + (count == 1 ? " prompt" : " prompts");
    for (std::size_t arm = 0; arm < options.stages.size(); ++arm) {
      Line line{"stages " + options.stages[arm], static_cast<int>(arm) + 1, false, {}};
      for (const auto& row : report.rows)
        if (row.at("stages") == options.stages[arm] && row.at("prompts") == count)
          line.points.push_back({row.at("tokens"), row.at("first_token_ms")});
      panel.lines.push_back(std::move(line));
    }
    plot.panels.push_back(std::move(panel));
  }
  return plot;
}

Status measure(const Options& options, const std::vector<int>& prompts,
               const std::vector<int>& tokens, Report& report) {
  TENON_ASSIGN(const BenchedEngine bench,
               BenchedEngine::open(options, tokens.back() + 1, prompts.back()));
  std::vector<Load> loads;
  double all = 0, done = 0;  // tokens of all turns
  for (const int count : prompts)
    for (const int length : tokens) {
      loads.push_back({count, length});
      all += 1.0 * count * length * options.repeats * bench.num_arms();
    }
  Progress progress("bench prefill:");
  for (const Load& load : loads) {
    const double each = 1.0 * load.prompts * load.tokens;
    const std::string where =
        std::to_string(load.prompts) + " x " + std::to_string(load.tokens) + " tokens";
    TENON_ASSIGN(const auto turns,
                 take_turns(
                     bench, options.repeats, [&] { return prefill(bench, load); },
                     [&](int turn) { progress.update(done + turn * each, all, where); }));
    add_rows(report, bench, options, load, turns);
    done += each * options.repeats * bench.num_arms();
  }
  report.about = bench.about();
  report.heading = bench.heading();
  return Status::ok();
}

Status run(Options options) {
  if (options.prompts.empty()) options.prompts = options.on_host() ? "1" : "1,16,64";
  if (options.tokens.empty()) options.tokens = options.on_host() ? "64,256" : "512,2048";
  if (options.repeats == 0) options.repeats = 3;
  TENON_ASSIGN(const std::vector<int> prompts, parse_sequences("--prompts", options.prompts));
  TENON_ASSIGN(const std::vector<int> tokens, parse_numbers("--tokens", options.tokens));
  return make_report(options, [&](Report& report) -> Status {
    report.columns = columns();
    TENON_TRY(measure(options, prompts, tokens, report));
    report.plot = plot_of(report, options, prompts);
    return Status::ok();
  });
}

}  // namespace

Command add_bench_prefill(CLI::App& bench) {
  auto options = std::make_shared<Options>();
  CLI::App* app = bench.add_subcommand("prefill", "prompts until their first token");
  const char* group = "Prompts";
  app->add_option("--prompts", options->prompts,
                  "how many arrive together, as 1,16,64 or 1..64; by default 1,16,64 on devices, "
                  "else 1")
      ->group(group);
  app->add_option("--tokens", options->tokens,
                  "of each prompt, likewise; by default 512,2048 on devices, else 64,256")
      ->group(group);
  add_engine_bench_options(*app, *options);
  app->footer(
      "The time runs until the last prompt's first token. All stage policies must draw the "
      "same tokens.\n\n"
      "  tenon bench prefill --model checkpoints/configs/Qwen3.5-27B-FP8 --target cuda");
  return {app, [options] { return run(*options); }};
}

}  // namespace tenon::apps
