// tenon profile: where the time of one decode step goes, by part of the pass and by kernel, for
// each stage policy. docs/measure.md says what is timed and how.
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
  int sequences = 1, context = 0;
};

// What some launches took together.
struct Sum {
  int launches = 0;
  double us = 0;
};
using Key = std::pair<std::string, std::string>;  // section, kernel

struct Profile {
  double step_us = 0;                        // of a step without timers, on the device
  std::vector<std::pair<Key, Sum>> kernels;  // in the order of the pass
  double launches_us() const {
    double sum = 0;
    for (const auto& [key, each] : kernels) sum += each.us;
    return sum;
  }
};

Profile profile_of(const std::vector<LaunchTimer::Entry>& entries) {
  Profile found;
  std::map<Key, std::size_t> places;
  for (const LaunchTimer::Entry& each : entries) {
    const Key key{each.section.empty() ? "input" : each.section, short_kernel_name(each.what)};
    const auto [place, fresh] = places.try_emplace(key, found.kernels.size());
    if (fresh) found.kernels.push_back({key, {}});
    Sum& sum = found.kernels[place->second].second;
    ++sum.launches;
    sum.us += each.us;
  }
  return found;
}

Result<Profile> measure_arm(const BenchedEngine& bench, const Options& options, int arm) {
  Engine& engine = bench.engine();
  TENON_TRY(engine.use_arm(arm));
  TENON_TRY(engine.make_caches());
  for (int i = 0; i < options.sequences; ++i)
    TENON_TRY(engine.submit_computed(bench.prompt(i, options.context),
                                     bench.sampling(i, kWarmUp + kSteps + 1)));
  std::uint64_t tokens = 0;
  for (int step = 0; step < kWarmUp; ++step) TENON_TRY(bench.step(&tokens));
  const double before = engine.stats().device_seconds;
  for (int step = 0; step < kSteps; ++step) TENON_TRY(bench.step(&tokens));
  const double step_us = 1e6 * (engine.stats().device_seconds - before) / kSteps;
  engine.time_next_step();
  TENON_TRY(bench.step(&tokens));
  TENON_ASSIGN(const auto entries, engine.launch_times());
  Profile found = profile_of(entries);
  found.step_us = step_us;
  return found;
}

// Parts of the pass down, stage policies across.
std::string sections_text(const std::vector<Profile>& profiles, const Options& options) {
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
  std::vector<std::string> between{"between launches"}, whole{"the step"};
  for (const Profile& profile : profiles) {
    between.insert(between.end(), {"", fixed(profile.step_us - profile.launches_us(), 1)});
    whole.insert(whole.end(), {"", fixed(profile.step_us, 1)});
  }
  table.add(std::move(between));
  table.add(std::move(whole));
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
  if (options.context == 0) options.context = options.on_host() ? 512 : 2048;
  TENON_ASSIGN(ResultFiles files, ResultFiles::open(options.files()));
  TENON_ASSIGN(
      const BenchedEngine bench,
      BenchedEngine::open(options, options.context + kWarmUp + kSteps + 1, options.sequences));
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
    TENON_ASSIGN(Profile found, measure_arm(bench, options, arm));
    add_rows(report, found, options.stages[static_cast<std::size_t>(arm)]);
    profiles.push_back(std::move(found));
  }
  report.about = bench.about();
  report.about["sequences"] = options.sequences;
  report.about["context"] = options.context;
  report.heading = bench.heading() + "; " + std::to_string(options.sequences) + " sequences at " +
                   std::to_string(options.context) + " tokens\n" + sections_text(profiles, options);
  return write(report, files, options.json_to_stdout);
}

}  // namespace

Command add_profile(CLI::App& parent) {
  auto options = std::make_shared<Options>();
  options->session.tp = 1;
  CLI::App* app = parent.add_subcommand("profile", "where the time of a decode step goes");
  const char* group = "Steps";
  app->add_option("--sequences", options->sequences, "how many decode together")
      ->capture_default_str()
      ->check(whole_number(1, kMaxTokensPerStep - kPrefillQuantum))
      ->group(group);
  app->add_option("--context", options->context,
                  "tokens of each sequence; 2048 on devices, else 512")
      ->check(whole_number(1, kMaxContext / 2))
      ->group(group);
  add_engine_bench_options(*app, *options);
  app->footer(
      "Each launch of one step of rank 0 stands between two events, which keeps kernels from "
      "overlapping:\nthe sum of launches may be longer than a step without them. What is between "
      "launches is the step less that sum.\n\n"
      "  tenon profile --model checkpoints/configs/Qwen3.5-27B-FP8 --target cuda --stages auto,3");
  return {app, [options] { return run(*options); }};
}

}  // namespace tenon::apps
