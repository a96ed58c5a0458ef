// How a step's bytes reach ranks that are threads of this process, and how those ranks' ends are
// heard. Awaiting a step has no deadline: an idle leader is no failure, and a dead one is us.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "tenon/core/status.h"

namespace tenon {

class ThreadSteps {
 public:
  ThreadSteps(std::size_t bytes, int ranks)
      : bytes_(bytes),
        received_(static_cast<std::size_t>(ranks)),
        statuses_(received_.size()),
        done_(received_.size(), 0) {}

  // `masks` lie at `masks_at` of the step's bytes, behind `input`, where there are any. Waits until
  // every follower has the bytes of the step before. All they do in between ends by a deadline.
  void send(std::span<const std::byte> input, std::span<const std::byte> masks,
            std::size_t masks_at) {
    const std::uint32_t last = number_.load(std::memory_order_relaxed);
    for (std::size_t rank = 1; rank < received_.size(); ++rank) await(received_[rank], last);
    std::memcpy(bytes_.data(), input.data(), input.size());
    if (!masks.empty()) std::memcpy(bytes_.data() + masks_at, masks.data(), masks.size());
    used_ = input.size();
    masks_ = std::span(bytes_).subspan(masks_at, masks.size());
    advance(number_);
  }
  // Every receive() from now on says no. Touches no bytes: a follower may still be reading them.
  void stop() {
    stopped_.store(true, std::memory_order_release);
    advance(number_);
  }

  // Followers: whether receive() of step `number` would not wait.
  bool has(std::uint32_t number) const { return number_.load(std::memory_order_acquire) >= number; }
  // Followers, each of every step: copies step `number` (from 1) once it is there; false when the
  // engine stops.
  bool receive(int rank, std::uint32_t number, std::span<std::byte> out) {
    await(number_, number);
    if (stopped_.load(std::memory_order_acquire)) return false;
    std::memcpy(out.data(), bytes_.data(), used_);
    if (!masks_.empty())
      std::memcpy(out.data() + (masks_.data() - bytes_.data()), masks_.data(), masks_.size());
    advance(received_[static_cast<std::size_t>(rank)]);
    return true;
  }

  // Any rank: how its steps up to `number` (0: opening) ended.
  void report(int rank, std::uint32_t number, const Status& status) {
    const std::scoped_lock lock(mutex_);
    statuses_[static_cast<std::size_t>(rank)] = status;
    done_[static_cast<std::size_t>(rank)] = number;
    reported_.notify_all();
  }

  // Leader: the failure that explains the others, which is one that is not itself "a peer is gone".
  // Waits at most `budget` for ranks that have not yet said how the present step ended.
  Status root_cause(std::chrono::milliseconds budget) {
    const std::uint32_t number = number_.load(std::memory_order_acquire);
    std::unique_lock lock(mutex_);
    reported_.wait_for(lock, budget, [&] {
      return std::all_of(done_.begin(), done_.end(), [&](auto done) { return done >= number; });
    });
    const Status* found = nullptr;
    for (const Status& each : statuses_)
      if (!each && (found == nullptr || found->code() == Code::kPeerLost)) found = &each;
    return found == nullptr ? Status::ok() : *found;
  }

 private:
  static void advance(std::atomic<std::uint32_t>& number) {
    number.fetch_add(1, std::memory_order_release);
    number.notify_all();
  }
  static void await(const std::atomic<std::uint32_t>& at, std::uint32_t number) {
    constexpr int kSpins = 2000;  // a step of a small model is about this far away; then park
    for (int spin = 0; spin < kSpins && at.load(std::memory_order_acquire) < number; ++spin)
      std::this_thread::yield();
    for (std::uint32_t seen; (seen = at.load(std::memory_order_acquire)) < number;)
      at.wait(seen, std::memory_order_acquire);
  }

  std::vector<std::byte> bytes_;
  std::size_t used_ = 0;  // of the present step, which may also have masks
  std::span<const std::byte> masks_;
  std::atomic<std::uint32_t> number_{0};
  std::atomic<bool> stopped_{false};
  std::vector<std::atomic<std::uint32_t>> received_;  // steps, by rank; the leader has none
  std::mutex mutex_;
  std::condition_variable reported_;
  std::vector<Status> statuses_;     // by rank
  std::vector<std::uint32_t> done_;  // the step each rank has ended last
};

}  // namespace tenon
