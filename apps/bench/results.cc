#include "apps/bench/results.h"

#include <algorithm>

#include "apps/table.h"
#include "apps/version.h"

namespace tenon::apps {
namespace {

nlohmann::json json_of(const Results& results, const Row& row, std::size_t index) {
  const Arm& arm = results.arms[index];
  const ArmResult& found = row.arms[index];
  if (found.timing.iterations == 0) return {{"why_not", found.why_not}};
  return {{"us", found.timing.us},
          {"p10_us", found.timing.p10},
          {"p90_us", found.timing.p90},
          {"iterations", found.timing.iterations},
          {"repeats", found.timing.repeats},
          {"equals_oracle", found.equals == Equality::kYes},
          {"own_order", found.equals == Equality::kOwnOrder},
          {"variant", found.variant},
          {"blocks", found.blocks},
          {"threads", found.threads},
          {"floor_us", floor_us(arm.bf16 ? row.both : row.fp8, results.rates)}};
}

// Every choice that was timed, one entry each: what a table of choices is made from.
nlohmann::json choices_of(const Results& results) {
  nlohmann::json list = nlohmann::json::array();
  for (const Row& row : results.rows)
    for (std::size_t arm = 0; arm < row.arms.size(); ++arm) {
      if (row.arms[arm].timing.iterations == 0) continue;
      const std::string& full = results.arms[arm].name;
      list.push_back({{"team", results.options.tp},
                      {"hidden", row.shape.hidden},
                      {"rows", row.shape.rows},
                      {"outputs", results.arms[arm].bf16 ? "fp8+bf16" : "fp8"},
                      {"choice", full.substr(0, full.find('+'))},
                      {"is_default", full.substr(0, full.find('+')) ==
                                         row.default_choice[results.arms[arm].bf16]},
                      {"mode", name(row.mode)},
                      {"l2", l2_of(row)},
                      {"us", row.arms[arm].timing.us}});
    }
  return list;
}

}  // namespace

const std::vector<Ratio>& ratios() {
  static const std::vector<Ratio> list{{"vendor", "one-kernel"},
                                       {"three-kernels", "one-kernel"},
                                       {"two-kernels", "one-kernel"},
                                       {"vendor", "one-kernel-fp8"},
                                       {"two-kernels-fp8", "one-kernel-fp8"}};
  return list;
}

std::string_view name(Mode mode) {
  switch (mode) {
    case Mode::kAuto: return "auto";
    case Mode::kGraph: return "graph";
    case Mode::kEager: return "eager";
  }
  return "?";
}

const ArmResult* find_arm(const Results& results, const Row& row, std::string_view name) {
  for (std::size_t arm = 0; arm < row.arms.size(); ++arm)
    if (results.arms[arm].name == name && row.arms[arm].timing.iterations > 0)
      return &row.arms[arm];
  return nullptr;
}

std::string_view l2_of(const Row& row) { return row.cold ? "cold" : "warm"; }

std::string variants_of(const Results& results, const Row& row) {
  std::vector<std::string> found;
  for (std::size_t arm = 0; arm < row.arms.size(); ++arm)
    if (results.arms[arm].chain == Chain::kOneKernel && !row.arms[arm].variant.empty() &&
        std::find(found.begin(), found.end(), row.arms[arm].variant) == found.end())
      found.push_back(row.arms[arm].variant);
  std::string text;
  for (const std::string& each : found) text += (text.empty() ? "" : " ") + each;
  return text;
}

const ArmResult* leader_of(const Results& results, const Row& row, bool* bf16) {
  const ArmResult* leader = nullptr;
  *bf16 = true;
  for (std::size_t arm = 0; arm < row.arms.size(); ++arm) {
    if (results.arms[arm].chain != Chain::kOneKernel || row.arms[arm].timing.iterations == 0)
      continue;
    leader = &row.arms[arm];
    *bf16 = results.arms[arm].bf16;
  }
  return leader;
}

nlohmann::json json_of(const Results& results) {
  nlohmann::json list = nlohmann::json::array();
  for (const Row& row : results.rows) {
    nlohmann::json arms = nlohmann::json::object();
    for (std::size_t arm = 0; arm < row.arms.size(); ++arm)
      arms[results.arms[arm].name] = json_of(results, row, arm);
    list.push_back(
        {{"rows", row.shape.rows},
         {"hidden", row.shape.hidden},
         {"mode", name(row.mode)},
         {"l2", l2_of(row)},
         {"copies", row.copies},
         {"checked_rows", row.checked_rows},
         {"bytes_per_rank", std::int64_t{2} * row.shape.rows * row.shape.hidden},
         {"fp8", {{"link_bytes", row.fp8.link_bytes}, {"memory_bytes", row.fp8.memory_bytes}}},
         {"fp8+bf16",
          {{"link_bytes", row.both.link_bytes}, {"memory_bytes", row.both.memory_bytes}}},
         {"arms", arms}});
  }
  const BoundaryBench& options = results.options;
  nlohmann::json object{{"device", results.device.name},
                        {"target", name(options.target)},
                        {"units", results.device.num_units},
                        {"memory_bytes", results.device.total_bytes},
                        {"l2_bytes", results.device.l2_bytes},
                        {"transport", results.transport},
                        {"date", results.date},
                        {"command", results.command},
                        {"version", version_name()},
                        {"complete", results.complete},
                        {"ranks", options.tp},
                        {"dtype", name(options.dtype)},
                        {"inputs", name(options.inputs)},
                        {"scales", "fp32, row"},
                        {"spread_residual", options.spread_residual},
                        {"repeats", options.repeats},
                        {"warm_up", options.warm_up},
                        {"link_gbs", results.rates.link_gbs},
                        {"slowest_link_gbs", results.slowest_link_gbs},
                        {"memory_gbs", results.rates.memory_gbs},
                        {"latency_us", results.rates.latency_us},
                        {"results", list}};
  if (options.sweep_variants) object["choices"] = choices_of(results);
  return object;
}

Plot plot_of(const Results& results) {
  Plot plot;
  plot.title = "boundary, µs per call: " + results.device.name + ", " +
               std::to_string(results.options.tp) + " ranks, " + results.date.substr(0, 10);
  plot.x_label = "rows";
  plot.y_label = "µs";
  for (const int hidden : results.options.hidden) {
    Panel panel;
    panel.title = "hidden " + std::to_string(hidden);
    for (const bool cold : {false, true})
      for (std::size_t arm = 0; arm < results.arms.size(); ++arm) {
        Line line;
        line.name = results.arms[arm].name + (cold ? ", cold" : "");
        line.color = static_cast<int>(arm);
        line.dashed = cold;
        for (const Row& row : results.rows)
          if (row.shape.hidden == hidden && row.cold == cold && row.arms[arm].timing.iterations > 0)
            line.points.push_back({static_cast<double>(row.shape.rows), row.arms[arm].timing.us});
        if (!line.points.empty()) panel.lines.push_back(std::move(line));
      }
    plot.panels.push_back(std::move(panel));
  }
  return plot;
}

std::vector<std::string> absences(const Results& results) {
  std::vector<std::string> found;
  for (const Row& row : results.rows)
    for (std::size_t arm = 0; arm < row.arms.size(); ++arm) {
      if (row.arms[arm].why_not.empty()) continue;
      const std::string start = results.arms[arm].name + ": ";
      const bool told = std::any_of(found.begin(), found.end(), [&](const std::string& other) {
        return other.starts_with(start);
      });
      if (!told) found.push_back(start + row.arms[arm].why_not);
    }
  return found;
}

Status check_equal(const Results& results) {
  for (const Row& row : results.rows)
    for (std::size_t arm = 0; arm < row.arms.size(); ++arm)
      if (row.arms[arm].equals == Equality::kNo)
        return Status::error(Code::kInternal,
                             "bench boundary: " + std::to_string(row.shape.rows) + " rows of " +
                                 std::to_string(row.shape.hidden) + ", " + results.arms[arm].name +
                                 " differs from the oracle: " + row.arms[arm].why_not);
  return Status::ok();
}

}  // namespace tenon::apps
