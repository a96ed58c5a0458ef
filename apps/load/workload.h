// What a load asks for: prompts of token ids and lengths of answers, all drawn from a seed. The
// same on every machine.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tenon::apps {

struct WorkloadOptions {
  // random: ids drawn one by one. shared-prefix: prompts of a group begin alike. sharegpt: random,
  // with lengths as those of conversations spread.
  std::string kind = "random";
  int prompts = 32;
  int input_tokens = 128, output_tokens = 64;
  // random and shared-prefix: lengths are uniform between this share of the tokens and all of them.
  double range_ratio = 1;
  int prefix_tokens = 256, groups = 4;  // of shared-prefix: in front of input_tokens
  std::uint64_t seed = 0;
  int num_ids = 0;  // ids are below this
};

// sharegpt: lengths are log-normal with the mean that was asked for and this standard deviation of
// the logarithm, from 4 tokens to kLongest times the mean.
inline constexpr double kLengthSigma = 1.0;
inline constexpr double kLongest = 4.0;

struct WorkItem {
  std::vector<std::int32_t> prompt;
  int output_tokens = 1;
};

// Another `round`: other ids, so that no server knows prompts from before; the same lengths and the
// same prefix groups.
std::vector<WorkItem> make_workload(const WorkloadOptions& options, std::uint64_t round);

// The most tokens of one item, prompt and answer together.
int longest_item(const std::vector<WorkItem>& items);

// Moments in seconds at which requests of a Poisson process of so many a second begin; the first is
// 0.
std::vector<double> poisson_moments(int count, double per_second, std::uint64_t seed);

}  // namespace tenon::apps
