#include "apps/bench/baseline.h"

#include <algorithm>
#include <filesystem>

#include "tenon/core/file.h"
#include "tenon/core/json.h"

namespace tenon::apps {
namespace {

constexpr std::size_t kMostNamed = 8;

Status refuse(std::string why) {
  return Status::error(Code::kInvalidArgument, "bench boundary: --check: " + std::move(why));
}

std::string with_dashes(std::string name) {
  std::replace(name.begin(), name.end(), ' ', '-');
  std::replace(name.begin(), name.end(), '/', '-');
  return name;
}

// The baseline's entry for a shape, or null.
const nlohmann::json* entry_for(const nlohmann::json& baseline, const Row& row) {
  for (const nlohmann::json& each : baseline.at("results"))
    if (each.at("rows") == row.shape.rows && each.at("hidden") == row.shape.hidden &&
        each.at("mode") == name(row.mode) && each.at("l2") == (row.cold ? "cold" : "warm"))
      return &each;
  return nullptr;
}

// Microseconds of an arm of an entry, or 0 where it did not run.
double stored_us(const nlohmann::json& entry, const std::string& arm) {
  const auto& arms = entry.at("arms");
  return arms.contains(arm) ? arms.at(arm).value("us", 0.0) : 0.0;
}

Status same(const nlohmann::json& baseline, const char* key, const nlohmann::json& here) {
  if (baseline.at(key) == here) return Status::ok();
  return refuse(std::string("the baseline's \"") + key + "\" is " + baseline.at(key).dump() +
                ", this run's is " + here.dump());
}

struct Loss {
  double percent;
  std::string what;
};

Status compare(const nlohmann::json& baseline, const Results& results, double tolerance_percent) {
  TENON_TRY(same(baseline, "device", results.device.name));
  TENON_TRY(same(baseline, "ranks", results.options.tp));
  TENON_TRY(same(baseline, "dtype", name(results.options.dtype)));
  TENON_TRY(same(baseline, "inputs", name(results.options.inputs)));
  TENON_TRY(same(baseline, "spread_residual", results.options.spread_residual));
  int compared = 0;
  std::vector<Loss> losses;
  for (const Row& row : results.rows) {
    const nlohmann::json* const entry = entry_for(baseline, row);
    for (const Ratio& each : ratios()) {
      const ArmResult* const slow = find_arm(results, row, each.slow);
      const ArmResult* const fast = find_arm(results, row, each.fast);
      if (entry == nullptr || slow == nullptr || fast == nullptr) continue;
      const double slow_us = stored_us(*entry, each.slow), fast_us = stored_us(*entry, each.fast);
      if (slow_us <= 0 || fast_us <= 0) continue;
      ++compared;
      const double before = slow_us / fast_us, now = slow->timing.us / fast->timing.us;
      const double percent = 100 * (1 - now / before);
      if (percent > tolerance_percent)
        losses.push_back({percent, std::to_string(row.shape.rows) + " x " +
                                       std::to_string(row.shape.hidden) + " " + each.slow + "/" +
                                       each.fast + " " + fixed(now, 2) + ", was " +
                                       fixed(before, 2)});
    }
  }
  if (compared == 0) return refuse("the baseline has no ratio of any shape that was run");
  if (losses.empty()) return Status::ok();
  std::sort(losses.begin(), losses.end(),
            [](const Loss& a, const Loss& b) { return a.percent > b.percent; });
  std::string text;
  for (std::size_t i = 0; i < std::min(losses.size(), kMostNamed); ++i)
    text += (i == 0 ? "" : "; ") + losses[i].what;
  return Status::error(Code::kInternal, "bench boundary: " + std::to_string(losses.size()) +
                                            " of " + std::to_string(compared) +
                                            " ratios are worse than the baseline by more "
                                            "than " +
                                            fixed(tolerance_percent, 1) + " %: " + text);
}

}  // namespace

Result<nlohmann::json> read_baseline(const std::string& path, const std::string& device) {
  std::error_code ignored;
  const bool folder = std::filesystem::is_directory(path, ignored);
  const std::string file = folder ? path + "/" + with_dashes(device) + ".json" : path;
  TENON_ASSIGN(const std::string text, read_text(file),
               "bench boundary: --check: cannot read \"" + file + "\"");
  auto found = parse_json(text);
  if (!found || !found->is_object() || !found->contains("results"))
    return refuse("\"" + file + "\" is not the JSON of a run of this bench");
  return found;
}

Status check_against(const nlohmann::json& baseline, const Results& results,
                     double tolerance_percent) {
  try {
    return compare(baseline, results, tolerance_percent);
  } catch (const nlohmann::json::exception& error) {
    return refuse(std::string("the baseline is not the JSON of a run of this bench: ") +
                  error.what());
  }
}

}  // namespace tenon::apps
