// The tree of kept blocks: what is found, what is evicted and in which order, and random work
// against a plain map.
#include "tenon/runtime/prefix_tree.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <vector>

namespace tenon {
namespace {

using Tokens = std::vector<std::int32_t>;
using Worth = PrefixTree::Worth;
constexpr std::int32_t kNone = PrefixTree::kNone;

TEST(PrefixTree, FindsABlockBehindItsParentOnly) {
  PrefixTree tree(8, 2, 2);
  tree.insert(kNone, Tokens{1, 2}, 5);
  tree.insert(5, Tokens{1, 2}, 3);
  EXPECT_EQ(tree.find(kNone, Tokens{1, 2}), 5);
  EXPECT_EQ(tree.find(5, Tokens{1, 2}), 3);
  EXPECT_EQ(tree.find(3, Tokens{1, 2}), kNone);
  EXPECT_EQ(tree.find(kNone, Tokens{2, 1}), kNone);
  EXPECT_EQ(tree.num_nodes(), 2);
  EXPECT_TRUE(tree.check());
}

TEST(PrefixTree, EvictsTheOldestUseAndLastBlocksFirst) {
  PrefixTree tree(8, 1, 2);
  tree.insert(kNone, Tokens{1}, 0);
  tree.insert(0, Tokens{2}, 1);
  tree.insert(0, Tokens{3}, 2);
  EXPECT_EQ(tree.evict().block, kNone) << "all are held";
  tree.hold(0);  // by a second sequence
  for (const std::int32_t node : {2, 0, 1, 0}) tree.let_go(node);
  EXPECT_EQ(tree.num_idle(), 3);
  tree.hold(0);
  tree.hold(2);
  tree.let_go(2);  // used again: 1 is the oldest now
  tree.let_go(0);
  EXPECT_EQ(tree.evict().block, 1);
  EXPECT_EQ(tree.evict().block, 2);
  EXPECT_EQ(tree.evict().block, 0);
  EXPECT_EQ(tree.evict().block, kNone);
  EXPECT_EQ(tree.num_nodes(), 0);
  EXPECT_TRUE(tree.check());
}

TEST(PrefixTree, EvictsStatesThatNobodyWantedFirst) {
  PrefixTree tree(4, 1, 4);
  for (const std::int32_t node : {0, 1, 2}) tree.insert(kNone, Tokens{node}, node);
  tree.keep_state(0, 3, Worth::kWanted);
  tree.keep_state(1, 1, Worth::kUnwanted);
  tree.keep_state(2, 0, Worth::kWanted);
  tree.pin_state(0);
  EXPECT_EQ(tree.num_idle_states(), 2);
  EXPECT_EQ(tree.evict_state(), 1);
  EXPECT_TRUE(tree.lost_its_state(1));
  EXPECT_EQ(tree.state(1), kNone);
  EXPECT_EQ(tree.evict_state(), 0);
  EXPECT_EQ(tree.evict_state(), kNone) << "pinned";
  tree.unpin_state(0);
  tree.let_go(0);
  EXPECT_TRUE(tree.check());
  const PrefixTree::Removed removed = tree.evict();
  EXPECT_EQ(removed.block, 0);
  EXPECT_EQ(removed.slot, 3);
  EXPECT_TRUE(tree.check());
}

// A conversation's last state is worth more than those it has passed, however new these are; one
// from which a second prompt went on, and one where prompts go apart, are never passed.
TEST(PrefixTree, EvictsStatesThatTheirConversationHasPassedBeforeLastOnes) {
  PrefixTree tree(8, 1, 5);
  for (const std::int32_t node : {0, 1, 2, 3, 4}) {
    tree.insert(kNone, Tokens{node}, node);
    tree.keep_state(node, node, node == 4 ? Worth::kUnwanted : Worth::kWanted);
  }
  tree.mark_fork(1);
  for (const std::int32_t node : {1, 2, 3, 3}) {
    tree.use_state(node);
    tree.pass_state(node);
  }
  EXPECT_EQ(tree.evict_state(), 4) << "nobody wanted it";
  EXPECT_EQ(tree.evict_state(), 2) << "passed, though 0 is older";
  EXPECT_EQ(tree.evict_state(), 0);
  EXPECT_EQ(tree.evict_state(), 1);
  tree.pass_state(1);  // it has none any more
  EXPECT_EQ(tree.evict_state(), 3);
  EXPECT_TRUE(tree.check());
}

// Chains that come, go and are evicted at random: a tree that is never wrong about what it has.
TEST(PrefixTree, RandomWorkAgreesWithAMap) {
  std::mt19937 random(4);
  constexpr int kBlocks = 30;
  PrefixTree tree(kBlocks, 1, 3);
  std::map<Tokens, std::int32_t> kept;          // a whole prefix, and its last node
  std::vector<std::vector<std::int32_t>> held;  // chains
  std::vector<std::int32_t> free;
  for (std::int32_t block = 0; block < kBlocks; ++block) free.push_back(block);
  const auto forget = [&](std::int32_t node) {
    std::erase_if(kept, [&](const auto& each) { return each.second == node; });
    free.push_back(node);
  };
  int evictions = 0;
  for (int round = 0; round < 20'000; ++round) {
    if (random() % 2 == 0 && held.size() < 4) {
      Tokens prefix;
      std::vector<std::int32_t> chain;
      const std::size_t length = 1 + random() % 6;
      while (prefix.size() < length) {
        const std::int32_t parent = chain.empty() ? kNone : chain.back();
        prefix.push_back(static_cast<std::int32_t>(random() % 3));
        const std::int32_t found = tree.find(parent, std::span(prefix).last(1));
        const auto wanted = kept.find(prefix);
        ASSERT_EQ(found, wanted == kept.end() ? kNone : wanted->second);
        if (found != kNone) {
          tree.hold(found);
          chain.push_back(found);
          continue;
        }
        if (free.empty()) {
          const auto removed = tree.evict();
          if (removed.block == kNone) break;
          ++evictions;
          forget(removed.block);
        }
        const std::int32_t block = free.back();
        free.pop_back();
        tree.insert(parent, std::span(prefix).last(1), block);
        kept[prefix] = block;
        chain.push_back(block);
      }
      held.push_back(chain);
    } else if (!held.empty()) {
      const std::size_t at = random() % held.size();
      for (auto node = held[at].rbegin(); node != held[at].rend(); ++node) tree.let_go(*node);
      held.erase(held.begin() + static_cast<std::ptrdiff_t>(at));
    }
    ASSERT_EQ(tree.num_nodes(), static_cast<int>(kept.size()));
    if (round % 50 != 0) continue;
    const Status whole = tree.check();
    ASSERT_TRUE(whole) << whole.to_string();
  }
  EXPECT_GT(evictions, 1000);
}

}  // namespace
}  // namespace tenon
