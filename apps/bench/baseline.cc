#include "apps/bench/baseline.h"

#include <algorithm>
#include <filesystem>

#include "tenon/core/file.h"
#include "tenon/core/json.h"

namespace tenon::apps {
namespace {

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
        each.at("mode") == name(row.mode) && each.at("l2") == l2_of(row))
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

Status all_same(const nlohmann::json& baseline, const Results& results) {
  TENON_TRY(same(baseline, "device", results.device.name));
  TENON_TRY(same(baseline, "ranks", results.options.tp));
  TENON_TRY(same(baseline, "dtype", name(results.options.dtype)));
  TENON_TRY(same(baseline, "inputs", name(results.options.inputs)));
  return same(baseline, "spread_residual", results.options.spread_residual);
}

Result<Comparison> compared(const nlohmann::json& baseline, const Results& results,
                            double tolerance_percent) {
  Comparison found;
  for (const Row& row : results.rows) {
    const nlohmann::json* const entry = entry_for(baseline, row);
    for (const Ratio& each : ratios()) {
      const ArmResult* const slow = find_arm(results, row, each.slow);
      const ArmResult* const fast = find_arm(results, row, each.fast);
      if (entry == nullptr || slow == nullptr || fast == nullptr) continue;
      const double slow_us = stored_us(*entry, each.slow), fast_us = stored_us(*entry, each.fast);
      if (slow_us <= 0 || fast_us <= 0) continue;
      ++found.compared;
      const double was = slow_us / fast_us, now = slow->timing.us / fast->timing.us;
      const double percent = 100 * (1 - now / was);
      if (percent > tolerance_percent)
        found.slower.push_back({row.shape, std::string(name(row.mode)), std::string(l2_of(row)),
                                each.slow, each.fast, now, was, percent});
    }
  }
  if (found.compared == 0) return refuse("the baseline has no ratio of any shape that was run");
  std::sort(found.slower.begin(), found.slower.end(),
            [](const Slower& a, const Slower& b) { return a.percent > b.percent; });
  return found;
}

// The sentence for JSON that is not what this bench wrote.
template <class Work>
auto on_baseline(const Work& work) -> decltype(work()) {
  try {
    return work();
  } catch (const nlohmann::json::exception& error) {
    return refuse(std::string("the baseline is not the JSON of a run of this bench: ") +
                  error.what());
  }
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

Status check_comparable(const nlohmann::json& baseline, const Results& results) {
  return on_baseline([&] { return all_same(baseline, results); });
}

Result<Comparison> compare(const nlohmann::json& baseline, const Results& results,
                           double tolerance_percent) {
  return on_baseline([&] { return compared(baseline, results, tolerance_percent); });
}

}  // namespace tenon::apps
