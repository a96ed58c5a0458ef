// The table of what was measured to be fastest (tuned.def).
#pragma once

#include <cstdint>
#include <string_view>

namespace tenon::fused_allreduce_rmsnorm_quant {

// Stage 1's variants, and stage 2.
inline constexpr std::string_view kTwoKernels = "two_kernels";
inline constexpr std::string_view kChoices[] = {"one_shot", "one_shot_packed", "two_shot",
                                                "two_shot_packed", kTwoKernels};

// One of them for rows of `bytes` on one rank; empty for a device and a number of ranks that nobody
// has measured. Pure: ranks on equal devices get the same answer.
std::string_view fastest(std::string_view device, int team_size, std::int64_t bytes);

}  // namespace tenon::fused_allreduce_rmsnorm_quant
