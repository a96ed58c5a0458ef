// tenon bench boundary: one boundary, several ways, interleaved, each checked against the oracle.
// docs/boundary.md, "How it is measured", says what is timed and how.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "apps/bench/report.h"
#include "tenon/core/status.h"
#include "tenon/core/tensor.h"

namespace tenon::apps {

// How the calls of a repeat reach the device.
enum class Mode {
  kAuto,   // graph on devices up to kMaxGraphRows rows, else eager
  kGraph,  // recorded once, replayed
  kEager,  // enqueued one by one
};
inline constexpr int kMaxGraphRows = 512;

// What the ranks add up. Every arm is checked with the last kind as well, whatever it is timed
// with.
enum class Inputs : std::size_t {
  kNormal,      // normally distributed
  kOutliers,    // the same, and a column in 128 is 64 times as large, as in the rows of a decoder
  kCancelling,  // half of the numbers 2^21 to 2^25 on two ranks and gone from the sum, so that its
                // order shows; sizes that rows in a decoder never have
};

inline constexpr const char* kInputsNames[] = {"normal", "outliers", "cancelling"};
inline const char* name(Inputs inputs) { return kInputsNames[static_cast<std::size_t>(inputs)]; }

struct BoundaryBench : ReportOptions {
  std::vector<int> rows, hidden;  // empty: what suits the target and the mode
  bool around = false;            // with the default rows, also those beside each power of two
  int tp = 2;
  Target target = Target::kCpu;
  DType dtype = DType::kBF16;
  Mode mode = Mode::kAuto;
  Inputs inputs = Inputs::kNormal;
  bool warm = true, cold = false;                 // states of the L2 cache to measure in
  int iterations = 0, repeats = 0, warm_up = -1;  // 0, 0, -1: what suits the target
  bool adapt_iterations = false;        // fewer where calls are long; set where iterations was 0
  std::vector<std::string> arms;        // names of arms.h; empty: all
  std::string variant;                  // of the one-kernel arms; empty leaves the choice
  bool spread_residual = false;         // two_shot gives every rank the whole residual
  bool sweep_variants = false;          // time every choice of kernels instead of the arms
  double link_gbs = 0, memory_gbs = 0;  // of one rank and direction; 0: measured at the start
  std::string tune_path;                // empty: not wanted
  bool wide = false;                    // every column of the table, in lines of any length
  std::string baseline_path;            // --check: a JSON of an earlier run, or a folder of them
  double tolerance_percent = 3;
};

// What the program ends with where run() was ok: 1 where --check found something slower.
Status run(const BoundaryBench& options, int* exit_code);

}  // namespace tenon::apps
