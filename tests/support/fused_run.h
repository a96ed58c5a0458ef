// Runs one call of the fused boundary on one rank and compares it with the oracle.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "tenon/comm/communicator.h"
#include "tenon/ops/fused_allreduce_rmsnorm_quant/fused_allreduce_rmsnorm_quant.h"
#include "tenon/reference/boundary.h"
#include "tests/support/boundary_tensors.h"

namespace tenon::test {

struct FusedCase {
  reference::BoundaryCase shape;
  std::uint64_t seed = 0;
  bool spread_residual = false;
  int gap = 0;  // elements between rows
};

fused_allreduce_rmsnorm_quant::Args fused_args(const FusedCase& call,
                                               const BoundaryTensors& tensors);

// The variants that can run a case on `target`. Packed ones take bf16 alone, and on targets with
// waves only rows that have a vector for every lane of a block. one_shot_split wants a target with
// clusters and several blocks for each row, of `max_blocks` (Communicator::max_blocks()) at most.
std::vector<std::string_view> variants_of(const reference::BoundaryCase& shape, Target target,
                                          int max_blocks);
bool has_clusters(Target target);

// A plan for `variant`, whatever is fastest.
Result<Plan> plan_of(const fused_allreduce_rmsnorm_quant::Args& args, const Communicator& comm,
                     std::string_view variant);

// How a call reaches the device.
enum class Launch : std::uint8_t { kEager, kGraph };

// Runs and compares; what is wrong as a sentence, or nothing. Rows of the residual that belong to
// another rank after the variant are not compared.
std::string run_fused(const FusedCase& call, const BoundaryTensors& tensors,
                      const reference::BoundaryOutputs& expected, std::string_view variant,
                      Launch how, const Communicator& comm, const ChannelView& team,
                      Stream& stream);
std::string compare_fused(const FusedCase& call, const BoundaryTensors& tensors,
                          const reference::BoundaryOutputs& expected, std::string_view variant,
                          int rank, Stream& stream);

}  // namespace tenon::test
