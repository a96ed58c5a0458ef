// How rows are dealt to the ranks of a team: in order, as evenly as whole rows allow. A function of
// the numbers alone, hence the same on every rank.
#pragma once

#include <cstdint>

namespace tenon {

struct RowRange {
  std::int64_t first = 0, count = 0;
};

constexpr RowRange dealt_rows(std::int64_t rows, int team_size, int rank) {
  const auto begin = [&](int r) { return (rows * r + team_size - 1) / team_size; };
  return {begin(rank), begin(rank + 1) - begin(rank)};
}

// Those of rank 0; no rank gets more.
constexpr std::int64_t most_dealt_rows(std::int64_t rows, int team_size) {
  return dealt_rows(rows, team_size, 0).count;
}

}  // namespace tenon
