// What kernels see of the other ranks: ChannelView (a plain struct passed by value), the fault
// record and the sentinel that means "not arrived". Not here: team_wait(), which every wait goes
// through (wait.cuh), and the host side of a communicator.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tenon/core/dtype.h"

namespace tenon {

inline constexpr int kMaxRanks = 8;

// Number of `rank` among the peers of `of`: 0 … size − 2. A rank has no place for itself.
TENON_HD constexpr int peer_index(int rank, int of) { return rank < of ? rank : rank - 1; }

// Slots of a mailbox that generations of an exchange use in turn (comm/device/exchange.cuh), and
// the bytes of one. Every kernel of that protocol cuts a mailbox in this way, so that kernels may
// share one.
inline constexpr int kNumSlots = 3;
inline constexpr std::size_t kSlotAlignment = 256;
// Behind the slots lie the notes of four calls, one from each peer (rule 9 of
// comm/device/exchange.cuh).
inline constexpr std::uint32_t kNotedCalls = 4, kNoteBytes = 8;
inline constexpr std::size_t kAllNotesBytes = std::size_t{kNotedCalls} * kMaxRanks * kNoteBytes;
constexpr std::size_t slot_bytes(std::size_t mailbox_bytes) {
  if (mailbox_bytes < kAllNotesBytes) return 0;
  return (mailbox_bytes - kAllNotesBytes) / kNumSlots / kSlotAlignment * kSlotAlignment;
}
// The least mailbox whose slots have `bytes`.
constexpr std::size_t mailbox_with_slots_of(std::size_t bytes) {
  return (bytes + kSlotAlignment - 1) / kSlotAlignment * kSlotAlignment * kNumSlots +
         kAllNotesBytes;
}

// Where generations overlap (rule 6 of comm/device/exchange.cuh): the fewest steps of a block in
// each of them but the last.
inline constexpr int kLeastSteps = 2;

// The most blocks of a kernel that waits for peers: on one multiprocessor, and in all.
inline constexpr int kMaxBlocksPerUnit = 4, kMaxWaitingBlocks = 1024;

// A 32-bit word of a mailbox that holds this has not arrived. It is two NaNs in either 16-bit type
// and four in either e4m3: senders replace it by another NaN (docs/boundary.md, last part).
inline constexpr std::uint32_t kNotArrived = 0xffffffffu;

// What a wait was for: shows up in fault messages.
enum class Phase : std::uint32_t { kNone, kScatter, kGather, kBarrier, kHostExchange, kBootstrap };

// Why a wait ended badly.
enum class FaultReason : std::uint32_t {
  kNone = 0,
  kDeadline = 1,
  kAborted = 2,   // by a peer: its number is in the abort word
  kMismatch = 3,  // the awaited rank came to this call with another shape
};

// Written once by the first wait of this rank that ended badly; read by Communicator::health().
struct FaultRecord {
  std::uint32_t claimed;  // 0 → 1 by the wait that records; later failures leave it alone
  std::uint32_t ready;    // 1 (release) when the fields below are complete
  std::uint32_t reason;   // FaultReason
  std::uint32_t phase;    // Phase
  std::uint32_t my_rank, awaited_rank;
  std::uint32_t channel;  // index of the mailbox, named by its label on the host
  std::uint32_t call;     // number of the call on that channel, from 0
  std::uint32_t row;      // row being waited for, ~0 where that means nothing; for a mismatch the
                          // rows that the awaited rank brought
};

// One channel as a kernel sees it. `base[r]` is rank r's region of this mailbox: the same layout on
// every rank, peer visible, filled with kNotArrived at creation. `state` is this rank's own device
// memory, zero at creation: the op that owns the channel keeps its call counter and extents there.
struct ChannelView {
  int rank = 0, size = 1;
  // Blocks of the largest size that a kernel which waits for peers may have, agreed by the ranks;
  // of smaller blocks it may have up to kMaxBlocksPerUnit times as many.
  int max_blocks = 1;
  bool may_start_early = true;  // Communicator::may_start_early()
  std::byte* base[kMaxRanks] = {};
  std::size_t bytes = 0;                      // of each region
  std::uint32_t* state = nullptr;             // [kStateWords]
  std::uint32_t* abort_word[kMaxRanks] = {};  // peer visible; 0, or 1 + the rank that gave up
  FaultRecord* fault = nullptr;               // own
  std::uint64_t deadline_ns = 0;              // longest any one wait may last
  std::uint32_t channel = 0;
};
inline constexpr int kStateWords = 2 * kMaxWaitingBlocks + 2;
inline constexpr int kLostWord = kStateWords - 1;  // not 0 once a wait of a kernel has failed

}  // namespace tenon
