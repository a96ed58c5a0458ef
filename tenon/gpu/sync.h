// The one spin loop of the house. It ends by success, by deadline or by abort, never by itself.
// What a failed wait reports, and to whom, is comm/wait.h: kernels call team_wait() from there.
#pragma once

#include "tenon/gpu/gpu.h"

namespace tenon::TENON_TARGET {

enum class WaitEnd : std::uint32_t { kReady = 0, kDeadline = 1, kAborted = 2 };

// Spins until ready() is true. Every kSpinsPerCheck spins it looks at *abort_word (not zero means:
// give up) and at the clock: reading either on every spin would slow the wait it serves.
// ready() runs again after a bad end, so a signal that came with it is not lost.
template <class Ready>
TENON_DEVICE WaitEnd wait_until(Ready ready, const std::uint32_t* abort_word,
                                std::uint64_t deadline_ns) {
  constexpr int kSpinsPerCheck = 64;
  std::uint64_t begin = 0;
  bool timing = false;
  for (;;) {
    for (int spin = 0; spin < kSpinsPerCheck; ++spin) {
      if (ready()) return WaitEnd::kReady;
      pause();
    }
    if (load_acquire(abort_word) != 0) return ready() ? WaitEnd::kReady : WaitEnd::kAborted;
    const std::uint64_t now = ticks();
    if (!timing) begin = now;
    timing = true;
    if (now - begin > deadline_ns) return ready() ? WaitEnd::kReady : WaitEnd::kDeadline;
  }
}

}  // namespace tenon::TENON_TARGET
