// What a run of the bench found, as tables: for people and as CSV, with the key to their columns.
#pragma once

#include <string>

#include "apps/bench/baseline.h"
#include "apps/bench/results.h"

namespace tenon::apps {

// For people, with cells as "384 B" and "35%". `wide`: every column, in lines of any length.
// Otherwise a few of them, in blocks that fit into `columns` (0: any length).
std::string table_text(const Results& results, bool wide, std::size_t columns);

// For programs: every cell a plain number or a name, units in the names of columns, and nothing
// where there is nothing.
std::string csv_of(const Results& results);

// What the names of arms and of the table's columns mean, a line each.
std::string key_text();

// What a comparison found to be slower, as a table and as JSON.
std::string slower_text(const Comparison& found, double tolerance_percent);
nlohmann::json json_of(const Comparison& found, double tolerance_percent);

}  // namespace tenon::apps
