// How the row buckets of a boundary would run on a team, and why not otherwise.
#pragma once

#include <string>
#include <vector>

#include "tenon/boundary/boundary.h"
#include "tenon/comm/communicator.h"
#include "tenon/core/status.h"

namespace tenon {

// The plans of one boundary's row buckets, for three kinds of site: fp8, fp8 and 16-bit rows,
// 16-bit rows alone.
struct Explanation {
  std::string transport;
  std::vector<BoundaryUse> uses;
};

// Makes the boundaries of [max_rows, hidden] bf16 rows, each on a channel of its own so that
// nothing forces them to be alike, and runs nothing. Collective; every rank gets the same answer.
Result<Explanation> explain_boundary(int hidden, int max_rows, Communicator& comm);

}  // namespace tenon
