// What the two variants have in common: their arguments, where a part lies in a slot, and the sum
// of a row's parts. The rules of slots and generations are comm/slots.h's.
// Not here: what is sent to whom (one_shot.cuh, two_shot.cuh).
#pragma once

#include "tenon/comm/slots.h"
#include "tenon/ops/common/quantize.cuh"
#include "tenon/ops/common/row.cuh"

namespace tenon::TENON_TARGET::fused_allreduce_rmsnorm_quant {

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

// Every thread of every block, in the first generation of a call.
template <class Rules>
TENON_DEVICE void count_call(const FusedArgs& args, const Call& call) {
  const int generations = (args.rows + args.chunk_rows - 1) / args.chunk_rows;
  tenon::TENON_TARGET::count_call<Rules>(args.team, call, static_cast<std::uint32_t>(generations));
}

// Offset in every mailbox of what `sender` has for `receiver` about entry `entry` of the chunk,
// where an area of the slot has entries of `bytes` per sender.
TENON_DEVICE std::int64_t entry_offset(const FusedArgs& args, const Call& call, std::int64_t area,
                                       std::int64_t bytes, int entry, int sender, int receiver) {
  const std::int64_t place =
      std::int64_t{entry} * (args.team.size - 1) + peer_index(sender, receiver);
  return call.slot * args.slot_bytes + area + place * bytes;
}

// All threads of a block: 16-byte vectors [0, num_vectors) of `from` to `at`.
template <class Rules>
TENON_DEVICE void send_row(std::byte* at, const std::byte* from, int num_vectors) {
  for (int i = thread_id(); i < num_vectors; i += block_threads())
    send<Rules>(at + i * 16, load16(from + i * 16));
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
      take<Rules>(args.team, call, phase, r, static_cast<std::uint32_t>(row),
                  mine + offset(r) + i * 16, words[r][i]);
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
