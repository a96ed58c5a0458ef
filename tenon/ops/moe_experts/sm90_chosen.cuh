// What up_one_kernel leaves for the second kernel where it chooses the experts itself, for one
// token: the list of entries, in the memory of the offsets.
//
// The second kernel reads it before it waits. For that block 0 lets it start only when what it
// leaves is complete for the whole device; the second kernel starts when all blocks have said so.
#pragma once

#include "tenon/ops/moe_experts/sm90.cuh"

namespace tenon::TENON_TARGET::moe_experts {

// The list in words: how many, how many pairs, first[top_k + 2], expert[top_k + 1].
TENON_HD constexpr int list_words(int top_k) { return 2 * top_k + 5; }
TENON_HD constexpr int list_experts(int top_k) { return top_k + 4; }
TENON_DEVICE Entries listed_entries(const int* list, int top_k) {
  return {list[0], list + list_experts(top_k), list + 2, list[1]};
}

}  // namespace tenon::TENON_TARGET::moe_experts
