// One shot, for few rows: every rank sends its rows to every peer and does all rows itself. One
// trip. A slot holds, per row of the chunk, one part from each peer. The rules of the exchange are
// comm/device/exchange.cuh's.
#pragma once

#include "tenon/ops/fused_allreduce_rmsnorm_quant/parts.cuh"

namespace tenon::TENON_TARGET::fused_allreduce_rmsnorm_quant {

// One row from its parts. `norm` and `quant` are at that row; the sum is norm_row()'s. `pads`:
// whether this block fills what lies beside the row's scales.
template <class K, class SumOfRow>
TENON_DEVICE void finish_row(const FusedArgs& args, const NormSpec& norm, const QuantSpec& quant,
                             Call& call, int row, SumOfRow sum_of_row, std::uint32_t entry,
                             const ThreadSpan& span, const Own<K::kMaxSpan>& own,
                             const PrefetchedRow<K::kMaxSpan>& ahead, bool pads) {
  using T = typename K::T;
  Word4 held[K::kMaxSpan];
  norm_row<T>(norm, sum_of_row, span, ahead, held,
              [&]<int kVectors>(int vector, float(&sums)[kVectors * kVector]) {
                take_sums<K, kVectors>(args, call, row, entry, vector, own, EarlyLook{}, sums);
              });
  if (quant.codes == nullptr) return;
  quantize_to_tensors<T>(quant, 0, span, held);
  if (pads && quant.layout != ScaleLayout::kRow) pad_scales(args.quant, row);
}

// What a row's way needs of the arguments, fetched while the kernel before is still at work.
TENON_DEVICE void hold_all(NormSpec& norm, QuantSpec& quant) {
  hold(norm.weight);
  hold(norm.residual);
  hold(norm.norm);
  hold(norm.hidden);
  hold(norm.eps);
  hold(norm.offset);
  hold(quant.codes);
  hold(quant.scales);
}

// No more rows than blocks, one generation: nothing but the way of one row. `span`: what this
// thread has of it. meet() is called on a row's way, while its parts are.
template <class K, class Meet, class SumOfRow>
TENON_DEVICE void one_shot_row(const FusedArgs& args, int row, const ThreadSpan& span, Meet meet,
                               SumOfRow sum_of_row, bool pads) {
  using Protocol = typename K::Protocol;
  constexpr int kMaxSpan = K::kMaxSpan;
  const bool has_row = row < args.rows;
  NormSpec norm = at_row(choose_path<K::kFastPath>(args.norm), has_row ? row : 0);
  QuantSpec quant = at_row(choose_path<K::kFastPath>(args.quant), has_row ? row : 0);
  std::uint32_t place = in_slot(args.entry_units, row);
  hold_all(norm, quant);
  hold(place);
  if (thread_id() % kWave == 0) {
    if (span.count > 0) {  // others have no vector: span.first lies behind the row
      prefetch(args.partial + (has_row ? row : 0) * args.partial_stride + span.first * 16);
      prefetch(norm.residual + span.first * 16);
      prefetch(weights_at(norm, span.first));
      prefetch(at_unit(args.mine, place + static_cast<std::uint32_t>(span.first)));
    }
    prefetch(counters(args.team, block_id()));
  }
  enter<Protocol>();
  const auto own = load_own<kMaxSpan>(args, has_row ? row : 0, span.first);
  Call call = begin_call<Protocol>(args.team);
  if (!has_row) return finish_without_data<Protocol>(args.team, call, args.note, 1);
  send_notes_first(args.team, call, args.note);
  const std::uint32_t entry = in_mailbox(args, call, place);
  send_part<K>(args, call, row, entry, own, span.first);
  const auto ahead = prefetch_row<kMaxSpan>(norm, span);
  count_call<Protocol>(args.team, call, 1);
  meet();
  finish_row<K>(args, norm, quant, call, row, sum_of_row, entry, span, own, ahead, pads);
}

// A block for each row.
template <class K>
TENON_KERNEL_RESIDENT(kRowThreads, 1)
one_shot_row_kernel(TENON_ARGS(FusedArgs) args) {
  one_shot_row<K>(
      args, block_id(), own_span<K::kMaxSpan>(args.norm.hidden / kVector), [] {},
      [](float value) { return block_sum(value, 0); }, true);
}

// Any number of rows. Each block sends a row ahead of the one it works on, so that the link is
// never idle.
template <class K>
TENON_KERNEL_RESIDENT(kRowThreads, 1)
one_shot_kernel(TENON_ARGS(FusedArgs) args) {
  using Protocol = typename K::Protocol;
  constexpr int kMaxSpan = K::kMaxSpan;
  const NormSpec call_norm = choose_path<K::kFastPath>(args.norm);
  const QuantSpec call_quant = choose_path<K::kFastPath>(args.quant);
  enter<Protocol>();
  Call call = begin_call<Protocol>(args.team);
  if (block_id() >= args.workers)
    return finish_without_data<Protocol>(args.team, call, args.note,
                                         static_cast<std::uint32_t>(args.num_generations));
  send_notes_first(args.team, call, args.note);
  const ThreadSpan span = own_span<kMaxSpan>(args.norm.hidden / kVector);
  const int stride = args.workers;
  int rows_done = 0;
  for (int first = 0; first < args.rows; first += args.chunk) {
    if (first > 0) next_generation<Protocol>(call);
    const int left = args.rows - first;
    const int chunk = left < args.chunk ? left : args.chunk;
    Own<kMaxSpan> sent{};
    for (int next = block_id(); next < chunk + stride; next += stride) {
      const Own<kMaxSpan> own = sent;
      if (next < chunk) sent = load_own<kMaxSpan>(args, first + next, thread_id());
      const int index = next - stride, row = first + index;
      PrefetchedRow<kMaxSpan> ahead{};
      const NormSpec norm = at_row(call_norm, index >= 0 ? row : 0);
      if (index >= 0) ahead = prefetch_row<kMaxSpan>(norm, span);
      const auto entry = [&](int of) {
        return in_mailbox(args, call, in_slot(args.entry_units, of));
      };
      if (next < chunk) send_part<K>(args, call, first + next, entry(next), sent, thread_id());
      if (index >= 0) {
        finish_row<K>(
            args, norm, at_row(call_quant, row), call, row,
            [turn = rows_done++](float value) { return block_sum(value, turn); }, entry(index),
            span, own, ahead, true);
      } else if (first == 0) {
        count_call<Protocol>(args.team, call, static_cast<std::uint32_t>(args.num_generations));
      }
    }
  }
}

}  // namespace tenon::TENON_TARGET::fused_allreduce_rmsnorm_quant
