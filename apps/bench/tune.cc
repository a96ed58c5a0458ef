#include "apps/bench/tune.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <vector>

#include "apps/table.h"
#include "tenon/boundary/tuned_json.h"
#include "tenon/core/file.h"

namespace tenon::apps {
namespace {

constexpr std::size_t kNumChoices = std::size(kBoundaryChoices);
constexpr std::size_t kNumParts = 5;  // of a table: more would follow the noise
constexpr double kNever = 1e9;        // the regret of a choice that cannot run

// How much longer each choice took than the best one; kNever where it did not run.
using Regrets = std::array<double, kNumChoices>;

// Of one shape with one set of outputs. False where nothing ran.
bool find_regrets(const Results& results, const Row& row, bool bf16, Regrets& regrets) {
  Regrets us{};
  double best = 0;
  for (std::size_t choice = 0; choice < kNumChoices; ++choice) {
    const std::string arm = std::string(kBoundaryChoices[choice]) + (bf16 ? "+bf16" : "");
    const ArmResult* const found = find_arm(results, row, arm);
    us[choice] = found == nullptr ? 0 : found->timing.us;
    if (us[choice] > 0 && (best == 0 || us[choice] < best)) best = us[choice];
  }
  for (std::size_t choice = 0; choice < kNumChoices; ++choice)
    regrets[choice] = us[choice] > 0 ? us[choice] / best - 1 : kNever;
  return best > 0;
}

std::string shape_text(const Row& row, bool bf16) {
  return std::to_string(row.shape.rows) + " x " + std::to_string(row.shape.hidden) +
         (bf16 ? ", fp8+bf16" : ", fp8");
}

// What was measured of one width and set of outputs, by rows.
struct Measured {
  int rows = 0;
  Regrets regrets{};
};

// The cheapest lines for rows first, first + 1, …, with so many lines at most: what the first of
// them takes, where it ends, and what all of them cost.
struct Cheapest {
  double cost = 0;
  std::size_t choice = 0, end = 0;
};
using CheapestLines = std::vector<std::array<Cheapest, kNumParts + 1>>;

// add(cost so far, regret): what one more size does to the cost of a line; join(cost, cost): of
// two.
template <class Add, class Join>
CheapestLines find_cheapest(const std::vector<Measured>& measured, const Add& add,
                            const Join& join) {
  CheapestLines best(measured.size() + 1);
  for (std::size_t first = measured.size(); first-- > 0;) {
    best[first].fill({2 * kNever, 0, 0});
    for (std::size_t parts = 1; parts <= kNumParts; ++parts)
      for (std::size_t choice = 0; choice < kNumChoices; ++choice) {
        double cost = 0;
        for (std::size_t end = first + 1; end <= measured.size(); ++end) {
          cost = add(cost, measured[end - 1].regrets[choice]);
          const double all = join(cost, best[end][parts - 1].cost);
          if (all < best[first][parts].cost) best[first][parts] = {all, choice, end};
        }
      }
  }
  return best;
}

Tuning tuning_of(const std::vector<Measured>& measured) {
  // Fewer lines, where more gain nothing to speak of.
  constexpr double kNoise = 0.002;
  const auto larger = [](double a, double b) { return std::max(a, b); };
  const CheapestLines by_worst = find_cheapest(measured, larger, larger);
  const double least = by_worst[0][kNumParts].cost + kNoise;
  std::size_t parts = 1;
  while (by_worst[0][parts].cost > least) ++parts;
  const CheapestLines by_sum = find_cheapest(
      measured,
      [&](double sum, double regret) { return sum + (regret <= least ? regret : kNever); },
      [](double a, double b) { return a + b; });
  Tuning tuning;
  for (std::size_t at = 0; at < measured.size(); --parts) {
    const Cheapest& line = by_sum[at][parts];
    for (; at < line.end; ++at) {
      const double regret = measured[at].regrets[line.choice];
      tuning.regret.mean += regret / static_cast<double>(measured.size());
      if (at > 0 && regret <= tuning.regret.worst) continue;
      tuning.regret.worst = regret;
      tuning.regret.worst_shape = std::to_string(measured[at].rows) + " rows";
    }
    tuning.table.lines.push_back(
        {measured[at - 1].rows, std::string(kBoundaryChoices[line.choice])});
  }
  tuning.table.lines.back().up_to_rows = TunedLine::kNoEnd;
  return tuning;
}

}  // namespace

std::vector<Tuning> tune(const Results& results) {
  std::vector<Tuning> tunings;
  for (const int hidden : results.options.hidden)
    for (const bool bf16 : {false, true}) {
      std::vector<Measured> measured;
      for (const Row& row : results.rows) {
        Measured next{row.shape.rows, {}};
        if (row.shape.hidden == hidden && find_regrets(results, row, bf16, next.regrets))
          measured.push_back(next);
      }
      if (measured.empty()) continue;
      // Warm and cold, where both were measured: a line is for both.
      std::ranges::stable_sort(measured, {}, &Measured::rows);
      for (std::size_t i = measured.size(); i-- > 1;) {
        if (measured[i].rows != measured[i - 1].rows) continue;
        for (std::size_t choice = 0; choice < kNumChoices; ++choice)
          measured[i - 1].regrets[choice] =
              std::max(measured[i - 1].regrets[choice], measured[i].regrets[choice]);
        measured.erase(measured.begin() + static_cast<std::ptrdiff_t>(i));
      }
      tunings.push_back(tuning_of(measured));
      TunedTable& table = tunings.back().table;
      table.device = results.device.name;
      table.link_gbs = results.slowest_link_gbs;
      table.ranks = results.options.tp;
      table.hidden = hidden;
      table.outputs = boundary_outputs(true, bf16);
      table.date = results.date.substr(0, 10);
      table.whole_residual = results.options.spread_residual;
    }
  return tunings;
}

Regret regret_of_defaults(const Results& results) {
  Regret found;
  double count = 0;
  for (const Row& row : results.rows)
    for (const bool bf16 : {false, true}) {
      Regrets regrets;
      if (!find_regrets(results, row, bf16, regrets)) continue;
      const auto* const choice = std::ranges::find(kBoundaryChoices, row.default_choice[bf16]);
      if (choice == std::end(kBoundaryChoices)) continue;
      const double regret = regrets[static_cast<std::size_t>(choice - kBoundaryChoices)];
      found.mean += regret;
      ++count;
      if (regret < found.worst) continue;
      found.worst = regret;
      found.worst_shape = shape_text(row, bf16) + ", " + row.default_choice[bf16];
    }
  if (count > 0) found.mean /= count;
  return found;
}

std::string regrets_text(const std::vector<Tuning>& tunings, const Regret& of_defaults) {
  const auto line = [](const std::string& what, const Regret& regret) {
    return what + ": worst regret " + fixed(100 * regret.worst, 1) + " % at " + regret.worst_shape +
           ", mean " + fixed(100 * regret.mean, 2) + " %\n";
  };
  std::string text = line("defaults", of_defaults);
  for (const Tuning& each : tunings)
    text += line("tuned, hidden " + std::to_string(each.table.hidden) + ", " + each.table.outputs,
                 each.regret);
  return text;
}

Result<TunedTables> read_tables(const std::string& path) {
  if (!std::filesystem::is_regular_file(path)) return TunedTables{};
  TENON_ASSIGN(const std::string text, read_text(path), "bench: --tune");
  if (text.empty()) return TunedTables{};
  auto tables = parse_tuned(text);
  if (!tables)
    return tables.status().with("bench: --tune changes a file of tables or makes one, and \"" +
                                path + "\" is neither");
  return tables;
}

}  // namespace tenon::apps
