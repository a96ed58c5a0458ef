// Who holds which cache: blocks of the paged kv cache and slots of delta-net state. Bookkeeping
// only, pure host code; the memory itself belongs to the ranks (runtime/rank.h).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "tenon/core/status.h"

namespace tenon {

inline constexpr int kBlockTokens = 64;

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
  std::int32_t state_slot() const { return state_slot_; }
  explicit operator bool() const { return pool_ != nullptr; }

 private:
  friend class CachePool;
  CachePool* pool_ = nullptr;
  std::vector<std::int32_t> blocks_;
  std::int32_t state_slot_ = -1;
};

// All caches of one engine. Must outlive its leases.
class CachePool {
 public:
  CachePool(int num_blocks, int block_tokens, int num_slots);
  int block_tokens() const { return block_tokens_; }
  int blocks_for(int tokens) const { return (tokens + block_tokens_ - 1) / block_tokens_; }
  // Could `tokens` ever be leased, with everything free?
  bool can_ever_fit(int tokens) const { return blocks_for(tokens) <= blocks_.count(); }
  // A lease for a sequence of at most `tokens` tokens, or an empty one when there is no room now.
  CacheLease lease(int tokens);
  int num_free_blocks() const { return blocks_.num_free(); }
  int num_free_slots() const { return slots_.num_free(); }
  Status check() const;

 private:
  friend class CacheLease;
  void give_back(CacheLease& lease);
  int block_tokens_;
  IdPool blocks_, slots_;
};

}  // namespace tenon
