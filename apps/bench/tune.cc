#include "apps/bench/tune.h"

#include <algorithm>
#include <array>
#include <bit>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>

#include "apps/table.h"
#include "tenon/boundary/tuned_json.h"

namespace tenon::apps {
namespace {

constexpr std::size_t kNumChoices = std::size(kBoundaryChoices);
constexpr std::size_t kNumParts = 4;  // of a table: more would follow the noise
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

// The shapes of one row bucket: for each choice, the worst regret and the sum of them.
struct Bucket {
  Regrets worst{}, sum{};
  std::array<std::string, kNumChoices> worst_shape;
};
using Buckets = std::map<int, Bucket>;

void take(const Results& results, const Row& row, bool bf16, Buckets& buckets) {
  Regrets regrets;
  if (!find_regrets(results, row, bf16, regrets)) return;
  Bucket& bucket =
      buckets[static_cast<int>(std::bit_ceil(static_cast<unsigned>(row.shape.rows)))];
  for (std::size_t choice = 0; choice < kNumChoices; ++choice) {
    bucket.sum[choice] += regrets[choice];
    if (regrets[choice] < bucket.worst[choice]) continue;
    bucket.worst[choice] = regrets[choice];
    bucket.worst_shape[choice] = shape_text(row, bf16);
  }
}

// One way to cut the buckets: choice order[0] for the first cuts[0] of them, and so on.
struct Cut {
  std::array<std::size_t, kNumParts> order{}, cuts{};
  double worst = kNever * 10, sum = 0;
  std::string worst_shape;
};

Cut judge(const Buckets& buckets, Cut cut) {
  cut.worst = cut.sum = 0;
  std::size_t index = 0, part = 0;
  for (const auto& [rows, bucket] : buckets) {
    while (index >= cut.cuts[part]) ++part;
    const std::size_t choice = cut.order[part];
    cut.sum += bucket.sum[choice];
    if (bucket.worst[choice] > cut.worst || cut.worst_shape.empty()) {
      cut.worst = bucket.worst[choice];
      cut.worst_shape = bucket.worst_shape[choice];
    }
    ++index;
  }
  return cut;
}

// Calls visit(cut) with every way to give the parts their choices and their ends.
template <class Visit>
void for_each_cut(std::size_t num_buckets, std::size_t part, Cut cut, const Visit& visit) {
  if (part == kNumParts) return visit(cut);
  const std::size_t begin = part == 0 ? 0 : cut.cuts[part - 1];
  for (std::size_t choice = 0; choice < kNumChoices; ++choice) {
    const auto used = cut.order.cbegin() + static_cast<std::ptrdiff_t>(part);
    if (std::find(cut.order.cbegin(), used, choice) != used) continue;
    cut.order[part] = choice;
    for (std::size_t end = part + 1 == kNumParts ? num_buckets : begin; end <= num_buckets; ++end) {
      cut.cuts[part] = end;
      for_each_cut(num_buckets, part + 1, cut, visit);
    }
  }
}

Tuning tuning_of(const Buckets& buckets, std::size_t num_shapes) {
  Cut best;
  for_each_cut(buckets.size(), 0, {}, [&](const Cut& each) {
    const Cut cut = judge(buckets, each);
    if (cut.worst < best.worst || (cut.worst == best.worst && cut.sum < best.sum)) best = cut;
  });
  Tuning tuning;
  tuning.regret = {best.worst, best.sum / static_cast<double>(num_shapes), best.worst_shape};
  std::vector<int> rows;
  for (const auto& each : buckets) rows.push_back(each.first);
  for (std::size_t part = 0, begin = 0; part < kNumParts; begin = best.cuts[part++])
    if (best.cuts[part] > begin)
      tuning.table.lines.push_back(
          {rows[best.cuts[part] - 1], std::string(kBoundaryChoices[best.order[part]])});
  tuning.table.lines.back().up_to_rows = TunedLine::kNoEnd;
  return tuning;
}

}  // namespace

std::vector<Tuning> tune(const Results& results) {
  std::vector<Tuning> tunings;
  for (const int hidden : results.options.hidden) {
    Buckets buckets;
    std::size_t num_shapes = 0;
    for (const Row& row : results.rows)
      for (const bool bf16 : {false, true}) {
        if (row.shape.hidden != hidden) continue;
        take(results, row, bf16, buckets);
        ++num_shapes;
      }
    if (buckets.empty()) continue;
    tunings.push_back(tuning_of(buckets, num_shapes));
    TunedTable& table = tunings.back().table;
    table.device = results.device.name;
    table.link_gbs = results.slowest_link_gbs;
    table.ranks = results.options.tp;
    table.hidden = hidden;
    table.outputs = "fp8, fp8+bf16";
    table.date = results.date.substr(0, 10);
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
      const auto* const choice = std::ranges::find(kBoundaryChoices, row.default_choice);
      if (choice == std::end(kBoundaryChoices)) continue;
      const double regret = regrets[static_cast<std::size_t>(choice - kBoundaryChoices)];
      found.mean += regret;
      ++count;
      if (regret < found.worst) continue;
      found.worst = regret;
      found.worst_shape = shape_text(row, bf16) + ", " + row.default_choice;
    }
  if (count > 0) found.mean /= count;
  return found;
}

std::string regrets_text(const std::vector<Tuning>& tunings, const Regret& of_defaults) {
  const auto line = [](const std::string& what, const Regret& regret) {
    return what + ": worst regret " + fixed(100 * regret.worst, 1) + " % at " +
           regret.worst_shape + ", mean " + fixed(100 * regret.mean, 2) + " %\n";
  };
  std::string text = line("defaults", of_defaults);
  for (const Tuning& each : tunings)
    text += line("tuned, hidden " + std::to_string(each.table.hidden), each.regret);
  return text;
}

Result<TunedTables> read_tables(const std::string& path) {
  if (!std::filesystem::is_regular_file(path)) return TunedTables{};
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (text.empty()) return TunedTables{};
  auto tables = parse_tuned(text);
  if (!tables)
    return tables.status().with("bench: --tune changes a file of tables or makes one, and \"" +
                                path + "\" is neither");
  return tables;
}

}  // namespace tenon::apps
