// One shot, for few rows: every rank sends its rows to every peer and does all rows itself. One
// trip. A slot holds, per row of the chunk, one part of 2 · hidden bytes from each peer. The
// rules of the exchange are comm/slots.h's.
#pragma once

#include "tenon/ops/fused_allreduce_rmsnorm_quant/parts.cuh"

namespace tenon::TENON_TARGET::fused_allreduce_rmsnorm_quant {

// One row from its parts.
template <class T, int kMaxRun, int kRanks, class Rules>
TENON_DEVICE void finish_row(const FusedArgs& args, Call& call, int row, int turn, int entry,
                             const Run& run, const Own<kMaxRun>& own,
                             const RowAhead<kMaxRun>& ahead) {
  Word4 held[kMaxRun];
  await_parts<kRanks>(args, call, row, entry, run);
  norm_row<T>(args.norm, row, turn, run, ahead, held,
              [&]<int kVectors>(int vector, float(&sums)[kVectors * kVector]) {
                take_sums<T, Rules, kRanks, kMaxRun, kVectors>(args, call, row, entry, vector, own,
                                                               sums);
              });
  if (args.quant.codes == nullptr) return;
  quantize_to_tensors<T>(args.quant, row, 0, run, held);
  pad_scales(args.quant, row);
}

// No more rows than blocks, one generation: nothing but the way of one row.
template <class T, int kMaxRun, int kRanks, class Rules = Sound>
TENON_KERNEL_RESIDENT(kRowThreads, 1)
one_shot_row_kernel(TENON_ARGS(FusedArgs) args) {
  enter<Rules>();
  const int row = block_id();
  const Run run = own_run<kMaxRun>(args.norm.hidden / kVector);
  const auto own = load_own<kMaxRun>(args, row < args.rows ? row : 0);
  Call call = begin_call<Rules>(args.team);
  if (row >= args.rows) return count_call<Rules>(args.team, call, 1);
  const auto ahead = read_ahead<kMaxRun>(args.norm, row, run);
  if (!call.lost) send_part<Rules, kRanks>(args, call, row, row, own);
  count_call<Rules>(args.team, call, 1);
  finish_row<T, kMaxRun, kRanks, Rules>(args, call, row, 0, row, run, own, ahead);
}

// Any number of rows. Each block sends a row ahead of the one it works on, so that the link is
// never idle.
template <class T, int kMaxRun, int kRanks, class Rules = Sound>
TENON_KERNEL_RESIDENT(kRowThreads, 1)
one_shot_kernel(TENON_ARGS(FusedArgs) args) {
  enter<Rules>();
  Call call = begin_call<Rules>(args.team);
  const Run run = own_run<kMaxRun>(args.norm.hidden / kVector);
  const int stride = grid_blocks();
  int turn = 0;
  for (int first = 0; first < args.rows; first += args.chunk_rows) {
    if (first > 0) next_generation<Rules>(call);
    const int left = args.rows - first;
    const int chunk = left < args.chunk_rows ? left : args.chunk_rows;
    Own<kMaxRun> sent{};
    for (int next = block_id(); next < chunk + stride; next += stride) {
      const Own<kMaxRun> own = sent;
      if (next < chunk) sent = load_own<kMaxRun>(args, first + next);
      const int entry = next - stride, row = first + entry;
      RowAhead<kMaxRun> ahead{};
      if (entry >= 0) ahead = read_ahead<kMaxRun>(args.norm, row, run);
      if (next < chunk && !call.lost)
        send_part<Rules, kRanks>(args, call, first + next, next, sent);
      if (entry >= 0) {
        finish_row<T, kMaxRun, kRanks, Rules>(args, call, row, turn++, entry, run, own, ahead);
      } else if (first == 0) {
        count_call<Rules>(args.team, call, static_cast<std::uint32_t>(args.num_generations));
      }
    }
  }
}

}  // namespace tenon::TENON_TARGET::fused_allreduce_rmsnorm_quant
