// The table of what was measured to be fastest (tuned.def).
#pragma once

#include <cstdint>
#include <string_view>

namespace tenon::fused_allreduce_rmsnorm_quant {

// "one_shot", "two_shot" or "two_kernels" for rows of `bytes` on one rank; empty for a device and a
// number of ranks that nobody has measured. Pure: ranks on equal devices get the same answer.
std::string_view fastest(std::string_view device, int team_size, std::int64_t bytes);

}  // namespace tenon::fused_allreduce_rmsnorm_quant
