// Times the arms of one shape: interleaved, the slowest rank's time. Not here: what a call is
// (arms.h), how calls are timed (calls.h).
#pragma once

#include <string>
#include <vector>

#include "apps/bench/arms.h"
#include "apps/bench/calls.h"

namespace tenon::apps {

// What one arm gave. Microseconds per call of the slowest rank: median and quantiles of repeats.
struct Timing {
  double us = 0, p10 = 0, p90 = 0;
  int iterations = 0;  // calls of a repeat; 0: it was not timed
  int repeats = 0;     // fewer than wanted where the run was stopped
};

// Times every arm that can run; arms that turn out not to be capturable leave a reason in `why`.
// Collective. One entry per arm. Where the watch ends it, what was timed until then.
Result<std::vector<Timing>> time_arms(const BoundaryBench& options, Mode mode, Bench& bench,
                                      const std::vector<Arm>& arms, Communicator& comm, Gate& gate,
                                      Stream& stream, const Watch& watch,
                                      std::vector<std::string>& why);

}  // namespace tenon::apps
