// The choice of the experts of a few tokens by every block of up_kernel; a wave has a token, and
// then perhaps another one. Some
// blocks leave for the second kernel what moe_route would have made.
//
// A wave finds the chosen experts as bits: sm90_choice.cuh. From the bits of all tokens a thread
// for each expert then knows its pairs and their places.
#pragma once

#include "tenon/ops/moe_experts/sm90.cuh"
#include "tenon/ops/moe_experts/sm90_choice.cuh"

namespace tenon::TENON_TARGET::moe_experts {

struct Chooser {
  const float* logits;
  std::int64_t stride;
  std::int32_t all_experts, first_expert;
  float* weights;  // what moe_route makes
  std::int32_t *slot, *offsets;
};

// Behind what list_entries() uses and the tokens of pairs.
struct FewChoice {
  std::uint32_t* bits;  // [tokens, slices]: which experts a token has chosen
  ChoiceMemory memory;  // of the token whose choice is being left
};
TENON_HD constexpr int few_choice_bytes(int tokens, int slices) {
  return 4 * (tokens * slices + kChoiceWords);
}
TENON_DEVICE FewChoice few_choice_at(std::byte* memory, int tokens, int slices) {
  auto* const bits = reinterpret_cast<std::uint32_t*>(memory);
  return {bits, choice_memory(bits + tokens * slices)};
}

// Which experts of a slice are this rank's.
TENON_DEVICE std::uint32_t local_bits(const Chooser& chooser, int experts, int slice) {
  const auto from = [&](int expert) {  // bits of experts from this one on
    const int bit = expert - slice * kChoiceLanes;
    return bit <= 0 ? 0xffffffffu : bit >= kChoiceLanes ? 0u : 0xffffffffu << bit;
  };
  return from(chooser.first_expert) & ~from(chooser.first_expert + experts);
}

// step(token, word) for the words of a slice, zero for tokens that do not exist. Eight are loaded
// at once: one after another costs a latency each.
template <int kSlices, class Step>
TENON_DEVICE void for_words(const FewChoice& choice, int slice, int tokens, Step step) {
  constexpr int kAtOnce = 4;
  TENON_NO_UNROLL
  for (int first = 0; first < tokens; first += kAtOnce) {
    std::uint32_t word[kAtOnce];
    TENON_UNROLL
    for (int i = 0; i < kAtOnce; ++i)
      word[i] = first + i < tokens ? choice.bits[(first + i) * kSlices + slice] : 0u;
    TENON_UNROLL
    for (int i = 0; i < kAtOnce; ++i) step(first + i, word[i]);
  }
}

// All threads of the block, behind wait_for_previous(). `memory` as for list_entries(): offsets
// first. Up to kMostChosen tokens.
inline constexpr int kMostChosen = 32;
template <int kSlices>
TENON_DEVICE Entries choose_few(const Chooser& chooser, const Routing& routing,
                                const FewChoice& choice, std::byte* memory, int* token_of) {
  const int lane = lane_id(), tokens = routing.tokens, waves = block_threads() / kWave;
  int* const offsets = reinterpret_cast<int*>(memory);
  int* const expert =
      reinterpret_cast<int*>(memory + table_bytes(routing.experts + 1) + table_bytes(kWave));
  int* const first = expert + routing.experts + 2;
  TENON_NO_UNROLL
  for (int token = wave_id(); token < tokens; token += waves) {
    const std::uint32_t chosen = choose_experts<kSlices, false>(
        chooser.all_experts, routing.top_k, chooser.logits + token * chooser.stride);
    put_bits<kSlices, false>(choice.bits + token * kSlices, chosen);
  }
  sync_block();
  // Lane s of every wave: pairs and entries of slice s; then those before it.
  std::uint32_t any = 0;
  int pairs = 0;
  if (lane < kSlices) {
    const std::uint32_t local = local_bits(chooser, routing.experts, lane);
    for_words<kSlices>(choice, lane, tokens, [&](int, std::uint32_t bits) {
      any |= bits & local;
      pairs += count_ones(bits & local);
    });
  }
  const int entries = count_ones(any);
  const int entries_before = sum_before(entries), pairs_before = sum_before(pairs);
  const int all_entries = sum_lanes(entries), all_pairs = sum_lanes(pairs);
  TENON_NO_UNROLL
  for (int slice = wave_id(); slice < kSlices; slice += waves) {
    const int entry_base = shuffle_from(entries_before, slice);
    const std::uint32_t of_slice = shuffle_from(any, slice), before = (1u << lane) - 1u;
    const std::uint32_t local = local_bits(chooser, routing.experts, slice);
    int pair = shuffle_from(pairs_before, slice);
    std::uint32_t has = 0;  // bit t: token t chose this expert
    for_words<kSlices>(choice, slice, tokens, [&](int token, std::uint32_t bits) {
      pair += count_ones(bits & local & before);
      has |= (bits & local) >> lane << 31 >> (31 - token);
    });
    const int own = slice * kChoiceLanes + lane - chooser.first_expert;
    if (own >= 0 && own < routing.experts) offsets[own] = pair;
    if (has != 0) {
      const int entry = entry_base + count_ones(of_slice & before);
      expert[entry] = own;
      first[entry] = pair;
    }
    TENON_NO_UNROLL
    while (has != 0) {
      token_of[pair++] = lowest_one(has);
      has &= has - 1u;
    }
  }
  if (thread_id() == 0) {
    offsets[routing.experts] = all_pairs;
    first[all_entries] = all_pairs;
    expert[all_entries] = kSharedExpert;
    first[all_entries + 1] = all_pairs + tokens;
  }
  sync_block();
  return {all_entries + (routing.has_shared ? 1 : 0), expert, first, all_pairs};
}

// A wave of every block. Block 0: what the second kernel reads before it waits, which then may
// start. Each has a token: what the second kernel reads later.
template <int kSlices>
TENON_DEVICE void leave_few(const Chooser& chooser, const Routing& routing, const FewChoice& choice,
                            const int* offsets) {
  const int lane = lane_id(), top_k = routing.top_k;
  if (block_id() == 0) {
    for (int i = lane; i <= routing.experts; i += kWave) chooser.offsets[i] = offsets[i];
    fence_device();
    sync_wave();
    if (lane == 0) let_next_start();
  }
  TENON_NO_UNROLL
  for (int token = block_id(); token < routing.tokens; token += grid_blocks()) {
    const WeighedExpert own =
        weigh_chosen<kSlices>(chooser.all_experts, top_k, chooser.logits + token * chooser.stride,
                              choice.memory, choice.bits + token * kSlices);
    if (lane < top_k) {
      const int local = own.expert - chooser.first_expert;
      const bool is_own = local >= 0 && local < routing.experts;
      int slot = is_own ? offsets[local] : -1;
      for (int other = 0; is_own && other < token; ++other)
        slot += static_cast<int>(choice.bits[other * kSlices + own.expert / kChoiceLanes] >>
                                     own.expert % kChoiceLanes &
                                 1u);
      chooser.weights[token * top_k + own.choice] = own.weight;
      chooser.slot[token * top_k + own.choice] = slot;
    }
  }
}

}  // namespace tenon::TENON_TARGET::moe_experts
