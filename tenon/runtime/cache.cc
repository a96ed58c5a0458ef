#include "tenon/runtime/cache.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <string>
#include <utility>

namespace tenon {

IdPool::IdPool(int count)
    : free_(static_cast<std::size_t>(count)), held_(static_cast<std::size_t>(count), false) {
  std::iota(free_.begin(), free_.end(), 0);  // ascending is a heap with the smallest on top
}

std::int32_t IdPool::take() {
  if (free_.empty()) return -1;
  std::pop_heap(free_.begin(), free_.end(), std::greater<>());
  const std::int32_t id = free_.back();
  free_.pop_back();
  held_[static_cast<std::size_t>(id)] = true;
  return id;
}

void IdPool::give(std::int32_t id) {
  TENON_CHECK(id >= 0 && id < count() && held_[static_cast<std::size_t>(id)]);
  held_[static_cast<std::size_t>(id)] = false;
  free_.push_back(id);
  std::push_heap(free_.begin(), free_.end(), std::greater<>());
}

Status IdPool::check() const {
  std::vector<int> seen(held_.size());
  for (const std::int32_t id : free_) ++seen[static_cast<std::size_t>(id)];
  for (std::size_t id = 0; id < held_.size(); ++id)
    if (seen[id] + (held_[id] ? 1 : 0) != 1)
      return Status::error(Code::kInternal, "cache id " + std::to_string(id) + " is free " +
                                                std::to_string(seen[id]) + " times and " +
                                                (held_[id] ? "held" : "not held"));
  return Status::ok();
}

CacheLease::CacheLease(CacheLease&& other) noexcept
    : pool_(std::exchange(other.pool_, nullptr)),
      blocks_(std::move(other.blocks_)),
      state_slot_(std::exchange(other.state_slot_, -1)) {}
CacheLease& CacheLease::operator=(CacheLease&& other) noexcept {
  std::swap(pool_, other.pool_);
  std::swap(blocks_, other.blocks_);
  std::swap(state_slot_, other.state_slot_);
  return *this;
}
CacheLease::~CacheLease() {
  if (pool_ != nullptr) pool_->give_back(*this);
}

CachePool::CachePool(int num_blocks, int block_tokens, int num_slots)
    : block_tokens_(block_tokens), blocks_(num_blocks), slots_(num_slots) {}

CacheLease CachePool::lease(int tokens) {
  CacheLease lease;
  const int wanted = blocks_for(tokens);
  if (blocks_.num_free() < wanted || slots_.num_free() < 1) return lease;
  lease.blocks_.reserve(static_cast<std::size_t>(wanted));  // what may throw comes first
  lease.pool_ = this;
  for (int i = 0; i < wanted; ++i) lease.blocks_.push_back(blocks_.take());
  lease.state_slot_ = slots_.take();
  return lease;
}

void CachePool::give_back(CacheLease& lease) {
  for (const std::int32_t block : lease.blocks_) blocks_.give(block);
  slots_.give(lease.state_slot_);
}

Status CachePool::check() const {
  TENON_TRY(blocks_.check(), "kv blocks");
  TENON_TRY(slots_.check(), "state slots");
  return Status::ok();
}

}  // namespace tenon
