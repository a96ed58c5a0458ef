// Every op of this build, for programs that list them. A program that calls this links all of them;
// one that uses an op needs only that op's header.
#pragma once

#include <span>

#include "tenon/comm/plan_context.h"
#include "tenon/device/plan.h"

namespace tenon {

// In the order of core/ops.def.
std::span<const Op* const> all_ops();

}  // namespace tenon
