// Two shots, for many rows: rank r owns the rows r, r + size, r + 2 · size, …. Every rank sends its
// part of a row to the owner only; the owner sums, adds the residual, normalises and quantises it
// once and sends every peer what its consumer reads:
//   fp8 wanted, 16-bit rows not: the codes and one word per scale
//   otherwise:                   the 16-bit norm; where both are wanted, ranks quantise their copy
//   spreads_residual:            the new residual as well
// Rows are dealt in stripes of `size` rows, one per owner; a block works on whole stripes, so that
// every rank has the same blocks. A slot holds, per stripe of the chunk, first one part of 2 ·
// hidden bytes from each peer for the own row, then one result from the owner of each other row.
// The rules of the exchange are comm/slots.h's.
#pragma once

#include "tenon/ops/fused_allreduce_rmsnorm_quant/parts.cuh"

namespace tenon::TENON_TARGET::fused_allreduce_rmsnorm_quant {

// A result as it travels when codes do: `hidden` codes, then one word per scale, whole vectors.
inline constexpr int kMaxImage = kMaxHidden / 16 + kMaxHidden / 32 / 4;
TENON_DEVICE int image_vectors(const QuantSpec& spec, int hidden) {
  return hidden / 16 + (spec.num_groups + 3) / 4;
}

// e4m3fnuz has one NaN and no spare code: all-ones is four times −240. It travels as a word that no
// group can hold, since codes of a group are either all numbers, or NaN and zero.
inline constexpr std::uint32_t kFnuzLowest = 0xffffffffu, kFnuzEscape = 0xffffff80u;
TENON_DEVICE Word4 replace_words(Word4 words, std::uint32_t old, std::uint32_t fresh) {
  return {words.x == old ? fresh : words.x, words.y == old ? fresh : words.y,
          words.z == old ? fresh : words.z, words.w == old ? fresh : words.w};
}

// Vector `i` of a row's image to the tensors of the call.
TENON_DEVICE void store_image(const QuantSpec& spec, int row, int hidden, int i, Word4 words) {
  if (i < hidden / 16) {
    store16(spec.codes + row * spec.codes_stride + i * 16, words);
    return;
  }
  const int group = (i - hidden / 16) * 4;
  const std::uint32_t scales[4] = {words.x, words.y, words.z, words.w};
  TENON_UNROLL
  for (int k = 0; k < 4; ++k)
    if (group + k < spec.num_groups) store_scale(spec, row, group + k, scales[k]);
}

// Quantises a row into `image`; every thread of the block may read it afterwards.
template <class T, int kMaxRun>
TENON_DEVICE void fill_image(const QuantSpec& spec, int hidden, const Run& run,
                             const Word4 (&held)[kMaxRun], Word4* image) {
  auto* const scales = reinterpret_cast<std::uint32_t*>(image + hidden / 16);
  quantize_row<T>(spec, run, held, reinterpret_cast<std::byte*>(image),
                  [&](int group, std::uint32_t word) { scales[group] = word; });
  for (int pad = spec.num_groups + thread_id(); pad < (spec.num_groups + 3) / 4 * 4;
       pad += block_threads())
    scales[pad] = 0;
  sync_block();
}

// Where a thread of an owner, or of a receiver, finds the parts of one result.
struct Results {
  std::int64_t norm, residual;  // offsets within the result; codes lie where the norm would
};
TENON_DEVICE Results results_of(const FusedArgs& args) {
  return {0, args.spread_bytes - std::int64_t{args.norm.hidden} * 2};
}

// Phase 2 for one row of mine.
template <class T, class Rules, int kMaxRun>
TENON_DEVICE void own_row(const FusedArgs& args, Call& call, int row, int entry, const Run& run,
                          Word4 (&held)[kMaxRun], Word4* image, std::uint32_t* lost_word) {
  const TeamView& team = args.team;
  const int hidden = args.norm.hidden;
  const std::int64_t part_bytes = std::int64_t{hidden} * 2;
  const auto result_at = [&](int peer) {
    return team.base[peer] +
           entry_offset(args, call, args.spread_offset, args.spread_bytes, entry, team.rank, peer);
  };
  const auto send_to_peers = [&](std::int64_t offset, Word4 words) {
    for (int step = 1; step < team.size; ++step)
      send<Rules>(result_at((team.rank + step) % team.size) + offset, words);
  };
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
                if (call.lost) *lost_word = 1;
              });
  call.lost |= *lost_word != 0;  // set before the barriers of norm_row, so all threads agree
  order_hop<Rules>();
  if (args.spreads_residual && !call.lost) {
    const std::byte* const residual = args.norm.residual + row * args.norm.residual_stride;
    for (int i = run.first; i < run.first + run.count; ++i)  // what this thread has just stored
      send_to_peers(results_of(args).residual + i * 16, load16(residual + i * 16));
  }
  if (args.spreads_fp8) {
    fill_image<T>(args.quant, hidden, run, held, image);
    for (int i = thread_id(); i < image_vectors(args.quant, hidden); i += block_threads()) {
      store_image(args.quant, row, hidden, i, image[i]);
      const bool escapes = args.quant.is_fnuz && i < hidden / 16;
      if (call.lost) continue;
      send_to_peers(i * 16, escapes ? replace_words(image[i], kFnuzLowest, kFnuzEscape) : image[i]);
    }
    return;
  }
  for_vectors<kMaxRun>(run.count, [&]<int kVectors>(int first) {
    for (int i = first; i < first + kVectors && !call.lost; ++i)
      send_to_peers((run.first + i) * 16, held[i]);
  });
  if (args.quant.codes != nullptr) quantize_to_tensors<T>(args.quant, row, 0, run, held);
}

// Phase 3 for one row of a peer.
template <class T, class Rules, int kMaxRun>
TENON_DEVICE void peer_row(const FusedArgs& args, Call& call, int row, int entry, int owner,
                           const Run& run, Word4 (&held)[kMaxRun]) {
  const TeamView& team = args.team;
  const int hidden = args.norm.hidden;
  std::byte* const result =
      team.base[team.rank] +
      entry_offset(args, call, args.spread_offset, args.spread_bytes, entry, owner, team.rank);
  const auto take_at = [&](std::int64_t offset) {
    Word4 words = load16_relaxed(result + offset);
    take<Rules>(team, call, Phase::kGather, owner, static_cast<std::uint32_t>(row), result + offset,
                words);
    return words;
  };
  if (args.spreads_residual) {
    std::byte* const residual = args.norm.residual + row * args.norm.residual_stride;
    for (int i = thread_id(); i < hidden / kVector; i += block_threads())
      store16(residual + i * 16, take_at(results_of(args).residual + i * 16));
  }
  if (args.spreads_fp8) {
    for (int i = thread_id(); i < image_vectors(args.quant, hidden); i += block_threads()) {
      const Word4 words = take_at(i * 16);
      const bool escapes = args.quant.is_fnuz && i < hidden / 16;
      store_image(args.quant, row, hidden, i,
                  escapes ? replace_words(words, kFnuzEscape, kFnuzLowest) : words);
    }
    return;
  }
  std::byte* const norm =
      args.norm.norm == nullptr ? nullptr : args.norm.norm + row * args.norm.norm_stride;
  for_vectors<kMaxRun>(run.count, [&]<int kVectors>(int first) {
    for (int i = first; i < first + kVectors; ++i) {
      held[i] = take_at((run.first + i) * 16);
      if (norm != nullptr) store16(norm + (run.first + i) * 16, held[i]);
    }
  });
  if (args.quant.codes != nullptr) quantize_to_tensors<T>(args.quant, row, 0, run, held);
}

template <class T, int kMaxRun, class Rules = Sound>
TENON_KERNEL_MAX(kRowThreads)
two_shot_kernel(FusedArgs args) {
  TENON_SHARED(Word4, image, kMaxImage);
  TENON_SHARED(std::uint32_t, lost_words, 2);
  Call call = begin_call<Rules>(args.team);
  const TeamView& team = args.team;
  const int size = team.size, num_vectors = args.norm.hidden / kVector;
  const std::int64_t part_bytes = std::int64_t{num_vectors} * 16;
  const Run run = own_run(num_vectors);
  Word4 held[kMaxRun];
  if (thread_id() == 0) lost_words[0] = lost_words[1] = 0;
  sync_block();
  int turn = 0;  // rows owned so far: threads of a block are at most one apart, hence two words

  for (int first = 0; first < args.rows; first += args.chunk_rows) {
    if (first > 0) next_generation<Rules>(call);
    const int left = args.rows - first;
    const int chunk = left < args.chunk_rows ? left : args.chunk_rows;
    const int num_stripes = (chunk + size - 1) / size;
    const auto row_of = [&](int stripe, int owner) { return first + stripe * size + owner; };

    // Phase 1: my part of every row to its owner.
    for (int stripe = block_id(); stripe < num_stripes && !call.lost; stripe += grid_blocks()) {
      for (int step = 1; step < size; ++step) {
        const int owner = (team.rank + step) % size, row = row_of(stripe, owner);
        if (row >= args.rows) continue;
        send_row<Rules>(
            team.base[owner] + entry_offset(args, call, 0, part_bytes, stripe, team.rank, owner),
            args.partial + row * args.partial_stride, num_vectors);
      }
    }
    if (first == 0) count_call<Rules>(args, call);

    // Phase 2: my rows, and their results to every peer.
    for (int stripe = block_id(); stripe < num_stripes; stripe += grid_blocks()) {
      const int row = row_of(stripe, team.rank);
      if (row < args.rows)
        own_row<T, Rules>(args, call, row, stripe, run, held, image, &lost_words[turn++ % 2]);
    }
    // Phase 3: the rows of the others.
    for (int stripe = block_id(); stripe < num_stripes; stripe += grid_blocks()) {
      for (int step = 1; step < size; ++step) {
        const int owner = (team.rank + step) % size, row = row_of(stripe, owner);
        if (row < args.rows) peer_row<T, Rules>(args, call, row, stripe, owner, run, held);
      }
    }
    // What lies beside the rows' own data: every rank for every row.
    for (int entry = block_id(); args.quant.codes != nullptr && entry < chunk;
         entry += grid_blocks()) {
      pad_scale_groups(args.quant, first + entry);
      pad_scale_rows(args.quant, first + entry);
    }
  }
}

}  // namespace tenon::TENON_TARGET::fused_allreduce_rmsnorm_quant
