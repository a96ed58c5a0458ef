// The list behind a file descriptor, as poll sees it.
#include "tenon/serve/ready_list.h"

#include <gtest/gtest.h>
#include <poll.h>

#include <set>

#include "tenon/core/thread.h"

namespace tenon::serve {
namespace {

bool readable(const ReadyList& list, int budget_ms) {
  pollfd each{list.fd(), POLLIN, 0};
  return ::poll(&each, 1, budget_ms) == 1;
}

TEST(ReadyList, IsReadableWhileItHoldsKeys) {
  auto list = *ReadyList::open();
  EXPECT_FALSE(readable(*list, 0));
  list->bell(7)();
  list->bell(8)();
  EXPECT_TRUE(readable(*list, 0));
  EXPECT_EQ(list->take(), (std::vector<std::size_t>{7, 8}));
  EXPECT_FALSE(readable(*list, 0));
  EXPECT_TRUE(list->take().empty());
}

TEST(ReadyList, ABellKeepsItAlive) {
  std::function<void()> bell;
  {
    auto list = *ReadyList::open();
    bell = list->bell(1);
  }
  bell();
}

TEST(ReadyList, NoKeyIsLostBetweenThreads) {
  constexpr std::size_t kThreads = 4, kKeys = 2000;
  auto list = *ReadyList::open();
  std::vector<Thread> threads;
  for (std::size_t thread = 0; thread < kThreads; ++thread)
    threads.push_back(*start_thread("ringer", [&list, thread] {
      for (std::size_t i = 0; i < kKeys; ++i) list->bell(thread * kKeys + i)();
    }));
  std::set<std::size_t> seen;
  while (seen.size() < kThreads * kKeys) {
    ASSERT_TRUE(readable(*list, 10'000)) << seen.size();
    for (const std::size_t key : list->take()) EXPECT_TRUE(seen.insert(key).second);
  }
  threads.clear();
  EXPECT_FALSE(readable(*list, 0));
}

}  // namespace
}  // namespace tenon::serve
