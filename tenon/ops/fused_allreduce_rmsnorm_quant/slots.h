// How the mailbox is cut for a call: pure arithmetic that plan, run and tests share. Host only.
// Not here: the rules of the exchange (comm/slots.h).
#pragma once

#include <algorithm>
#include <cstdint>

#include "tenon/comm/device.h"

namespace tenon::fused_allreduce_rmsnorm_quant {

inline constexpr std::int64_t kMaxSlotBytes = std::int64_t{14} << 20;  // three are 42 MiB

// Bytes of one rank's part of a row, and of an owner's result for one row.
constexpr std::int64_t part_bytes(std::int64_t hidden) { return 2 * hidden; }
constexpr std::int64_t result_bytes(std::int64_t hidden, bool spreads_fp8, std::int64_t groups,
                                    bool spreads_residual) {
  const std::int64_t norm = spreads_fp8 ? hidden + (groups + 3) / 4 * 16 : 2 * hidden;
  return norm + (spreads_residual ? 2 * hidden : 0);
}

// Bytes of a slot for one row of one_shot, and for one stripe (team_size rows) of two_shot.
constexpr std::int64_t one_shot_row_bytes(std::int64_t hidden, int team_size) {
  return part_bytes(hidden) * (team_size - 1);
}
constexpr std::int64_t stripe_bytes(std::int64_t hidden, std::int64_t result, int team_size) {
  return (part_bytes(hidden) + result) * (team_size - 1);
}

// Offsets are counted in vectors of 16 bytes, which 31 bits of any mailbox that fits a device
// reach.
inline constexpr std::int64_t kUnit = 16;
constexpr std::int64_t slot_units(std::size_t mailbox_bytes) {
  return static_cast<std::int64_t>(slot_bytes(mailbox_bytes)) / kUnit;
}

}  // namespace tenon::fused_allreduce_rmsnorm_quant
