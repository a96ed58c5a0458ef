// What a fault record says, as a sentence for Communicator::health(), and which failures are
// faults.
#pragma once

#include <string>
#include <string_view>

#include "tenon/comm/device/channel_view.h"
#include "tenon/core/status.h"

namespace tenon {

std::string_view name(Phase phase);

// A failure that leaves the ranks out of step: the others must not wait for this one any more.
bool is_fatal(const Status& status);

// "rank 1 waited 30.0 s for rank 0 (phase scatter), call 17, channel 3 "boundary", row 4:
// deadline". `ending` is what ended an aborted wait: "rank 2 gave up (…)".
std::string describe(const FaultRecord& fault, std::string_view channel_label,
                     std::uint64_t deadline_ns, std::string_view ending);

}  // namespace tenon
