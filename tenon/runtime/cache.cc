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

CacheLease::CacheLease(CacheLease&& other) noexcept { *this = std::move(other); }
CacheLease& CacheLease::operator=(CacheLease&& other) noexcept {
  std::swap(pool_, other.pool_);
  std::swap(blocks_, other.blocks_);
  std::swap(state_slot_, other.state_slot_);
  std::swap(reads_, other.reads_);
  std::swap(num_shared_, other.num_shared_);
  std::swap(begin_, other.begin_);
  std::swap(branch_, other.branch_);
  return *this;
}
CacheLease::~CacheLease() {
  if (pool_ != nullptr) pool_->give_back(*this);
}

std::int32_t CacheLease::state_from() const {
  return reads_ == PrefixTree::kNone ? state_slot_ : pool_->prefixes_.state(reads_);
}

CachePool::CachePool(int num_blocks, int block_tokens, int num_slots)
    : block_tokens_(block_tokens),
      blocks_(num_blocks),
      slots_(num_slots),
      prefixes_(num_blocks, block_tokens, num_slots) {}

std::int32_t CachePool::take_block() {
  if (blocks_.num_free() > 0) return blocks_.take();
  const PrefixTree::Removed removed = prefixes_.evict();
  TENON_CHECK(removed.block != PrefixTree::kNone);  // whoever asks has counted
  ++stats_.evicted_blocks;
  if (removed.slot != PrefixTree::kNone) slots_.give(removed.slot);
  return removed.block;
}

std::int32_t CachePool::take_slot(bool may_evict) {
  if (slots_.num_free() > 0) return slots_.take();
  const std::int32_t slot = may_evict ? prefixes_.evict_state() : PrefixTree::kNone;
  if (slot != PrefixTree::kNone) ++stats_.evicted_states;
  return slot;
}

CachePool::Match CachePool::match(std::span<const std::int32_t> prompt) const {
  Match found;
  const auto width = static_cast<std::size_t>(block_tokens_);
  std::int32_t node = PrefixTree::kNone;
  for (std::size_t end = width; end <= prompt.size(); end += width) {
    node = prefixes_.find(node, prompt.subspan(end - width, width));
    if (node == PrefixTree::kNone) break;
    found.blocks.push_back(node);
    // Two tokens are left to compute: one alone would run as a decode step does.
    if (end % kStateTokens != 0 || end + 2 > prompt.size()) continue;
    found.branch = static_cast<int>(end);
    if (prefixes_.state(node) != PrefixTree::kNone) found.begin = found.branch;
    if (prefixes_.lost_its_state(node)) found.lost_state = found.branch;
  }
  return found;
}

void CachePool::count(const CacheRequest& request, const Match& found) {
  if (request.prompt.empty() || !request.counts) return;
  ++stats_.lookups;
  stats_.hits += found.begin > 0 ? 1 : 0;
  stats_.looked_up_tokens += static_cast<std::int64_t>(request.prompt.size());
  stats_.matched_tokens += found.begin;
  const int there = static_cast<int>(found.blocks.size()) * block_tokens_;
  const int kept_once = std::max(found.begin, found.lost_state);
  stats_.lost_at_end += there - found.branch;
  stats_.lost_never_kept += found.branch - kept_once;
  stats_.lost_evicted += kept_once - found.begin;
}

CacheLease CachePool::lease(const CacheRequest& request) {
  CacheLease lease;
  Match found = match(request.prompt);
  if (!try_lease(request, found, lease)) {
    if (found.begin == 0) return lease;
    found.begin = 0;  // the kept state may hold the one slot that is left
    if (!try_lease(request, found, lease)) return lease;
  }
  count(request, found);
  return lease;
}

bool CachePool::try_lease(const CacheRequest& request, const Match& found, CacheLease& lease) {
  CacheLease made;
  made.blocks_.reserve(static_cast<std::size_t>(blocks_for(request.most_tokens)));  // may throw
  made.pool_ = this;
  ++num_leases_;
  made.begin_ = found.begin;
  made.branch_ = found.branch;
  for (; made.num_shared_ < found.begin / block_tokens_; ++made.num_shared_) {
    made.blocks_.push_back(found.blocks[static_cast<std::size_t>(made.num_shared_)]);
    prefixes_.hold(made.blocks_.back());
  }
  if (made.num_shared_ > 0) {
    made.reads_ = made.blocks_.back();
    prefixes_.pin_state(made.reads_);
  }
  const int wanted = blocks_for(request.tokens) - made.num_shared_ + request.spare_blocks;
  if (num_available_blocks() < wanted) return false;
  made.state_slot_ = take_slot(true);
  if (made.state_slot_ == PrefixTree::kNone) return false;
  TENON_CHECK(grow(made, request.tokens));
  if (made.num_shared_ > 0) prefixes_.use_state(made.reads_);
  lease = std::move(made);
  return true;
}

bool CachePool::grow(CacheLease& lease, int tokens) {
  const int more = blocks_for(tokens) - static_cast<int>(lease.blocks_.size());
  if (more > num_available_blocks()) return false;
  for (int i = 0; i < more; ++i, ++num_own_blocks_) lease.blocks_.push_back(take_block());
  return true;
}

void CachePool::state_was_read(CacheLease& lease) {
  if (lease.reads_ == PrefixTree::kNone) return;
  prefixes_.unpin_state(std::exchange(lease.reads_, PrefixTree::kNone));
}

void CachePool::keep_blocks(CacheLease& lease, std::span<const std::int32_t> prompt, int tokens) {
  const auto width = static_cast<std::size_t>(block_tokens_);
  const int whole = std::min(tokens, static_cast<int>(prompt.size())) / block_tokens_;
  for (; lease.num_shared_ < whole; ++lease.num_shared_, --num_own_blocks_) {
    const auto at = static_cast<std::size_t>(lease.num_shared_);
    const std::int32_t parent = at == 0 ? PrefixTree::kNone : lease.blocks_[at - 1];
    const auto content = prompt.subspan(at * width, width);
    const std::int32_t there = prefixes_.find(parent, content);
    if (there == PrefixTree::kNone) {
      prefixes_.insert(parent, content, lease.blocks_[at]);
    } else {
      prefixes_.hold(there);
      blocks_.give(std::exchange(lease.blocks_[at], there));
    }
  }
}

bool CachePool::keep_state(CacheLease& lease, int tokens, StatePlace place) {
  TENON_CHECK(lease.reads_ == PrefixTree::kNone && tokens > 0 && tokens % kStateTokens == 0 &&
              tokens == lease.num_shared_ * block_tokens_);
  const std::int32_t node = lease.blocks_[static_cast<std::size_t>(lease.num_shared_ - 1)];
  const bool wanted = place != StatePlace::kCut;
  if (prefixes_.state(node) != PrefixTree::kNone) {
    prefixes_.use_state(node);
  } else {
    const std::int32_t slot = take_slot(wanted);
    if (slot == PrefixTree::kNone) {
      ++stats_.states_not_kept;
      return false;
    }
    prefixes_.keep_state(node, std::exchange(lease.state_slot_, slot),
                         wanted ? PrefixTree::Worth::kWanted : PrefixTree::Worth::kUnwanted);
    prefixes_.pin_state(node);
    lease.reads_ = node;
    ++stats_.states_kept;
  }
  if (!wanted) return true;
  if (place == StatePlace::kFork) prefixes_.mark_fork(node);
  const int begin = lease.begin_ / block_tokens_;
  if (begin > 0) prefixes_.pass_state(lease.blocks_[static_cast<std::size_t>(begin - 1)]);
  return true;
}

void CachePool::give_back(CacheLease& lease) {
  state_was_read(lease);
  for (std::size_t at = lease.blocks_.size(); at-- > 0;) {
    if (static_cast<int>(at) < lease.num_shared_) {
      prefixes_.let_go(lease.blocks_[at]);
    } else {
      blocks_.give(lease.blocks_[at]);
      --num_own_blocks_;
    }
  }
  if (lease.state_slot_ != PrefixTree::kNone) slots_.give(lease.state_slot_);
  --num_leases_;
}

PrefixStats CachePool::prefix_stats() const {
  PrefixStats stats = stats_;
  stats.blocks = prefixes_.num_nodes();
  stats.states = prefixes_.num_states();
  return stats;
}

Status CachePool::check() const {
  TENON_TRY(blocks_.check(), "kv blocks");
  TENON_TRY(slots_.check(), "state slots");
  TENON_TRY(prefixes_.check());
  const int blocks = blocks_.num_free() + prefixes_.num_nodes() + num_own_blocks_;
  const int slots = slots_.num_free() + prefixes_.num_states() + num_leases_;
  if (blocks == blocks_.count() && slots == slots_.count()) return Status::ok();
  return Status::error(Code::kInternal, "of " + std::to_string(blocks_.count()) +
                                            " kv blocks and " + std::to_string(slots_.count()) +
                                            " state slots, " + std::to_string(blocks) + " and " +
                                            std::to_string(slots) + " are free, kept or leased");
}

}  // namespace tenon
