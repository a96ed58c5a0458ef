// Tables of measurements as JSON: tuned.json, TENON_TUNED_FILE, `tenon bench boundary --tune`.
//
//   {"tables": [{"device": "NVIDIA H200", "link_gbs": 380, "ranks": 4, "hidden": 4096,
//                "outputs": "fp8+bf16", "date": "2026-11-28",
//                "lines": [{"up_to_rows": 16, "choice": "one_shot"},
//                          {"choice": "two_shot_packed"}]}],
//    "alike": [{"device": "NVIDIA H100 80GB HBM3", "other": "NVIDIA H200"}]}
//
// Choices are those of tuned.h. `alike` may be left out, and so may `link_gbs`. A table of calls
// after which every rank has the whole residual says "residual": "whole".
#pragma once

#include <string>
#include <string_view>

#include "tenon/boundary/tuned.h"

namespace tenon {

// Refuses what it does not know: other keys, other choices, rows that do not rise, a last line that
// has an end, two tables about the same. The error says where and what is accepted.
Result<TunedTables> parse_tuned(std::string_view text);

// One line of text per table; parse_tuned() of it gives the same tables.
std::string text_of(const TunedTables& tables);

}  // namespace tenon
