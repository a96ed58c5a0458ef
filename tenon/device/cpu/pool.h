// Threads that share the blocks of one launch on the cpu target. Private to cpu/runtime.cc.
//
// The launching thread always works too, and nobody waits for a thread that has not woken up yet:
// every participant owns a fixed range of the blocks (the same one at every launch, so that its
// cache keeps them) and takes what is left of other ranges when its own is done. Launches whose
// blocks took less than kWorthSharingNs together the last time stay on the launching thread.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "tenon/core/thread.h"
#include "tenon/device/runtime.h"

namespace tenon::cpu {

// Dynamic shared memory of a block that a launch may count on: reserved when a stream is made.
inline constexpr std::size_t kMaxSharedBytes = 512 * 1024;

// Dynamic shared memory of the blocks that one thread runs: grows to the largest launch, then
// stays.
class Arena {
 public:
  bool reserve(std::size_t wanted);  // false when there is no memory
  void* begin() const;

 private:
  static constexpr std::size_t kAlign = 64;
  std::unique_ptr<std::byte[]> memory_;
  std::size_t bytes_ = 0;
};

// What there is to say when an arena cannot grow.
Status no_shared_memory(std::size_t bytes);

// Runs blocks [begin, end) of a launch on the calling thread. `arena` has room for the launch.
void run_blocks(const LaunchShape& shape, const KernelCall& call, const Arena& arena, int begin,
                int end);

class Pool {
 public:
  // num_threads counts the launching thread.
  static Result<std::shared_ptr<Pool>> create(int num_threads);
  explicit Pool(int num_threads);  // without threads yet
  ~Pool();
  int num_threads() const { return static_cast<int>(ranges_.size()); }
  // Runs every block; `arena` has room for the launch. From several threads at once, all but one do
  // without help.
  void run(const LaunchShape& shape, const KernelCall& call, const Arena& arena);

 private:
  static constexpr std::uint64_t kWorthSharingNs = 4'000;
  // How long a worker spins for the next launch before it sleeps: longer than the host code between
  // two kernels of a step, shorter than anything a person would notice as load.
  static constexpr std::uint64_t kSpinNs = 50'000;

  struct alignas(64) Range {
    std::atomic<int> next{0};
    int end = 0;
  };
  struct Cost {  // of the last launch that looked alike
    const void* kernel = nullptr;
    int blocks = 0;
    std::uint64_t ns_per_block = 0;
  };

  Status start_worker(int self);
  void work(int self);  // a worker's life
  // Runs what is left of all ranges, own range first.
  int take_blocks(int self, const Arena& arena);
  bool join(std::uint64_t seen);  // false: that launch is over
  Cost& cost_of(const LaunchShape& shape, const KernelCall& call);
  void run_shared(const LaunchShape& shape, const KernelCall& call, const Arena& arena);

  // Launch number (high), open bit, number of workers inside (low): a worker joins by adding one
  // while the launch is open, so a late riser can never touch a launch that is over.
  static constexpr std::uint64_t kLaunch = std::uint64_t{1} << 32, kOpen = std::uint64_t{1} << 31;
  alignas(64) std::atomic<std::uint64_t> state_{0};
  alignas(64) std::atomic<std::uint32_t> bell_{
      0};  // rung at every shared launch; workers sleep on it
  std::atomic<bool> busy_{false}, stop_{false};
  LaunchShape shape_;
  KernelCall call_;
  int chunk_ = 1;
  std::vector<Range> ranges_;
  std::array<Cost, 256> costs_{};
  // By number; 0 is the launching thread, which brings its own.
  std::vector<Arena> arenas_;
  std::vector<Thread> workers_;
};

}  // namespace tenon::cpu
