// A memory that is as weak as the rules of the mailbox allow: a rank's relaxed stores wait and
// become visible word by word, in any order that keeps the order of stores to the same word, at any
// time before something shows them: a fence, or the end of a kernel. What fences and barriers are
// for can then be seen on any host. It is multi-copy atomic: a visible word is visible to everybody
// at once; and loads happen in the order in which they are written.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <random>
#include <unordered_map>
#include <utility>
#include <vector>

namespace tenon::test {

// Which of the allowed orders a rank shows.
enum class Weakness : std::uint8_t {
  kNone,        // every store is visible at once
  kShuffled,    // any word, soon
  kLateClears,  // other words soon, but kNotArrived only when it must
};

class WeakMemory {
 public:
  // Whose store it is: a thread of a kernel, and how many barriers of its block it has passed.
  struct Writer {
    int block = 0, thread = 0;
    std::uint32_t barriers = 0;
  };
  // How long a thread rests; either alone, while others of its rank go on, or with all of them.
  struct Rest {
    std::chrono::microseconds time{};
    bool alone = false;
  };

  WeakMemory(Weakness weakness, std::uint32_t seed) : weakness_(weakness), random_(seed) {}

  void store(std::uint32_t* at, std::uint32_t value, const Writer& writer) {
    if (weakness_ == Weakness::kNone) return publish(at, value);
    std::vector<Store>& queue = waiting_[at];
    if (queue.empty()) words_.push_back(at);
    queue.push_back({value, writer});
    ++crowd(at);
    if (draw(4) == 0) show_some(1);
  }

  // What `reader` sees: the latest store that comes before, or else what is visible.
  std::uint32_t load(const std::uint32_t* at, const Writer& reader) const {
    auto* const word = const_cast<std::uint32_t*>(at);
    if (const auto found = crowd(word) == 0 ? waiting_.end() : waiting_.find(word);
        found != waiting_.end())
      for (std::size_t i = found->second.size(); i-- > 0;)
        if (precedes(found->second[i], reader)) return found->second[i].value;
    return std::atomic_ref(*word).load(std::memory_order_relaxed);
  }

  // A fence of one thread shows what comes before it: what that thread has stored, and what threads
  // of its block had stored before a barrier that it has passed.
  void fence(const Writer& writer) {
    for (std::size_t i = words_.size(); i-- > 0;) {
      std::vector<Store>& queue = waiting_[words_[i]];
      std::size_t shown = 0;  // the words before the last that must be shown are shown with it
      for (std::size_t k = 0; k < queue.size(); ++k)
        if (precedes(queue[k], writer)) shown = k + 1;
      show(i, shown);
    }
  }
  // The end of a kernel shows everything.
  void show_all() {
    while (!words_.empty()) show(words_.size() - 1, waiting_[words_.back()].size());
  }

  // One of the next `looks` looks of this rank is late by `time`: peers run ahead as far as they
  // can.
  void lag_once(std::chrono::microseconds time, std::uint32_t looks) {
    lag_ = {time, draw(2) == 0};
    looks_left_ = draw(looks);
  }
  Rest before_look() {
    if (lag_.time.count() == 0 || looks_left_-- != 0) return {};
    return std::exchange(lag_, {});
  }
  // From now on threads rest after one of `clears` clears, while their peers run ahead.
  void linger(std::uint32_t clears) { lingers_ = clears; }
  Rest after_store(std::uint32_t value) {
    if (lingers_ == 0 || value != ~0u || draw(lingers_) != 0) return {};
    return {std::chrono::microseconds(200), draw(2) == 0};
  }

  // Time passes.
  void idle() { show_some(16); }

 private:
  struct Store {
    std::uint32_t value;
    Writer writer;
  };
  // How many stores wait for words like this one: 0 spares most loads a search.
  std::uint32_t& crowd(const std::uint32_t* at) const {
    return crowds_[reinterpret_cast<std::uintptr_t>(at) / sizeof *at % crowds_.size()];
  }
  std::uint32_t draw(std::uint32_t bound) { return static_cast<std::uint32_t>(random_() % bound); }
  static bool precedes(const Store& store, const Writer& writer) {
    return store.writer.block == writer.block &&
           (store.writer.thread == writer.thread || store.writer.barriers < writer.barriers);
  }
  static void publish(std::uint32_t* at, std::uint32_t value) {
    std::atomic_ref(*at).store(value, std::memory_order_relaxed);
  }

  // Makes the oldest `count` stores to word number `i` visible.
  void show(std::size_t i, std::size_t count) {
    if (count == 0) return;
    std::uint32_t* const at = words_[i];
    std::vector<Store>& queue = waiting_[at];
    publish(at, queue[count - 1].value);  // nobody can tell that the others were there too
    crowd(at) -= static_cast<std::uint32_t>(count);
    queue.erase(queue.begin(), queue.begin() + static_cast<std::ptrdiff_t>(count));
    if (!queue.empty()) return;
    words_[i] = words_.back();
    words_.pop_back();
  }
  void show_some(int count) {
    for (; count > 0 && !words_.empty(); --count) {
      const std::size_t i = random_() % words_.size();
      const bool is_clear = waiting_[words_[i]].front().value == ~0u;
      if (weakness_ != Weakness::kLateClears || !is_clear) show(i, 1);
    }
  }

  const Weakness weakness_;
  std::mt19937 random_;
  std::unordered_map<std::uint32_t*, std::vector<Store>> waiting_;  // oldest first
  std::vector<std::uint32_t*> words_;                               // that have some waiting
  mutable std::vector<std::uint32_t> crowds_ = std::vector<std::uint32_t>(1 << 14);
  Rest lag_;
  std::uint32_t looks_left_ = 0, lingers_ = 0;
};

// Of the rank whose thread this is; set by the test.
inline thread_local WeakMemory* weak_memory = nullptr;

}  // namespace tenon::test
