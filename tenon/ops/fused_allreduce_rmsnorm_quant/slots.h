// How the mailbox is cut for a call: pure arithmetic that plan, run and tests share. Host only.
// Not here: the rules of the exchange (comm/slots.h).
#pragma once

#include <algorithm>
#include <cstdint>

#include "tenon/comm/device.h"

namespace tenon::fused_allreduce_rmsnorm_quant {

inline constexpr std::int64_t kMaxSlotBytes = std::int64_t{14} << 20;  // three are 42 MiB

// Bytes that a slot keeps for a row of 16-bit elements (wire.cuh), such as one rank's part of a
// row, and for an owner's result.
constexpr std::int64_t row_bytes(std::int64_t hidden, bool packs) {
  return hidden / 8 * (packs ? 20 : 16);
}
constexpr std::int64_t result_bytes(std::int64_t hidden, bool packs, bool spreads_fp8,
                                    std::int64_t groups, bool spreads_residual) {
  const std::int64_t row = row_bytes(hidden, packs);
  return (spreads_fp8 ? hidden + (groups + 3) / 4 * 16 : row) + (spreads_residual ? row : 0);
}

// Bytes that such a row takes of the link, at least.
constexpr std::int64_t row_link_bytes(std::int64_t hidden, bool packs) {
  return hidden / 8 * (packs ? 12 : 16);
}

// Offsets are counted in vectors of 16 bytes, which 31 bits of any mailbox that fits a device
// reach.
inline constexpr std::int64_t kUnit = 16;
constexpr std::int64_t slot_units(std::size_t mailbox_bytes) {
  return static_cast<std::int64_t>(slot_bytes(mailbox_bytes)) / kUnit;
}

}  // namespace tenon::fused_allreduce_rmsnorm_quant
