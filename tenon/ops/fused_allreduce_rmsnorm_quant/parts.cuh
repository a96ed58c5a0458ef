// What the two variants have in common: their arguments, where a part lies in a slot, and the sum
// of a row's parts. The rules of slots and generations are comm/device/exchange.cuh's.
// Not here: what is sent to whom (one_shot.cuh, two_shot.cuh), how a row travels (wire.cuh).
#pragma once

#include "tenon/comm/device/exchange.cuh"
#include "tenon/ops/common/quantize.cuh"
#include "tenon/ops/common/row.cuh"
#include "tenon/ops/fused_allreduce_rmsnorm_quant/wire.cuh"

namespace tenon::TENON_TARGET::fused_allreduce_rmsnorm_quant {

// What the kernels get. Strides are in bytes; offsets within a mailbox, which has at most 2 GiB, in
// units of 16.
struct FusedArgs {
  ChannelView team;
  std::byte* mine;  // this rank's region
  // Where peer number (rank + 1 + i) mod size keeps what I send it, for entry 0 of slot 0: so every
  // rank starts with another peer.
  std::byte* part_to[kMaxRanks - 1];
  std::byte* result_to[kMaxRanks - 1];  // two_shot
  const std::byte* partial;
  std::int64_t partial_stride;
  int rows;
  int chunk, num_generations;  // rows, or stripes, per generation; how many generations
  int workers;                 // blocks with data
  int rows_each;               // two_shot_rows_kernel: rows of a block
  int slot_units;
  int vectors;                           // of a row
  int part_units, entry_units;           // one rank's part of a row; those of all peers
  int spread_units, spread_entry_units;  // two_shot: a result; those of all peers
  int spread_offset;                     // two_shot: where results begin in a slot
  bool spreads_fp8, spreads_residual;    // two_shot
  std::uint8_t split_shift;              // one_shot_split: 2 to that power blocks do a row
  Note note;
  NormSpec norm;
  QuantSpec quant;
};

// What a kernel is compiled for, and so the functions that it calls: the type of elements, how rows
// travel (wire.cuh), the most vectors of a thread, the most ranks, whether it takes usual calls
// alone (is_fast_path()), and the rules of the exchange (comm/device/exchange.cuh).
template <class Element, class WireForm, int kSpan, int kMostRanks, bool kUsual, class Rules>
struct KernelFor {
  using T = Element;
  using Wire = WireForm;
  using Protocol = Rules;
  static constexpr int kMaxSpan = kSpan, kRanks = kMostRanks;
  static constexpr bool kFastPath = kUsual;
};

// Where entry `entry` begins in an area whose entries have `units` each, from the slot's beginning;
// and from the mailbox's. In units, as every `entry` below, which counts from the mailbox's.
TENON_DEVICE std::uint32_t in_slot(int units, int entry) {
  return static_cast<std::uint32_t>(entry * units);
}
TENON_DEVICE std::uint32_t in_mailbox(const FusedArgs& args, const Call& call, std::uint32_t at) {
  return call.slot * static_cast<std::uint32_t>(args.slot_units) + at;
}

// `units` of 16 bytes behind `at`.
TENON_DEVICE std::byte* at_unit(std::byte* at, std::uint32_t units) {
  return at + std::uint64_t{units} * 16;
}
TENON_DEVICE const std::byte* at_unit(const std::byte* at, std::uint32_t units) {
  return at + std::uint64_t{units} * 16;
}

// The rank of peer number `i`: (rank + 1 + i) mod size, without a division.
template <int kRanks>
TENON_DEVICE int rank_of_peer(const ChannelView& team, int i) {
  if constexpr (kRanks == 2) return 1 - team.rank;
  const int rank = team.rank + 1 + i;
  return rank < team.size ? rank : rank - team.size;
}

// step(i) for each peer number i; kRanks: the most ranks there may be.
template <int kRanks, class Step>
TENON_DEVICE void for_peers(const ChannelView& team, Step step) {
  TENON_UNROLL
  for (int i = 0; i < kRanks - 1; ++i)
    if (kRanks <= 2 || i < team.size - 1) step(i);
}

// Whether a kernel that does many rows looks at what comes from its peer long before it takes it,
// so that the look is over by then. Others would span out of registers.
template <int kMaxSpan, int kRanks>
inline constexpr bool kLooksAhead = kMaxSpan == 1 && kRanks == 2;

// A thread's words of this rank's part of a row. Only a thread that owns one vector, `vector`,
// keeps it; others read it again.
template <int kMaxSpan>
struct Own {
  static constexpr bool kKept = kMaxSpan == 1;
  Word4 words;
};
template <int kMaxSpan>
TENON_DEVICE Own<kMaxSpan> load_own(const FusedArgs& args, int row, int vector) {
  Own<kMaxSpan> own{};
  if constexpr (Own<kMaxSpan>::kKept)
    own.words = load16(
        at_unit(args.partial + row * args.partial_stride, static_cast<std::uint32_t>(vector)));
  return own;
}

// All threads of a row: this rank's part of it to each peer number that `is_wanted` names. `entry`:
// where the row's entry begins; `vector`: of a thread that owns one.
template <class K, class IsWanted>
TENON_DEVICE void send_part_to(const FusedArgs& args, const Call& call, int row,
                               std::uint32_t entry, const Own<K::kMaxSpan>& own, int vector,
                               IsWanted is_wanted) {
  using Wire = typename K::Wire;
  if constexpr (K::kRanks == 1) return;
  const auto send_vector = [&](int i, Word4 words) {
    const Parcel parcel = wrap<Wire, typename K::Protocol>(words);
    if (call.lost) return;
    for_peers<K::kRanks>(args.team, [&](int peer) {
      if (is_wanted(peer)) post<Wire>(at_unit(args.part_to[peer], entry), args.vectors, i, parcel);
    });
  };
  if constexpr (Own<K::kMaxSpan>::kKept) {
    send_vector(vector, own.words);
  } else {
    const std::byte* const from = args.partial + row * args.partial_stride;
    for (int i = thread_id(); i < args.vectors; i += block_threads())
      send_vector(i, load16(from + i * 16));
  }
}

// To every peer: a PART of rule 6.
template <class K>
TENON_DEVICE void send_part(const FusedArgs& args, const Call& call, int row, std::uint32_t entry,
                            const Own<K::kMaxSpan>& own, int vector) {
  send_part_to<K>(args, call, row, entry, own, vector, [](int) { return true; });
}

// Where `sender` leaves its part of an entry for this rank.
template <int kRanks>
TENON_DEVICE std::byte* part_from(const FusedArgs& args, std::uint32_t entry, int sender) {
  const int place = kRanks == 2 ? 0 : peer_index(sender, args.team.rank) * args.part_units;
  return at_unit(args.mine, entry + static_cast<std::uint32_t>(place));
}

// What a thread that looks ahead sees of its vector of a row's part.
template <class K>
TENON_DEVICE EarlyLook look_early(const FusedArgs& args, std::uint32_t entry) {
  EarlyLook early;
  if constexpr (kLooksAhead<K::kMaxSpan, K::kRanks>)
    early.words =
        look(address_of<typename K::Wire>(part_from<K::kRanks>(args, entry, 1 - args.team.rank),
                                          args.vectors, thread_id(), &early.rest));
  return early;
}

// Step 1 of one vector of which every peer has sent its part: sums in rank order.
template <class K>
TENON_DEVICE void take_sum(const FusedArgs& args, Call& call, int row, std::uint32_t entry,
                           int vector, const Word4& own, const EarlyLook& early,
                           float (&sum)[kVector]) {
  using T = typename K::T;
  using Wire = typename K::Wire;
  using Protocol = typename K::Protocol;
  constexpr int kRanks = K::kRanks, kMaxSpan = K::kMaxSpan;
  const int rank = args.team.rank, size = args.team.size, vectors = args.vectors;
  const auto name = static_cast<std::uint32_t>(row);
  float addend[kVector];
  if constexpr (kRanks == 1) {
    unpack8<T>(own, sum);
  } else if constexpr (kRanks == 2) {  // one peer, and a sum of two has no order
    const Word4 theirs = take_vector<Wire, Protocol, kMaxSpan>(
        args.team, call, Phase::kScatter, 1 - rank, name, part_from<kRanks>(args, entry, 1 - rank),
        vectors, vector, early);
    unpack8<T>(own, sum);
    unpack8<T>(theirs, addend);
    for (int k = 0; k < kVector; ++k) sum[k] = sum[k] + addend[k];
  } else {
    Word4 words[kRanks] = {};
    take_of_all<Protocol, kRanks>(
        args.team, call, Phase::kScatter, [&] { return name; },
        [&](int sender) {
          return address_of<Wire>(part_from<kRanks>(args, entry, sender), vectors, vector);
        },
        words, kMaxSpan == 1);
    TENON_UNROLL
    for (int r = 0; r < kRanks; ++r) {
      if (r < size && r != rank)
        words[r] = unwrap<Protocol>(
            args.team, call, Phase::kScatter, r, name,
            address_of<Wire>(part_from<kRanks>(args, entry, r), vectors, vector), words[r]);
      if (r == rank) words[r] = own;
    }
    const int first = Protocol::kRankOrder ? 0 : rank;
    unpack8<T>(words[first], sum);
    TENON_UNROLL
    for (int step = 1; step < kRanks; ++step) {
      if (step >= size) continue;
      unpack8<T>(words[Protocol::kRankOrder ? step : (first + step) % size], addend);
      for (int k = 0; k < kVector; ++k) sum[k] = sum[k] + addend[k];
    }
  }
}

// The same for kVectors vectors from `vector` on.
template <class K, int kVectors>
TENON_DEVICE void take_sums(const FusedArgs& args, Call& call, int row, std::uint32_t entry,
                            int vector, const Own<K::kMaxSpan>& kept, const EarlyLook& early,
                            float (&sums)[kVectors * kVector]) {
  if constexpr (Own<K::kMaxSpan>::kKept && kVectors == 1) {
    take_sum<K>(args, call, row, entry, vector, kept.words, early, sums);
  } else {
    const std::byte* const own = args.partial + row * args.partial_stride + vector * 16;
    for (int i = 0; i < kVectors; ++i) {
      float sum[kVector];
      take_sum<K>(args, call, row, entry, vector + i, load16(own + i * 16), EarlyLook{}, sum);
      for (int k = 0; k < kVector; ++k) sums[i * kVector + k] = sum[k];
    }
  }
}

}  // namespace tenon::TENON_TARGET::fused_allreduce_rmsnorm_quant
