// moe_experts on Hopper where it chooses the experts itself, for few tokens: every block of the
// first kernel does from the logits what moe_route does, and one of them leaves for the second
// kernel what that needs. A launch less; what a launch for the choice alone takes is mostly the way
// of a few words to the next kernel.
//
// The second kernel reads it before it waits. For that block 0 lets it start only when what it
// leaves is complete for the whole device; the second kernel starts when all blocks have said so.
#pragma once

#include "tenon/ops/common/choice.cuh"
#include "tenon/ops/moe_experts/sm90.cuh"

namespace tenon::TENON_TARGET::moe_experts {

inline constexpr int kMostChosenPairs = 2 * kWave;
inline constexpr int kChosenAtOnce = 4;  // tokens, where there is more than one

struct Chooser {
  ChoiceCall choice;
  std::int32_t first_expert, local_experts;
  float* weights;
  std::int32_t *slot, *list;
};

// The list of entries in words: how many, how many pairs, first[pairs + 2], expert[pairs + 1].
TENON_HD constexpr int list_words(int pairs) { return 2 * pairs + 5; }
TENON_DEVICE Entries listed_entries(const int* list, int pairs) {
  return {list[0], list + pairs + 4, list + 2, list[1]};
}

struct ChosenMemory {
  ChoiceMemory choice;
  std::uint32_t *keys, *sorted;  // of pairs, by their number and in order
  int *slots, *token_of, *list;
};
TENON_HD constexpr int chosen_at_once(int tokens) { return tokens == 1 ? 1 : kChosenAtOnce; }
TENON_HD constexpr int chosen_words(int waves, int tokens, int top_k) {
  return choice_words(waves, chosen_at_once(tokens), tokens, top_k) + 4 * kMostChosenPairs +
         (list_words(tokens * top_k) + 3) / 4 * 4;
}
TENON_DEVICE ChosenMemory chosen_memory(std::byte* memory, int waves, int tokens, int top_k) {
  auto* const words = reinterpret_cast<std::uint32_t*>(memory);
  const int at_once = chosen_at_once(tokens);
  ChosenMemory at;
  at.choice = choice_memory(words, waves, at_once, tokens, top_k);
  at.keys = words + choice_words(waves, at_once, tokens, top_k);
  at.sorted = at.keys + kMostChosenPairs;
  at.slots = reinterpret_cast<int*>(at.sorted + kMostChosenPairs);
  at.token_of = at.slots + kMostChosenPairs;
  at.list = at.token_of + kMostChosenPairs;
  return at;
}

// A pair's key orders by local expert and then by number; kNoPair is that of another rank's expert.
inline constexpr std::uint32_t kNoPair = 0x7fffffffu;
TENON_DEVICE int expert_of_key(std::uint32_t key) {
  return static_cast<int>(key / kMostChosenPairs);
}

// All threads of the block: pairs into their order, by counting, four threads for each.
TENON_DEVICE void sort_pairs(const ChosenMemory& memory, int pairs) {
  constexpr int kParts = 4;
  const int fours = (pairs + 4 * kParts - 1) / (4 * kParts);  // of a part
  const int tasks = (pairs * kParts + kWave - 1) / kWave * kWave;
  for (int task = thread_id(); task < tasks; task += block_threads()) {
    const int pair = task / kParts, part = task % kParts;
    const std::uint32_t key = memory.keys[pair];
    int before = 0;
    TENON_NO_UNROLL
    for (int four = part * fours; four < (part + 1) * fours; ++four)
      before += 4 - count_from(load16(memory.keys + 4 * four), key);
    TENON_UNROLL
    for (int mask = 1; mask < kParts; mask *= 2) before += shuffle_xor(before, mask);
    if (part != 0) continue;
    memory.slots[pair] = key == kNoPair ? -1 : before;
    if (key != kNoPair) memory.sorted[before] = key;
  }
}

// One wave.
TENON_DEVICE void list_pairs(const ChosenMemory& memory, const Routing& routing) {
  const int lane = thread_id() % kWave, pairs = routing.tokens * routing.top_k;
  int* const first = memory.list + 2;
  int* const expert = first + pairs + 2;
  int entries = 0, local = 0;
  TENON_UNROLL
  for (int half = 0; half < kMostChosenPairs / kWave; ++half) {
    const int at = half * kWave + lane;
    const std::uint32_t key = memory.sorted[at], before = memory.sorted[at > 0 ? at - 1 : 0];
    const bool exists = key != kNoPair;
    const bool begins = exists && (at == 0 || expert_of_key(before) != expert_of_key(key));
    const std::uint32_t begun = ballot(begins);
    if (begins) {
      const int entry = entries + count_ones(begun & ((1u << lane) - 1u));
      first[entry] = at;
      expert[entry] = expert_of_key(key);
    }
    if (exists) memory.token_of[at] = static_cast<int>(key % kMostChosenPairs) / routing.top_k;
    entries += count_ones(begun);
    local += count_ones(ballot(exists));
  }
  if (lane != 0) return;
  first[entries] = local;
  first[entries + 1] = local + routing.tokens;
  expert[entries] = kSharedExpert;
  memory.list[0] = entries + (routing.has_shared ? 1 : 0);
  memory.list[1] = local;
}

// All threads of the block, behind wait_for_previous().
TENON_DEVICE Entries choose_entries(const Chooser& chooser, const ChosenMemory& memory,
                                    const Routing& routing) {
  const int pairs = routing.tokens * routing.top_k;
  for (int i = thread_id(); i < kMostChosenPairs; i += block_threads())
    memory.keys[i] = memory.sorted[i] = kNoPair;
  const auto put = [&](int token, int choice, int expert) {
    const int local = expert - chooser.first_expert, pair = token * routing.top_k + choice;
    if (local >= 0 && local < chooser.local_experts)
      memory.keys[pair] = static_cast<std::uint32_t>(local * kMostChosenPairs + pair);
  };
  if (routing.tokens == 1) {
    choose_together<1>(chooser.choice, memory.choice, put);
  } else {
    choose_together<kChosenAtOnce>(chooser.choice, memory.choice, put);
  }
  sort_pairs(memory, pairs);
  sync_block();
  if (thread_id() / kWave == 0) list_pairs(memory, routing);
  sync_block();
  return listed_entries(memory.list, pairs);
}

// One wave of one block: what the next kernel reads, which then may start.
TENON_DEVICE void leave_choice(const Chooser& chooser, const ChosenMemory& memory,
                               const Routing& routing) {
  const int lane = thread_id() % kWave, pairs = routing.tokens * routing.top_k;
  for (int pair = lane; pair < pairs; pair += kWave) {
    const int token = pair / routing.top_k, choice = pair - token * routing.top_k;
    chooser.weights[pair] = choice_weight(chooser.choice, memory.choice, token, choice);
    chooser.slot[pair] = memory.slots[pair];
  }
  for (int i = lane; i < list_words(pairs); i += kWave) chooser.list[i] = memory.list[i];
  fence_system();
  sync_wave();
  if (lane == 0) let_next_start();
}

}  // namespace tenon::TENON_TARGET::moe_experts
