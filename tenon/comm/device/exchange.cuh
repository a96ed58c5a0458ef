// How kernels of different ranks pass data through a mailbox: generations, slots, sending, taking.
// Every exchange of words uses this, so that calls of any size and grid may follow each other on
// one mailbox. Not here: what is sent to whom (comm/collectives and the ops that communicate).
//
// The mailbox of a rank is three slots of equal size. A generation is one round of exchange: a
// short call is one, a long call is one per chunk. Generation g uses slot g mod 3 on every rank.
//
// clang-format off
//  1. The data is the flag. A word is kNotArrived until its sender stores it, once per generation,
//     and never with that value (sendable()). Words are compared as integers.
//  2. Each word of a slot has one sender block and one taking thread per generation, and where it
//     lies depends on its place in the chunk and its sender only, never on how much there is. A rank
//     that comes with less is missed by name. One that comes with another shape may be misread;
//     rule 9 finds it out.
//  3. Whoever takes a word puts kNotArrived back at once (take()). So, between two calls of a rank,
//     its slots hold nothing but what faster ranks have sent ahead, and no call needs to know the
//     shape of an earlier one.
//  4. Within a call a block takes only from the same-numbered block of each peer, directly or by way
//     of a third rank that passes on what it made of it; the grid is the same on all ranks; and a
//     block has something to take in every generation of a call but perhaps the last. So when a
//     block has finished generation g, the same-numbered block of every rank has sent its part of g,
//     hence finished g - 1.
//  5. Therefore nobody runs ahead by more than one generation: finishing g + 1 would need the part
//     that a rank still in g has not sent. A rank sends generation g only after it has finished
//     g - 1, when every peer has sent g - 1, hence finished g - 2 and cleared, in g - 3, the words
//     that g will fill.
//  6. That "cleared" is seen in this order. Between calls it is by the kernel boundary (devices) or
//     the fence of enter() (host targets, where a kernel boundary is a mere return). Within a call
//     it is by next_generation(): a barrier, behind which thread 0 alone fences while the others go
//     on, since a fence waits for all that is on its way to peers. That fence does not cover
//       - what its block takes and clears after the barrier, as two_shot does with the last words of
//         a generation in the first two steps of the next;
//       - what other threads send before they meet thread 0 again: of that only the fence of the
//         generation before is known to have come first.
//     So the order rests on one line each. A word is sent in g by P and taken by R; "barrier n" and
//     "fence n" are those with which generation n begins; "first n" is what thread 0 sends first in
//     n: vector 0 of whatever its block sends, which thread 0 of the peer's block takes; "norm n" is
//     the barrier of a row in the first step of n, which thread 0 reaches with fence n behind it.
//
//     word        R clears it in             covered by   told by      taken before  sent again after
//     ----------  -------------------------  -----------  -----------  ------------  ----------------
//     VECTOR      g                          R fence g+1  R first g+1  P fence g+2   P barrier g+3
//     PART        g                          R fence g+1  R first g+1  P fence g+2   P barrier g+3
//     FIRST PART  g                          R fence g+1  R first g+1  P fence g+2   P barrier g+3
//     LATE PART   g, or step 1 of g+1        R fence g+2  R first g+2  P fence g+3   P norm g+3
//     RESULT      g, or step 1 or 2 of g+1   R fence g+2  R first g+2  P fence g+3   P norm g+3
//
//     VECTOR is all_reduce's, PART one_shot's; FIRST PART is what two_shot sends in the first step of
//     a generation, LATE PART in any other; RESULT is what an owner sends.
//     Three slots, not two: with two, the upper three would be sent again in g + 2, and P's fence g+2
//     is not known to have come first.
//     kLeastSteps steps, not one, for a block of two_shot in every generation but the last: else a
//     FIRST PART would be the last of its generation too, and cleared a generation later; and "first
//     n" would be taken behind fence n + 1, not before it. Such a block begins every generation with
//     barrier and fence, also one in which it has nothing to send.
//     Whoever passes on what it took orders its takes before its sends with order_hop().
//  7. The generation is counted in device memory, so a replayed graph goes on where the last call
//     ended. Every block has counters of its own, so that none waits for another: at the start of a
//     call it reads them (begin_call()), then sets its own and those of the blocks beyond the grid
//     that are its to keep (count_call()): all are equal between calls. What is stored is the slot,
//     not the count: 2^32 is no multiple of 3.
//  8. A take that fails has recorded the fault and told every peer (give_up()). The thread then
//     takes, clears and sends nothing any more; it only follows its block's barriers to the end.
//  9. Where words of one shape may lie where another shape awaits its own, as in the fused op, the
//     last block of the grid has no data. It sends every peer a note, two words that tell the shape
//     of the call, and compares the notes of the peers with its own: a rank that came with other
//     rows, or another variant, is named on every rank that met it. Notes lie behind the slots, in
//     four places by the number of the call; they are words of rules 1, 3 and 8. A rank sends the
//     note of call c + 4 when it has ended c + 3, in which it took something from every peer, hence
//     when all peers have ended call c, in which they cleared that place.
// clang-format on
#pragma once

#include <initializer_list>

#include "tenon/comm/device/channel_view.h"
#include "tenon/comm/device/wait.cuh"
#include "tenon/core/hash.h"
#include "tenon/device/runtime.h"

namespace tenon::TENON_TARGET {

inline constexpr Word4 kNothing = {kNotArrived, kNotArrived, kNotArrived, kNotArrived};

// The rules of the protocol that code can break. Kernels are compiled with SoundProtocol; tests
// compile them with one rule broken and show that they notice.
struct SoundProtocol {
  static constexpr bool kClears = true;                      // take() puts kNotArrived back
  static constexpr bool kMeets = true;                       // next_generation() has its barrier
  static constexpr bool kFences = true;                      // and its fence
  static constexpr bool kFencesCalls = !kKernelsAreOrdered;  // enter() fences
  static constexpr bool kOrdersHops = !kKernelsAreOrdered;   // order_hop() fences
  static constexpr bool kReadsFirst = true;                  // count_call() has its barrier
  static constexpr bool kCountsAll = true;                   // blocks beyond the grid are counted
  static constexpr bool kAdvances = true;                    // the counter moves on
  static constexpr bool kSharesSlot = true;                  // all ranks use the same slot
  static constexpr bool kRankOrder = true;                   // sums start at rank 0
  static constexpr bool kReplaces = true;                    // senders replace kNotArrived
  static constexpr int kLeastSteps = tenon::kLeastSteps;     // of a block in a generation
  static constexpr int kSlots = kNumSlots;                   // that generations use in turn
};

// One call as a thread sees it.
struct Call {
  std::uint32_t number, slot;
  bool lost;  // a wait failed: rule 8
};

// The first thing that every thread does, before it touches memory.
template <class Protocol>
TENON_DEVICE void enter() {
  wait_for_previous();
  let_next_start();
  if (Protocol::kFencesCalls) fence_system();
}

// False once somebody has given up: what peers still read is then anybody's guess, so that this
// call writes nothing. A device would read the abort word across the bus on every call: it looks at
// what its own waits on this channel have found out.
TENON_DEVICE bool team_alive(const ChannelView& team) {
  if (kKernelsAreOrdered) return load4_relaxed(&team.state[kLostWord]) == 0;
  return load_acquire(team.abort_word[team.rank]) == 0;
}

// The words of ChannelView::state that block `block` counts with: calls so far, and the next slot.
inline constexpr int kCallWord = 0, kSlotWord = 1;
TENON_DEVICE std::uint32_t* counters(const ChannelView& team, int block) {
  return team.state + 2 * block;
}

// Every thread.
template <class Protocol>
TENON_DEVICE Call begin_call(const ChannelView& team) {
  const std::uint32_t* const own = counters(team, block_id());
  const std::uint32_t skew = Protocol::kSharesSlot ? 0u : static_cast<std::uint32_t>(team.rank);
  return {load4_relaxed(own + kCallWord),
          (load4_relaxed(own + kSlotWord) + skew) % Protocol::kSlots, !team_alive(team)};
}

// Every thread of every block must call this once, in its first generation, with the number of
// generations of the call. Its place is behind the first sends: what it costs is then hidden by
// their way.
template <class Protocol>
TENON_DEVICE void count_call(const ChannelView& team, const Call& call, std::uint32_t generations) {
  if (Protocol::kReadsFirst) sync_block();  // every thread has read the counters
  const int all_blocks = Protocol::kCountsAll ? team.max_blocks * kMaxBlocksPerUnit : grid_blocks();
  TENON_NO_UNROLL
  for (int block = block_id() + thread_id() * grid_blocks(); block < all_blocks;
       block += block_threads() * grid_blocks()) {
    std::uint32_t* const kept = counters(team, block);
    kept[kCallWord] = call.number + 1;
    if (Protocol::kAdvances) kept[kSlotWord] = (call.slot + generations) % Protocol::kSlots;
  }
}

// Between two generations of a call: rule 6. Every thread of the block must call this.
template <class Protocol>
TENON_DEVICE void next_generation(Call& call) {
  if (Protocol::kMeets) sync_block();
  if (Protocol::kFences && thread_id() == 0) fence_system();
  if (Protocol::kAdvances) call.slot = (call.slot + 1) % Protocol::kSlots;
}

// Between taking something and sending on what came of it. On devices the clears that matter were
// performed at their own memory before this kernel, or generation, began; nothing is left to order.
// Host memory models ask for a fence wherever a chain goes through a third rank.
template <class Protocol>
TENON_DEVICE void order_hop() {
  if (Protocol::kOrdersHops) fence_system();
}

// All-ones is two NaNs of either 16-bit type, four of e4m3fn, one of fp32; so is what replaces it.
TENON_DEVICE std::uint32_t sendable(std::uint32_t word) {
  return word == kNotArrived ? 0x7fff7fffu : word;
}
template <class Protocol>
TENON_DEVICE Word4 sendable(Word4 words) {
  if (!Protocol::kReplaces) return words;
  return {sendable(words.x), sendable(words.y), sendable(words.z), sendable(words.w)};
}
template <class Protocol>
TENON_DEVICE void send(std::byte* at, Word4 words) {
  store16_relaxed(at, sendable<Protocol>(words));
}

TENON_DEVICE bool has_arrived(Word4 words) {
  return (words.x != kNotArrived) & (words.y != kNotArrived) & (words.z != kNotArrived) &
         (words.w != kNotArrived);
}

// Rule 8: what a thread does whose wait has ended badly, or that met something else.
TENON_DEVICE void give_up(const ChannelView& team, Call& call, WaitEnd end, Phase phase, int sender,
                          std::uint32_t row) {
  call.lost = true;
  record_fault(team, end, phase, sender, call.number, row);
}

// Where words of a sender lie, and what one thread does with them there. Ops that lay their words
// out in another way have places of their own, with the same two functions; what a look does not
// fill it leaves 0.
struct SlotAddress {
  std::byte* at;
};
TENON_DEVICE Word4 look(const SlotAddress& place) { return load16_relaxed(place.at); }
TENON_DEVICE void clear(const SlotAddress& place) { store16_relaxed(place.at, kNothing); }

// Ends with the words that `sender` sent to `place`. `row` names the place in a fault; `words` is
// what an earlier look found there. This loop is the latency of a boundary. Lanes leave it one by
// one as their words arrive, and clears among the looks of others cost 0.5 us on an H200: where
// `whole_wave` says that every lane of the wave takes, they clear together. Written with a lambda
// for the look, as in wait_until(), it took 0.07 us longer.
template <class Protocol, class Address>
TENON_DEVICE Word4 take(const ChannelView& team, Call& call, Phase phase, int sender,
                        std::uint32_t row, const Address& place, Word4 words, bool whole_wave) {
  if (!call.lost) {
    if (!has_arrived(words)) words = look(place);
    WaitBudget budget;
    while (!has_arrived(words)) {
      const bool waits = may_keep_waiting(budget, team.abort_word[team.rank], team.deadline_ns);
      words = look(place);
      if (!waits && !has_arrived(words)) {
        give_up(team, call, budget.end, phase, sender, row);
        break;
      }
    }
  }
  if (whole_wave) sync_wave();
  if (Protocol::kClears && !call.lost) clear(place);
  return words;
}

// The same for words of every peer at once: those of rank r lie at place(r). words[own rank] is the
// caller's and stays. row() names the place in a fault. kRanks: the most ranks there may be.
template <class Protocol, int kRanks, class Row, class AddressOf>
TENON_DEVICE void take_of_all(const ChannelView& team, Call& call, Phase phase, Row row,
                              AddressOf place, Word4 (&words)[kRanks], bool whole_wave) {
  const auto is_peer = [&](int r) { return r < team.size && r != team.rank; };
  const auto missing = [&] {
    int found = -1;
    TENON_UNROLL
    for (int r = 0; r < kRanks; ++r)
      if (is_peer(r) && !has_arrived(words[r])) found = r;
    return found;
  };
  if (!call.lost) {
    TENON_UNROLL
    for (int r = 0; r < kRanks; ++r)  // all loads are under way before the first is looked at
      if (is_peer(r)) words[r] = look(place(r));
    WaitBudget budget;
    while (missing() >= 0) {
      const bool waits = may_keep_waiting(budget, team.abort_word[team.rank], team.deadline_ns);
      TENON_UNROLL
      for (int r = 0; r < kRanks; ++r)
        if (is_peer(r) && !has_arrived(words[r])) words[r] = look(place(r));
      if (!waits && missing() >= 0) {
        give_up(team, call, budget.end, phase, missing(), row());
        break;
      }
    }
  }
  if (whole_wave) sync_wave();
  TENON_UNROLL
  for (int r = 0; r < kRanks; ++r)
    if (Protocol::kClears && !call.lost && is_peer(r)) clear(place(r));
}

// --- notes: rule 9 ------------------------------------------------------------------------------

// What this rank tells its peers of a call, and where mailboxes keep it. Made by launches.
struct Note {
  std::uint32_t shape, rows;  // what decides where words lie; neither is kNotArrived
  std::uint64_t at;           // of the notes, from a mailbox's beginning
};
// Host side. `shape` holds whatever decides a call's layout but its rows.
inline Note note_of(const ChannelView& team, std::initializer_list<std::uint64_t> shape,
                    std::uint64_t rows) {
  Fnv1a hash;
  for (const std::uint64_t each : shape) hash.add(each);
  return {static_cast<std::uint32_t>(hash.value() >> 33),
          static_cast<std::uint32_t>(rows & 0x7fffffffu), kNumSlots * slot_bytes(team.bytes)};
}

// The block that exchanges notes, for a shape that has blocks for data: a call without rows is no
// call. It is resident with them on devices where most_data_blocks() is heeded.
inline LaunchShape with_note_block(LaunchShape shape, const ChannelView& team) {
  if (team.size > 1 && shape.blocks > 0) ++shape.blocks;
  return shape;
}
constexpr std::int64_t most_data_blocks(std::int64_t resident, int team_size) {
  return team_size > 1 && resident > 1 ? resident - 1 : resident;
}

// Where `owner` keeps the note of `sender`.
struct NoteAddress {
  std::byte* at;
};
TENON_DEVICE NoteAddress note_address(const ChannelView& team, const Call& call, const Note& note,
                                      int owner, int sender) {
  const std::uint32_t place =
      call.number % kNotedCalls * kMaxRanks + static_cast<std::uint32_t>(sender);
  return {team.base[owner] + note.at + place * kNoteBytes};
}
TENON_DEVICE Word4 look(const NoteAddress& place) {
  const Word2 words = load8_relaxed(place.at);
  return {words.x, words.y, 0, 0};
}
TENON_DEVICE void clear(const NoteAddress& place) {
  store8_relaxed(place.at, {kNotArrived, kNotArrived});
}

TENON_DEVICE void send_notes(const ChannelView& team, const Call& call, const Note& note) {
  for (int peer = thread_id(); peer < team.size && !call.lost; peer += block_threads())
    if (peer != team.rank)
      store8_relaxed(note_address(team, call, note, peer, team.rank).at, {note.shape, note.rows});
}

// Every thread of a block with data: nothing, but on the cpu, whose blocks run one after the other.
// The first sends the notes there, so that they do not wait behind data that may never come.
TENON_DEVICE void send_notes_first(const ChannelView& team, const Call& call, const Note& note) {
  if (kWave == 1 && block_id() == 0) send_notes(team, call, note);
}

// Every thread of a block without data: counts the call and, in the last block of the grid,
// exchanges the notes.
template <class Protocol>
TENON_DEVICE void finish_without_data(const ChannelView& team, Call& call, const Note& note,
                                      std::uint32_t generations) {
  const bool notes = team.size > 1 && block_id() == grid_blocks() - 1;
  if (notes && kWave > 1) send_notes(team, call, note);
  count_call<Protocol>(team, call, generations);
  for (int peer = thread_id(); notes && peer < team.size; peer += block_threads()) {
    if (peer == team.rank) continue;
    const Word4 words =
        take<Protocol>(team, call, Phase::kScatter, peer, kNoRow,
                       note_address(team, call, note, team.rank, peer), kNothing, false);
    if (!call.lost && (words.x != note.shape || words.y != note.rows))
      give_up(team, call, WaitEnd::kMismatch, Phase::kScatter, peer, words.y);
  }
}

}  // namespace tenon::TENON_TARGET
