#include "tenon/comm/transport/host_wait.h"

#include <sched.h>

#include <chrono>
#include <thread>

namespace tenon {

void spread_abort(const ChannelView& team, int rank_that_gave_up) {
  for (int rank = 0; rank < team.size; ++rank) {
    if (team.abort_word[rank] == nullptr) continue;
    std::uint32_t none = 0;
    std::atomic_ref(*team.abort_word[rank])
        .compare_exchange_strong(none, 1u + static_cast<std::uint32_t>(rank_that_gave_up),
                                 std::memory_order_acq_rel);
  }
}

void record_host_fault(const ChannelView& team, FaultReason reason, int awaited_rank,
                       std::uint32_t call) {
  FaultRecord& fault = *team.fault;
  std::uint32_t unclaimed = 0;
  if (std::atomic_ref(fault.claimed).compare_exchange_strong(unclaimed, 1u)) {
    fault.reason = static_cast<std::uint32_t>(reason);
    fault.phase = static_cast<std::uint32_t>(Phase::kHostExchange);
    fault.my_rank = static_cast<std::uint32_t>(team.rank);
    fault.awaited_rank = static_cast<std::uint32_t>(awaited_rank);
    fault.channel = team.channel;
    fault.call = call;
    fault.row = ~0u;
    store_word(&fault.ready, 1u);
  }
  spread_abort(team, team.rank);
}

bool host_wait(const ChannelView& team, const std::uint32_t* word, std::uint32_t value,
               int awaited_rank, std::uint32_t call) {
  using Clock = std::chrono::steady_clock;
  constexpr int kSpins = 200;
  constexpr int kYields = 2000;
  constexpr std::chrono::microseconds kNap(100);
  const auto arrived = [&] { return load_word(word) == value; };
  for (int spin = 0; spin < kSpins; ++spin)
    if (arrived()) return true;
  const auto begin = Clock::now();
  for (std::uint64_t round = 0;; ++round) {
    if (arrived()) return true;
    const bool aborted = load_word(team.abort_word[team.rank]) != 0;
    const bool late = Clock::now() - begin > std::chrono::nanoseconds(team.deadline_ns);
    if (aborted || late) {
      if (arrived()) return true;  // it may have come together with the bad news
      record_host_fault(team, aborted ? FaultReason::kAborted : FaultReason::kDeadline,
                        awaited_rank, call);
      return false;
    }
    if (round < kYields)
      sched_yield();
    else
      std::this_thread::sleep_for(kNap);
  }
}

}  // namespace tenon
