// An answer that is made later is the one that its maker gives, and nothing is made for who has
// left.
#include "apps/server/later.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/support/patience.h"

namespace tenon::server {
namespace {

using Exchange = std::unique_ptr<HttpExchange>;

Exchange refuse(int status, const std::string& why) {
  return answer_at_once({status, "text/plain", {}}, why);
}

// Begins the exchange and gives its first piece, once that is there and not before it was said.
HttpPiece answer_of(HttpExchange& exchange) {
  const auto woken = std::make_shared<std::atomic<bool>>(false);  // the last call may come late
  exchange.begin([woken] { *woken = true; });
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(10) * test::kSlowdown;
  HttpPiece piece = exchange.next();
  while (!piece.head && std::chrono::steady_clock::now() < until)
    if (woken->exchange(false))
      piece = exchange.next();
    else
      std::this_thread::yield();
  return piece;
}

TEST(Later, GivesWhatIsMade) {
  Workers workers(2, 8);
  for (int i = 0; i < 20; ++i) {
    const Exchange exchange = answer_later(
        workers,
        [i](const IsWanted&) {
          return answer_at_once({200, "text/plain", {}}, std::to_string(i));
        },
        refuse);
    const HttpPiece piece = answer_of(*exchange);
    ASSERT_TRUE(piece.head);
    EXPECT_EQ(piece.head->status, 200);
    EXPECT_EQ(piece.bytes, std::to_string(i));
    EXPECT_TRUE(piece.over);
  }
}

TEST(Later, WhatThrowsIsAnError) {
  Workers workers(1, 8);
  const Exchange exchange = answer_later(
      workers, [](const IsWanted&) -> Exchange { throw std::runtime_error("broken"); }, refuse);
  const HttpPiece piece = answer_of(*exchange);
  ASSERT_TRUE(piece.head);
  EXPECT_EQ(piece.head->status, 500);
  EXPECT_NE(piece.bytes.find("broken"), std::string::npos);
}

TEST(Later, WhoWaitsIsWokenThoughNotEvenTheRefusalCanBeMade) {
  Workers workers(1, 8);
  const Exchange exchange = answer_later(
      workers, [](const IsWanted&) -> Exchange { throw std::bad_alloc(); },
      [](int, const std::string&) -> Exchange { throw std::bad_alloc(); });
  const auto woken = std::make_shared<std::promise<void>>();
  exchange->begin([woken] { woken->set_value(); });
  woken->get_future().wait();
  EXPECT_THROW(exchange->next(), std::bad_alloc);
}

TEST(Later, RefusesWhatHasNoRoomAndForgetsWhoHasLeft) {
  std::promise<void> begun, go_on;
  std::atomic<int> made{0};
  std::vector<Exchange> waiting;
  Workers workers(1, 3);
  const auto make = [&made](const IsWanted&) -> Exchange {
    ++made;
    return answer_at_once({200, "text/plain", {}}, "");
  };
  const Exchange first = answer_later(
      workers,
      [&](const IsWanted& is_wanted) -> Exchange {
        begun.set_value();
        go_on.get_future().wait();
        return make(is_wanted);
      },
      refuse);
  first->begin([] {});
  begun.get_future().wait();
  for (int i = 0; i < 3; ++i) {
    waiting.push_back(answer_later(workers, make, refuse));
    waiting.back()->begin([] {});
    EXPECT_FALSE(waiting.back()->next().head);
  }
  const Exchange fourth = answer_later(workers, make, refuse);
  const HttpPiece refused = answer_of(*fourth);
  ASSERT_TRUE(refused.head);
  EXPECT_EQ(refused.head->status, 429);
  EXPECT_NE(refused.bytes.find("3 wait"), std::string::npos);
  waiting.erase(waiting.begin(), waiting.begin() + 2);
  go_on.set_value();
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(10) * test::kSlowdown;
  while (!waiting.back()->next().head && std::chrono::steady_clock::now() < until)
    std::this_thread::yield();
  EXPECT_EQ(made, 2);  // the first, and the one that stayed
}

TEST(Later, WhoMakesLearnsThatTheClientHasLeft) {
  std::promise<void> begun;
  std::atomic<bool> was_wanted{false}, is_told{false};
  {
    Workers workers(1, 8);
    const auto until =
        std::chrono::steady_clock::now() + std::chrono::seconds(10) * test::kSlowdown;
    const Exchange exchange = answer_later(
        workers,
        [&](const IsWanted& is_wanted) -> Exchange {
          was_wanted = is_wanted();
          begun.set_value();
          while (is_wanted() && std::chrono::steady_clock::now() < until) std::this_thread::yield();
          is_told = !is_wanted();
          return nullptr;
        },
        refuse);
    exchange->begin([] {});
    begun.get_future().wait();
  }
  EXPECT_TRUE(was_wanted);
  EXPECT_TRUE(is_told);
}

// What is made may be made later in turn, by others.
TEST(Later, GivesWhatOthersMake) {
  Workers others(1, 8), workers(1, 8);
  const Exchange exchange = answer_later(
      workers,
      [&](const IsWanted&) {
        return answer_later(
            others,
            [](const IsWanted& is_wanted) {
              return answer_at_once({200, "text/plain", {}}, is_wanted() ? "made" : "left");
            },
            refuse);
      },
      refuse);
  const HttpPiece piece = answer_of(*exchange);
  ASSERT_TRUE(piece.head);
  EXPECT_EQ(piece.bytes, "made");
}

TEST(Later, WorkersThatEndForgetWhatWaits) {
  std::promise<void> begun, go_on;
  std::atomic<int> made{0};
  std::vector<Exchange> exchanges;
  std::thread ending;
  {
    Workers workers(1, 8);
    for (int i = 0; i < 4; ++i) {
      exchanges.push_back(answer_later(
          workers,
          [&, i](const IsWanted&) -> Exchange {
            if (i == 0) begun.set_value();
            if (i == 0) go_on.get_future().wait();
            ++made;
            return nullptr;
          },
          refuse));
      exchanges.back()->begin([] {});
    }
    begun.get_future().wait();
    ending = std::thread([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      go_on.set_value();
    });
  }
  ending.join();
  EXPECT_EQ(made, 1);
}

}  // namespace
}  // namespace tenon::server
