// Inputs of a boundary as pure functions of (rank, row, column), so that every rank makes its own
// quickly and the oracle makes only the rows that it checks.
#pragma once

#include <functional>
#include <vector>

#include "apps/bench/shapes.h"
#include "tenon/reference/boundary.h"

namespace tenon::apps {

// One rank's addend, [rows, hidden]: another on each rank. All finite, and so are sums of many
// calls.
std::vector<std::uint16_t> make_addend(Shape shape, DType dtype, Inputs inputs, int team, int rank);
// The same on every rank, whatever the addends are.
std::vector<std::uint16_t> make_residual(Shape shape, DType dtype);
std::vector<std::uint16_t> make_weight(int hidden, DType dtype);

// What a boundary must give for some rows of a shape: all of them where that takes no more than
// kFullCheck elements, else the first, the last and evenly spaced ones between.
struct Oracle {
  reference::BoundaryCase shape;  // rows: those checked
  std::vector<int> rows;          // their numbers
  reference::BoundaryOutputs expected;
};
inline constexpr std::int64_t kFullCheck = std::int64_t{4} << 20;
Oracle make_oracle(Shape shape, DType dtype, Inputs inputs, int team);

// Calls work(begin, end) for parts of [0, count), on several threads where that pays.
void in_parallel(int count, int threads, const std::function<void(int begin, int end)>& work);

}  // namespace tenon::apps
