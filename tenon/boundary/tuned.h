// What was measured to be fastest, and where: the tables of tuned.json, which are built in, and of
// the file that TENON_TUNED_FILE names, which take their place. As text: tuned_json.h.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "tenon/core/status.h"
#include "tenon/device/variant.h"

namespace tenon {

// Stage 1's variants, and stage 2.
inline constexpr std::string_view kTwoKernelsChoice = "two_kernels";
inline constexpr std::string_view kBoundaryChoices[] = {"one_shot", "one_shot_packed", "two_shot",
                                                        "two_shot_packed", kTwoKernelsChoice};

// A line of a table: calls of up to so many rows take this choice.
struct TunedLine {
  static constexpr std::int64_t kNoEnd = std::numeric_limits<std::int64_t>::max();
  std::int64_t up_to_rows = kNoEnd;
  std::string choice;
};

// What was measured of one team and one width. A choice may change speed only: all give the same
// bits.
struct TunedTable {
  std::string device;            // DeviceProperties::name
  int link_gbs = 0;              // Communicator::slowest_link_gbs(), in GB/s; 0 on host targets
  int ranks = 0, hidden = 0;     // [rows, hidden] of 16-bit elements
  std::string outputs;           // what was timed: the choice is the same for all outputs, since the
                                 // boundaries of a channel run alike
  std::string date;              // of the measurement: "2026-11-28"
  std::vector<TunedLine> lines;  // up_to_rows rises; the last has no end

  bool is_about(const TunedTable& other) const;  // of the same device, links, ranks and width
};

struct TunedTables {
  std::vector<TunedTable> tables;
  // `device` has no tables of its own and takes those of `other`.
  struct Alike {
    std::string device, other;
  };
  std::vector<Alike> alike;

  // Takes over everything of `newer`, in the place of what is about the same.
  void put(const TunedTables& newer);
};

// Whether measurements over one link hold for another: both within a factor of two, or one unknown.
bool is_like_link(int gbs, int other_gbs);

// The team of a call.
struct TunedTeam {
  std::string_view device;
  int link_gbs = 0;
  int ranks = 0;
};

// What a table says of a call.
struct TunedChoice {
  std::string_view choice;        // empty: nothing is known
  std::string_view date;          // of the measurement
  std::string_view other_device;  // it was taken there; empty: on the device itself
};

// The choice for `rows` of `hidden` elements. A width that nobody measured takes the table of the
// nearest one, with as many bytes instead of rows. Pure. The answer lives as long as the tables.
TunedChoice fastest(const TunedTables& tables, const TunedTeam& team, std::int64_t rows,
                    std::int64_t hidden);

// The tables of this process: those built in, and over them those of TENON_TUNED_FILE, which is
// read once. An error says what is wrong with the file; then the built-in ones hold.
const TunedTables& tuned_tables();
const Status& tuned_status();
// What ranks compare: "no file", "contents 1234…" with a number made of them, or why there are none.
const std::string& tuned_file_text();

// "was measured to be faster (2026-11-26)": what may be said of a choice.
std::string claim(const TunedChoice& tuned);

// Sets what a plan for `rows` of `hidden` 16-bit elements prefers to what was measured on the
// device and team of `where`: nothing where nothing was. `link_gbs`: slowest_link_gbs().
void prefer_measured(PlanContext& where, int link_gbs, std::int64_t rows, std::int64_t hidden);

}  // namespace tenon
