// The wait of host code for another rank: the same rules, fault record and abort words as
// team_wait() of kernels (comm/device/wait.cuh).
#pragma once

#include <atomic>

#include "tenon/comm/device/channel_view.h"

namespace tenon {

inline std::uint32_t load_word(const std::uint32_t* at) {
  return std::atomic_ref(*const_cast<std::uint32_t*>(at)).load(std::memory_order_acquire);
}
inline void store_word(std::uint32_t* at, std::uint32_t value) {
  std::atomic_ref(*at).store(value, std::memory_order_release);
}

// Sets the abort word of every rank that has none yet.
void spread_abort(const ChannelView& team, int rank_that_gave_up);

// Keeps the first failure of this rank and makes everybody give up.
void record_host_fault(const ChannelView& team, FaultReason reason, int awaited_rank,
                       std::uint32_t call);

// Waits until *word equals `value`. Spins first, then yields, then sleeps a little: ranks may
// outnumber the cores. False after the deadline or an abort, which is then recorded.
bool host_wait(const ChannelView& team, const std::uint32_t* word, std::uint32_t value,
               int awaited_rank, std::uint32_t call);

}  // namespace tenon
