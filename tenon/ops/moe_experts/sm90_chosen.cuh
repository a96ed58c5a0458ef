// moe_experts on Hopper where it chooses the experts itself, for one token: every block of the
// first kernel does from the logits what moe_route does, and one of them leaves for the second
// kernel what that needs.
//
// The second kernel reads it before it waits. For that block 0 lets it start only when what it
// leaves is complete for the whole device; the second kernel starts when all blocks have said so.
#pragma once

#include "tenon/ops/common/choice.cuh"
#include "tenon/ops/moe_experts/sm90.cuh"

namespace tenon::TENON_TARGET::moe_experts {

struct Chooser {
  const float* logits;
  std::int32_t all_experts, first_expert;
  float* weights;
  std::int32_t *slot, *list;
};

// The list of entries in words: how many, how many pairs, first[top_k + 2], expert[top_k + 1].
TENON_HD constexpr int list_words(int top_k) { return 2 * top_k + 5; }
TENON_DEVICE Entries listed_entries(const int* list, int top_k) {
  return {list[0], list + top_k + 4, list + 2, list[1]};
}

struct Chosen {
  ChoiceMemory choice;
  int *slots, *token_of, *list;
};
TENON_HD constexpr int chosen_bytes(int top_k) {
  return 4 * (choice_words(top_k) + 2 * kMostChoices) + table_bytes(list_words(top_k));
}
TENON_DEVICE Chosen chosen_at(std::byte* memory, int top_k) {
  auto* const words = reinterpret_cast<std::uint32_t*>(memory);
  Chosen chosen;
  chosen.choice = choice_memory(words, top_k);
  chosen.slots = reinterpret_cast<int*>(words + choice_words(top_k));
  chosen.token_of = chosen.slots + kMostChoices;
  chosen.list = chosen.token_of + kMostChoices;
  return chosen;
}

// All threads of the block, behind wait_for_previous().
TENON_DEVICE Entries choose_entries(const Chooser& chooser, const Chosen& chosen,
                                    const Routing& routing) {
  const int top_k = routing.top_k;
  choose_by_slices(chooser.all_experts, top_k, chosen.choice,
                   [&](int expert) { return chooser.logits[expert]; });
  if (thread_id() < kWave) {  // a lane a choice
    const int own = thread_id();
    const auto local_of = [&](int choice) {
      const int found = chosen.choice.expert[choice] - chooser.first_expert;
      return found >= 0 && found < routing.experts ? found : kMostExperts;
    };
    const int local = own < top_k ? local_of(own) : kMostExperts;
    int before = 0;
    TENON_NO_UNROLL
    for (int other = 0; other < top_k; ++other) before += local_of(other) < local ? 1 : 0;
    const bool is_own = local < kMostExperts;
    const int count = count_ones(ballot(is_own));
    int* const first = chosen.list + 2;
    int* const expert = first + top_k + 2;
    if (is_own) expert[before] = local;
    if (own <= count + 1) first[own] = own;
    if (own < top_k) {
      chosen.slots[own] = is_own ? before : -1;
      chosen.token_of[own] = 0;
    }
    if (own == 0) {
      expert[count] = kSharedExpert;
      chosen.list[0] = count + (routing.has_shared ? 1 : 0);
      chosen.list[1] = count;
    }
  }
  sync_block();
  return listed_entries(chosen.list, top_k);
}

// One wave of one block: what the next kernel reads, which then may start.
TENON_DEVICE void leave_choice(const Chooser& chooser, const Chosen& chosen, int top_k) {
  const int lane = thread_id() % kWave;
  if (lane < top_k) {
    chooser.weights[lane] = choice_weight(top_k, chosen.choice, lane);
    chooser.slot[lane] = chosen.slots[lane];
  }
  for (int i = lane; i < list_words(top_k); i += kWave) chooser.list[i] = chosen.list[i];
  fence_system();
  sync_wave();
  if (lane == 0) let_next_start();
}

}  // namespace tenon::TENON_TARGET::moe_experts
