// Fills the masks of a step on several threads: that of a free JSON object takes 0.2 ms, and the
// device has nothing to do meanwhile.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

#include "tenon/core/thread.h"
#include "tenon/runtime/token_constraint.h"

namespace tenon {

class MaskFiller {
 public:
  struct Mask {
    TokenConstraint* constraint = nullptr;  // one that constrains(), another for each mask
    std::span<std::uint32_t> words;
  };
  // So many threads as the machine can run at a time, but no more than eight.
  static int default_threads();

  // num_threads counts the one that calls fill(). The others start when there is work for them;
  // where the system has none to give, a line of the log says so, and fewer do it.
  explicit MaskFiller(int num_threads = default_threads());
  ~MaskFiller();

  // Returns when each mask is filled; one whose constraint throws allows nothing. By one thread at
  // a time. Nobody waits for a thread that has not woken up yet, and masks that take little time in
  // all stay on the calling thread.
  void fill(std::span<const Mask> masks);

 private:
  static constexpr std::int64_t kWorthSharingNs = 100'000;

  void start_workers();
  void work();  // a worker's life
  std::int64_t take(std::span<const Mask> masks);

  const int num_threads_;
  std::vector<Thread> workers_;
  bool started_ = false;
  std::int64_t ns_per_mask_ = kWorthSharingNs;  // those of late

  std::atomic<std::size_t> next_{0};  // mask that nobody has taken
  std::mutex mutex_;
  std::condition_variable wake_, left_;
  std::span<const Mask> masks_;  // empty: a worker that wakes has come too late
  int inside_ = 0;               // workers that fill some of these
  bool stop_ = false;
};

}  // namespace tenon
