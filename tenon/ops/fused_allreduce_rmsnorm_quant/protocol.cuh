// How the two variants use the mailbox: generations, slots, sending, taking. Both follow the same
// protocol, so they may alternate on one mailbox with any rows, hidden sizes and grids.
// Not here: what is sent to whom (one_shot.cuh, two_shot.cuh).
//
// The mailbox of a rank is three slots of equal size. A generation is one round of exchange: a call
// of few rows is one, a long call is one per chunk of rows. Generation g uses slot g mod 3 on every
// rank. Invariants:
//
//  1. The data is the flag. A word is kNotArrived until its sender stores it, once per generation,
//     and never with that value (sendable()). Words are compared as integers.
//  2. Each word of a slot has one sender block and one taking thread per generation, and where it
//     lies depends on (row within the chunk, sender, element) only, never on the number of rows. A
//     rank that comes with fewer rows is therefore missed by name, not misread.
//  3. Whoever takes a word puts kNotArrived back at once (take()). So, between two calls of a rank,
//     its slots hold nothing but what faster ranks have sent ahead, and no call needs to know the
//     shape of an earlier one.
//  4. A block takes only from the same-numbered block of each peer, directly or, in two_shot, by
//  way
//     of the row's owner; the grid is the same on all ranks; and every block has a row in every
//     generation of a call but perhaps the last. So when a block has finished generation g, the
//     same-numbered block of every rank has sent its part of g, hence finished g - 1.
//  5. Therefore nobody runs ahead by more than one generation: finishing g + 1 would need the part
//     that a rank still in g has not sent. A rank sends generation g only after it has finished
//     g - 1, when every peer has sent g - 1, hence finished g - 2 and cleared, in g - 3, the words
//     that g will fill. Two slots would do; the third keeps a whole generation between clearing a
//     word and its next use, also where the next kernel may start before this one has ended.
//  6. That "cleared" is seen in this order: the clears of g - 3 come before the sends of g - 1 by
//     next_generation() within a call and, between calls, by the kernel boundary (devices) or the
//     fence of begin_call() (host targets, where a kernel boundary is a mere return). The takes of
//     g - 1 come before the sends of g for the same reason. A row's owner that passes a result on
//     orders its takes before its sends with order_hop().
//  7. The generation is counted in device memory, so a replayed graph goes on where the last call
//     ended. Every block reads the counter at its start; the block that has read it last advances
//     it for the next call, while the data is still on its way. What is stored is the slot, not the
//     count: 2^32 is no multiple of 3.
//  8. A take that fails has recorded the fault and told every peer (team_wait). The thread then
//     takes, clears and sends nothing any more; it only follows its block's barriers to the end.
#pragma once

#include "tenon/comm/device.h"
#include "tenon/comm/wait.h"
#include "tenon/ops/common/quantize.cuh"
#include "tenon/ops/common/row.cuh"

namespace tenon::TENON_TARGET::fused_allreduce_rmsnorm_quant {

inline constexpr int kNumSlots = 3;
inline constexpr Word4 kNothing = {kNotArrived, kNotArrived, kNotArrived, kNotArrived};

// What the kernels get. Strides and offsets are in bytes.
struct FusedArgs {
  TeamView team;
  const std::byte* partial;
  std::int64_t partial_stride;
  int rows;
  int chunk_rows;                            // rows per generation
  std::int64_t slot_bytes;                   // of one slot
  std::int64_t spread_offset, spread_bytes;  // two_shot: where results lie in a slot; bytes a row
  bool spreads_fp8, spreads_residual;        // two_shot
  NormSpec norm;
  QuantSpec quant;
};

// The rules of the protocol that code can break. Kernels are compiled with Sound; tests compile
// them with one rule broken and show that they notice.
struct Sound {
  static constexpr bool kClears = true;      // take() puts kNotArrived back
  static constexpr bool kFences = true;      // generations are ordered
  static constexpr bool kAdvances = true;    // the counter moves on
  static constexpr bool kSharesSlot = true;  // all ranks use the same slot
  static constexpr bool kRankOrder = true;   // sums start at rank 0
  static constexpr bool kReplaces = true;    // senders replace kNotArrived
};

// Where the words of team.state lie: all zero at creation.
inline constexpr int kCallWord = 0, kSlotWord = 1, kTicketWord = 2;

// One call as a thread sees it.
struct Call {
  std::uint32_t number, slot;
  bool lost;  // a wait failed: invariant 8
};

template <class Rules>
TENON_DEVICE Call begin_call(const FusedArgs& args) {
  wait_for_previous();
  let_next_start();
  if (!kKernelsAreOrdered && Rules::kFences) fence_system();
  const std::uint32_t* const state = args.team.state;
  const std::uint32_t skew = Rules::kSharesSlot ? 0u : static_cast<std::uint32_t>(args.team.rank);
  return {state[kCallWord], (state[kSlotWord] + skew) % kNumSlots, false};
}

// Between two chunks of a call. Every thread of the block must call this.
template <class Rules>
TENON_DEVICE void next_generation(Call& call) {
  sync_block();
  if (Rules::kFences) fence_system();
  if (Rules::kAdvances) call.slot = (call.slot + 1) % kNumSlots;
}

// Every thread of every block must call this once, in its first generation.
template <class Rules>
TENON_DEVICE void count_call(const FusedArgs& args, const Call& call) {
  sync_block();  // the block has read the counters
  if (thread_id() != 0) return;
  std::uint32_t* const state = args.team.state;
  const auto last = static_cast<std::uint32_t>(grid_blocks()) - 1;
  if (atomic_add(&state[kTicketWord], 1u) != last) return;
  const auto generations =
      static_cast<std::uint32_t>((args.rows + args.chunk_rows - 1) / args.chunk_rows);
  state[kTicketWord] = 0;
  state[kCallWord] = call.number + 1;
  if (Rules::kAdvances) state[kSlotWord] = (call.slot + generations) % kNumSlots;
}

// The owner of a row has taken it and is about to send what came of it. On devices the clears that
// matter were performed at their own memory before this kernel, or chunk, began; nothing is left to
// order. Host memory models ask for a fence wherever a chain goes through a third rank.
template <class Rules>
TENON_DEVICE void order_hop() {
  if (!kKernelsAreOrdered && Rules::kFences) fence_system();
}

// Number of `rank` among the peers of `of`: 0 … size − 2.
TENON_DEVICE int peer_index(int rank, int of) { return rank < of ? rank : rank - 1; }

// Offset in every mailbox of what `sender` has for `receiver` about entry `entry` of the chunk,
// where an area of the slot has entries of `bytes` per sender.
TENON_DEVICE std::int64_t entry_offset(const FusedArgs& args, const Call& call, std::int64_t area,
                                       std::int64_t bytes, int entry, int sender, int receiver) {
  const std::int64_t place =
      std::int64_t{entry} * (args.team.size - 1) + peer_index(sender, receiver);
  return call.slot * args.slot_bytes + area + place * bytes;
}

// All-ones is two NaNs of either 16-bit type, four of e4m3fn, one of fp32; so is what replaces it.
TENON_DEVICE std::uint32_t sendable(std::uint32_t word) {
  return word == kNotArrived ? 0x7fff7fffu : word;
}
template <class Rules>
TENON_DEVICE void send(std::byte* at, Word4 words) {
  if (!Rules::kReplaces) return store16_relaxed(at, words);
  store16_relaxed(at, {sendable(words.x), sendable(words.y), sendable(words.z), sendable(words.w)});
}
// All threads of a block: 16-byte vectors [0, num_vectors) of `from` to `at`.
template <class Rules>
TENON_DEVICE void send_row(std::byte* at, const std::byte* from, int num_vectors) {
  for (int i = thread_id(); i < num_vectors; i += block_threads())
    send<Rules>(at + i * 16, load16(from + i * 16));
}

TENON_DEVICE bool has_arrived(Word4 words) {
  return (words.x != kNotArrived) & (words.y != kNotArrived) & (words.z != kNotArrived) &
         (words.w != kNotArrived);
}

// Ends with the words that `sender` sent to `at`; `words` may hold an earlier look at them.
template <class Rules>
TENON_DEVICE void take(const FusedArgs& args, Call& call, Phase phase, int sender, int row,
                       std::byte* at, Word4& words) {
  if (call.lost) return;
  if (!has_arrived(words)) {
    call.lost =
        !team_wait(args.team, phase, sender, call.number, static_cast<std::uint32_t>(row), [&] {
          words = load16_relaxed(at);
          return has_arrived(words);
        });
    if (call.lost) return;
  }
  if (Rules::kClears) store16_relaxed(at, kNothing);
}

// Step 1 for vectors of a row that every rank has sent a part of: sums in rank order. The parts of
// the peers lie at mine + offset(rank), this rank's own at `own`.
template <class T, class Rules, int kVectors, class Offset>
TENON_DEVICE void take_sums(const FusedArgs& args, Call& call, Phase phase, int row,
                            const std::byte* own, Offset offset,
                            float (&sums)[kVectors * kVector]) {
  const int rank = args.team.rank, size = args.team.size;
  std::byte* const mine = args.team.base[rank];
  Word4 words[kMaxRanks][kVectors];
  TENON_UNROLL
  for (int r = 0; r < kMaxRanks; ++r) {  // all loads are under way before the first is looked at
    if (r >= size) continue;
    for (int i = 0; i < kVectors; ++i)
      words[r][i] = r == rank ? load16(own + i * 16) : load16_relaxed(mine + offset(r) + i * 16);
  }
  TENON_UNROLL
  for (int r = 0; r < kMaxRanks; ++r) {
    if (r >= size || r == rank) continue;
    for (int i = 0; i < kVectors; ++i)
      take<Rules>(args, call, phase, r, row, mine + offset(r) + i * 16, words[r][i]);
  }
  const int first = Rules::kRankOrder ? 0 : rank;
  unpack<T, kVectors>(words[first], sums);
  TENON_UNROLL
  for (int step = 1; step < kMaxRanks; ++step) {
    if (step >= size) continue;
    float part[kVectors * kVector];
    unpack<T, kVectors>(words[Rules::kRankOrder ? step : (first + step) % size], part);
    for (int k = 0; k < kVectors * kVector; ++k) sums[k] = sums[k] + part[k];
  }
}

}  // namespace tenon::TENON_TARGET::fused_allreduce_rmsnorm_quant
