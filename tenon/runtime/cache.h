// Who holds which cache: blocks of the paged kv cache and slots of delta-net state. Bookkeeping
// only, pure host code; the memory itself belongs to the ranks (runtime/rank.h).
//
// What prompts leave behind is kept for prompts that begin alike, as long as nobody else wants the
// memory: blocks in a PrefixTree, and here and there the state behind a block. A sequence goes on
// from a kept state whose blocks it shares; it reads that state in its first step and writes its
// own slot, so nothing is ever copied for it. docs/exactness.md says why the bits are those of a
// run without the cache; only the scheduler knows what may be kept (runtime/scheduler.h).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "tenon/core/status.h"
#include "tenon/runtime/prefix_tree.h"

namespace tenon {

inline constexpr int kBlockTokens = 64;
inline constexpr int kStateTokens = 64;  // states are kept behind multiples of so many tokens

// Hands out ids 0 … count − 1, lowest free id first.
class IdPool {
 public:
  explicit IdPool(int count);
  int num_free() const { return static_cast<int>(free_.size()); }
  int count() const { return static_cast<int>(held_.size()); }
  // The id, or −1 when none is free.
  std::int32_t take();
  void give(std::int32_t id);
  // Every id is either free or held, once.
  Status check() const;

 private:
  std::vector<std::int32_t> free_;  // heap: smallest on top
  std::vector<bool> held_;
};

// What the kept prefixes were good for. Tokens are those of prompts.
struct PrefixStats {
  std::int64_t lookups = 0, hits = 0;  // prompts, and those that went on from a kept state
  std::int64_t looked_up_tokens = 0, matched_tokens = 0;  // of them: not computed again
  // Tokens whose blocks were there, and that were computed again nevertheless: no state was kept
  // behind them; it was kept and evicted; they lie behind the last place from which a prompt can
  // go on, which leaves two tokens of it.
  std::int64_t lost_never_kept = 0, lost_evicted = 0, lost_at_end = 0;
  std::int64_t states_kept = 0, states_not_kept = 0;  // not kept: no slot could be had
  std::int64_t evicted_blocks = 0, evicted_states = 0;
  std::int64_t blocks = 0, states = 0;  // that are kept now, those in use included
};

class CachePool;

// The caches of one sequence: blocks of kBlockTokens and one state slot. Gives them back when it
// dies.
class CacheLease {
 public:
  CacheLease() = default;
  CacheLease(CacheLease&& other) noexcept;
  CacheLease& operator=(CacheLease&& other) noexcept;
  ~CacheLease();
  std::span<const std::int32_t> blocks() const { return blocks_; }
  // Where the sequence's state is written.
  std::int32_t state_slot() const { return state_slot_; }
  // Where its next step reads it: a kept one, or its own.
  std::int32_t state_from() const;
  // Blocks from the first that others may read, too: nothing may be written there.
  int num_shared() const { return num_shared_; }
  // Tokens that need not be computed: those of the kept state it began with, or 0.
  int begin() const { return begin_; }
  // Up to here the blocks were there when it began: a state kept here would have been of use.
  int branch() const { return branch_; }
  explicit operator bool() const { return pool_ != nullptr; }

 private:
  friend class CachePool;
  CachePool* pool_ = nullptr;
  std::vector<std::int32_t> blocks_;
  std::int32_t state_slot_ = -1;
  std::int32_t reads_ = PrefixTree::kNone;  // the node whose state the next step reads
  int num_shared_ = 0, begin_ = 0, branch_ = 0;
};

// Why a state is kept.
enum class StatePlace : std::uint8_t {
  kCut,   // a prompt was cut there anyway: takes a free slot only
  kEnd,   // of a prompt: the next turn goes on from there
  kFork,  // prompts go apart behind it
};

// What a sequence wants to begin with.
struct CacheRequest {
  // Looked up among the kept prefixes; empty: nothing is.
  std::span<const std::int32_t> prompt = {};
  int tokens = 0;        // that there must be cache for at once
  int most_tokens = 0;   // that it may grow to; at least `tokens`
  int spare_blocks = 0;  // that must be left for others
  bool counts = true;    // in PrefixStats
};

// All caches of one engine. Must outlive its leases.
class CachePool {
 public:
  CachePool(int num_blocks, int block_tokens, int num_slots);
  int block_tokens() const { return block_tokens_; }
  int blocks_for(int tokens) const { return (tokens + block_tokens_ - 1) / block_tokens_; }
  // Could `tokens` ever be leased, with everything free?
  bool can_ever_fit(int tokens) const { return blocks_for(tokens) <= blocks_.count(); }

  // A lease, or an empty one when there is no room now. Kept blocks and states that nobody uses
  // make room, those first whose last use is longest ago.
  CacheLease lease(const CacheRequest& request);
  // The same for a sequence of at most `tokens` tokens, all at once.
  CacheLease lease(int tokens) { return lease({.tokens = tokens, .most_tokens = tokens}); }
  // Where a prompt with this beginning would go on: as CacheLease::begin().
  int kept_tokens(std::span<const std::int32_t> prompt) const { return match(prompt).begin; }
  // Makes the lease large enough for `tokens` tokens. False when there is no room now.
  bool grow(CacheLease& lease, int tokens);

  // A step of the lease's sequence has run: its state is in its own slot now.
  void state_was_read(CacheLease& lease);
  // Keeps the whole blocks among the first `tokens` tokens of the prompt, whose caches are computed
  // in the form of a prompt. Where others had kept the same, the lease goes over to theirs.
  void keep_blocks(CacheLease& lease, std::span<const std::int32_t> prompt, int tokens);
  // Keeps the state behind `tokens` tokens, which is the one in the lease's slot: their blocks have
  // just been kept. The sequence gets another slot and goes on from the kept one. False when there
  // is no slot.
  bool keep_state(CacheLease& lease, int tokens, StatePlace place);

  int num_free_blocks() const { return blocks_.num_free(); }  // that hold nothing at all
  int num_free_slots() const { return slots_.num_free(); }
  // Free ones, and kept ones that nobody uses.
  int num_available_blocks() const { return blocks_.num_free() + prefixes_.num_idle(); }
  int num_available_slots() const { return slots_.num_free() + prefixes_.num_idle_states(); }
  // Part of all blocks that leases hold, 0 to 1.
  double block_use() const {
    return 1 - static_cast<double>(num_available_blocks()) / blocks_.count();
  }
  int num_leases() const { return num_leases_; }
  PrefixStats prefix_stats() const;
  // Every block and slot is free, kept or leased, and counted as what it is.
  Status check() const;

 private:
  friend class CacheLease;
  struct Match {
    std::vector<std::int32_t> blocks = {};  // that are kept, from the first
    int begin = 0;                          // the last place with a state, in tokens
    int branch = 0;                         // the last place where a state would be of use
    int lost_state = 0;                     // the last place whose state was evicted
  };
  Match match(std::span<const std::int32_t> prompt) const;
  bool try_lease(const CacheRequest& request, const Match& match, CacheLease& lease);
  void count(const CacheRequest& request, const Match& match);
  std::int32_t take_block();
  std::int32_t take_slot(bool may_evict);
  void give_back(CacheLease& lease);
  int block_tokens_;
  IdPool blocks_, slots_;
  PrefixTree prefixes_;
  PrefixStats stats_;
  int num_own_blocks_ = 0, num_leases_ = 0;  // blocks that one lease has alone
};

}  // namespace tenon
