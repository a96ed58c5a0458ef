// moe_experts on Hopper where it chooses the experts itself, for one token: every block of both
// kernels does from the logits what moe_route does. A launch less, and the second kernel, which has
// room beside the first, chooses while that waits for memory.
//
// Both kernels read the logits past the caches of their multiprocessor, by copies into shared
// memory; the second one before it waits, for they were complete when the first one let it start.
#pragma once

#include "tenon/ops/common/choice.cuh"
#include "tenon/ops/moe_experts/sm90.cuh"

namespace tenon::TENON_TARGET::moe_experts {

struct Chooser {
  const float* logits;
  ChoiceShape shape;  // one token
  std::int32_t first_expert, local_experts;
};

// In words: the choice's, the logits, and what comes of it: the weight and the slot of each choice,
// the entries.
struct Chosen {
  ChoiceMemory choice;
  float *logits, *weights;
  int *slots, *expert, *first;
};
TENON_HD constexpr int choosing_words(int threads, int top_k) {
  return choice_words(threads / kWave, 1, 1, top_k) + kMostChoiceExperts;
}
inline constexpr int kChosenWords = 4 * (kMostChoices + 4);

// choosing: memory that is free once the choice is made; kept: which is not.
TENON_DEVICE Chosen chosen_at(std::byte* choosing, std::byte* kept, int threads, int top_k) {
  auto* const words = reinterpret_cast<std::uint32_t*>(choosing);
  Chosen chosen;
  chosen.choice = choice_memory(words, threads / kWave, 1, 1, top_k);
  chosen.logits = reinterpret_cast<float*>(words + choice_words(threads / kWave, 1, 1, top_k));
  chosen.weights = reinterpret_cast<float*>(kept);
  chosen.slots = reinterpret_cast<int*>(chosen.weights + kMostChoices + 4);
  chosen.expert = chosen.slots + kMostChoices + 4;
  chosen.first = chosen.expert + kMostChoices + 4;
  return chosen;
}

// All threads of the block; they are there after await_copies() and sync_block().
TENON_DEVICE void copy_logits(const Chooser& chooser, const Chosen& chosen) {
  for (int expert = thread_id(); expert < chooser.shape.experts; expert += block_threads())
    copy4_later(chosen.logits + expert, chooser.logits + expert);
}

// All threads of the block. Whatever the logits are, so that it may be tried before they have come:
// then the instructions are near when it counts.
TENON_DEVICE Entries choose_entries(const Chooser& chooser, const Chosen& chosen, bool has_shared) {
  const int top_k = chooser.shape.top_k;
  choose_together<1>(
      chooser.shape, chosen.choice, [&](int, int expert) { return chosen.logits[expert]; },
      [](int, int, int) {});
  const int own = thread_id();
  if (own < kWave) {
    const auto local = [&](int choice) {
      const int found = chosen.choice.expert[choice] - chooser.first_expert;
      return found >= 0 && found < chooser.local_experts ? found : kMostExperts;
    };
    const bool exists = own < top_k;
    const int expert = exists ? local(own) : kMostExperts;
    int before = 0;
    TENON_NO_UNROLL
    for (int other = 0; other < top_k; ++other) before += local(other) < expert ? 1 : 0;
    const bool is_own = expert < kMostExperts;
    const int count = count_ones(ballot(is_own));
    if (is_own) chosen.expert[before] = expert;
    if (own <= count + 1) chosen.first[own] = own;
    if (own == 0) chosen.expert[count] = kSharedExpert;
    if (exists) {
      chosen.slots[own] = is_own ? before : -1;
      chosen.weights[own] = choice_weight(chooser.shape, chosen.choice, 0, own);
    }
    if (own == 0) chosen.slots[kMostChoices] = count;
  }
  sync_block();
  const int count = chosen.slots[kMostChoices];
  return {count + (has_shared ? 1 : 0), chosen.expert, chosen.first, count};
}

}  // namespace tenon::TENON_TARGET::moe_experts
