// The cases that a boundary is tested with: a thinned part in every run, all of them where
// TEST_FULL is set, a fifth of the thinned part in a small run (sizes.h).
#pragma once

#include <vector>

#include "tests/support/fused_run.h"

namespace tenon::test {

// Whether this run is asked for the whole matrix.
bool whole_matrix();

// Types, layouts, groups and flags by the digits of `mix`: neighbours differ in most of them.
FusedCase mixed_case(int team, int rows, int hidden, int mix);

// How much a target can do in a run of the suite.
enum class Pace { kFast, kEmulated };
Pace pace_of(Target target);

// Every width of the house × every number of rows. The whole matrix has every combination of
// outputs, layouts and element types for small cells and one mixed case for each large cell, of
// which emulated targets leave the largest out.
std::vector<FusedCase> boundary_matrix(int team, Pace pace);

// Every combination of outputs, layouts, fp8 kinds and element types on one width.
std::vector<FusedCase> every_output(int team, int rows, int hidden);

// Inputs of a case and what both oracles say they give; the two must agree.
struct Judged {
  FusedCase call;
  reference::BoundaryInputs inputs;
  reference::BoundaryOutputs expected;
};
std::vector<Judged> judge(const std::vector<FusedCase>& cases);

}  // namespace tenon::test
