// Seeded disorder for tests: random words, and delays that let ranks drift apart.
#pragma once

#include <chrono>
#include <cstdint>
#include <thread>

namespace tenon::test {

// SplitMix64: the same words on every machine.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() {
    state_ += 0x9e3779b97f4a7c15u;
    std::uint64_t word = state_;
    word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9u;
    word = (word ^ (word >> 27)) * 0x94d049bb133111ebu;
    return word ^ (word >> 31);
  }

 private:
  std::uint64_t state_;
};

// Nothing most of the time, now and then a yield or a nap of up to half a millisecond.
class Delays {
 public:
  explicit Delays(std::uint64_t seed) : random_(seed) {}
  void maybe_wait() {
    const std::uint64_t word = random_.next();
    if (word % 4 == 0) std::this_thread::yield();
    if (word % 16 == 1) std::this_thread::sleep_for(std::chrono::microseconds(word / 16 % 500));
  }

 private:
  Random random_;
};

}  // namespace tenon::test
