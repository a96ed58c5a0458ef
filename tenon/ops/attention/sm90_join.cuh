// Partials of sequences that decode_kernel has left in slots: joined from left to right, divided,
// gated and written. A warp has half of a row.
#pragma once

#include "tenon/ops/attention/sm90_decode.cuh"

namespace tenon::TENON_TARGET::attention {

inline constexpr int kJoinThreads = 128, kJoinWarps = kJoinThreads / 32;

TENON_KERNEL_MAX(kJoinThreads) join_kernel(TENON_ARGS(Sm90Call) call) {
  constexpr int kAtOnce = 16;  // partials on their way
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
  const int kv_head = head / call.group, row = head % call.group;
  const int rows = tenon::attention::rows_of_rank(call.group);
  const int index = row % rows * 64 + half * 32 + thread_id() % kWave;
  const Gates gate = gates_of(call, token, head);
  const std::uint32_t low = read_gates(gate, column_of(index));
  const std::uint32_t high = read_gates(gate, column_of(index) + 8);
  Sums whole;
  TENON_NO_UNROLL
  for (int from = 0; from < partials; from += kAtOnce) {
    Sums next[kAtOnce];
    TENON_UNROLL
    for (int i = 0; i < kAtOnce; ++i)
      if (from + i < partials)
        next[i] =
            load_slot(slot_of(call, (first + from + i) * call.kv_heads + kv_head, row / rows, rows),
                      rows, index);
    TENON_UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      if (from + i == 0) {
        whole = next[0];
      } else if (from + i < partials) {
        join(whole, next[i]);
      }
    }
  }
  finish_unit(call, token, head, index, whole, gate, low, high);
}

}  // namespace tenon::TENON_TARGET::attention
