// Cache bookkeeping: ids are handed out once, leases give back, and the integrity check finds
// damage.
#include "tenon/runtime/cache.h"

#include <gtest/gtest.h>

#include <list>
#include <random>
#include <set>

namespace tenon {
namespace {

TEST(IdPool, GivesTheLowestFreeIdAndNoneTwice) {
  IdPool pool(4);
  EXPECT_EQ(pool.take(), 0);
  EXPECT_EQ(pool.take(), 1);
  EXPECT_EQ(pool.take(), 2);
  pool.give(1);
  pool.give(0);
  EXPECT_EQ(pool.take(), 0);
  EXPECT_EQ(pool.take(), 1);
  EXPECT_EQ(pool.take(), 3);
  EXPECT_EQ(pool.take(), -1);
  EXPECT_EQ(pool.num_free(), 0);
  EXPECT_TRUE(pool.check());
}

TEST(IdPoolDeathTest, RefusesAnIdThatIsNotHeld) {
  IdPool pool(2);
  EXPECT_DEATH(pool.give(0), "internal check failed");
  EXPECT_DEATH(pool.give(7), "internal check failed");
  const std::int32_t id = pool.take();
  pool.give(id);
  EXPECT_DEATH(pool.give(id), "internal check failed");
}

TEST(CachePool, CountsBlocksByRoundingUp) {
  CachePool pool(5, 64, 3);
  EXPECT_EQ(pool.blocks_for(0), 0);
  EXPECT_EQ(pool.blocks_for(1), 1);
  EXPECT_EQ(pool.blocks_for(64), 1);
  EXPECT_EQ(pool.blocks_for(65), 2);
  EXPECT_TRUE(pool.can_ever_fit(5 * 64));
  EXPECT_FALSE(pool.can_ever_fit(5 * 64 + 1));
}

TEST(CachePool, RefusesWithoutTakingAnything) {
  CachePool pool(5, 64, 1);
  CacheLease first = pool.lease(64 * 3);
  ASSERT_TRUE(first);
  EXPECT_EQ(first.blocks().size(), 3u);
  EXPECT_FALSE(pool.lease(64));  // blocks are there, a slot is not
  EXPECT_EQ(pool.num_free_blocks(), 2);
  first = CacheLease();
  EXPECT_EQ(pool.num_free_blocks(), 5);
  EXPECT_FALSE(pool.lease(64 * 6));  // a slot is there, blocks are not
  EXPECT_EQ(pool.num_free_slots(), 1);
  EXPECT_TRUE(pool.check());
}

TEST(CacheLease, MovesWithItsHoldings) {
  CachePool pool(4, 64, 2);
  CacheLease held = pool.lease(100);
  CacheLease moved = std::move(held);
  EXPECT_FALSE(held);
  EXPECT_TRUE(moved);
  EXPECT_EQ(moved.blocks().size(), 2u);
  EXPECT_EQ(pool.num_free_blocks(), 2);
  moved = CacheLease();
  EXPECT_EQ(pool.num_free_blocks(), 4);
  EXPECT_EQ(pool.num_free_slots(), 2);
}

TEST(CachePool, RandomLeasesNeverShareAndAlwaysReturn) {
  std::mt19937 random(1);
  CachePool pool(40, 16, 9);
  std::list<CacheLease> held;
  for (int round = 0; round < 3000; ++round) {
    if (random() % 2 == 0) {
      CacheLease lease = pool.lease(1 + static_cast<int>(random() % 160));
      if (lease) held.push_back(std::move(lease));
    } else if (!held.empty()) {
      held.erase(std::next(held.begin(), static_cast<std::ptrdiff_t>(random() % held.size())));
    }
    std::set<std::int32_t> blocks, slots;
    std::size_t count = 0;
    for (const CacheLease& lease : held) {
      blocks.insert(lease.blocks().begin(), lease.blocks().end());
      slots.insert(lease.state_slot());
      count += lease.blocks().size();
    }
    ASSERT_EQ(blocks.size(), count);
    ASSERT_EQ(slots.size(), held.size());
    ASSERT_EQ(pool.num_free_blocks() + static_cast<int>(count), 40);
    const Status whole = pool.check();
    ASSERT_TRUE(whole) << whole.to_string();
  }
  held.clear();
  EXPECT_EQ(pool.num_free_blocks(), 40);
  EXPECT_EQ(pool.num_free_slots(), 9);
}

}  // namespace
}  // namespace tenon
