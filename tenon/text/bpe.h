// The merge loop of byte-pair encoding, over symbols that are token ids. It knows nothing of bytes,
// text or files.
#pragma once

#include <cstdint>
#include <vector>

namespace tenon {

// The merge table: an ordered pair of ids → the rank of the merge and the id it makes.
class MergeTable {
 public:
  struct Merge {
    std::uint32_t rank = kNone;
    std::int32_t made = -1;
  };
  static constexpr std::uint32_t kNone = 0xffffffffu;

  // Room for `count` merges. Forgets everything.
  void reserve(std::size_t count);
  // Ranks grow with every call. False if the pair already has a merge (the first one wins).
  bool add(std::int32_t left, std::int32_t right, std::int32_t made);
  // rank == kNone if the pair does not merge.
  Merge find(std::int32_t left, std::int32_t right) const;
  std::size_t size() const { return size_; }

 private:
  struct Slot {
    std::uint64_t key = kEmpty;
    Merge merge;
  };
  static constexpr std::uint64_t kEmpty = ~std::uint64_t{0};
  std::size_t place(std::uint64_t key) const;  // of the key, or of the empty slot for it
  std::vector<Slot> slots_;                    // a power of two, at most half full
  std::size_t size_ = 0;
};

// Merges symbols until no pair has a merge: always the pair of lowest rank, the leftmost of equals.
// n symbols take O(n log n). Keeps its working memory between calls; one object per thread.
class BpeMerger {
 public:
  // `symbols` shrinks in place.
  void merge(const MergeTable& table, std::vector<std::int32_t>& symbols);

 private:
  struct Candidate {
    std::uint32_t rank;
    std::uint32_t left;  // position of the left symbol in the original sequence
    std::int32_t made;
    // Lowest rank first, then leftmost: the order of a min-heap.
    bool operator>(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : left > other.left;
    }
  };
  struct Symbol {
    std::int32_t id;  // −1: swallowed by its left neighbour
    std::uint32_t previous, next;
  };
  void merge_short(const MergeTable& table, std::vector<std::int32_t>& symbols);
  void propose(const MergeTable& table, std::uint32_t left);
  std::vector<Symbol> chain_;
  std::vector<Candidate> heap_;
};

}  // namespace tenon
