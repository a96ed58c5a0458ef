// What plans of ops may depend on, for one rank of a team.
#pragma once

#include "tenon/comm/channel.h"
#include "tenon/comm/communicator.h"
#include "tenon/core/status.h"
#include "tenon/device/plan.h"

namespace tenon {

// Its device's properties, of which max_cooperative_blocks is agreed by all. What else plans of a
// communicating op depend on, BoundaryChannel makes equal.
Result<PlanContext> plan_context(const Communicator& comm);

// For kernels that go through one channel and ask nothing else of the device. Allocates nothing.
PlanContext plan_context(const Channel& channel);

}  // namespace tenon
