// One edit of a logit, as host and device see it: what it does stands in sampling.h.
#pragma once

#include <cstdint>

namespace tenon::sampling {

struct Edit {
  std::int32_t id = 0;
  float bias = 0;
  std::int32_t said = 0;  // 2 · (times drawn) + (1: it is in the prompt)
};

inline constexpr int kMaxLikely = 20;  // candidates that a report lists

}  // namespace tenon::sampling
