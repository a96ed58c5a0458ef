// The workspace of attention: a slot for the result of each partial.
#pragma once

#include <cstdint>

namespace tenon::attention {

inline constexpr int kClusterRanks = 4;  // blocks that share a partial, a tile each
inline constexpr int kMostSequences = 1024;
inline constexpr std::int64_t kMostSlots = 8192;

// A rank ends a partial with so many of the q heads of a kv head.
constexpr int rows_of_rank(int group) { return group <= 8 ? 2 : 4; }
// Of each row 256 sums, its maximum and its total, in fp32.
constexpr std::int64_t rank_bytes(int rows) { return rows * (256 * 4 + 8); }
constexpr std::int64_t slot_bytes(int rows) { return kClusterRanks * rank_bytes(rows); }

}  // namespace tenon::attention
