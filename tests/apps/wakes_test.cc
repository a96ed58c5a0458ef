// Who was put among those that have something to send is taken up, however many put and take.
#include "apps/server/wakes.h"

#include <gtest/gtest.h>

#include <any>
#include <atomic>
#include <chrono>
#include <functional>
#include <stdexcept>
#include <thread>
#include <vector>

#include "tests/support/patience.h"

namespace tenon::server {
namespace {

class Counted final : public Wakes::Sleeper {
 public:
  void take_up() override {
    times.fetch_add(1);
    if (then) then();
  }
  std::atomic<int> times{0};
  std::function<void()> then;
};

class WakesTest : public testing::Test {
 protected:
  void SetUp() override {
    for (int i = 0; i < 3; ++i) threads_.emplace_back([this] { io_.run(); });
  }
  ~WakesTest() override { stop(); }
  void stop() {
    io_.stop();
    for (std::thread& each : threads_) each.join();
    threads_.clear();
  }
  static bool soon(const std::function<bool()>& is_true) {
    const auto until =
        std::chrono::steady_clock::now() + std::chrono::seconds(10) * test::kSlowdown;
    while (!is_true() && std::chrono::steady_clock::now() < until) std::this_thread::yield();
    return is_true();
  }

  boost::asio::io_context io_;
  Wakes wakes_{io_};

 private:
  // While it is there, the loop has work.
  const std::any work_ =
      boost::asio::require(io_.get_executor(), boost::asio::execution::outstanding_work.tracked);
  std::vector<std::thread> threads_;
};

TEST_F(WakesTest, EveryOneThatWasPutIsTakenUpOnce) {
  constexpr int kThreads = 4, kEach = 500;
  std::vector<std::shared_ptr<Counted>> all(kThreads * kEach);
  for (auto& each : all) each = std::make_shared<Counted>();
  std::vector<std::thread> putting;
  for (int thread = 0; thread < kThreads; ++thread)
    putting.emplace_back([&, thread] {
      for (int i = 0; i < kEach; ++i) wakes_.put(all[static_cast<std::size_t>(thread * kEach + i)]);
    });
  for (std::thread& each : putting) each.join();
  for (const auto& each : all) EXPECT_TRUE(soon([&] { return each->times == 1; }));
  stop();
  for (const auto& each : all) EXPECT_EQ(each->times, 1);
}

// Two that only go on together, more than are taken up at a time: several threads take them up.
TEST_F(WakesTest, OneThatTakesLongHoldsUpThoseOfItsThreadAlone) {
  std::atomic<bool> goes_on{false};
  const auto slow = std::make_shared<Counted>();
  slow->then = [&] { EXPECT_TRUE(soon([&] { return goes_on.load(); })); };
  std::vector<std::shared_ptr<Counted>> others(100);
  wakes_.put(slow);
  for (auto& each : others) {
    each = std::make_shared<Counted>();
    wakes_.put(each);
  }
  EXPECT_TRUE(soon([&] { return others.back()->times == 1; }));
  goes_on = true;
  for (const auto& each : others) EXPECT_TRUE(soon([&] { return each->times == 1; }));
}

TEST_F(WakesTest, WhoFailsAndWhoIsGoneHoldUpNobody) {
  const auto failing = std::make_shared<Counted>(), other = std::make_shared<Counted>();
  failing->then = [] { throw std::runtime_error("on purpose"); };
  wakes_.put(failing);
  wakes_.put(std::make_shared<Counted>());  // gone at once
  wakes_.put(other);
  EXPECT_TRUE(soon([&] { return other->times == 1; }));
  wakes_.put(other);
  EXPECT_TRUE(soon([&] { return other->times == 2; }));
}

TEST_F(WakesTest, ABellRingsUntilItIsClosed) {
  const auto one = std::make_shared<Counted>();
  Bell bell;
  bell.ring();
  bell.open(wakes_, one);
  bell.ring();
  EXPECT_TRUE(soon([&] { return one->times == 1; }));
  bell.close();
  bell.ring();
  stop();
  EXPECT_EQ(one->times, 1);
}

}  // namespace
}  // namespace tenon::server
