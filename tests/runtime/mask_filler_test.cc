// Masks that several threads fill: each once, as one thread would, and really by several at a time.
#include "tenon/runtime/mask_filler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <new>
#include <random>
#include <thread>
#include <vector>

namespace tenon {
namespace {

using namespace std::chrono_literals;

// Writes a pattern of its own, and counts.
class Pattern final : public TokenConstraint {
 public:
  explicit Pattern(std::uint32_t seed) : seed_(seed) {}
  bool constrains() const override { return true; }
  void fill(std::span<std::uint32_t> words) override {
    ++fills_;
    std::mt19937 random(seed_);
    for (std::uint32_t& word : words) word = static_cast<std::uint32_t>(random());
  }
  void drew(std::int32_t) override {}
  int fills() const { return fills_; }

 private:
  std::uint32_t seed_;
  int fills_ = 0;  // plain: the thread sanitizer sees whoever else touches it
};

TEST(MaskFiller, FillsEachMaskOnce) {
  constexpr std::size_t kWords = 200, kMost = 40;
  for (const int threads : {1, 2, 5}) {
    SCOPED_TRACE(threads);
    MaskFiller filler(threads);
    std::mt19937 random(3);
    std::vector<std::vector<std::uint32_t>> words(kMost);
    for (int round = 0; round < 500; ++round) {
      const std::size_t count = random() % (kMost + 1);
      std::vector<Pattern> patterns;
      std::vector<MaskFiller::Mask> masks;
      patterns.reserve(count);
      for (std::size_t i = 0; i < count; ++i) {
        patterns.emplace_back(random());
        words[i].assign(kWords, 0);
        masks.push_back({&patterns[i], words[i]});
      }
      filler.fill(masks);
      for (std::size_t i = 0; i < count; ++i) {
        ASSERT_EQ(patterns[i].fills(), 1) << i << " of " << count << " in round " << round;
        std::vector<std::uint32_t> wanted(kWords);
        patterns[i].fill(wanted);
        ASSERT_EQ(words[i], wanted) << i << " of " << count << " in round " << round;
      }
    }
  }
}

// Ends when so many are being filled at the same time; a minute is for those that never are.
class Meeting final : public TokenConstraint {
 public:
  Meeting(std::atomic<int>& present, int wanted) : present_(present), wanted_(wanted) {}
  bool constrains() const override { return true; }
  void fill(std::span<std::uint32_t> words) override {
    const auto until = std::chrono::steady_clock::now() + 60s;
    ++present_;
    std::this_thread::sleep_for(1ms);  // long enough to be worth sharing
    while (present_ < wanted_ && std::chrono::steady_clock::now() < until)
      std::this_thread::sleep_for(1ms);
    words[0] = present_ >= wanted_ ? 1 : 0;
  }
  void drew(std::int32_t) override {}

 private:
  std::atomic<int>& present_;
  int wanted_;
};

TEST(MaskFiller, FillsThemAtTheSameTime) {
  constexpr int kThreads = 3;
  MaskFiller filler(kThreads);
  for (int round = 0; round < 3; ++round) {
    std::atomic<int> present{0};
    std::vector<Meeting> meetings(kThreads, Meeting(present, kThreads));
    std::uint32_t words[kThreads] = {};
    std::vector<MaskFiller::Mask> masks;
    for (int i = 0; i < kThreads; ++i)
      masks.push_back({&meetings[static_cast<std::size_t>(i)], std::span(&words[i], 1)});
    filler.fill(masks);
    for (const std::uint32_t word : words) EXPECT_EQ(word, 1u) << "round " << round;
  }
}

// Every second one has no memory left.
class Failing final : public TokenConstraint {
 public:
  explicit Failing(bool fails) : fails_(fails) {}
  bool constrains() const override { return true; }
  void fill(std::span<std::uint32_t> words) override {
    std::fill(words.begin(), words.end(), 5u);
    if (fails_) throw std::bad_alloc();
  }
  void drew(std::int32_t) override {}

 private:
  bool fails_;
};

TEST(MaskFiller, WhatThrowsAllowsNothing) {
  for (const int threads : {1, 3}) {
    MaskFiller filler(threads);
    std::vector<Failing> all;
    std::vector<MaskFiller::Mask> masks;
    std::uint32_t words[50] = {};
    all.reserve(std::size(words));
    for (std::uint32_t& word : words) {
      all.emplace_back(all.size() % 2 == 0);
      masks.push_back({&all.back(), std::span(&word, 1)});
    }
    for (int round = 0; round < 3; ++round) {
      filler.fill(masks);
      for (std::size_t i = 0; i < std::size(words); ++i)
        ASSERT_EQ(words[i], i % 2 == 0 ? 0u : 5u) << i << " with " << threads << " threads";
    }
  }
}

}  // namespace
}  // namespace tenon
