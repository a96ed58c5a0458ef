// One shot, for few rows: every rank sends its rows to every peer and does all rows itself. One
// trip. A slot holds, per row of the chunk, one part of 2 · hidden bytes from each peer. The
// rules of the exchange are comm/slots.h's.
#pragma once

#include "tenon/ops/fused_allreduce_rmsnorm_quant/parts.cuh"

namespace tenon::TENON_TARGET::fused_allreduce_rmsnorm_quant {

template <class T, int kMaxRun, class Rules = Sound>
TENON_KERNEL_MAX(kRowThreads)
one_shot_kernel(FusedArgs args) {
  Call call = begin_call<Rules>(args.team);
  const TeamView& team = args.team;
  const int num_vectors = args.norm.hidden / kVector;
  const std::int64_t part_bytes = std::int64_t{num_vectors} * 16;
  const Run run = own_run(num_vectors);
  Word4 held[kMaxRun];

  for (int first = 0; first < args.rows; first += args.chunk_rows) {
    if (first > 0) next_generation<Rules>(call);
    const int left = args.rows - first;
    const int chunk = left < args.chunk_rows ? left : args.chunk_rows;

    // Phase 1: my part of every row to every peer, starting with another peer on each rank.
    for (int entry = block_id(); entry < chunk && !call.lost; entry += grid_blocks()) {
      const std::byte* const part = args.partial + (first + entry) * args.partial_stride;
      for (int step = 1; step < team.size; ++step) {
        const int peer = (team.rank + step) % team.size;
        send_row<Rules>(
            team.base[peer] + entry_offset(args, call, 0, part_bytes, entry, team.rank, peer), part,
            num_vectors);
      }
    }

    if (first == 0) count_call<Rules>(args, call);

    // Phase 2: each row from its parts.
    for (int entry = block_id(); entry < chunk; entry += grid_blocks()) {
      const int row = first + entry;
      const std::byte* const own = args.partial + row * args.partial_stride;
      norm_row<T>(args.norm, row, run, held,
                  [&]<int kVectors>(int vector, float(&sums)[kVectors * kVector]) {
                    take_sums<T, Rules, kVectors>(
                        args, call, Phase::kScatter, row, own + vector * 16,
                        [&](int sender) {
                          return entry_offset(args, call, 0, part_bytes, entry, sender, team.rank) +
                                 vector * 16;
                        },
                        sums);
                  });
      if (args.quant.codes == nullptr) continue;
      quantize_to_tensors<T>(args.quant, row, 0, run, held);
      pad_scale_groups(args.quant, row);
      pad_scale_rows(args.quant, row);
    }
  }
}

}  // namespace tenon::TENON_TARGET::fused_allreduce_rmsnorm_quant
