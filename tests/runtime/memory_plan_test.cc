// One plan of a rank's memory: it is what is held afterwards, and what it leaves is what caches
// get.
#include "tenon/runtime/memory_plan.h"

#include <gtest/gtest.h>

#include <numeric>

#include "tenon/runtime/engine.h"
#include "tenon/runtime/rank.h"
#include "tests/support/ranks.h"

namespace tenon {
namespace {

using test::run_ranks;
using Per = CacheSpec::Per;
using Room = CacheMemory::Room;

CacheLayout layout_of(std::int64_t token_floats, std::int64_t state_floats) {
  CacheLayout layout;
  layout.caches = {{"kv", DType::kF32, Per::kBlock, {64, token_floats}},
                   {"state", DType::kF32, Per::kSequence, {state_floats}}};
  return layout;
}

TEST(MemoryPlan, LeavesWhatItDoesNotTake) {
  MemoryPlan plan;
  plan.model = {1000, 200, 30};
  plan.steps = 4;
  plan.blocks = 500;
  plan.states = 60;
  plan.kept_states = 7;
  plan.device = 10'000;
  EXPECT_EQ(plan.without_caches(), 1234);
  EXPECT_EQ(plan.total(), 1801);
  EXPECT_EQ(plan.left(1), 8766);
  EXPECT_EQ(plan.left(0.5), 3766);
  EXPECT_EQ(plan.left(0.1), 0);
  const auto parts = plan.parts();
  EXPECT_EQ(std::accumulate(parts.begin(), parts.end(), std::int64_t{0},
                            [](std::int64_t sum, const auto& each) { return sum + each.bytes; }),
            plan.total());
}

TEST(MemoryPlan, CachesFillWhatIsLeftToTheBlock) {
  const CacheLayout layout = layout_of(2, 10);  // 512 bytes a block, 40 a sequence
  const Room room{.max_context = 128, .max_batch = 2, .prefix_states = 3};
  const std::int64_t least = 4 * 512 + 5 * 40;
  for (const std::int64_t more : {0, 1, 511, 512, 5000}) {
    const auto blocks = CacheMemory::blocks_in(layout, room, least + more);
    ASSERT_TRUE(blocks) << blocks.status().to_string();
    EXPECT_EQ(*blocks, 4 + more / 512) << more;
  }
  // No more than an int32 can name.
  const auto most = CacheMemory::blocks_in(layout, room, std::int64_t{1} << 60);
  ASSERT_TRUE(most);
  EXPECT_LE(std::int64_t{*most} * kBlockTokens, INT32_MAX);
  // Without kv there is nothing to fill.
  CacheLayout states = layout;
  states.caches.erase(states.caches.begin());
  EXPECT_EQ(*CacheMemory::blocks_in(states, room, 1'000'000), 4);
}

TEST(MemoryPlan, AContextMayBeWhatTheBlocksHold) {
  const CacheLayout layout = layout_of(2, 10);  // 512 bytes a block, 40 a sequence
  Room room{.max_context = 640, .max_batch = 2, .prefix_states = 3};
  room.fits_context = true;
  const std::int64_t states = 5 * 40;
  for (const int blocks : {1, 3, 10, 100}) {
    const auto found = CacheMemory::blocks_in(layout, room, states + blocks * 512 + 511);
    ASSERT_TRUE(found) << found.status().to_string();
    EXPECT_EQ(*found, blocks);
    Room planned = room;
    planned.cache_tokens = std::int64_t{*found} * kBlockTokens;
    EXPECT_EQ(planned.context(), std::min(640, blocks * 64));
    planned.fits_context = false;
    EXPECT_EQ(planned.context(), 640);
  }
  EXPECT_EQ(room.context(), 640);  // without a limit of tokens there is a place for each
  EXPECT_FALSE(CacheMemory::blocks_in(layout, room, states + 511));
}

TEST(MemoryPlan, RefusesWithWhatWouldFit) {
  // 16.384 MB a block, 10 MB a sequence.
  const CacheLayout layout = layout_of(64'000, 2'500'000);
  const Room room{.max_context = 640, .max_batch = 4};
  const Status refused = CacheMemory::blocks_in(layout, room, 300'000'000).status();
  EXPECT_EQ(refused.code(), Code::kOutOfMemory);
  EXPECT_EQ(refused.message(),
            "max_context 640 with max_batch 4 asks for 695 MB of caches on each rank, which has "
            "300 MB left beside the model; accepted are contexts of at most 192, or batches of at "
            "most 1");
  const Room fits{.max_context = 192, .max_batch = 4}, too_long{.max_context = 256, .max_batch = 4};
  EXPECT_TRUE(CacheMemory::check_left(layout, fits, 300'000'000));
  EXPECT_FALSE(CacheMemory::check_left(layout, too_long, 300'000'000));
}

TEST(MemoryPlan, RanksTakeWhatTheFewestBlocksHold) {
  run_ranks(3, [](int rank, Communicator& comm) {
    const auto tokens = agree_on_cache_tokens(Result<int>(rank == 1 ? 70 : 90 + rank), comm);
    ASSERT_TRUE(tokens) << tokens.status().to_string();
    EXPECT_EQ(*tokens, 70 * kBlockTokens);
  });
  run_ranks(3, [](int rank, Communicator& comm) {
    const Result<int> mine =
        rank == 2 ? Result<int>(Status::error(Code::kOutOfMemory, "no room")) : Result<int>(7);
    const Status refused = agree_on_cache_tokens(mine, comm).status();
    EXPECT_EQ(refused.code(), Code::kOutOfMemory);
    EXPECT_NE(refused.message().find("rank 2"), std::string_view::npos) << refused.to_string();
    EXPECT_NE(refused.message().find("no room"), std::string_view::npos) << refused.to_string();
  });
}

void expect_kept(const MemoryPlan& plan, const MemoryPlan& held) {
  const auto planned = plan.parts(), found = held.parts();
  ASSERT_EQ(planned.size(), found.size());
  for (std::size_t i = 0; i < planned.size(); ++i) {
    EXPECT_EQ(planned[i].bytes, found[i].bytes) << planned[i].name;
    EXPECT_GT(planned[i].bytes, 0) << planned[i].name;
  }
}

// A checkpoint with every kind of layer, and the boundaries of several arms.
TEST(MemoryPlan, IsWhatARankHolds) {
  for (const int tp : {1, 2}) {
    SCOPED_TRACE(std::to_string(tp) + " ranks");
    EngineOptions options;
    options.model = std::string(TENON_SOURCE_DIR) + "/checkpoints/tiny";
    options.tp = tp;
    options.max_context = 512;
    options.max_batch = 3;
    options.cache_tokens = kAutoCacheTokens;
    options.prefix_states = 2;
    options.more_stages = {StagePolicy::kMixed};
    auto handles = local_bootstrap(tp);
    std::vector<std::unique_ptr<Rank>> ranks(static_cast<std::size_t>(tp));
    std::vector<std::thread> threads;
    for (int rank = 0; rank < tp; ++rank)
      threads.emplace_back([&, rank] {
        const auto at = static_cast<std::size_t>(rank);
        auto opened = Rank::open(options, rank, handles[at], {});
        ASSERT_TRUE(opened) << opened.status().to_string();
        ranks[at] = *std::move(opened);
      });
    for (std::thread& each : threads) each.join();
    for (const auto& rank : ranks) {
      ASSERT_NE(rank, nullptr);
      expect_kept(rank->memory_plan(), rank->held_memory());
      EXPECT_EQ(rank->memory_plan().cache_tokens, 3 * 512);  // on a host
    }
  }
}

TEST(MemoryPlan, RefusesAFractionThatIsNone) {
  EngineOptions options;
  for (const double wrong : {0.0, -1.0, 1.5}) {
    options.memory_fraction = wrong;
    EXPECT_EQ(Engine::check(options).message(), "memory_fraction is " + std::to_string(wrong) +
                                                    "; accepted are numbers above 0, up to 1");
  }
}

}  // namespace
}  // namespace tenon
