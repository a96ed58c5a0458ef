// What a run of the bench found, and two of its forms: JSON and a plot. Tables: tables.h.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/bench/arms.h"
#include "apps/bench/plot.h"
#include "apps/bench/rates.h"
#include "apps/bench/timing.h"

namespace tenon::apps {

// Of an arm's results and the oracle's.
enum class Equality {
  kUnknown,   // it did not run
  kYes,       // byte for byte
  kOwnOrder,  // no, and nobody promised: the vendor's sum of more than two ranks
  kNo,
};

struct ArmResult {
  Timing timing;        // iterations 0: it did not run
  std::string why_not;  // it did not run
  Equality equals{};
  std::string variant;  // of the deciding kernel, and its launch shape
  int blocks = 0, threads = 0;
};

// One shape in one state of the cache.
struct Row {
  Shape shape{};
  Mode mode{};
  bool cold = false;
  int copies = 1;        // of what a call reads and writes
  int checked_rows = 0;  // against the oracle
  // What boundaries take without a knob, of kBoundaryChoices (tuned.h): with FP8 out, and with
  // 16-bit rows besides.
  std::string default_choice[2];
  Traffic fp8, both;  // of a boundary with FP8 out, and with 16-bit rows besides
  std::vector<ArmResult> arms;
};

struct Results {
  BoundaryBench options;
  std::vector<Arm> arms;
  DeviceProperties device;
  std::string transport, date, command;
  int slowest_link_gbs = 0;  // Communicator::slowest_link_gbs()
  Rates rates;
  std::vector<Row> rows;
  bool complete = true;  // false: stopped before all rows were there
};

// The arms whose times are divided by each other: slow over fast.
struct Ratio {
  std::string slow, fast;
};
const std::vector<Ratio>& ratios();

// The result of the named arm, or null where it was not chosen or did not run.
const ArmResult* find_arm(const Results& results, const Row& row, std::string_view name);
std::string_view name(Mode mode);

// "warm" or "cold".
std::string_view l2_of(const Row& row);
// The variants that the one-kernel arms took, or nothing.
std::string variants_of(const Results& results, const Row& row);
// The one-kernel arm with the most outputs that ran, or null: what the floor is compared with.
// Where there is none, the floor is that of all outputs.
const ArmResult* leader_of(const Results& results, const Row& row, bool* bf16);

nlohmann::json json_of(const Results& results);
Plot plot_of(const Results& results);

// "Why not" of every arm that did not run somewhere, once each.
std::vector<std::string> absences(const Results& results);
// Ok, or the first arm that differs from the oracle.
Status check_equal(const Results& results);

}  // namespace tenon::apps
