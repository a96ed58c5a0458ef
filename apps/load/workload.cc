#include "apps/load/workload.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <random>

namespace tenon::apps {
namespace {

// The distributions of the standard library differ from one library to another; these do not.
class Draws {
 public:
  explicit Draws(std::uint64_t seed) : engine_(seed) {}
  double unit() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }  // [0, 1)
  std::int32_t below(int end) {
    return static_cast<std::int32_t>(engine_() % static_cast<std::uint64_t>(end));
  }
  double normal() {
    const double radius = std::sqrt(-2 * std::log(1 - unit()));
    return radius * std::cos(2 * std::numbers::pi * unit());
  }

 private:
  std::mt19937_64 engine_;
};

int length(Draws& draws, const WorkloadOptions& options, int tokens) {
  if (options.kind == "sharegpt") {
    const double mean_of_log = std::log(tokens) - kLengthSigma * kLengthSigma / 2;
    const double drawn = std::exp(mean_of_log + kLengthSigma * draws.normal());
    return static_cast<int>(std::clamp(drawn, 4.0, std::max(4.0, kLongest * tokens)));
  }
  const int least = std::max(1, static_cast<int>(options.range_ratio * tokens));
  return least + draws.below(tokens - least + 1);
}

void append_ids(std::vector<std::int32_t>& ids, Draws& draws, int count, int num_ids) {
  for (int i = 0; i < count; ++i) ids.push_back(draws.below(num_ids));
}

std::uint64_t mixed(std::uint64_t seed, std::uint64_t what) {
  return seed ^ ((what + 1) * 0x9e3779b97f4a7c15u);
}

}  // namespace

std::vector<WorkItem> make_workload(const WorkloadOptions& options, std::uint64_t round) {
  Draws lengths(options.seed);
  Draws ids(mixed(options.seed, round));
  std::vector<std::vector<std::int32_t>> prefixes;
  if (options.kind == "shared-prefix")
    for (int group = 0; group < options.groups; ++group)
      append_ids(prefixes.emplace_back(), ids, options.prefix_tokens, options.num_ids);
  std::vector<WorkItem> items(static_cast<std::size_t>(options.prompts));
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (!prefixes.empty()) items[i].prompt = prefixes[i % prefixes.size()];
    const int input = length(lengths, options, options.input_tokens);
    items[i].output_tokens = length(lengths, options, options.output_tokens);
    append_ids(items[i].prompt, ids, input, options.num_ids);
  }
  return items;
}

int longest_item(const std::vector<WorkItem>& items) {
  int longest = 0;
  for (const WorkItem& each : items)
    longest = std::max(longest, static_cast<int>(each.prompt.size()) + each.output_tokens);
  return longest;
}

std::vector<double> poisson_moments(int count, double per_second, std::uint64_t seed) {
  Draws draws(mixed(seed, 0x10ad));
  std::vector<double> moments;
  double now = 0;
  for (int i = 0; i < count; ++i) {
    moments.push_back(now);
    now += -std::log(1 - draws.unit()) / per_second;
  }
  return moments;
}

}  // namespace tenon::apps
