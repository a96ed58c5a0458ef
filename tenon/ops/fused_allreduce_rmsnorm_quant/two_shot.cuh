// Two shots, for many rows: rank r owns the rows r, r + size, r + 2 · size, …. Every rank sends its
// part of a row to the owner only; the owner sums, adds the residual, normalises and quantises it
// once and sends every peer what its consumer reads:
//   fp8 wanted, 16-bit rows not: the codes and one word per scale
//   otherwise:                   the 16-bit norm; where both are wanted, ranks quantise their copy
//   spreads_residual:            the new residual as well
// Rows are dealt in stripes of `size` rows, one per owner. A block works on whole stripes, or,
// where there are not many more rows than blocks, on one or a few rows; so every rank has the same
// blocks. A slot holds, per stripe of the chunk, first one part from each peer for the own row,
// then one result from the owner of each other row. The rules of the exchange are
// comm/device/exchange.cuh's.
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
template <class T, int kMaxSpan>
TENON_DEVICE void fill_image(const QuantSpec& spec, int hidden, const ThreadSpan& span,
                             const Word4 (&held)[kMaxSpan], Word4* image) {
  auto* const scales = reinterpret_cast<std::uint32_t*>(image + hidden / 16);
  quantize_row<T>(spec, span, held, reinterpret_cast<std::byte*>(image),
                  [&](int group, std::uint32_t word) { scales[group] = word; });
  TENON_NO_UNROLL
  for (int pad = spec.num_groups + thread_id(); pad < (spec.num_groups + 3) / 4 * 4;
       pad += block_threads())
    scales[pad] = 0;
  sync_block();
}

// Where the residual lies in a result that has it: behind the norm, or the image.
TENON_DEVICE std::uint32_t residual_at(const FusedArgs& args) {
  return static_cast<std::uint32_t>(args.spread_units - args.part_units);
}

// `size` rows, one of each owner, on their way through a block; where its parts and its results
// begin in the mailbox, in units.
struct Stripe {
  int first_row;
  std::uint32_t parts, results;
};
TENON_DEVICE Stripe no_stripe(const FusedArgs& args) { return {args.rows, 0, 0}; }

// Stripe `index` of the call, the `entry`-th of its generation.
TENON_DEVICE Stripe stripe_at(const FusedArgs& args, const Call& call, int index, int entry) {
  return {index * args.team.size, in_mailbox(args, call, in_slot(args.entry_units, entry)),
          in_mailbox(args, call, in_slot(args.spread_entry_units, entry))};
}

// What this rank sends to peer number `peer` of a stripe that begins with `first_row`, or null.
template <int kRanks>
TENON_DEVICE const std::byte* part_for(const FusedArgs& args, int first_row, int peer) {
  const int row = first_row + rank_of_peer<kRanks>(args.team, peer);
  return row < args.rows ? args.partial + row * args.partial_stride : nullptr;
}

// My part of every row of a stripe to its owner: FIRST PARTs and LATE PARTs of rule 6. `read`: what
// a thread that looks ahead has read. kAtOnce: what goes to all peers is read before any is sent.
template <class K, bool kAtOnce>
TENON_DEVICE void scatter_stripe(const FusedArgs& args, const Call& call, const Stripe& stripe,
                                 const Word4& read) {
  using Wire = typename K::Wire;
  using Protocol = typename K::Protocol;
  constexpr int kMaxSpan = K::kMaxSpan, kRanks = K::kRanks;
  [[maybe_unused]] Word4 words_of[kRanks] = {};
  if constexpr (kAtOnce)
    for_peers<kRanks>(args.team, [&](int peer) {
      const std::byte* const from = part_for<kRanks>(args, stripe.first_row, peer);
      if (from != nullptr) words_of[peer] = load16(from + thread_id() * 16);
    });
  for_peers<kRanks>(args.team, [&](int peer) {
    const std::byte* const from = part_for<kRanks>(args, stripe.first_row, peer);
    if (from == nullptr) return;
    const auto send_vector = [&](int i, Word4 words) {
      const Parcel parcel = wrap<Wire, Protocol>(words);
      if (call.lost) return;
      post<Wire>(at_unit(args.part_to[peer], stripe.parts), args.vectors, i, parcel);
    };
    if constexpr (kLooksAhead<kMaxSpan, kRanks>) {
      send_vector(thread_id(), read);
    } else if constexpr (kAtOnce) {
      send_vector(thread_id(), words_of[peer]);
    } else {
      for (int i = thread_id(); i < args.vectors; i += block_threads())
        send_vector(i, load16(from + i * 16));
    }
  });
}

// What a thread needs for my row of a stripe. Read before the next stripe is sent: loads would wait
// behind those stores.
template <int kMaxSpan>
struct OwnRow {
  Own<kMaxSpan> own;
  PrefetchedRow<kMaxSpan> ahead;
  EarlyLook early;
};
template <class K>
TENON_DEVICE OwnRow<K::kMaxSpan> read_own_row(const FusedArgs& args, const NormSpec& norm,
                                              const Stripe& stripe, const ThreadSpan& span) {
  constexpr int kMaxSpan = K::kMaxSpan;
  const int row = stripe.first_row + args.team.rank;
  if (row >= args.rows) return {};
  return {load_own<kMaxSpan>(args, row, thread_id()),
          prefetch_row<kMaxSpan>(at_row(norm, row), span), look_early<K>(args, stripe.parts)};
}

// My row of a stripe: its norm, and the results (RESULT of rule 6) to every peer. `lost_words` are
// the block's, for odd turns and even.
template <class K>
TENON_DEVICE void own_row(const FusedArgs& args, const NormSpec& call_norm, const QuantSpec& quant,
                          Call& call, const Stripe& stripe, int rows_done, const ThreadSpan& span,
                          const OwnRow<K::kMaxSpan>& read, Word4* image,
                          std::uint32_t* lost_words) {
  using T = typename K::T;
  using Wire = typename K::Wire;
  using Protocol = typename K::Protocol;
  constexpr int kMaxSpan = K::kMaxSpan, kRanks = K::kRanks;
  Word4 held[kMaxSpan];
  const int row = stripe.first_row + args.team.rank;
  std::uint32_t* const lost_word = &lost_words[rows_done % 2];
  const auto send_to_peers = [&](std::uint32_t unit, int vector, Word4 words) {
    const Parcel parcel = wrap<Wire, Protocol>(words);
    for_peers<kRanks>(args.team, [&](int peer) {
      post<Wire>(at_unit(args.result_to[peer], stripe.results + unit), args.vectors, vector,
                 parcel);
    });
  };
  const NormSpec norm = at_row(call_norm, row);
  norm_row<T>(
      norm, [rows_done](float value) { return block_sum(value, rows_done); }, span, read.ahead,
      held,
      [&]<int kVectors>(int vector, float(&sums)[kVectors * kVector]) {
        take_sums<K, kVectors>(args, call, row, stripe.parts, vector, read.own, read.early, sums);
        if (call.lost) *lost_word = 1;
      });
  call.lost |= *lost_word != 0;  // set before the barriers of norm_row, so all threads agree
  order_hop<Protocol>();
  if (args.spreads_residual && !call.lost) {
    const std::byte* const residual = norm.residual;
    for (int i = span.first; i < span.first + span.count; ++i)  // what this thread has just stored
      send_to_peers(residual_at(args), i, load16(residual + i * 16));
  }
  if (args.spreads_fp8) {
    fill_image<T>(quant, args.norm.hidden, span, held, image);
    for (int i = thread_id(); i < image_vectors(quant, args.norm.hidden); i += block_threads()) {
      store_image(quant, row, args.norm.hidden, i, image[i]);
      const bool escapes = quant.is_fnuz && i < args.norm.hidden / 16;
      if (call.lost) continue;
      const Word4 words = escapes ? replace_words(image[i], kFnuzLowest, kFnuzEscape) : image[i];
      for_peers<kRanks>(args.team, [&](int peer) {
        send<Protocol>(
            at_unit(args.result_to[peer], stripe.results + static_cast<std::uint32_t>(i)), words);
      });
    }
    return;
  }
  for_vectors<kMaxSpan>(span.count, [&]<int kVectors>(int first) {
    for (int i = first; i < first + kVectors && !call.lost; ++i)
      send_to_peers(0, span.first + i, held[i]);
  });
  if (quant.codes != nullptr) quantize_to_tensors<T>(at_row(quant, row), 0, span, held);
}

// Where the result of `owner` begins in the mailbox, in units.
TENON_DEVICE std::uint32_t result_from(const FusedArgs& args, const Stripe& stripe, int owner) {
  return stripe.results +
         static_cast<std::uint32_t>(args.spread_offset +
                                    peer_index(owner, args.team.rank) * args.spread_units);
}

// What a thread sees of its vector of an owner's result.
template <class K>
TENON_DEVICE EarlyLook look_at_result(const FusedArgs& args, const QuantSpec& quant,
                                      const Stripe& stripe, int owner) {
  EarlyLook early;
  std::byte* const result = at_unit(args.mine, result_from(args, stripe, owner));
  const int vector = thread_id();
  if (!args.spreads_fp8) {
    early.words = look(address_of<typename K::Wire>(result, args.vectors, vector, &early.rest));
  } else if (vector < image_vectors(quant, args.norm.hidden)) {
    early.words = look(SlotAddress{result + vector * 16});
  }
  return early;
}

// The row of a peer: what its owner has sent. `early`: what look_at_result() saw of it, or nothing.
template <class K>
TENON_DEVICE void peer_row(const FusedArgs& args, const QuantSpec& quant, Call& call,
                           const Stripe& stripe, int owner, const ThreadSpan& span,
                           const EarlyLook& early) {
  using T = typename K::T;
  using Wire = typename K::Wire;
  using Protocol = typename K::Protocol;
  constexpr int kMaxSpan = K::kMaxSpan;
  const ChannelView& team = args.team;
  const int hidden = args.norm.hidden, row = stripe.first_row + owner;
  const std::uint32_t result = result_from(args, stripe, owner);
  const auto name = static_cast<std::uint32_t>(row);
  const auto take_at = [&](std::uint32_t unit, int vector, const EarlyLook& seen) {
    return take_vector<Wire, Protocol, kMaxSpan>(team, call, Phase::kGather, owner, name,
                                                 at_unit(args.mine, result + unit), args.vectors,
                                                 vector, seen);
  };
  if (args.spreads_residual) {
    std::byte* const residual = args.norm.residual + row * args.norm.residual_stride;
    for (int i = thread_id(); i < args.vectors; i += block_threads())
      store16(residual + i * 16, take_at(residual_at(args), i, {}));
  }
  if (args.spreads_fp8) {
    for (int i = thread_id(); i < image_vectors(quant, hidden); i += block_threads()) {
      const SlotAddress place{at_unit(args.mine, result + static_cast<std::uint32_t>(i))};
      const EarlyLook seen = i == thread_id() ? early : EarlyLook{};
      const Word4 words =
          take<Protocol>(team, call, Phase::kGather, owner, name, place, seen.words, false);
      const bool escapes = quant.is_fnuz && i < hidden / 16;
      store_image(quant, row, hidden, i,
                  escapes ? replace_words(words, kFnuzEscape, kFnuzLowest) : words);
    }
    return;
  }
  Word4 held[kMaxSpan];
  std::byte* const norm =
      args.norm.norm == nullptr ? nullptr : args.norm.norm + row * args.norm.norm_stride;
  for_vectors<kMaxSpan>(span.count, [&]<int kVectors>(int first) {
    for (int i = first; i < first + kVectors; ++i) {
      held[i] = take_at(0, span.first + i, kMaxSpan == 1 ? early : EarlyLook{});
      if (norm != nullptr) store16(norm + (span.first + i) * 16, held[i]);
    }
  });
  if (quant.codes != nullptr) quantize_to_tensors<T>(at_row(quant, row), 0, span, held);
}

// A stripe passes through three steps of its block, so that three stripes are under way at a time:
//
//   step n      sends my parts of stripe n      (scatter_stripe)
//   step n + 1  takes what peers sent for my row of stripe n, norms it, sends the results (own_row)
//   step n + 2  takes the results of the peers' rows of stripe n (peer_row)
//
//   time ->        step 0      step 1      step 2      step 3      step 4
//   `sent`         stripe 0    stripe 1    stripe 2    -           -
//   `mine`         -           stripe 0    stripe 1    stripe 2    -
//   `theirs`       -           -           stripe 0    stripe 1    stripe 2
//
// In between come the reads for the next step, before the stores to peers, which they would wait
// behind. The first and the last step use the links one way only. A generation may begin between
// any two steps: rule 6 in comm/device/exchange.cuh.
template <class K, bool kAtOnce>
TENON_DEVICE void run_stripes(const FusedArgs& args, Word4* image, std::uint32_t* lost_words) {
  using Protocol = typename K::Protocol;
  constexpr int kMaxSpan = K::kMaxSpan, kRanks = K::kRanks;
  const NormSpec norm = choose_path<K::kFastPath>(args.norm);
  const QuantSpec quant = choose_path<K::kFastPath>(args.quant);
  enter<Protocol>();
  Call call = begin_call<Protocol>(args.team);
  const auto num_generations = static_cast<std::uint32_t>(args.num_generations);
  if (block_id() >= args.workers)
    return finish_without_data<Protocol>(args.team, call, args.note, num_generations);
  send_notes_first(args.team, call, args.note);
  const int size = args.team.size, rank = args.team.rank, stride = args.workers;
  const int num_stripes = (args.rows + size - 1) / size;
  const ThreadSpan span = own_span<kMaxSpan>(args.vectors);
  if (thread_id() == 0) lost_words[0] = lost_words[1] = 0;  // count_call() has a barrier

  Word4 read{};  // of the next stripe that is sent
  const auto read_next = [&](int stripe) {
    if constexpr (kLooksAhead<kMaxSpan, kRanks>)
      if (const std::byte* const from = part_for<kRanks>(args, stripe * size, 0); from != nullptr)
        read = load16(from + thread_id() * 16);
  };
  read_next(block_id());
  Stripe sent = no_stripe(args), mine = sent;
  int rows_done =
      0;  // rows owned so far: threads of a block are at most one apart, hence two words
  int entry = block_id(), generations_left = args.num_generations - 1;
  for (int next = block_id(); next < num_stripes + 2 * stride; next += stride, entry += stride) {
    if (entry >= args.chunk && generations_left > 0) {
      next_generation<Protocol>(call);
      entry -= args.chunk;
      --generations_left;
    }
    const Stripe theirs = mine;
    mine = sent;
    sent = next < num_stripes ? stripe_at(args, call, next, entry) : no_stripe(args);
    const auto own = read_own_row<K>(args, norm, mine, span);
    [[maybe_unused]] EarlyLook early[kRanks];
    if constexpr (kAtOnce)
      for_peers<kRanks>(args.team, [&](int peer) {
        const int owner = rank_of_peer<kRanks>(args.team, peer);
        if (theirs.first_row + owner < args.rows && !call.lost)
          early[peer] = look_at_result<K>(args, quant, theirs, owner);
      });
    scatter_stripe<K, kAtOnce>(args, call, sent, read);
    if (next < stride) count_call<Protocol>(args.team, call, num_generations);
    read_next(next + stride);
    if (mine.first_row + rank < args.rows)
      own_row<K>(args, norm, quant, call, mine, rows_done++, span, own, image, lost_words);
    if constexpr (kAtOnce) {
      for_peers<kRanks>(args.team, [&](int peer) {
        const int owner = rank_of_peer<kRanks>(args.team, peer);
        if (theirs.first_row + owner < args.rows)
          peer_row<K>(args, quant, call, theirs, owner, span, early[peer]);
      });
    } else {
      for (int peer = 0; peer < size - 1; ++peer) {
        const int owner = rank_of_peer<kRanks>(args.team, peer);
        if (theirs.first_row + owner < args.rows)
          peer_row<K>(args, quant, call, theirs, owner, span, {});
      }
    }
    if (quant.codes == nullptr || quant.layout == ScaleLayout::kRow) continue;
    for (int row = theirs.first_row; row < theirs.first_row + size; ++row)  // every rank all rows
      if (row < args.rows) pad_scales(quant, row);
  }
}

template <class K>
TENON_KERNEL_RESIDENT(kRowThreads, 1)
two_shot_kernel(TENON_ARGS(FusedArgs) args) {
  TENON_SHARED(Word4, image, kMaxImage);
  TENON_SHARED(std::uint32_t, lost_words, 2);
  run_stripes<K, false>(args, image, lost_words);
}

// Many stripes for each block, of three or four ranks: one block on a multiprocessor, whose threads
// have the registers of two. What a step reads and looks at for its peers is under way at once.
inline constexpr int kLongThreads = kRowThreads < 640 ? kRowThreads : 640;
template <class K>
inline constexpr bool kHasLong = K::kMaxSpan == 1 && K::kRanks > 2 && K::kRanks <= 4;
template <class K>
TENON_KERNEL_RESIDENT(kLongThreads, 1)
two_shot_long_kernel(TENON_ARGS(FusedArgs) args) {
  TENON_SHARED(Word4, image, kMaxImage);
  TENON_SHARED(std::uint32_t, lost_words, 2);
  run_stripes<K, true>(args, image, lost_words);
}

// My part of a row of `stripe` to its owner: a FIRST PART.
template <class K>
TENON_DEVICE void send_part_to_owner(const FusedArgs& args, const Call& call, int row, int owner,
                                     const Stripe& stripe, const Own<K::kMaxSpan>& part) {
  send_part_to<K>(args, call, row, stripe.parts, part, thread_id(),
                  [&](int peer) { return rank_of_peer<K::kRanks>(args.team, peer) == owner; });
}

// No more rows than blocks, one generation: each block has one row. On the row's owner it takes the
// parts and sends the results; elsewhere it sends a part to the owner and takes the result. So a
// row takes as many multiprocessors as one shot gives it, with the words of two. FIRST PARTs and
// RESULTs of rule 6, in the places that stripes have for them.
template <class K>
TENON_KERNEL_RESIDENT(kRowThreads, 1)
two_shot_row_kernel(TENON_ARGS(FusedArgs) args) {
  using Protocol = typename K::Protocol;
  constexpr int kMaxSpan = K::kMaxSpan;
  TENON_SHARED(Word4, image, kMaxImage);
  TENON_SHARED(std::uint32_t, lost_words, 2);
  const NormSpec norm = choose_path<K::kFastPath>(args.norm);
  const QuantSpec quant = choose_path<K::kFastPath>(args.quant);
  const bool has_row = block_id() < args.rows;
  const int row = has_row ? block_id() : 0;
  const int size = args.team.size, stripe_index = row / size, owner = row - stripe_index * size;
  const bool is_mine = owner == args.team.rank;
  const ThreadSpan span = own_span<kMaxSpan>(args.vectors);
  if (thread_id() % kWave == 0) {
    if (span.count > 0) {  // others have no vector: span.first lies behind the row
      prefetch(args.partial + row * args.partial_stride + span.first * 16);
      prefetch(weights_at(norm, span.first));
      if (is_mine) prefetch(at_row(norm, row).residual + span.first * 16);
    }
    prefetch(counters(args.team, block_id()));
  }
  enter<Protocol>();
  const auto own = load_own<kMaxSpan>(args, row, thread_id());
  Call call = begin_call<Protocol>(args.team);
  if (!has_row) return finish_without_data<Protocol>(args.team, call, args.note, 1);
  send_notes_first(args.team, call, args.note);
  const Stripe stripe = stripe_at(args, call, stripe_index, stripe_index);
  if (!is_mine) send_part_to_owner<K>(args, call, row, owner, stripe, own);
  OwnRow<kMaxSpan> read{};
  if (is_mine) read = {own, prefetch_row<kMaxSpan>(at_row(norm, row), span), {}};
  if (thread_id() == 0) lost_words[0] = 0;  // count_call() has a barrier
  count_call<Protocol>(args.team, call, 1);
  if (is_mine) {
    own_row<K>(args, norm, quant, call, stripe, 0, span, read, image, lost_words);
  } else {
    peer_row<K>(args, quant, call, stripe, owner, span, {});
  }
  if (quant.codes != nullptr && quant.layout != ScaleLayout::kRow) pad_scales(quant, row);
}

// Some more rows than blocks, one generation, five ranks or more: each block has a few rows that
// lie side by side, fewer than a stripe has. Calls of fewer stripes than blocks would leave most
// multiprocessors idle: 512 rows of eight ranks are 64 stripes. Words lie as in
// two_shot_row_kernel, of which this is the longer form; a block owns one of its rows at most.
template <class K>
inline constexpr bool kHasRows = K::kRanks > 4;
template <class K>
TENON_KERNEL_RESIDENT(kRowThreads, 1)
two_shot_rows_kernel(TENON_ARGS(FusedArgs) args) {
  using Protocol = typename K::Protocol;
  constexpr int kMaxSpan = K::kMaxSpan;
  TENON_SHARED(Word4, image, kMaxImage);
  TENON_SHARED(std::uint32_t, lost_words, 2);
  const NormSpec norm = choose_path<K::kFastPath>(args.norm);
  const QuantSpec quant = choose_path<K::kFastPath>(args.quant);
  enter<Protocol>();
  Call call = begin_call<Protocol>(args.team);
  const int size = args.team.size, rank = args.team.rank;
  const int first = block_id() * args.rows_each;
  if (first >= args.rows) return finish_without_data<Protocol>(args.team, call, args.note, 1);
  send_notes_first(args.team, call, args.note);
  const int end = first + args.rows_each < args.rows ? first + args.rows_each : args.rows;
  const ThreadSpan span = own_span<kMaxSpan>(args.vectors);
  const auto stripe_of = [&](int row) { return stripe_at(args, call, row / size, row / size); };
  const int own_place = rank - first % size,
            own_first = own_place < 0 ? own_place + size : own_place;
  const int mine = first + own_first < end ? first + own_first : -1;
  OwnRow<kMaxSpan> read{};
  if (mine >= 0)
    read = {load_own<kMaxSpan>(args, mine, thread_id()),
            prefetch_row<kMaxSpan>(at_row(norm, mine), span),
            {}};
  Own<kMaxSpan> next = load_own<kMaxSpan>(args, first, thread_id());
  TENON_NO_UNROLL
  for (int row = first; row < end; ++row) {
    const Own<kMaxSpan> part = next;  // read before what lies in front of it is sent
    if (row + 1 < end) next = load_own<kMaxSpan>(args, row + 1, thread_id());
    if (row == mine) continue;
    send_part_to_owner<K>(args, call, row, row % size, stripe_of(row), part);
  }
  if (thread_id() == 0) lost_words[0] = 0;  // count_call() has a barrier
  count_call<Protocol>(args.team, call, 1);
  if (mine >= 0)
    own_row<K>(args, norm, quant, call, stripe_of(mine), 0, span, read, image, lost_words);
  TENON_NO_UNROLL
  for (int row = first; row < end; ++row) {
    if (row != mine) peer_row<K>(args, quant, call, stripe_of(row), row % size, span, {});
    if (quant.codes != nullptr && quant.layout != ScaleLayout::kRow) pad_scales(quant, row);
  }
}

}  // namespace tenon::TENON_TARGET::fused_allreduce_rmsnorm_quant
