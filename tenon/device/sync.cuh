// The one spin loop of the house. It ends by success, by deadline or by abort, never by itself.
// What a failed wait reports, and to whom, is comm/device/wait.cuh: kernels call team_wait() from
// there.
#pragma once

#include "tenon/device/device.cuh"

namespace tenon::TENON_TARGET {

// kMismatch: something came, but not what this rank can use.
enum class WaitEnd : std::uint32_t { kReady = 0, kDeadline = 1, kAborted = 2, kMismatch = 3 };

// Devices look at the abort word no more often than this: it lies in host memory, and thousands of
// threads that read it across the bus would be slower than what they wait for.
inline constexpr std::uint64_t kAbortLookNs = kKernelsAreOrdered ? 1'000'000 : 0;

// One wait so far.
struct WaitBudget {
  std::uint32_t looks = 0;
  std::uint64_t since = 0, looked = 0;  // ticks: of the first check, of the last look at the abort
  WaitEnd end = WaitEnd::kReady;        // why it is over
};

// Between two looks. False when the wait is over for *abort_word (not zero means: give up) or for
// the deadline. Every kLooksPerCheck looks it takes the time: more often would slow the wait.
TENON_DEVICE bool may_keep_waiting(WaitBudget& budget, const std::uint32_t* abort_word,
                                   std::uint64_t deadline_ns) {
  constexpr std::uint32_t kLooksPerCheck = 64;
  pause();
  if (++budget.looks % kLooksPerCheck != 0) return true;
  const std::uint64_t now = ticks();
  if (budget.since == 0) budget.since = budget.looked = now;
  if (now - budget.looked >= kAbortLookNs) {
    budget.looked = now;
    if (load_acquire(abort_word) != 0) budget.end = WaitEnd::kAborted;
  }
  if (now - budget.since > deadline_ns) budget.end = WaitEnd::kDeadline;
  return budget.end == WaitEnd::kReady;
}

// Spins until ready() is true. ready() runs again after a bad end, so a signal that came with it is
// not lost.
template <class Ready>
TENON_DEVICE WaitEnd wait_until(Ready ready, const std::uint32_t* abort_word,
                                std::uint64_t deadline_ns) {
  WaitBudget budget;
  while (!ready())
    if (!may_keep_waiting(budget, abort_word, deadline_ns))
      return ready() ? WaitEnd::kReady : budget.end;
  return WaitEnd::kReady;
}

}  // namespace tenon::TENON_TARGET
