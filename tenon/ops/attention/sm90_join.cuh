// Partials of sequences that decode_kernel has left in slots: joined from left to right, divided,
// gated and written. A warp has half of a row.
#pragma once

#include "tenon/ops/attention/sm90_decode.cuh"

namespace tenon::TENON_TARGET::attention {

inline constexpr int kJoinThreads = 128, kJoinWarps = kJoinThreads / 32;

// Where a warp's partials lie: slots of one row.
struct JoinRow {
  const Sm90Call& call;
  int first, partials, kv_head, rank, rows, index;
  TENON_HD std::int64_t place(int partial) const {
    const std::int64_t number = std::int64_t{first + partial} * call.kv_heads + kv_head;
    return (number * kClusterRanks + rank) * rank_bytes(rows);
  }
};

inline constexpr int kJoinAtOnce = 16;  // partials on their way
TENON_DEVICE void load_sums(const JoinRow& row, int from, float4 (&o)[kJoinAtOnce]) {
  TENON_UNROLL
  for (int i = 0; i < kJoinAtOnce; ++i)
    if (from + i < row.partials)
      o[i] = reinterpret_cast<const float4*>(row.call.slots + row.place(from + i))[row.index];
}

// What partials do to the sums before them; lane i has that of partial from + i. Maxima are those
// of all partials up to one's own, so that nobody waits for the sums.
struct JoinFactors {
  float keep, add, total;
};
TENON_DEVICE JoinFactors read_factors(const JoinRow& row, int from, float& peak_before) {
  const int lane = thread_id() % kWave, partial = from + lane;
  float peak = -kInfinity, total = 0.0f;
  if (partial < row.partials) {
    const auto* numbers =
        reinterpret_cast<const float*>(row.call.slots + row.place(partial) + row.rows * 1024);
    peak = numbers[row.index / 64];
    total = numbers[row.rows + row.index / 64];
  }
  float most = max_f(peak, peak_before);
  TENON_UNROLL
  for (int step = 1; step < kWave; step *= 2) {
    const float other = shuffle_from(most, lane >= step ? lane - step : lane);
    most = max_f(most, other);
  }
  const float left = shuffle_from(most, lane > 0 ? lane - 1 : 0);
  const float before = lane > 0 ? left : peak_before, base = base_of(most);
  peak_before = shuffle_from(most, kWave - 1);
  return {fast_exp2(before - base), fast_exp2(peak - base), total};
}

TENON_KERNEL_MAX(kJoinThreads) join_kernel(TENON_ARGS(Sm90Call) call) {
  wait_for_previous();
  if (thread_id() == 0) let_next_start();
  sync_wave();
  const int number = block_id() * kJoinWarps + thread_id() / kWave;
  const int half = number % 2, head = number / 2 % call.q_heads,
            sequence = number / 2 / call.q_heads;
  if (sequence >= call.sequences) return;
  const int first = call.firsts[sequence], partials = call.firsts[sequence + 1] - first;
  const int token = call.starts[sequence];
  if (partials < 2 || call.firsts[call.sequences] * call.kv_heads > call.num_slots) return;
  const int in_group = head % call.group, rows = tenon::attention::rows_of_rank(call.group);
  const JoinRow row{.call = call,
                    .first = first,
                    .partials = partials,
                    .kv_head = head / call.group,
                    .rank = in_group / rows,
                    .rows = rows,
                    .index = in_group % rows * 64 + half * 32 + thread_id() % kWave};
  const Gates gate = gates_of(call, token, head);
  const std::uint32_t low = read_gates(gate, column_of(row.index));
  const std::uint32_t high = read_gates(gate, column_of(row.index) + 8);

  // The first partial joins nothing: keep is 0, add is 1.
  Sums whole;
  float4 now[kJoinAtOnce], next[kJoinAtOnce];
  load_sums(row, 0, now);
  TENON_NO_UNROLL
  for (int from = 0; from < partials; from += kWave) {
    const JoinFactors factors = read_factors(row, from, whole.peak);
    TENON_UNROLL
    for (int part = 0; part < 2; ++part) {
      const int begin = from + part * kJoinAtOnce;
      load_sums(row, begin + kJoinAtOnce, next);
      TENON_UNROLL
      for (int i = 0; i < kJoinAtOnce; ++i) {
        const int lane = part * kJoinAtOnce + i;
        const float keep = shuffle_from(factors.keep, lane), add = shuffle_from(factors.add, lane);
        const float total = shuffle_from(factors.total, lane);
        if (begin + i >= partials) continue;
        whole.total = whole.total * keep + total * add;
        whole.o = {whole.o.x * keep + now[i].x * add, whole.o.y * keep + now[i].y * add,
                   whole.o.z * keep + now[i].z * add, whole.o.w * keep + now[i].w * add};
      }
      TENON_UNROLL
      for (int i = 0; i < kJoinAtOnce; ++i) now[i] = next[i];
    }
  }
  finish_unit(call, token, head, row.index, whole, gate, low, high);
}

}  // namespace tenon::TENON_TARGET::attention
