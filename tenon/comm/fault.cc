#include "tenon/comm/fault.h"

#include "tenon/comm/messages.h"

namespace tenon {

std::string_view name(Phase phase) {
  switch (phase) {
    case Phase::kNone: return "none";
    case Phase::kScatter: return "scatter";
    case Phase::kGather: return "gather";
    case Phase::kBarrier: return "barrier";
    case Phase::kHostExchange: return "host exchange";
    case Phase::kBootstrap: return "bootstrap";
  }
  return "unknown";
}

bool is_fatal(const Status& status) {
  return status.code() == Code::kTimeout || status.code() == Code::kPeerLost;
}

std::string describe(const FaultRecord& fault, std::string_view channel_label,
                     std::uint64_t deadline_ns, std::string_view ending) {
  const auto reason = static_cast<FaultReason>(fault.reason);
  const std::string awaited = "rank " + std::to_string(fault.awaited_rank);
  std::string text = "rank " + std::to_string(fault.my_rank);
  if (reason == FaultReason::kDeadline)
    text += " waited " + seconds_text(std::chrono::nanoseconds(deadline_ns)) + " for ";
  else if (reason == FaultReason::kAborted)
    text += " was waiting for ";
  else
    text += " met ";
  text += awaited + " (phase " + std::string(name(static_cast<Phase>(fault.phase))) + "), call " +
          std::to_string(fault.call) + ", channel " + std::to_string(fault.channel) + " \"" +
          std::string(channel_label) + "\"";
  if (reason == FaultReason::kMismatch)
    return text + ": " + awaited + " came with " +
           (fault.row == ~0u ? "another size; every rank must bring the same"
                             : "a call of " + std::to_string(fault.row) +
                                   " rows, unlike this rank's; every rank must bring as many, of "
                                   "one kind and variant");
  if (fault.row != ~0u) text += ", row " + std::to_string(fault.row);
  if (reason == FaultReason::kDeadline) return text + ": deadline";
  return text + ", when " + std::string(ending);
}

}  // namespace tenon
