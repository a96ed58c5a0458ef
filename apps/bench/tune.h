// From the times of every choice of kernels to tables of choices by rows, one for each width and
// set of outputs.
#pragma once

#include <string>
#include <vector>

#include "apps/bench/results.h"
#include "tenon/boundary/tuned.h"

namespace tenon::apps {

// How much longer choices took than the best one of each shape; 0.02 is 2 %.
struct Regret {
  double worst = 0, mean = 0;
  std::string worst_shape;
};

struct Tuning {
  TunedTable table;
  Regret regret;
};

// For each width and set of outputs the table of few lines with the least worst regret; of equals,
// with the least mean regret. A line ends at rows that were measured.
std::vector<Tuning> tune(const Results& results);

// Of what boundaries take without a knob (Row::default_choice).
Regret regret_of_defaults(const Results& results);

// What the tables cost, and what the defaults do, a line each for people.
std::string regrets_text(const std::vector<Tuning>& tunings, const Regret& of_defaults);

// The tables of a file that --tune is to change: none where it is no file or is empty. An error
// where it holds something else.
Result<TunedTables> read_tables(const std::string& path);

}  // namespace tenon::apps
