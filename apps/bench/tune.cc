#include "apps/bench/tune.h"

#include <algorithm>
#include <array>
#include <limits>
#include <map>

#include "apps/table.h"
#include "tenon/boundary/tuned.h"

namespace tenon::apps {
namespace {

constexpr std::size_t kNumChoices = std::size(kBoundaryChoices);
constexpr std::size_t kNumParts = 3;  // of a table: more would follow the noise
constexpr double kNever = 1e9;        // the regret of a choice that cannot run
constexpr std::int64_t kNoEnd = std::numeric_limits<std::int64_t>::max();

// The shapes of one size: for each choice, the worst regret and the sum of them.
struct Size {
  std::array<double, kNumChoices> worst{}, sum{};
  std::array<std::string, kNumChoices> worst_shape;
};
using Sizes = std::map<std::int64_t, Size>;

void take(const Results& results, const Row& row, bool bf16, Sizes& sizes) {
  std::array<double, kNumChoices> us{};
  double best = 0;
  for (std::size_t choice = 0; choice < kNumChoices; ++choice) {
    const std::string arm = std::string(kBoundaryChoices[choice]) + (bf16 ? "+bf16" : "");
    const ArmResult* const found = find_arm(results, row, arm);
    us[choice] = found == nullptr ? 0 : found->timing.us;
    if (us[choice] > 0 && (best == 0 || us[choice] < best)) best = us[choice];
  }
  if (best == 0) return;
  Size& size = sizes[std::int64_t{2} * row.shape.rows * row.shape.hidden];
  for (std::size_t choice = 0; choice < kNumChoices; ++choice) {
    const double regret = us[choice] > 0 ? us[choice] / best - 1 : kNever;
    size.sum[choice] += regret;
    if (regret < size.worst[choice]) continue;
    size.worst[choice] = regret;
    size.worst_shape[choice] = std::to_string(row.shape.rows) + " x " +
                               std::to_string(row.shape.hidden) + (bf16 ? ", fp8+bf16" : ", fp8");
  }
}

// One way to cut the sizes: choice order[0] for the first cuts[0] of them, and so on.
struct Cut {
  std::array<std::size_t, kNumParts> order{}, cuts{};
  double worst = kNever * 10, sum = 0;
  std::string worst_shape;
};

Cut judge(const Sizes& sizes, Cut cut) {
  cut.worst = cut.sum = 0;
  std::size_t index = 0, part = 0;
  for (const auto& [bytes, size] : sizes) {
    while (index >= cut.cuts[part]) ++part;
    const std::size_t choice = cut.order[part];
    cut.sum += size.sum[choice];
    if (size.worst[choice] > cut.worst || cut.worst_shape.empty()) {
      cut.worst = size.worst[choice];
      cut.worst_shape = size.worst_shape[choice];
    }
    ++index;
  }
  return cut;
}

Cut best_cut(const Sizes& sizes) {
  Cut best;
  const auto try_order = [&](std::array<std::size_t, kNumParts> order) {
    for (std::size_t first = 0; first <= sizes.size(); ++first)
      for (std::size_t second = first; second <= sizes.size(); ++second) {
        const Cut cut = judge(sizes, {order, {first, second, sizes.size()}, 0, 0, {}});
        if (cut.worst < best.worst || (cut.worst == best.worst && cut.sum < best.sum)) best = cut;
      }
  };
  for (std::size_t a = 0; a < kNumChoices; ++a)
    for (std::size_t b = 0; b < kNumChoices; ++b)
      for (std::size_t c = 0; c < kNumChoices; ++c)
        if (a != b && b != c && a != c) try_order({a, b, c});
  return best;
}

Tuning tuning_of(const Sizes& sizes, std::size_t num_shapes) {
  const Cut cut = best_cut(sizes);
  Tuning tuning;
  tuning.worst_regret = cut.worst;
  tuning.mean_regret = cut.sum / static_cast<double>(num_shapes);
  tuning.worst_shape = cut.worst_shape;
  std::vector<std::int64_t> bytes;
  for (const auto& each : sizes) bytes.push_back(each.first);
  for (std::size_t part = 0, begin = 0; part < kNumParts; begin = cut.cuts[part++])
    if (cut.cuts[part] > begin)
      tuning.thresholds.push_back(
          {bytes[cut.cuts[part] - 1], std::string(kBoundaryChoices[cut.order[part]])});
  tuning.thresholds.back().up_to_bytes = kNoEnd;
  return tuning;
}

}  // namespace

Tuning tune(const Results& results) {
  Sizes sizes;
  for (const bool bf16 : {false, true})
    for (const Row& row : results.rows) take(results, row, bf16, sizes);
  return sizes.empty() ? Tuning{} : tuning_of(sizes, 2 * results.rows.size());
}

std::string tuned_lines(const Results& results, const Tuning& tuning) {
  std::string text;
  for (const Threshold& each : tuning.thresholds)
    text += "TENON_TUNED(\"" + results.device.name + "\", " + std::to_string(results.options.tp) +
            ", " + (each.up_to_bytes == kNoEnd ? "INT64_MAX" : std::to_string(each.up_to_bytes)) +
            ", \"" + each.choice + "\", \"" + results.date.substr(0, 10) + "\", \"\")\n";
  return text;
}

std::string regret(const Tuning& tuning) {
  return "tuned: worst regret " + fixed(100 * tuning.worst_regret, 1) + " % at " +
         tuning.worst_shape + ", mean " + fixed(100 * tuning.mean_regret, 2) + " %\n";
}

}  // namespace tenon::apps
