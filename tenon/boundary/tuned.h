// The table of what was measured to be fastest, and where (tuned.def).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "tenon/device/variant.h"

namespace tenon {

// Stage 1's variants, and stage 2.
inline constexpr std::string_view kTwoKernelsChoice = "two_kernels";
inline constexpr std::string_view kBoundaryChoices[] = {"one_shot", "one_shot_packed", "two_shot",
                                                        "two_shot_packed", kTwoKernelsChoice};

// A line of the table.
struct TunedEntry {
  std::string_view device;
  int team_size = 0;
  std::int64_t up_to_bytes = 0;
  std::string_view choice;        // empty: nothing is known
  std::string_view date;          // of the measurement
  std::string_view other_device;  // it was taken there; empty: on the device itself
};

// The line for rows of `bytes` on one rank, or one without a choice for a device and a number of
// ranks that have none. Pure: ranks on equal devices get the same answer.
TunedEntry fastest(std::string_view device, int team_size, std::int64_t bytes);

// "was measured to be faster (2026-11-26)": what may be said of the choice of a line.
std::string claim(const TunedEntry& tuned);

// Sets what a plan for `rows` of `hidden` 16-bit elements prefers to what was measured on the
// device and team of `where`: nothing where nothing was.
void prefer_measured(PlanContext& where, std::int64_t rows, std::int64_t hidden);

}  // namespace tenon
