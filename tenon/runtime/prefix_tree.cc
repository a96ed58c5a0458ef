#include "tenon/runtime/prefix_tree.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <string>

namespace tenon {
namespace {

// As large as a node's number and its bucket need: a power of two, at least `count`.
std::size_t buckets_for(int count) {
  return std::bit_ceil(static_cast<std::size_t>(std::max(count, 1)));
}

Status damaged(std::int32_t node, const std::string& what) {
  return Status::error(Code::kInternal, "prefix block " + std::to_string(node) + " " + what);
}

}  // namespace

PrefixTree::PrefixTree(int num_blocks, int block_tokens, int num_slots)
    : block_tokens_(block_tokens),
      nodes_(static_cast<std::size_t>(num_blocks)),
      tokens_(static_cast<std::size_t>(num_blocks) * static_cast<std::size_t>(block_tokens)),
      buckets_(buckets_for(num_blocks), kNone),
      of_slot_(static_cast<std::size_t>(num_slots), kNone) {
  candidates_.reserve(2 * nodes_.size() + 1);
}

std::span<const std::int32_t> PrefixTree::tokens(std::int32_t node) const {
  const auto width = static_cast<std::size_t>(block_tokens_);
  return std::span(tokens_).subspan(static_cast<std::size_t>(node) * width, width);
}

std::size_t PrefixTree::bucket_of(std::int32_t parent, std::span<const std::int32_t> tokens) const {
  std::uint64_t hash = 0x9e3779b97f4a7c15u * (static_cast<std::uint64_t>(parent) + 2);
  for (const std::int32_t token : tokens)
    hash = std::rotl((hash ^ static_cast<std::uint32_t>(token)) * 0xff51afd7ed558ccdu, 29);
  return static_cast<std::size_t>(hash >> 7) & (buckets_.size() - 1);
}

std::int32_t PrefixTree::find(std::int32_t parent, std::span<const std::int32_t> wanted) const {
  for (std::int32_t each = buckets_[bucket_of(parent, wanted)]; each != kNone; each = at(each).next)
    if (at(each).parent == parent && std::ranges::equal(tokens(each), wanted)) return each;
  return kNone;
}

void PrefixTree::insert(std::int32_t parent, std::span<const std::int32_t> tokens,
                        std::int32_t block) {
  TENON_CHECK(static_cast<int>(tokens.size()) == block_tokens_ && !at(block).is_used);
  std::int32_t& bucket = buckets_[bucket_of(parent, tokens)];
  Node& made = at(block);
  made = Node{.parent = parent, .next = bucket, .holds = 1, .is_used = true, .last_use = ++clock_};
  bucket = block;
  std::ranges::copy(tokens, tokens_.begin() + std::ptrdiff_t{block} * block_tokens_);
  if (parent != kNone) ++at(parent).children;
  ++num_nodes_;
}

void PrefixTree::hold(std::int32_t node) {
  if (at(node).holds++ == 0) --num_idle_;
}

void PrefixTree::let_go(std::int32_t node) {
  Node& here = at(node);
  TENON_CHECK(here.is_used && here.holds > 0);
  here.last_use = ++clock_;
  if (--here.holds > 0) return;
  ++num_idle_;
  offer(node);
}

// Notes that a node may be evicted from now on, if it may.
void PrefixTree::offer(std::int32_t node) {
  if (!can_go(at(node))) return;
  if (candidates_.size() == candidates_.capacity()) {  // mostly out of date
    candidates_.clear();
    for (std::size_t each = 0; each < nodes_.size(); ++each)
      if (can_go(nodes_[each]))
        candidates_.emplace_back(nodes_[each].last_use, static_cast<std::int32_t>(each));
    std::ranges::make_heap(candidates_, std::greater<>());
    return;
  }
  candidates_.emplace_back(at(node).last_use, node);
  std::ranges::push_heap(candidates_, std::greater<>());
}

PrefixTree::Removed PrefixTree::evict() {
  while (!candidates_.empty()) {
    std::ranges::pop_heap(candidates_, std::greater<>());
    const auto [last_use, node] = candidates_.back();
    candidates_.pop_back();
    if (can_go(at(node)) && at(node).last_use == last_use) return remove(node);
  }
  return {};
}

PrefixTree::Removed PrefixTree::remove(std::int32_t node) {
  Node& here = at(node);
  TENON_CHECK(here.pins == 0);
  std::int32_t* link = &buckets_[bucket_of(here.parent, tokens(node))];
  while (*link != node) link = &at(*link).next;
  *link = here.next;
  const Removed removed{node, here.slot};
  if (here.slot != kNone) {
    of_slot_[static_cast<std::size_t>(here.slot)] = kNone;
    --num_states_;
  }
  const std::int32_t parent = here.parent;
  here = Node{};
  --num_nodes_;
  --num_idle_;
  if (parent != kNone) {
    --at(parent).children;
    offer(parent);
  }
  return removed;
}

void PrefixTree::keep_state(std::int32_t node, std::int32_t slot, Worth worth) {
  Node& here = at(node);
  TENON_CHECK(here.is_used && here.slot == kNone);
  TENON_CHECK(of_slot_[static_cast<std::size_t>(slot)] == kNone);
  here.slot = slot;
  here.worth = worth;
  here.state_uses = 0;
  here.lost_state = false;
  here.last_state_use = ++clock_;
  of_slot_[static_cast<std::size_t>(slot)] = node;
  ++num_states_;
}

void PrefixTree::use_state(std::int32_t node) {
  Node& here = at(node);
  here.last_state_use = ++clock_;
  here.worth = Worth::kWanted;
  here.state_uses = std::min(here.state_uses + 1, 2);
}

void PrefixTree::pass_state(std::int32_t node) {
  if (at(node).slot != kNone && at(node).state_uses < 2) at(node).worth = Worth::kPassed;
}

void PrefixTree::pin_state(std::int32_t node) {
  Node& here = at(node);
  TENON_CHECK(here.slot != kNone && here.holds > 0);
  if (here.pins++ == 0) ++num_pinned_;
}

void PrefixTree::unpin_state(std::int32_t node) {
  Node& here = at(node);
  TENON_CHECK(here.pins > 0);
  if (--here.pins == 0) --num_pinned_;
}

std::int32_t PrefixTree::evict_state() {
  const auto rank = [](const Node& node) { return std::pair(node.worth, node.last_state_use); };
  Node* oldest = nullptr;
  for (const std::int32_t each : of_slot_) {
    if (each == kNone || at(each).pins > 0) continue;
    if (oldest == nullptr || rank(at(each)) < rank(*oldest)) oldest = &at(each);
  }
  if (oldest == nullptr) return kNone;
  const std::int32_t slot = std::exchange(oldest->slot, kNone);
  oldest->lost_state = true;
  of_slot_[static_cast<std::size_t>(slot)] = kNone;
  --num_states_;
  return slot;
}

Status PrefixTree::check() const {
  std::vector<int> children(nodes_.size()), found(nodes_.size());
  for (std::size_t bucket = 0; bucket < buckets_.size(); ++bucket)
    for (std::int32_t each = buckets_[bucket]; each != kNone; each = at(each).next) {
      if (++found[static_cast<std::size_t>(each)] > 1) return damaged(each, "is found twice");
      if (bucket_of(at(each).parent, tokens(each)) != bucket)
        return damaged(each, "lies in the wrong bucket");
    }
  int nodes = 0, idle = 0, states = 0, pinned = 0;
  for (std::size_t i = 0; i < nodes_.size(); ++i) {
    const Node& node = nodes_[i];
    const auto number = static_cast<std::int32_t>(i);
    if (found[i] != (node.is_used ? 1 : 0)) return damaged(number, "is a node that nobody finds");
    if (!node.is_used) continue;
    ++nodes;
    idle += node.holds == 0 ? 1 : 0;
    states += node.slot != kNone ? 1 : 0;
    pinned += node.pins > 0 ? 1 : 0;
    if (node.pins > node.holds) return damaged(number, "is pinned and not held");
    if (node.pins > 0 && node.slot == kNone) return damaged(number, "is pinned and has no state");
    if (node.slot != kNone && of_slot_[static_cast<std::size_t>(node.slot)] != number)
      return damaged(number, "has a state that another has");
    if (node.parent == kNone) continue;
    ++children[static_cast<std::size_t>(node.parent)];
    if (!at(node.parent).is_used) return damaged(number, "has lost its parent");
    if (at(node.parent).holds < node.holds) return damaged(number, "is held, its parent is not");
  }
  for (std::size_t i = 0; i < nodes_.size(); ++i)
    if (children[i] != nodes_[i].children)
      return damaged(static_cast<std::int32_t>(i), "has another number of children than it counts");
  if (nodes == num_nodes_ && idle == num_idle_ && states == num_states_ && pinned == num_pinned_)
    return Status::ok();
  return Status::error(Code::kInternal,
                       "the prefix tree has " + std::to_string(nodes) + " nodes, " +
                           std::to_string(idle) + " idle, " + std::to_string(states) + " states, " +
                           std::to_string(pinned) + " pinned; it counts " +
                           std::to_string(num_nodes_) + ", " + std::to_string(num_idle_) + ", " +
                           std::to_string(num_states_) + " and " + std::to_string(num_pinned_));
}

}  // namespace tenon
