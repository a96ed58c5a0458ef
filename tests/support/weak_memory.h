// A memory that is as weak as the rules of the mailbox allow: a rank's relaxed stores wait in a
// queue and become visible word by word, in any order that keeps the order of stores to the same
// word, at any time before the rank's next fence. What a fence is for can then be seen on any host.
// It is multi-copy atomic: a visible word is visible to everybody at once.
#pragma once

#include <sched.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <random>
#include <vector>

namespace tenon::testing {

// Which of the allowed orders a rank shows.
enum class Weakness : std::uint8_t {
  kNone,        // every store is visible at once
  kShuffled,    // any word, soon
  kLateClears,  // other words soon, but kNotArrived only at a fence
};

class WeakMemory {
 public:
  WeakMemory(Weakness weakness, std::uint32_t seed) : weakness_(weakness), random_(seed) {}

  void store(std::uint32_t* at, std::uint32_t value) {
    if (weakness_ == Weakness::kNone) return publish({at, value});
    pending_.push_back({at, value});
    if (random_() % 4 == 0) show_some(1);
    if (lingers_ && value == ~0u && random_() % 16 == 0) pass(std::chrono::microseconds(100));
  }

  // The rank's own latest store, or what is visible.
  std::uint32_t load(const std::uint32_t* at) {
    for (std::size_t i = pending_.size(); i-- > 0;)
      if (pending_[i].at == at) return pending_[i].value;
    return std::atomic_ref(*const_cast<std::uint32_t*>(at)).load(std::memory_order_relaxed);
  }

  void fence() {
    for (const Store& each : pending_) publish(each);
    pending_.clear();
  }

  // The first look of the next call is late by this much: peers run ahead as far as they can.
  void lag_once(std::chrono::microseconds lag) { lag_ = lag; }
  void before_load() {
    if (lag_.count() == 0) return;
    pass(lag_);
    lag_ = {};
  }
  // From now on the rank rests after some of its clears, while its peers run ahead.
  void linger() { lingers_ = true; }

  // Time passes.
  void idle() {
    show_some(16);
    sched_yield();
  }

 private:
  struct Store {
    std::uint32_t* at;
    std::uint32_t value;
  };

  static void publish(const Store& store) {
    std::atomic_ref(*store.at).store(store.value, std::memory_order_relaxed);
  }

  void pass(std::chrono::microseconds time) {
    const auto until = std::chrono::steady_clock::now() + time;
    while (std::chrono::steady_clock::now() < until) idle();
  }

  // Makes up to `count` words visible, none of which has an older store to the same word waiting.
  void show_some(int count) {
    for (; count > 0 && !pending_.empty(); --count) {
      const std::size_t at = random_() % pending_.size();
      std::size_t first = at;  // the oldest store to that word
      for (std::size_t i = at; i-- > 0;)
        if (pending_[i].at == pending_[at].at) first = i;
      if (weakness_ == Weakness::kLateClears && pending_[first].value == ~0u) continue;
      publish(pending_[first]);
      pending_.erase(pending_.begin() + static_cast<std::ptrdiff_t>(first));
    }
  }

  const Weakness weakness_;
  std::mt19937 random_;
  std::vector<Store> pending_;
  bool lingers_ = false;
  std::chrono::microseconds lag_{};
};

// Of the rank whose thread this is; set by the test.
inline thread_local WeakMemory* weak_memory = nullptr;

}  // namespace tenon::testing
