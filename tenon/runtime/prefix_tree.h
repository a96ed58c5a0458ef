// Which blocks of tokens are kept for prompts that begin alike: a tree in which a node is one block
// of tokens behind its parent's. A node's number is that of its kv block, so a node costs nothing
// but its place in arrays of fixed size. A node may also have a state: the slot that holds the
// delta net's state behind its last token. Bookkeeping only, pure host code; who may be a node is
// runtime/cache.h's to decide.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "tenon/core/status.h"

namespace tenon {

class PrefixTree {
 public:
  // No node; as a parent: the beginning of a prompt. No slot, too.
  static constexpr std::int32_t kNone = -1;

  PrefixTree(int num_blocks, int block_tokens, int num_slots);

  // The child of `parent` with these block_tokens tokens, or kNone. Every token is compared: a hash
  // only says where to look.
  std::int32_t find(std::int32_t parent, std::span<const std::int32_t> tokens) const;
  // Makes `block` that child, where there is none. Held once.
  void insert(std::int32_t parent, std::span<const std::int32_t> tokens, std::int32_t block);

  // Somebody reads the block. Whoever holds a node holds all before it, too.
  void hold(std::int32_t node);
  // Undoes one hold(), from the last node of a sequence to its first. Counts as a use.
  void let_go(std::int32_t node);

  struct Removed {
    std::int32_t block = kNone, slot = kNone;
  };
  // Removes the node without children that nobody holds and whose last use is longest ago.
  Removed evict();
  // Nodes that nobody holds; evict() can remove all of them.
  int num_idle() const { return num_idle_; }
  int num_nodes() const { return num_nodes_; }

  // The slot with the state behind the node, or kNone.
  std::int32_t state(std::int32_t node) const { return at(node).slot; }
  // It had a state once, which evict_state() took.
  bool lost_its_state(std::int32_t node) const { return at(node).lost_state; }
  // What a state is worth, the least first.
  enum class Worth : std::uint8_t {
    kUnwanted,  // a prompt was cut there anyway
    kPassed,    // the one prompt that went on from it has left a later one
    kWanted,    // prompts are expected to go on from it
  };
  // Gives it one, where it has none.
  void keep_state(std::int32_t node, std::int32_t slot, Worth worth);
  // A prompt went on from it: counts as a use, and from now on it is wanted.
  void use_state(std::int32_t node);
  // Prompts go apart behind it, so it is never passed.
  void mark_fork(std::int32_t node) { at(node).state_uses = 2; }
  // A prompt that went on from it has left a later state: if it was the only one, the next turn of
  // that conversation goes on from there, and this one is passed. Whatever has no state stays so.
  void pass_state(std::int32_t node);
  // While pinned a state cannot be evicted; its node is held by whoever pins it.
  void pin_state(std::int32_t node);
  void unpin_state(std::int32_t node);
  // Takes the state that is worth least of those that are not pinned, and of equal ones that whose
  // last use is longest ago: its slot, or kNone where all are pinned.
  std::int32_t evict_state();
  // States that evict_state() can take.
  int num_idle_states() const { return num_states_ - num_pinned_; }
  int num_states() const { return num_states_; }

  // Counts, chains, children and holds agree with each other.
  Status check() const;

 private:
  struct Node {
    std::int32_t parent = kNone, next = kNone;  // next: of the same bucket
    int holds = 0, children = 0, pins = 0;
    std::int32_t slot = kNone;
    int state_uses = 0;
    Worth worth = Worth::kUnwanted;
    bool is_used = false, lost_state = false;
    std::uint64_t last_use = 0, last_state_use = 0;
  };
  // A node that could be evicted when it was put here; it is out of date if it has been used since.
  using Candidate = std::pair<std::uint64_t, std::int32_t>;  // last use, node

  Node& at(std::int32_t node) { return nodes_[static_cast<std::size_t>(node)]; }
  const Node& at(std::int32_t node) const { return nodes_[static_cast<std::size_t>(node)]; }
  std::span<const std::int32_t> tokens(std::int32_t node) const;
  std::size_t bucket_of(std::int32_t parent, std::span<const std::int32_t> tokens) const;
  static bool can_go(const Node& node) {
    return node.is_used && node.holds == 0 && node.children == 0;
  }
  void offer(std::int32_t node);
  Removed remove(std::int32_t node);

  const int block_tokens_;
  std::vector<Node> nodes_;            // by block
  std::vector<std::int32_t> tokens_;   // [blocks, block_tokens]
  std::vector<std::int32_t> buckets_;  // the first node of each
  std::vector<std::int32_t> of_slot_;  // the node whose state a slot holds
  std::vector<Candidate> candidates_;  // heap: the oldest use on top
  std::uint64_t clock_ = 0;            // counts uses
  int num_nodes_ = 0, num_idle_ = 0, num_states_ = 0, num_pinned_ = 0;
};

}  // namespace tenon
