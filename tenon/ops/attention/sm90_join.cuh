// Partials of sequences that decode_kernel or stream_kernel has left in slots: joined from left to
// right, divided, gated and written. A warp has half of a row.
#pragma once

#include "tenon/device/cuda_hip/sm90/lanes.cuh"
#include "tenon/ops/attention/sm90_decode.cuh"

namespace tenon::TENON_TARGET::attention {

inline constexpr int kJoinThreads = 128, kJoinWarps = kJoinThreads / 32;

// Partials of sequences with one token: of those before `sequence`, of that one, of all. A warp
// together.
struct PartialCounts {
  int before = 0, own = 0, all = 0;
};
TENON_DEVICE PartialCounts count_partials(const Sm90Call& call, int sequence) {
  PartialCounts counts;
  TENON_NO_UNROLL
  for (int base = 0; base < call.sequences; base += kWave) {
    const int s = base + thread_id() % kWave;
    int count = 0;
    if (s < call.sequences &&
        load_constant(call.starts + s + 1) - load_constant(call.starts + s) == 1)
      count = partials_of(load_constant(call.lengths + s));
    counts.before += sum_lanes(s < sequence ? count : 0);
    counts.own += sum_lanes(s == sequence ? count : 0);
    counts.all += sum_lanes(count);
  }
  return counts;
}

// Where a warp's partials lie: slots of one row.
struct JoinRow {
  const Sm90Call& call;
  int first, partials, kv_head, rank, rows, index;
  TENON_HD std::int64_t place(int partial) const {
    const std::int64_t number = std::int64_t{first + partial} * call.kv_heads + kv_head;
    return (number * kClusterRanks + rank) * rank_bytes(rows);
  }
};

// What partials do to the sums before them; lane i has that of partial from + i. Maxima are those
// of all partials up to one's own, so that nobody waits for the sums.
struct JoinFactors {
  float keep, add, total;
};
inline constexpr int kAtOnce = 12;  // partials on their way
TENON_DEVICE JoinFactors read_factors(const JoinRow& row, int from, float& peak_before) {
  constexpr int kLanes = 16;
  static_assert(kAtOnce <= kLanes);
  const int lane = thread_id() % kWave, partial = from + lane;
  float peak = -kInfinity, total = 0.0f;
  if (lane < kAtOnce && partial < row.partials) {
    const auto* numbers =
        reinterpret_cast<const float*>(row.call.slots + row.place(partial) + row.rows * 1024);
    peak = numbers[row.index / 64];
    total = numbers[row.rows + row.index / 64];
  }
  float most = max_f(peak, peak_before);
  TENON_UNROLL
  for (int step = 1; step < kLanes; step *= 2)
    most = max_f(most, shuffle_from(most, lane >= step ? lane - step : lane));
  const float left = shuffle_from(most, lane > 0 ? lane - 1 : 0);
  const float before = lane > 0 ? left : peak_before, base = base_of(most);
  peak_before = shuffle_from(most, kLanes - 1);
  return {fast_exp2(before - base), fast_exp2(peak - base), total};
}

TENON_KERNEL_MAX(kJoinThreads) join_kernel(TENON_ARGS(Sm90Call) call) {
  const int number = block_id() * kJoinWarps + thread_id() / kWave;
  const int half = number % 2, head = number / 2 % call.q_heads,
            sequence = number / 2 / call.q_heads;
  const int kv_head = head / call.group, in_group = head % call.group;
  const int rows = tenon::attention::rows_of_rank(call.group);
  if (sequence >= call.sequences) {
    wait_for_previous();
    return;
  }
  // What a call is given was complete when the kernel before this one let it start, for that one
  // had waited; only slots are younger.
  const PartialCounts counts = count_partials(call, sequence);
  const int token = load_constant(call.starts + sequence);
  const int index = in_group % rows * 64 + half * 32 + thread_id() % kWave;
  const Gates gate = counts.own > 0 ? gates_of(call, token, head) : Gates{nullptr};
  const std::uint32_t low = read_gates_early(gate, column_of(index));
  const std::uint32_t high = read_gates_early(gate, column_of(index) + 8);
  wait_for_previous();
  if (thread_id() == 0) let_next_start();
  sync_wave();
  const bool in_slots = counts.all * call.kv_heads <= call.num_slots;
  int first = counts.before, partials = counts.own;
  if (partials == 0) return;  // a prompt, or padding
  if (call.streams) {
    if (!in_slots) first = sequence, partials = 1;  // joined already
  } else if (!in_slots || partials == 1) {
    return;  // decode_kernel has ended it
  }
  const JoinRow row{.call = call,
                    .first = first,
                    .partials = partials,
                    .kv_head = kv_head,
                    .rank = in_group / rows,
                    .rows = rows,
                    .index = index};
  Sums whole;
  TENON_NO_UNROLL
  for (int from = 0; from < partials; from += kAtOnce) {
    float4 o[kAtOnce];
    TENON_UNROLL
    for (int i = 0; i < kAtOnce; ++i)
      if (from + i < partials)
        o[i] = reinterpret_cast<const float4*>(call.slots + row.place(from + i))[row.index];
    const JoinFactors factors = read_factors(row, from, whole.peak);
    TENON_UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      if (from + i >= partials) continue;
      const float keep = shuffle_from(factors.keep, i), add = shuffle_from(factors.add, i);
      const float total = shuffle_from(factors.total, i);
      if (from + i == 0) {  // taken as it is
        whole.total = total;
        whole.o = o[0];
        continue;
      }
      whole.total = whole.total * keep + total * add;
      whole.o = {whole.o.x * keep + o[i].x * add, whole.o.y * keep + o[i].y * add,
                 whole.o.z * keep + o[i].z * add, whole.o.w * keep + o[i].w * add};
    }
  }
  finish_unit(call, token, head, row.index, whole, gate, low, high);
}

}  // namespace tenon::TENON_TARGET::attention
