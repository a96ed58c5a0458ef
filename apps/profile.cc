// tenon profile: where the time goes of a decode step, or of prompts until their first tokens: by
// part of the pass and by kernel, for each stage policy. docs/measure.md says how.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>

#include "apps/bench/engine_bench.h"
#include "apps/kernel_name.h"
#include "apps/options.h"
#include "apps/table.h"

namespace tenon::apps {
namespace {

constexpr int kWarmUp = 4, kSteps = 16;  // in front of the one that is timed launch by launch

struct Options : EngineBench {
  int sequences = 1, context = 0;  // of a decode step
  int prompts = 0, tokens = 0;     // instead of it: so many prompts of so many tokens each
};

// What some launches took together.
struct Sum {
  int launches = 0;
  double us = 0;
};
using Key = std::pair<std::string, std::string>;  // section, kernel

struct Profile {
  int steps = 0;                             // that were timed
  double step_us = 0;                        // of as many steps without timers, on the device
  std::vector<std::pair<Key, Sum>> kernels;  // in the order of the pass
  double launches_us() const {
    double sum = 0;
    for (const auto& [key, each] : kernels) sum += each.us;
    return sum;
  }
};

void add(const std::vector<LaunchTimer::Entry>& entries, Profile& profile) {
  std::map<Key, std::size_t> places;
  for (const auto& [key, sum] : profile.kernels) places.emplace(key, places.size());
  for (const LaunchTimer::Entry& each : entries) {
    const Key key{each.section.empty() ? "input" : each.section, short_kernel_name(each.what)};
    const auto [place, fresh] = places.try_emplace(key, profile.kernels.size());
    if (fresh) profile.kernels.push_back({key, {}});
    Sum& sum = profile.kernels[place->second].second;
    ++sum.launches;
    sum.us += each.us;
  }
  ++profile.steps;
}

Status time_step(const BenchedEngine& bench, Profile& profile) {
  Fnv1a tokens;
  bench.engine().time_next_step();
  TENON_TRY(bench.step(&tokens));
  TENON_ASSIGN(const auto entries, bench.engine().launch_times());
  add(entries, profile);
  return Status::ok();
}

Result<Profile> measure_decode(const BenchedEngine& bench, const Options& options) {
  Engine& engine = bench.engine();
  TENON_TRY(engine.make_caches());
  for (int i = 0; i < options.sequences; ++i)
    TENON_TRY(engine.submit_computed(bench.prompt(i, options.context),
                                     bench.sampling(i, kWarmUp + kSteps + 1)));
  Fnv1a tokens;
  for (int step = 0; step < kWarmUp; ++step) TENON_TRY(bench.step(&tokens));
  const double before = engine.stats().device_seconds;
  for (int step = 0; step < kSteps; ++step) TENON_TRY(bench.step(&tokens));
  Profile found;
  found.step_us = 1e6 * (engine.stats().device_seconds - before) / kSteps;
  TENON_TRY(time_step(bench, found));
  return found;
}

// The same prompts three times: to warm up, without timers, and step by step with them.
Result<Profile> measure_prompts(const BenchedEngine& bench, const Options& options) {
  Engine& engine = bench.engine();
  const auto submit = [&] {
    for (int i = 0; i < options.prompts; ++i)
      TENON_TRY(engine.submit(bench.prompt(i, options.tokens), bench.sampling(i, 1)));
    return Status::ok();
  };
  Profile found;
  Fnv1a tokens;
  for (int turn = 0; turn < 2; ++turn) {
    TENON_TRY(submit());
    const double before = engine.stats().device_seconds;
    while (!engine.idle()) TENON_TRY(bench.step(&tokens));
    found.step_us = 1e6 * (engine.stats().device_seconds - before);
  }
  TENON_TRY(submit());
  while (!engine.idle()) TENON_TRY(time_step(bench, found));
  return found;
}

// Parts of the pass down, stage policies across. `flops`: of all steps; 0: no row tells of them.
std::string sections_text(const std::vector<Profile>& profiles, const Options& options,
                          double flops) {
  std::vector<std::string> header{"part of the step"}, names;
  for (const std::string& stages : options.stages) {
    header.push_back("launches, " + stages);
    header.push_back("us, " + stages);
  }
  for (const Profile& profile : profiles)
    for (const auto& [key, sum] : profile.kernels)
      if (std::find(names.begin(), names.end(), key.first) == names.end())
        names.push_back(key.first);
  Table table(std::move(header));
  for (const std::string& name : names) {
    std::vector<std::string> cells{name};
    for (const Profile& profile : profiles) {
      Sum sum;
      for (const auto& [key, each] : profile.kernels) {
        if (key.first != name) continue;
        sum.launches += each.launches;
        sum.us += each.us;
      }
      cells.push_back(std::to_string(sum.launches));
      cells.push_back(fixed(sum.us, 1));
    }
    table.add(std::move(cells));
  }
  const int steps = profiles.front().steps;
  std::vector<std::string> between{"between launches"}, rate{"TFLOP/s a rank"};
  std::vector<std::string> whole{steps == 1 ? "the step" : std::to_string(steps) + " steps"};
  for (const Profile& profile : profiles) {
    between.insert(between.end(), {"", fixed(profile.step_us - profile.launches_us(), 1)});
    whole.insert(whole.end(), {"", fixed(profile.step_us, 1)});
    rate.insert(rate.end(), {"", fixed(flops / profile.step_us * 1e-6, 1)});
  }
  table.add(std::move(between));
  table.add(std::move(whole));
  if (flops > 0) table.add(std::move(rate));
  return table.text();
}

void add_rows(Report& report, const Profile& profile, const std::string& stages) {
  auto sorted = profile.kernels;
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const auto& a, const auto& b) { return a.second.us > b.second.us; });
  for (const auto& [key, sum] : sorted)
    report.rows.push_back({{"stages", stages},
                           {"section", key.first},
                           {"kernel", key.second},
                           {"launches", sum.launches},
                           {"us", sum.us},
                           {"us_each", sum.us / sum.launches},
                           {"percent", 100 * sum.us / profile.launches_us()},
                           {"step_us", profile.step_us}});
}

Status run(Options options) {
  const bool decodes = options.prompts == 0;
  if (options.context == 0) options.context = options.on_host() ? 512 : 2048;
  if (options.tokens == 0) options.tokens = options.on_host() ? 256 : 2048;
  TENON_ASSIGN(ResultFiles files, ResultFiles::open(options.files()));
  options.session.run_ahead = false;  // the step that is timed is the one whose tokens come next
  const int longest = decodes ? options.context + kWarmUp + kSteps : options.tokens;
  TENON_ASSIGN(
      const BenchedEngine bench,
      BenchedEngine::open(options, longest + 1, decodes ? options.sequences : options.prompts));
  Report report;
  report.columns = {{"stages", "stages"},
                    {"section", "part of the step"},
                    {"kernel", "kernel"},
                    {"launches", "launches"},
                    {"us", "us", 1},
                    {"us_each", "us each", 2},
                    {"percent", "% of launches", 1}};
  std::vector<Profile> profiles;
  for (int arm = 0; arm < bench.num_arms(); ++arm) {
    TENON_TRY(bench.engine().use_arm(arm));
    TENON_ASSIGN(Profile found,
                 decodes ? measure_decode(bench, options) : measure_prompts(bench, options));
    add_rows(report, found, options.stages[static_cast<std::size_t>(arm)]);
    profiles.push_back(std::move(found));
  }
  report.about = bench.about();
  double flops = 0;
  if (decodes) {
    report.about["sequences"] = options.sequences;
    report.about["context"] = options.context;
    report.heading = bench.heading() + "; " + std::to_string(options.sequences) +
                     (options.sequences == 1 ? " sequence at " : " sequences at ") +
                     std::to_string(options.context) + " tokens\n";
  } else {
    const std::int64_t tokens = std::int64_t{options.prompts} * options.tokens;
    flops =
        bench.engine()
            .step_cost({.tokens = tokens, .sequences = options.prompts, .context = options.tokens})
            .flops;
    report.about["prompts"] = options.prompts;
    report.about["tokens"] = options.tokens;
    report.about["steps"] = profiles.front().steps;
    report.heading = bench.heading() + "; prompts: " + std::to_string(options.prompts) + " x " +
                     std::to_string(options.tokens) + " tokens\n";
  }
  report.heading += sections_text(profiles, options, flops);
  return write(report, files, options.json_to_stdout);
}

}  // namespace

Command add_profile(CLI::App& parent) {
  auto options = std::make_shared<Options>();
  options->session.tp = 1;
  CLI::App* app =
      parent.add_subcommand("profile", "where the time of a decode step or of prompts goes");
  const char* group = "A decode step";
  CLI::Option* sequences =
      app->add_option("--sequences", options->sequences, "how many decode together")
          ->capture_default_str()
          ->check(whole_number(1, kMaxTokensPerStep - kPrefillQuantum))
          ->group(group);
  CLI::Option* context = app->add_option("--context", options->context,
                                         "tokens of each sequence; 2048 on devices, else 512")
                             ->check(whole_number(1, kMaxContext / 2))
                             ->group(group);
  const char* instead = "Prompts, instead of it";
  CLI::Option* prompts =
      app->add_option("--prompts", options->prompts,
                      "how many arrive together; all steps until their first tokens are timed")
          ->check(whole_number(1, kMaxTokensPerStep - kPrefillQuantum))
          ->excludes(sequences)
          ->excludes(context)
          ->group(instead);
  app->add_option("--tokens", options->tokens, "of each prompt; 2048 on devices, else 256")
      ->check(whole_number(1, kMaxContext / 2))
      ->needs(prompts)
      ->group(instead);
  add_engine_bench_options(*app, *options);
  app->footer(
      "Each launch of a step of rank 0 stands between two events, which keeps kernels from "
      "overlapping:\nthe sum of launches may be longer than a step without them. What is between "
      "launches is the\nstep less that sum.\n\n"
      "  tenon profile --model checkpoints/configs/Qwen3.5-27B-FP8 --target cuda --stages auto,3\n"
      "  tenon profile --model checkpoints/configs/Qwen3.5-27B-FP8 --target cuda --prompts 16");
  return {app, [options] { return run(*options); }};
}

}  // namespace tenon::apps
