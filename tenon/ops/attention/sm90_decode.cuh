// Attention of sequences with one token in the step. A cluster of four blocks works on a partial,
// each on one tile of 64 positions. All need the maxima of the tiles before theirs, and each ends
// with some of the q heads and all tiles: they send them to each other. Partials of a sequence that
// has several go to a slot of the workspace each, and join_kernel joins them from left to right.
// Where slots are too few a cluster walks over all partials of its sequence instead. No bit depends
// on that. Of a block four warps compute, and one fetches tiles.
#pragma once

#include "tenon/ops/attention/sm90.cuh"
#include "tenon/ops/attention/sm90_heads.cuh"

namespace tenon::TENON_TARGET::attention {

inline constexpr int kComputeWarps = 4, kComputeThreads = 128;
inline constexpr int kDecodeThreads = kComputeThreads + 32;
static_assert(kComputeThreads == kNormThreads);
inline constexpr int kQueryBytes = 512 + 16,
                     kWeightBytes = 128 + 16;  // of a row: no bank conflicts

// What a step says of its sequences with one token.
struct Sequences {
  int firsts[kMostSequences + 1];  // partials of those before each
  int lengths[kMostSequences], tokens[kMostSequences];
  int positions[kMostSequences];            // by tokens; for steps with heads, which decode alone
  std::uint16_t lasts[kMostSequences + 1];  // how many with one token are before each
  TENON_HD int wholes(int sequence) const { return firsts[sequence] - lasts[sequence]; }
};

template <int kRowsEach>
struct DecodeShared {
  static constexpr int kRows = kClusterRanks * kRowsEach;
  alignas(1024) std::byte k[kTileBytes], v[kTileBytes];
  alignas(16) std::byte queries[kRows * kQueryBytes], weights[kRows * kWeightBytes];
  // [tile][row of this block][column / 64][column / 16 % 4][column / 2 % 4]: columns c, c + 1, c +
  // 8 and c + 9 of a tile's weighted values.
  float4 inbox[kClusterRanks][kRowsEach * 64];
  float peaks[2][kClusterRanks][16], totals[kClusterRanks][16];  // of each tile, by rows
  float warp_peaks[kComputeWarps][16], warp_totals[kComputeWarps][16];
  Mbarrier k_full, v_full, k_empty, v_empty, peaks_full[2], inbox_full;
  HeadNorms norms;
  Sequences sequences;
};

// A partial of one sequence and kv head.
struct Part {
  int sequence = -1;  // −1: none
  int kv_head = 0, partial = 0, partials = 0, context = 0, token = 0, position = 0;
  TENON_HD int visible(int tile) const {
    const int left = context - partial * kPartial - tile * kTile;
    return left < 0 ? 0 : left < kTile ? left : kTile;
  }
  TENON_HD int tiles() const {
    const int left = context - partial * kPartial;
    return left <= 0 ? 0 : left >= kPartial ? kClusterRanks : (left + kTile - 1) / kTile;
  }
  // Whether the step's own token stands in this tile, as its last visible position.
  TENON_HD bool is_newest(int tile) const {
    return context > 0 && (context - 1) / kTile == partial * (kPartial / kTile) + tile;
  }
};

// Which parts a cluster (a block of stream_kernel) works on, in order: workers take them in turns.
// First come all partials but the last of each sequence, which is short: so all have the same work.
struct Walk {
  const Sm90Call& call;
  const Sequences& sequences;
  int workers;
  bool in_slots;  // every partial has a slot; else a worker takes all of a sequence
  int at;         // number of the part, or of the sequence and kv head
};

// One warp: the sequences with one token.
TENON_DEVICE void read_sequences(const Sm90Call& call, Sequences& to) {
  constexpr int kOne = 1 << 25;  // a sequence; below it partials of one round are counted
  const int lane = thread_id() % kWave;
  int partials = 0, singles = 0;
  for (int base = 0; base < call.sequences; base += kWave) {
    const int s = base + lane;
    int count = 0;
    if (s < call.sequences) {
      const int token = load_constant(call.starts + s), end = load_constant(call.starts + s + 1);
      const int context = load_constant(call.lengths + s);
      if (call.heads.k != nullptr && s < call.tokens)
        to.positions[s] = load_constant(call.heads.positions + s);
      if (end - token == 1) count = kOne + partials_of(context);
      to.lengths[s] = context;
      to.tokens[s] = token;
    }
    int sum = count;
    TENON_UNROLL
    for (int step = 1; step < kWave; step *= 2) {
      const int other = shuffle_from(sum, lane >= step ? lane - step : lane);
      if (lane >= step) sum += other;
    }
    const int before = sum - count, all = shuffle_from(sum, kWave - 1);
    if (s < call.sequences) {
      to.firsts[s] = partials + before % kOne;
      to.lasts[s] = static_cast<std::uint16_t>(singles + before / kOne);
    }
    partials += all % kOne;
    singles += all / kOne;
  }
  if (lane == 0) {
    to.firsts[call.sequences] = partials;
    to.lasts[call.sequences] = static_cast<std::uint16_t>(singles);
  }
}

// With heads nobody but this call writes what its tiles are read from: of the newest token, which
// the kernel puts into the tile itself. All else was complete when the kernel before it let it
// start, for that one had waited. So tiles are fetched before the wait. Without heads rope may have
// written just before.
TENON_DEVICE void wait_without_heads(const Sm90Call& call) {
  if (call.heads.k == nullptr) wait_for_previous();
}
// The warps that compute, before they read rows.
TENON_DEVICE void wait_for_rows() {
  wait_for_previous();
  if (thread_id() == 0) let_next_start();
  sync_wave();
}

TENON_DEVICE Part part_of(const Walk& walk, int sequence, int kv_head, int partial) {
  const Sequences& of = walk.sequences;
  const int token = of.tokens[sequence];
  return {.sequence = sequence,
          .kv_head = kv_head,
          .partial = partial,
          .partials = of.firsts[sequence + 1] - of.firsts[sequence],
          .context = of.lengths[sequence],
          .token = token,
          .position = token < kMostSequences ? of.positions[token] : -1};
}
// The last sequence that `before` counts no more than `index` before: it counts none before the
// first. A warp together, which looks at 32 sequences at once.
template <class Before>
TENON_DEVICE int find_sequence(int sequences, int index, const Before& before) {
  const int lane = thread_id() % kWave, stride = ceil_div(sequences, kWave);
  const auto last_of = [&](int each, bool asks) {
    const bool fits = asks && each < sequences && before(each) <= index;
    return static_cast<int>(max_lane(fits ? static_cast<std::uint32_t>(each) : 0u));
  };
  const int low = last_of(lane * stride, true);
  return stride == 1 ? low : last_of(low + lane, lane < stride);
}
// The part at walk.at, or the first one behind it that this worker has. A warp together.
TENON_DEVICE Part find_part(Walk& walk) {
  const int kv_heads = walk.call.kv_heads, sequences = walk.call.sequences;
  const Sequences& of = walk.sequences;
  if (walk.in_slots) {
    const int index = walk.at / kv_heads, kv_head = walk.at % kv_heads;
    const int last = index - of.wholes(sequences);
    if (last >= of.lasts[sequences]) return {};
    if (last >= 0) {
      const int s = find_sequence(sequences, last, [&](int each) { return of.lasts[each]; });
      return part_of(walk, s, kv_head, of.firsts[s + 1] - of.firsts[s] - 1);
    }
    const int s = find_sequence(sequences, index, [&](int each) { return of.wholes(each); });
    return part_of(walk, s, kv_head, index - of.wholes(s));
  }
  for (; walk.at < sequences * kv_heads; walk.at += walk.workers) {
    const int sequence = walk.at / kv_heads;
    if (of.firsts[sequence + 1] > of.firsts[sequence])
      return part_of(walk, sequence, walk.at % kv_heads, 0);
  }
  return {};
}
TENON_DEVICE Part part_after(Walk& walk, const Part& part) {
  if (!walk.in_slots && part.partial + 1 < part.partials) {
    Part next = part;
    ++next.partial;
    return next;
  }
  walk.at += walk.workers;
  return find_part(walk);
}
// The slot of a part: of the partial, or, without a slot for each, of the sequence.
TENON_DEVICE int slot_number(const Walk& walk, const Part& part) {
  const int number =
      walk.in_slots ? walk.sequences.firsts[part.sequence] + part.partial : part.sequence;
  return number * walk.call.kv_heads + part.kv_head;
}

// One thread: a tile of 64 positions that begins at a row of the cache.
TENON_DEVICE void fetch_tile(const Part& part, const TensorMap* map, int row, std::byte* to,
                             Mbarrier* full) {
  const std::uint64_t policy = policy_evict_first();
  barrier_arrive_expect(full, kTileBytes);
  TENON_UNROLL
  for (int slab = 0; slab < 4; ++slab)
    copy_tile(to + slab * kSlabBytes, map, part.kv_head * kHeadDim * 2 + slab * 128, row, full,
              policy);
}

// The warp that fetches tiles.
template <int kRowsEach>
TENON_DEVICE void fetch_parts(Walk walk, int rank, DecodeShared<kRowsEach>& shared) {
  const Sm90Call& call = walk.call;
  const bool issues = thread_id() % kWave == 0;
  Part part = find_part(walk);
  std::uint32_t uses = 0;
  TENON_NO_UNROLL
  while (part.sequence >= 0) {
    if (part.visible(rank) > 0) {
      const int row = cache_row(call, part.sequence, part.partial * kPartial + rank * kTile);
      if (issues) {
        if (uses > 0) barrier_wait(&shared.k_empty, (uses - 1) % 2);
        fetch_tile(part, &call.k, row, shared.k, &shared.k_full);
        if (uses > 0) barrier_wait(&shared.v_empty, (uses - 1) % 2);
        fetch_tile(part, &call.v, row, shared.v, &shared.v_full);
      }
      ++uses;
    }
    sync_wave();
    part = part_after(walk, part);
  }
}

// Operands A of two steps of 16, all rows: 64 bytes of each, `stride` bytes apart from `at` on.
// Eight rows are taken for sixteen; what comes of the second eight is not used.
template <int kRowsEach>
TENON_DEVICE void load_steps(std::uint32_t (&a)[2][4], std::uint32_t at, int stride) {
  const int matrix = thread_id() % kWave / 8, in = thread_id() % 8;
  if constexpr (kRowsEach <= 2) {
    std::uint32_t word[4];
    load_matrices(word, at + static_cast<std::uint32_t>(in * stride + matrix * 16));
    TENON_UNROLL
    for (int i = 0; i < 8; ++i) a[i / 4][i % 4] = word[i / 2];
  } else {
    TENON_UNROLL
    for (int i = 0; i < 2; ++i)
      load_matrices(a[i], at + static_cast<std::uint32_t>((in + matrix % 2 * 8) * stride +
                                                          (2 * i + matrix / 2) * 16));
  }
}

// Scores of 16 positions of the tile for all rows, those of the warp. score[j][2 h + c]: row g + 8
// h, position 16 · warp + 8 j + 2 p + c. Components 0 … 127 and 128 … 255 have a chain each.
template <int kRowsEach>
TENON_DEVICE void score_tile(float scale, const std::byte* queries, const std::byte* tile,
                             int visible, float (&score)[2][4]) {
  const int lane = thread_id() % kWave, matrix = lane / 8, in = lane % 8;
  const int warp = thread_id() / kWave;
  const std::uint32_t q = shared_address(queries);
  const std::uint32_t k = shared_address(tile);
  const int key = 16 * warp + matrix / 2 * 8 + in;
  float sum[2][2][4] = {};
  TENON_UNROLL
  for (int pair = 0; pair < 4; ++pair) {
    TENON_UNROLL
    for (int part = 0; part < 2; ++part) {
      const int slab = 2 * part + pair / 2;
      std::uint32_t a[2][4];
      load_steps<kRowsEach>(a, q + static_cast<std::uint32_t>(slab * 128 + pair % 2 * 64),
                            kQueryBytes);
      TENON_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int chunk = pair % 2 * 4 + 2 * i;
        std::uint32_t b[4];
        load_matrices(b, k + static_cast<std::uint32_t>(slab * kSlabBytes +
                                                        slab_place(key, chunk + matrix % 2)));
        add_product_16x8(sum[part][0], a[i], b[0], b[1]);
        add_product_16x8(sum[part][1], a[i], b[2], b[3]);
      }
    }
  }
  TENON_UNROLL
  for (int i = 0; i < 8; ++i) {
    const int position = 16 * warp + i / 4 * 8 + lane % 4 * 2 + i % 2;
    const float found = (sum[0][i / 4][i % 4] + sum[1][i / 4][i % 4]) * scale;
    score[i / 4][i % 4] = position < visible ? found : -kInfinity;
  }
}

TENON_DEVICE float quad_max(float value) {
  value = max_f(value, shuffle_xor(value, 1));
  return max_f(value, shuffle_xor(value, 2));
}
TENON_DEVICE float quad_sum(float value) {
  value = value + shuffle_xor(value, 1);
  return value + shuffle_xor(value, 2);
}
// A maximum of nothing would make the difference of two infinities.
TENON_DEVICE float base_of(float peak) { return peak == -kInfinity ? 0.0f : peak; }

// Four values by rows from lanes 0 … 15 of the first warp to all blocks: lane 4 d + i sends rows
// 4 i … to block d.
TENON_DEVICE void send_rows(const float (&values)[4], float* to, Mbarrier* full) {
  const int lane = thread_id();
  send_cluster(to + lane % 4 * 4, full, static_cast<std::uint32_t>(lane / 4), values[0], values[1],
               values[2], values[3]);
}

// Weights of rows g + 8 h from scores, to shared memory; their sums by warps.
template <class Shared>
TENON_DEVICE void weigh_row(Shared& shared, int h, float base, const float (&score)[2][4]) {
  const int lane = thread_id() % kWave, warp = thread_id() / kWave, g = lane / 4, p = lane % 4;
  float sum = 0.0f;
  TENON_UNROLL
  for (int j = 0; j < 2; ++j) {
    const float low = fast_exp2(score[j][2 * h] - base);
    const float high = fast_exp2(score[j][2 * h + 1] - base);
    sum = sum + (low + high);
    *reinterpret_cast<std::uint32_t*>(shared.weights + (g + 8 * h) * kWeightBytes + warp * 32 +
                                      j * 16 + p * 4) = convert_bf16x2(low, high);
  }
  sum = quad_sum(sum);
  if (p == 0) shared.warp_totals[warp][g + 8 * h] = sum;
}
template <int kRowsEach>
TENON_DEVICE void weigh_tile(DecodeShared<kRowsEach>& shared, const float (&peaks)[4][16], int rank,
                             const float (&score)[2][4]) {
  TENON_UNROLL
  for (int h = 0; h < kRowsEach / 2; ++h) {
    const int row = thread_id() % kWave / 4 + 8 * h;
    float peak = peaks[0][row];
    for (int tile = 1; tile <= rank; ++tile) peak = max_f(peak, peaks[tile][row]);
    weigh_row(shared, h, base_of(peak), score);
  }
}
// Maxima of the warp's 16 positions by rows, to shared memory.
template <class Shared>
TENON_DEVICE void store_peaks(Shared& shared, const float (&score)[2][4]) {
  const int lane = thread_id() % kWave, warp = thread_id() / kWave;
  TENON_UNROLL
  for (int h = 0; h < 2; ++h) {
    const float most = quad_max(max_f(max_f(score[0][2 * h], score[0][2 * h + 1]),
                                      max_f(score[1][2 * h], score[1][2 * h + 1])));
    if (lane % 4 == 0) shared.warp_peaks[warp][lane / 4 + 8 * h] = most;
  }
}
// The maximum and the sum of weights of the tile in row `row`.
template <class Shared>
TENON_DEVICE float tile_peak(const Shared& shared, int row) {
  return max_f(max_f(shared.warp_peaks[0][row], shared.warp_peaks[1][row]),
               max_f(shared.warp_peaks[2][row], shared.warp_peaks[3][row]));
}
template <class Shared>
TENON_DEVICE float tile_total(const Shared& shared, int row) {
  return ((shared.warp_totals[0][row] + shared.warp_totals[1][row]) + shared.warp_totals[2][row]) +
         shared.warp_totals[3][row];
}

// Σ w · v over the tile for 64 components, those of the warp: sum[j][2 h + c] is row g + 8 h,
// component 64 · warp + 8 j + 2 p + c.
template <int kRowsEach>
TENON_DEVICE void add_values(const std::byte* weights, const std::byte* tile, float (&sum)[8][4]) {
  const int lane = thread_id() % kWave, warp = thread_id() / kWave, matrix = lane / 8,
            in = lane % 8;
  const std::uint32_t w = shared_address(weights);
  const std::uint32_t v = shared_address(tile) + static_cast<std::uint32_t>(warp * kSlabBytes);
  TENON_UNROLL
  for (int half = 0; half < 2; ++half) {
    std::uint32_t a[2][4];
    load_steps<kRowsEach>(a, w + static_cast<std::uint32_t>(half * 64), kWeightBytes);
    TENON_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int key = 32 * half + 16 * i + matrix % 2 * 8 + in;
      TENON_UNROLL
      for (int pair = 0; pair < 4; ++pair) {
        std::uint32_t b[4];
        load_transposed(b, v + static_cast<std::uint32_t>(slab_place(key, 2 * pair + matrix / 2)));
        add_product_16x8(sum[2 * pair], a[i], b[0], b[1]);
        add_product_16x8(sum[2 * pair + 1], a[i], b[2], b[3]);
      }
    }
  }
}

// Weighted values of the tile to the blocks that end with their rows.
template <int kRowsEach>
TENON_DEVICE void send_values(DecodeShared<kRowsEach>& shared, int rank, const float (&sum)[8][4]) {
  const int lane = thread_id() % kWave, warp = thread_id() / kWave, g = lane / 4, p = lane % 4;
  TENON_UNROLL
  for (int h = 0; h < kRowsEach / 2; ++h) {
    const int row = g + 8 * h;
    float4* to = &shared.inbox[rank][row % kRowsEach * 64 + warp * 16 + p];
    TENON_UNROLL
    for (int pair = 0; pair < 4; ++pair)
      send_cluster(to + 4 * pair, &shared.inbox_full, static_cast<std::uint32_t>(row / kRowsEach),
                   sum[2 * pair][2 * h], sum[2 * pair][2 * h + 1], sum[2 * pair + 1][2 * h],
                   sum[2 * pair + 1][2 * h + 1]);
  }
}

// Of one row: four of its components, and what belongs to the whole row.
struct Sums {
  float peak = -kInfinity, total = 0.0f;
  float4 o{0.0f, 0.0f, 0.0f, 0.0f};
};

// The tiles of a partial meet, in order.
template <int kRowsEach>
TENON_DEVICE Sums gather_tiles(const DecodeShared<kRowsEach>& shared, const float (&peaks)[4][16],
                               int tiles, int row, int index) {
  Sums sums;
  for (int tile = 0; tile < tiles; ++tile) {
    const float peak = max_f(sums.peak, peaks[tile][row]);
    const float rescale = fast_exp2(sums.peak - base_of(peak));
    const float4 o = shared.inbox[tile][index];
    sums.total = fma_f(sums.total, rescale, shared.totals[tile][row]);
    sums.o = {fma_f(sums.o.x, rescale, o.x), fma_f(sums.o.y, rescale, o.y),
              fma_f(sums.o.z, rescale, o.z), fma_f(sums.o.w, rescale, o.w)};
    sums.peak = peak;
  }
  return sums;
}

TENON_DEVICE void join(Sums& whole, const Sums& next) {
  const float peak = max_f(whole.peak, next.peak), base = base_of(peak);
  const float keep = fast_exp2(whole.peak - base), add = fast_exp2(next.peak - base);
  whole.peak = peak;
  whole.total = whole.total * keep + next.total * add;
  whole.o = {whole.o.x * keep + next.o.x * add, whole.o.y * keep + next.o.y * add,
             whole.o.z * keep + next.o.z * add, whole.o.w * keep + next.o.w * add};
}

// The four columns of a unit: first, first + 1, first + 8, first + 9.
TENON_DEVICE int column_of(int index) {
  return index / 16 % 4 * 64 + index / 4 % 4 * 16 + index % 4 * 2;
}
// Every lane of a warp has the same row and half of it: a group of 128.
TENON_DEVICE void finish_unit(const Sm90Call& call, int token, int head, int index,
                              const Sums& sums, const Gates& gate, std::uint32_t low_gates,
                              std::uint32_t high_gates) {
  const int first = column_of(index);
  const float inverse = 1.0f / sums.total;
  const std::uint32_t low = finish_pair(sums.total, inverse, sums.o.x, sums.o.y, gate, low_gates);
  const std::uint32_t high = finish_pair(sums.total, inverse, sums.o.z, sums.o.w, gate, high_gates);
  store_bf16(call, token, head * kHeadDim + first, low, high);
  if (call.quant.codes == nullptr) return;
  const ChosenScale chosen =
      choose_scale<bf16>(call.quant, max_lane(larger(larger_half(low), larger_half(high))));
  store_codes(call, token, head * kHeadDim + first, low, high, chosen.multiplier);
  if (thread_id() % kWave == 0) store_scale(call.quant, token, head * 2 + first / 128, chosen.word);
}

// A slot of the workspace, as one block sees it: float4 [rows · 64], then peaks and totals by rows.
TENON_DEVICE std::byte* slot_of(const Sm90Call& call, int number, int rank, int rows) {
  return call.slots + (std::int64_t{number} * kClusterRanks + rank) * rank_bytes(rows);
}
template <int kRowsEach>
TENON_DEVICE void store_slot(std::byte* slot, int index, const Sums& sums) {
  reinterpret_cast<float4*>(slot)[index] = sums.o;
  auto* rows = reinterpret_cast<float*>(slot + kRowsEach * 1024);
  if (index % 64 == 0) {
    rows[index / 64] = sums.peak;
    rows[kRowsEach + index / 64] = sums.total;
  }
}

// Rows behind the last sequence are zeros. By the threads that compute.
TENON_DEVICE void clear_padding(const Sm90Call& call) {
  const int width = call.q_heads * kHeadDim;
  for (int row = call.starts[call.sequences] + block_id(); row < call.tokens;
       row += grid_blocks()) {
    for (int i = thread_id() * 8; call.out != nullptr && i < width; i += kComputeThreads * 8)
      store16(call.out + row * call.out_stride + i, Word4{});
    if (call.quant.codes == nullptr) continue;
    for (int i = thread_id() * 16; i < width; i += kComputeThreads * 16)
      store16(call.quant.codes + row * call.quant.codes_stride + i, Word4{});
    for (int group = thread_id(); group < call.quant.num_groups; group += kComputeThreads)
      store_scale(call.quant, row, group, choose_scale<bf16>(call.quant, 0).word);
  }
}

// The maxima of the tile, then its sums, from all warps to all blocks.
template <int kRowsEach>
TENON_DEVICE void send_peaks(DecodeShared<kRowsEach>& shared, int rank, std::uint32_t turn) {
  if (thread_id() >= 16) return;
  float most[4];
  TENON_UNROLL
  for (int i = 0; i < 4; ++i) {
    const int row = thread_id() % 4 * 4 + i;
    most[i] = tile_peak(shared, row);
  }
  send_rows(most, shared.peaks[turn][rank], &shared.peaks_full[turn]);
}
template <int kRowsEach>
TENON_DEVICE void send_totals(DecodeShared<kRowsEach>& shared, int rank) {
  if (thread_id() >= 16) return;
  float total[4];
  TENON_UNROLL
  for (int i = 0; i < 4; ++i) {
    const int row = thread_id() % 4 * 4 + i;
    total[i] = tile_total(shared, row);
  }
  send_rows(total, shared.totals[rank], &shared.inbox_full);
}

// The four warps that compute.
template <int kRowsEach>
TENON_DEVICE void compute_parts(Walk walk, int rank, const NormShare& norms,
                                DecodeShared<kRowsEach>& shared) {
  constexpr int kUnits = kRowsEach / 2;  // of four components, of each thread
  const Sm90Call& call = walk.call;
  const int warp = thread_id() / kWave, lane = thread_id() % kWave;
  Part part = find_part(walk);
  RawRows<kRowsEach> raw;
  const bool has_work = part.sequence >= 0 && part.visible(rank) > 0;
  if (has_work) read_angles(call.heads, part, raw);
  store_norms(call.heads, norms, shared.norms);
  sync_first_threads<kComputeThreads>();
  wait_for_rows();
  if (has_work) read_rows(call, part, rank, raw);
  std::uint32_t uses = 0;  // of k and v
  Sums whole[kUnits];
  TENON_NO_UNROLL
  for (std::uint32_t step = 0; part.sequence >= 0; ++step) {
    const int tiles = part.tiles(), visible = part.visible(rank);
    const bool adds = call.heads.k != nullptr && part.is_newest(rank);
    const std::uint32_t turn = step % 2;
    const float(&peaks)[kClusterRanks][16] = shared.peaks[turn];
    if (thread_id() == 0) {
      barrier_arrive_expect(&shared.peaks_full[turn], kClusterRanks * 64);
      barrier_arrive_expect(&shared.inbox_full,
                            static_cast<std::uint32_t>(tiles * (kRowsEach * 1024 + 64)));
    }
    sync_wave();

    // Phase 1: scores of this block's tile; everybody learns every tile's maxima.
    float score[2][4];
    if (visible > 0) {
      store_queries(call, shared.norms, raw, shared.queries);
      if (adds) write_new(call, part, shared.norms, raw);
      barrier_wait(&shared.k_full, uses % 2);
      if (adds && warp == kKeyWarp) put_key(raw.extra, shared.k, visible - 1);
      sync_first_threads<kComputeThreads>();
      score_tile<kRowsEach>(call.scale, shared.queries, shared.k, visible, score);
      if (lane == 0) barrier_arrive(&shared.k_empty);
    } else {
      for (auto& of : score)
        for (float& each : of) each = -kInfinity;
    }
    store_peaks(shared, score);
    sync_first_threads<kComputeThreads>();
    send_peaks(shared, rank, turn);
    sync_wave();
    const Word4 value = raw.value();
    const Part next = part_after(walk, part);
    if (next.sequence >= 0 && next.visible(rank) > 0) {
      read_angles(call.heads, next, raw);
      read_rows(call, next, rank, raw);
    }
    barrier_wait_cluster(&shared.peaks_full[turn], step / 2 % 2);

    // Phase 2: weights and weighted values, to the blocks of their rows.
    if (visible > 0) {
      if (visible < kTile || adds) {
        barrier_wait(&shared.v_full, uses % 2);
        clear_tail(shared.v, 4, visible, thread_id(), kComputeThreads);
        if (adds && warp == kValueWarp) put_value(value, shared.v, visible - 1);
      }
      weigh_tile(shared, peaks, rank, score);
      sync_first_threads<kComputeThreads>();
      send_totals(shared, rank);
      sync_wave();
      barrier_wait(&shared.v_full, uses % 2);
      float sum[8][4] = {};
      add_values<kRowsEach>(shared.weights, shared.v, sum);
      sync_wave();
      if (lane == 0) barrier_arrive(&shared.v_empty);
      sync_wave();
      send_values(shared, rank, sum);
      ++uses;
    }
    barrier_wait_cluster(&shared.inbox_full, step % 2);

    // Phase 3: tiles meet, then partials.
    const bool in_slot = walk.in_slots && part.partials > 1;
    TENON_UNROLL
    for (int i = 0; i < kUnits; ++i) {
      const int index = thread_id() + kComputeThreads * i, row = rank * kRowsEach + index / 64;
      const Sums sums = gather_tiles(shared, peaks, tiles, row, index);
      if (in_slot) {
        store_slot<kRowsEach>(slot_of(call, slot_number(walk, part), rank, kRowsEach), index, sums);
        continue;
      }
      if (part.partial == 0) {
        whole[i] = sums;
      } else {
        join(whole[i], sums);
      }
      if (part.partial + 1 < part.partials || row >= call.group) continue;
      const int head = part.kv_head * call.group + row, column = column_of(index);
      const Gates gate = gates_of(call, part.token, head);
      finish_unit(call, part.token, head, index, whole[i], gate, read_gates(gate, column),
                  read_gates(gate, column + 8));
    }
    part = next;
  }
}

template <int kRowsEach>
TENON_KERNEL_RESIDENT(kDecodeThreads, 2)
decode_kernel(TENON_ARGS(Sm90Call) call) {
  using Shared = DecodeShared<kRowsEach>;
  TENON_SHARED_TILES(memory);
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const int rank = block_id() % kClusterRanks, warp = thread_id() / kWave;
  if (thread_id() == 0) {
    for (Mbarrier* each : {&shared.k_full, &shared.v_full, &shared.peaks_full[0],
                           &shared.peaks_full[1], &shared.inbox_full})
      barrier_init(each, 1);
    for (Mbarrier* each : {&shared.k_empty, &shared.v_empty}) barrier_init(each, kComputeWarps);
    publish_barriers();
    prefetch_map(&call.k);
    prefetch_map(&call.v);
  }
  sync_wave();
  cluster_arrive();
  const NormShare norms = load_norms(call.heads);
  wait_without_heads(call);
  if (warp == 0) read_sequences(call, shared.sequences);
  sync_block();
  cluster_wait();  // all have set their barriers
  const Walk walk{call, shared.sequences, grid_blocks() / kClusterRanks,
                  shared.sequences.firsts[call.sequences] * call.kv_heads <= call.num_slots,
                  block_id() / kClusterRanks};
  if (warp < kComputeWarps) {
    compute_parts(walk, rank, norms, shared);
    clear_padding(call);
  } else {
    fetch_parts(walk, rank, shared);
    wait_for_previous();
  }
}

}  // namespace tenon::TENON_TARGET::attention
