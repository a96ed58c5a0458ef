// team_wait(): how kernels wait for another rank. Every wait of every collective goes through it,
// so that none lasts longer than the deadline and a failure names who waited for whom.
#pragma once

#include "tenon/comm/device/channel_view.h"
#include "tenon/device/sync.cuh"

namespace tenon::TENON_TARGET {

// Keeps the first failure of this rank for Communicator::health() and makes everybody give up.
TENON_DEVICE void record_fault(const ChannelView& team, WaitEnd end, Phase phase, int awaited_rank,
                               std::uint32_t call, std::uint32_t row) {
  FaultRecord& fault = *team.fault;
  // The first thread of this channel asks, so that one atomic crosses the bus; the kernels of other
  // channels claim the record too, and hosts have one of their own.
  const bool first = atomic_add(&team.state[kLostWord], 1u) == 0;
  if (first && atomic_add_system(&fault.claimed, 1u) == 0) {
    fault.reason = static_cast<std::uint32_t>(end);
    fault.phase = static_cast<std::uint32_t>(phase);
    fault.my_rank = static_cast<std::uint32_t>(team.rank);
    fault.awaited_rank = static_cast<std::uint32_t>(awaited_rank);
    fault.channel = team.channel;
    fault.call = call;
    fault.row = row;
    store_release(&fault.ready, 1u);
  }
  // Own word too: other blocks and later calls of this rank end at once. The first who gave up
  // stays.
  TENON_NO_UNROLL
  for (int rank = 0; rank < team.size; ++rank) {
    std::uint32_t* word = team.abort_word[rank];
    if (word != nullptr && load_acquire(word) == 0)
      store_release(word, 1u + static_cast<std::uint32_t>(team.rank));
  }
}

// Waits until ready() holds; awaited_rank is the rank whose signal makes it so. False after the
// deadline or an abort: the caller must then leave its results undefined and return without waiting
// for anything else (barriers of its own block are fine). `row` is kNoRow where it means nothing.
inline constexpr std::uint32_t kNoRow = ~0u;
template <class Ready>
TENON_DEVICE bool team_wait(const ChannelView& team, Phase phase, int awaited_rank,
                            std::uint32_t call, std::uint32_t row, Ready ready) {
  const WaitEnd end = wait_until(ready, team.abort_word[team.rank], team.deadline_ns);
  if (end == WaitEnd::kReady) return true;
  record_fault(team, end, phase, awaited_rank, call, row);
  return false;
}

}  // namespace tenon::TENON_TARGET
