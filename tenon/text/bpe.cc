#include "tenon/text/bpe.h"

#include <algorithm>
#include <bit>
#include <functional>

namespace tenon {
namespace {

constexpr std::uint32_t kEnd = 0xffffffffu;  // no neighbour
constexpr std::size_t kShort = 24;           // up to here scanning all pairs beats a heap

std::uint64_t key_of(std::int32_t left, std::int32_t right) {
  return (static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32) |
         static_cast<std::uint32_t>(right);
}

}  // namespace

void MergeTable::reserve(std::size_t count) {
  slots_.assign(std::bit_ceil(2 * count + 2), Slot{});
  size_ = 0;
}

std::size_t MergeTable::place(std::uint64_t key) const {
  const std::size_t mask = slots_.size() - 1;
  std::size_t at = (key * 0x9E3779B97F4A7C15u) >> 20 & mask;
  while (slots_[at].key != kEmpty && slots_[at].key != key) at = (at + 1) & mask;
  return at;
}

bool MergeTable::add(std::int32_t left, std::int32_t right, std::int32_t made) {
  if (2 * (size_ + 1) > slots_.size()) {
    std::vector<Slot> old = std::move(slots_);
    slots_.assign(std::max<std::size_t>(64, 2 * old.size()), Slot{});
    for (const Slot& slot : old)
      if (slot.key != kEmpty) slots_[place(slot.key)] = slot;
  }
  Slot& slot = slots_[place(key_of(left, right))];
  if (slot.key != kEmpty) return false;
  slot = {key_of(left, right), {static_cast<std::uint32_t>(size_++), made}};
  return true;
}

MergeTable::Merge MergeTable::find(std::int32_t left, std::int32_t right) const {
  return slots_.empty() ? Merge{} : slots_[place(key_of(left, right))].merge;
}

void BpeMerger::merge_short(const MergeTable& table, std::vector<std::int32_t>& symbols) {
  while (symbols.size() > 1) {
    MergeTable::Merge best;
    std::size_t where = 0;
    for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
      const MergeTable::Merge merge = table.find(symbols[i], symbols[i + 1]);
      if (merge.rank < best.rank) best = merge, where = i;
    }
    if (best.rank == MergeTable::kNone) return;
    symbols[where] = best.made;
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(where) + 1);
  }
}

void BpeMerger::propose(const MergeTable& table, std::uint32_t left) {
  const std::uint32_t right = chain_[left].next;
  if (right == kEnd) return;
  const MergeTable::Merge merge = table.find(chain_[left].id, chain_[right].id);
  if (merge.rank == MergeTable::kNone) return;
  heap_.push_back({merge.rank, left, merge.made});
  std::push_heap(heap_.begin(), heap_.end(), std::greater<>());
}

void BpeMerger::merge(const MergeTable& table, std::vector<std::int32_t>& symbols) {
  if (symbols.size() <= kShort) return merge_short(table, symbols);
  const auto count = static_cast<std::uint32_t>(symbols.size());
  chain_.resize(count);
  heap_.clear();
  for (std::uint32_t i = 0; i < count; ++i)
    chain_[i] = {symbols[i], i == 0 ? kEnd : i - 1, i + 1 == count ? kEnd : i + 1};
  for (std::uint32_t i = 0; i + 1 < count; ++i) propose(table, i);
  while (!heap_.empty()) {
    std::pop_heap(heap_.begin(), heap_.end(), std::greater<>());
    const Candidate best = heap_.back();
    heap_.pop_back();
    Symbol& left = chain_[best.left];
    if (left.id < 0 || left.next == kEnd) continue;
    // Stale unless the pair standing here now still makes the same symbol.
    const MergeTable::Merge now = table.find(left.id, chain_[left.next].id);
    if (now.rank != best.rank) continue;
    Symbol& right = chain_[left.next];
    left.id = best.made;
    left.next = right.next;
    right.id = -1;
    if (left.next != kEnd) chain_[left.next].previous = best.left;
    if (left.previous != kEnd) propose(table, left.previous);
    propose(table, best.left);
  }
  symbols.clear();
  for (std::uint32_t i = 0; i != kEnd; i = chain_[i].next) symbols.push_back(chain_[i].id);
}

}  // namespace tenon
