#include "apps/bench/tables.h"

#include <algorithm>
#include <set>

#include "apps/table.h"

namespace tenon::apps {
namespace {

std::string in_units(double bytes) {
  if (bytes < 1e4) return fixed(bytes, 0) + " B";
  return bytes < 1e7 ? fixed(bytes / 1e3, 1) + " kB" : fixed(bytes / 1e6, 1) + " MB";
}

std::string or_dash(std::string text) { return text.empty() ? "-" : text; }

// Names of the arms that stand in this relation to the oracle.
std::string arms_that_are(Equality equality, const Results& results, const Row& row) {
  std::string text;
  for (std::size_t arm = 0; arm < row.arms.size(); ++arm)
    if (row.arms[arm].equals == equality)
      text += (text.empty() ? "" : " ") + results.arms[arm].name;
  return text;
}

std::string equality_of(const Results& results, const Row& row) {
  const std::string wrong = arms_that_are(Equality::kNo, results, row);
  if (!wrong.empty()) return "NOT " + wrong;
  const std::string own = arms_that_are(Equality::kOwnOrder, results, row);
  return own.empty() ? "yes" : "yes but " + own;
}

std::vector<Ratio> chosen_ratios(const Results& results) {
  const auto chosen = [&](const std::string& name) {
    return std::any_of(results.arms.begin(), results.arms.end(),
                       [&](const Arm& arm) { return arm.name == name; });
  };
  std::vector<Ratio> found;
  for (const Ratio& each : ratios())
    if (chosen(each.slow) && chosen(each.fast)) found.push_back(each);
  return found;
}

// Slow over fast, or 0 where one of them did not run.
double quotient(const Results& results, const Row& row, const Ratio& ratio) {
  const ArmResult* const slow = find_arm(results, row, ratio.slow);
  const ArmResult* const fast = find_arm(results, row, ratio.fast);
  return slow && fast ? slow->timing.us / fast->timing.us : 0;
}

// What the leader is compared with.
struct Floor {
  Traffic traffic;
  double us = 0, percent = 0;  // 0 per cent: there is no leader
};
Floor floor_of(const Results& results, const Row& row) {
  bool bf16 = true;
  const ArmResult* const leader = leader_of(results, row, &bf16);
  Floor floor{bf16 ? row.both : row.fp8};
  floor.us = floor_us(floor.traffic, results.rates);
  if (leader != nullptr) floor.percent = 100 * floor.us / leader->timing.us;
  return floor;
}

// How many times longer the fastest arm of more kernels takes than the leader, whose outputs it
// has; 0 where one of the two is missing.
double gain_of(const Results& results, const Row& row) {
  bool bf16 = true;
  const ArmResult* const leader = leader_of(results, row, &bf16);
  double best = 0;
  for (std::size_t arm = 0; arm < row.arms.size(); ++arm) {
    const double us = row.arms[arm].timing.us;
    const bool rival =
        results.arms[arm].chain != Chain::kOneKernel && results.arms[arm].bf16 == bf16;
    if (rival && us > 0 && (best == 0 || us < best)) best = us;
  }
  return leader == nullptr ? 0 : best / leader->timing.us;
}

std::string times(double ratio) { return ratio > 0 ? fixed(ratio, 2) + "x" : "-"; }
std::string per_cent(double percent) { return percent > 0 ? fixed(percent, 0) + "%" : "-"; }
std::string microseconds(const ArmResult& arm) {
  return arm.timing.iterations == 0 ? "-" : fixed(arm.timing.us, 2);
}

Table wide_table(const Results& results) {
  std::vector<std::string> header{"device", "ranks", "rows", "hidden", "mode", "L2", "variant"};
  for (const Arm& arm : results.arms) header.push_back(arm.name + "_us");
  for (const Ratio& each : chosen_ratios(results)) header.push_back(each.slow + "/" + each.fast);
  for (const char* each : {"links", "memory", "floor_us", "of_floor", "checked", "equals_oracle"})
    header.emplace_back(each);
  Table table(header);
  for (const Row& row : results.rows) {
    std::vector<std::string> cells{std::string(name(results.options.target)),
                                   std::to_string(results.options.tp),
                                   std::to_string(row.shape.rows),
                                   std::to_string(row.shape.hidden),
                                   std::string(name(row.mode)),
                                   std::string(l2_of(row)),
                                   or_dash(variants_of(results, row))};
    for (const ArmResult& arm : row.arms) cells.push_back(microseconds(arm));
    for (const Ratio& each : chosen_ratios(results))
      cells.push_back(times(quotient(results, row, each)));
    const Floor floor = floor_of(results, row);
    cells.push_back(in_units(floor.traffic.link_bytes));
    cells.push_back(in_units(floor.traffic.memory_bytes));
    cells.push_back(fixed(floor.us, 2));
    cells.push_back(per_cent(floor.percent));
    cells.push_back(std::to_string(row.checked_rows));
    cells.push_back(equality_of(results, row));
    table.add(cells);
  }
  return table;
}

// Columns that are the same in every row are left to the line above the table.
struct Brief {
  Table table;
  std::size_t keys;
};
Brief brief_table(const Results& results) {
  std::set<Mode> modes;
  std::set<bool> states;
  for (const Row& row : results.rows) {
    modes.insert(row.mode);
    states.insert(row.cold);
  }
  const bool sweeps = results.options.sweep_variants;
  std::vector<std::string> header{"rows", "hidden"};
  if (modes.size() > 1) header.emplace_back("mode");
  if (states.size() > 1) header.emplace_back("L2");
  const std::size_t keys = header.size();
  for (const Arm& arm : results.arms) header.push_back(arm.name);
  if (!sweeps) header.insert(header.end(), {"gain", "of_floor", "variant"});
  header.emplace_back("equal");
  Table table(header);
  for (const Row& row : results.rows) {
    std::vector<std::string> cells{std::to_string(row.shape.rows),
                                   std::to_string(row.shape.hidden)};
    if (modes.size() > 1) cells.emplace_back(name(row.mode));
    if (states.size() > 1) cells.emplace_back(l2_of(row));
    for (const ArmResult& arm : row.arms) cells.push_back(microseconds(arm));
    if (!sweeps)
      cells.insert(cells.end(),
                   {times(gain_of(results, row)), per_cent(floor_of(results, row).percent),
                    or_dash(variants_of(results, row))});
    cells.push_back(equality_of(results, row));
    table.add(cells);
  }
  return {table, keys};
}

std::string number(double value, int decimals) { return value > 0 ? fixed(value, decimals) : ""; }

}  // namespace

std::string table_text(const Results& results, bool wide, std::size_t columns) {
  if (wide) return wide_table(results).text();
  const Brief brief = brief_table(results);
  return brief.table.text(columns, brief.keys);
}

std::string csv_of(const Results& results) {
  std::vector<std::string> header{"device", "target", "ranks", "dtype", "inputs",
                                  "rows",   "hidden", "mode",  "l2",    "variant"};
  for (const Arm& arm : results.arms)
    for (const char* each : {"_us", "_p10_us", "_p90_us"}) header.push_back(arm.name + each);
  for (const Ratio& each : chosen_ratios(results)) header.push_back(each.slow + "/" + each.fast);
  for (const char* each : {"link_bytes", "memory_bytes", "floor_us", "of_floor_percent",
                           "checked_rows", "equals_oracle", "wrong_arms", "own_order_arms"})
    header.emplace_back(each);
  Table table(header);
  for (const Row& row : results.rows) {
    std::vector<std::string> cells{results.device.name,
                                   std::string(name(results.options.target)),
                                   std::to_string(results.options.tp),
                                   std::string(name(results.options.dtype)),
                                   name(results.options.inputs),
                                   std::to_string(row.shape.rows),
                                   std::to_string(row.shape.hidden),
                                   std::string(name(row.mode)),
                                   std::string(l2_of(row)),
                                   variants_of(results, row)};
    for (const ArmResult& arm : row.arms)
      for (const double us : {arm.timing.us, arm.timing.p10, arm.timing.p90})
        cells.push_back(arm.timing.iterations > 0 ? fixed(us, 3) : "");
    for (const Ratio& each : chosen_ratios(results))
      cells.push_back(number(quotient(results, row, each), 4));
    const Floor floor = floor_of(results, row);
    const std::string wrong = arms_that_are(Equality::kNo, results, row);
    cells.push_back(fixed(floor.traffic.link_bytes, 0));
    cells.push_back(fixed(floor.traffic.memory_bytes, 0));
    cells.push_back(fixed(floor.us, 3));
    cells.push_back(number(floor.percent, 3));
    cells.push_back(std::to_string(row.checked_rows));
    cells.push_back(wrong.empty() ? "1" : "0");
    cells.push_back(wrong);
    cells.push_back(arms_that_are(Equality::kOwnOrder, results, row));
    table.add(cells);
  }
  return table.csv();
}

std::string key_text() {
  return R"(Arms, times in µs per call of the slowest rank, median of the repeats:
  vendor           NCCL's or RCCL's all-reduce; residual + norm; quantise: 3 kernels
  three-kernels    the own all-reduce; residual + norm; quantise: 3 kernels
  two-kernels-fp8  the own all-reduce; residual + norm + quantise: 2 kernels, FP8 out
  two-kernels      the same, FP8 and 16-bit rows out
  one-kernel-fp8   one kernel for all of it, FP8 out
  one-kernel       the same, FP8 and 16-bit rows out
Columns:
  gain         the fastest arm of 2 or 3 kernels over the one kernel with the same outputs
  of_floor     the least time that links and memory allow, in per cent of the one kernel's;
               100% cannot be beaten, but for a warm cache
  floor_us     that least time: the smallest all-reduce, and the longer of links and memory
  links        bytes that one rank sends
  memory       bytes that one rank reads and writes
  variant      how the one kernel ran
  checked      rows that were compared with the oracle
  equal        whether every arm gave the oracle's bytes
  A/B          the time of arm A over that of arm B
  -            it did not run here
)";
}

std::string slower_text(const Comparison& found, double tolerance_percent) {
  std::string text = std::to_string(found.slower.size()) + " of " + std::to_string(found.compared) +
                     " ratios are worse than the baseline by more than " +
                     fixed(tolerance_percent, 1) + " %\n";
  if (found.slower.empty()) return text;
  Table table({"rows", "hidden", "mode", "L2", "ratio", "was", "now", "worse by"});
  for (const Slower& each : found.slower)
    table.add({std::to_string(each.shape.rows), std::to_string(each.shape.hidden), each.mode,
               each.l2, each.slow + "/" + each.fast, fixed(each.was, 2), fixed(each.now, 2),
               fixed(each.percent, 1) + "%"});
  return text + table.text();
}

nlohmann::json json_of(const Comparison& found, double tolerance_percent) {
  nlohmann::json list = nlohmann::json::array();
  for (const Slower& each : found.slower)
    list.push_back({{"rows", each.shape.rows},
                    {"hidden", each.shape.hidden},
                    {"mode", each.mode},
                    {"l2", each.l2},
                    {"slow", each.slow},
                    {"fast", each.fast},
                    {"was", each.was},
                    {"now", each.now},
                    {"worse_percent", each.percent}});
  return {{"tolerance_percent", tolerance_percent}, {"compared", found.compared}, {"worse", list}};
}

}  // namespace tenon::apps
