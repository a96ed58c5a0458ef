#include "tenon/runtime/mask_filler.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <thread>
#include <utility>

#include "tenon/core/env.h"
#include "tenon/core/guard.h"

namespace tenon {

int MaskFiller::default_threads() {
  return std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, 8);
}

MaskFiller::MaskFiller(int num_threads) : num_threads_(num_threads) {}

MaskFiller::~MaskFiller() {
  {
    const std::scoped_lock lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  workers_.clear();  // joins
}

void MaskFiller::start_workers() {
  started_ = true;
  workers_.reserve(static_cast<std::size_t>(num_threads_));
  for (int i = 1; i < num_threads_; ++i) {
    auto worker = start_thread("tenon masks " + std::to_string(i), [this] { work(); });
    if (!worker) {
      log(LogLevel::kWarning, "masks are filled on " + std::to_string(i) + " of " +
                                  std::to_string(num_threads_) +
                                  " threads: " + std::string(worker.status().message()));
      return;
    }
    workers_.push_back(*std::move(worker));
  }
}

void MaskFiller::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return stop_ || !masks_.empty(); });
    if (stop_) return;
    const auto masks = masks_;
    ++inside_;
    lock.unlock();
    take(masks);
    lock.lock();
    masks_ = {};  // none is left to take
    if (--inside_ == 0) left_.notify_one();
  }
}

// How many it has filled.
std::int64_t MaskFiller::take(std::span<const Mask> masks) {
  std::int64_t taken = 0;
  for (;;) {
    const std::size_t at = next_.fetch_add(1, std::memory_order_relaxed);
    if (at >= masks.size()) return taken;
    const Mask& mask = masks[at];
    const Status filled = guarded([&] { mask.constraint->fill(mask.words); });
    if (!filled) std::fill(mask.words.begin(), mask.words.end(), 0u);
    ++taken;
  }
}

void MaskFiller::fill(std::span<const Mask> masks) {
  if (masks.empty()) return;
  const bool shared = masks.size() > 1 && num_threads_ > 1 &&
                      ns_per_mask_ * static_cast<std::int64_t>(masks.size()) >= kWorthSharingNs;
  if (shared && !started_) start_workers();
  next_.store(0, std::memory_order_relaxed);
  if (shared) {
    {
      const std::scoped_lock lock(mutex_);
      masks_ = masks;
    }
    const std::size_t others = std::min(masks.size() - 1, workers_.size());
    for (std::size_t i = 0; i < others; ++i) wake_.notify_one();
  }
  const auto begin = std::chrono::steady_clock::now();
  const std::int64_t taken = take(masks);
  const auto spent = std::chrono::steady_clock::now() - begin;
  if (taken > 0) ns_per_mask_ = spent / std::chrono::nanoseconds(taken);
  if (!shared) return;
  std::unique_lock lock(mutex_);
  masks_ = {};
  left_.wait(lock, [this] { return inside_ == 0; });
}

}  // namespace tenon
