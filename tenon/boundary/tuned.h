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
inline constexpr std::string_view kBoundaryChoices[] = {"one_shot",       "one_shot_packed",
                                                        "two_shot",       "two_shot_packed",
                                                        "one_shot_split", kTwoKernelsChoice};

// What a boundary writes besides the residual, as tables name it.
inline constexpr std::string_view kBoundaryOutputs[] = {"fp8", "fp8+bf16", "bf16"};
std::string_view boundary_outputs(bool fp8, bool bf16);

// A line of a table: calls of up to so many rows take this choice.
struct TunedLine {
  static constexpr std::int64_t kNoEnd = std::numeric_limits<std::int64_t>::max();
  std::int64_t up_to_rows = kNoEnd;
  std::string choice;
};

// What was measured of one team, one width, one set of outputs and one kind of residual. A choice
// may change speed only: all give the same bits.
struct TunedTable {
  std::string device;            // DeviceProperties::name
  int link_gbs = 0;              // Communicator::slowest_link_gbs(), in GB/s; 0 on host targets
  int ranks = 0, hidden = 0;     // [rows, hidden] of 16-bit elements
  std::string outputs;           // of kBoundaryOutputs
  std::string date;              // of the measurement: "2026-11-28"
  std::vector<TunedLine> lines;  // up_to_rows rises; the last has no end
  bool whole_residual = false;   // on every rank after every call, not sharded by owner

  bool is_about(const TunedTable& other) const;  // the same in all but date and lines
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

struct TunedTeam {
  std::string_view device;
  int link_gbs = 0;
  int ranks = 0;
  bool whole_residual = false;
};

// What is known of one team, width and outputs.
struct TunedChoices {
  std::vector<TunedLine> lines;  // of this width; empty: nothing is known
  std::string why;               // "was measured to be faster (2026-11-28)": of each choice

  std::string_view of(std::int64_t rows) const;  // of kBoundaryChoices, or empty
};

// From the table of this residual (else of the sharded one), these outputs (else fp8+bf16) and this
// width; a width that nobody measured takes the table of the nearest one, with as many bytes
// instead of rows. Without a table the rule. Pure.
TunedChoices choices_for(const TunedTables& tables, const TunedTeam& team, std::string_view outputs,
                         int hidden);

// For teams of three ranks and more whose links were measured and that have no table; empty for
// others. With n ranks, B = link_gbs, and times at one row on four H200s:
//   one_shot         up to bytes B · 1.32 us · n / ((n - 1)(n - 2)): two shots send less by that
//                    much link time as their second trip costs (tp 3: 4.68 - 3.36 us)
//   two_shot         up to bytes B · 1.22 us · 2n / (n - 1): packing saves a quarter of the bytes,
//                    and costs so much time (tp 3: 5.90 - 4.68 us)
//   two_shot_packed  above
// Bytes are those of one rank's rows.
TunedChoices rule(const TunedTeam& team, int hidden);

// The rows at which choices of any outputs end, for row buckets.
std::vector<std::int64_t> row_ends(const TunedTables& tables, const TunedTeam& team, int hidden);

// The tables of this process: those built in, and over them those of TENON_TUNED_FILE, which is
// read once. An error says what is wrong with the file; then the built-in ones hold.
const TunedTables& tuned_tables();
const Status& tuned_status();
// What ranks compare: "no file", "contents 1234…" with a number made of them, or why there are
// none.
const std::string& tuned_file_text();

// Sets what a plan for `rows` of `hidden` 16-bit elements prefers to what is known of the device
// and team of `where`: nothing where nothing is. `link_gbs`: slowest_link_gbs().
void prefer_measured(PlanContext& where, int link_gbs, bool whole_residual,
                     std::string_view outputs, std::int64_t rows, int hidden);

}  // namespace tenon
