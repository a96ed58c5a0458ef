// Attention of sequences with one token in the step. A cluster of four blocks works on a partial,
// each on one tile of 64 positions. All need the maxima of the tiles before theirs, and each ends
// with some of the q heads and all tiles: they send them to each other. Partials meet in a slot of
// the workspace each; the block that comes last for its heads joins them from left to right. Where
// slots are too few a cluster walks over all partials of its sequence instead. No bit depends on
// that.
#pragma once

#include "tenon/ops/attention/sm90.cuh"

namespace tenon::TENON_TARGET::attention {

inline constexpr int kDecodeThreads = 128, kDecodeWarps = 4;
inline constexpr int kMostSequences = 4096;
inline constexpr int kQueryBytes = 512 + 16,
                     kWeightBytes = 128 + 16;  // of a row: no bank conflicts

template <int kRowsEach>
struct DecodeShared {
  static constexpr int kRows = kClusterRanks * kRowsEach;
  alignas(1024) std::byte k[kTileBytes], v[kTileBytes];
  alignas(16) std::byte queries[kRows * kQueryBytes], weights[kRows * kWeightBytes];
  // [tile][row of this block][column / 64][column / 16 % 4][column / 2 % 4]: columns c, c + 1, c +
  // 8 and c + 9 of a tile's weighted values.
  float4 inbox[kClusterRanks][kRowsEach * 64];
  float peaks[2][kClusterRanks][16], totals[kClusterRanks][16];  // of each tile, by rows
  float warp_peaks[kDecodeWarps][16], warp_totals[kDecodeWarps][16];
  Mbarrier k_full, v_full, peaks_full[2], inbox_full;
  int is_last;
  int firsts[kMostSequences + 1];  // partials of the sequences before each
};

// A partial of one sequence and kv head.
struct Part {
  int sequence = -1;  // −1: none
  int kv_head = 0, partial = 0, partials = 0, context = 0, token = 0;
  TENON_HD int visible(int tile) const {
    const int left = context - partial * kPartial - tile * kTile;
    return left < 0 ? 0 : left < kTile ? left : kTile;
  }
  TENON_HD int tiles() const {
    const int left = context - partial * kPartial;
    return left <= 0 ? 0 : left >= kPartial ? kClusterRanks : (left + kTile - 1) / kTile;
  }
};

// Which parts a cluster works on, in order.
struct Walk {
  const Sm90Call& call;
  const int* firsts;
  int clusters;
  bool in_slots;  // every partial has a slot; else a cluster takes all of a sequence
  int at;         // number of the part, or of the sequence and kv head
};

// One warp: the number of partials of sequences with one token.
TENON_DEVICE void count_partials(const Sm90Call& call, int* firsts) {
  const int lane = thread_id() % kWave;
  int before = 0;
  for (int base = 0; base < call.sequences; base += kWave) {
    const int s = base + lane;
    int count = 0;
    if (s < call.sequences && call.starts[s + 1] - call.starts[s] == 1) {
      const int context = call.lengths[s];
      count = context > kPartial ? ceil_div(context, kPartial) : 1;
    }
    int sum = count;
    TENON_UNROLL
    for (int step = 1; step < kWave; step *= 2) {
      const int other = shuffle_from(sum, lane >= step ? lane - step : lane);
      if (lane >= step) sum += other;
    }
    if (s < call.sequences) firsts[s] = before + sum - count;
    before += shuffle_from(sum, kWave - 1);
  }
  if (lane == 0) firsts[call.sequences] = before;
}

TENON_DEVICE Part part_of(const Walk& walk, int sequence, int kv_head, int partial) {
  return {sequence,
          kv_head,
          partial,
          walk.firsts[sequence + 1] - walk.firsts[sequence],
          walk.call.lengths[sequence],
          walk.call.starts[sequence]};
}
// The part at walk.at, or the first one behind it that this cluster has.
TENON_DEVICE Part find_part(Walk& walk) {
  const int kv_heads = walk.call.kv_heads, sequences = walk.call.sequences;
  if (walk.in_slots) {
    const int index = walk.at / kv_heads;
    if (index >= walk.firsts[sequences]) return {};
    int low = 0, high = sequences;  // the last sequence that begins at index or before
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (walk.firsts[middle] <= index ? low : high) = middle;
    }
    return part_of(walk, low, walk.at % kv_heads, index - walk.firsts[low]);
  }
  for (; walk.at < sequences * kv_heads; walk.at += walk.clusters) {
    const int sequence = walk.at / kv_heads;
    if (walk.firsts[sequence + 1] > walk.firsts[sequence])
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
  walk.at += walk.clusters;
  return find_part(walk);
}

// One thread: the tile of this block.
TENON_DEVICE void fetch_tile(const Sm90Call& call, const Part& part, int rank, const TensorMap* map,
                             std::byte* to, Mbarrier* full) {
  const int row = cache_row(call, part.sequence, part.partial * kPartial + rank * kTile);
  const std::uint64_t policy = policy_evict_first();
  barrier_arrive_expect(full, kTileBytes);
  TENON_UNROLL
  for (int slab = 0; slab < 4; ++slab)
    copy_tile(to + slab * kSlabBytes, map, part.kv_head * kHeadDim * 2 + slab * 128, row, full,
              policy);
}

template <int kRowsEach>
TENON_DEVICE void load_queries(const Sm90Call& call, const Part& part,
                               DecodeShared<kRowsEach>& shared) {
  const bf16* q =
      call.q + (std::int64_t{part.token} * call.q_heads + part.kv_head * call.group) * kHeadDim;
  TENON_UNROLL
  for (int i = 0; i < kRowsEach; ++i) {
    const int row = thread_id() / 32 + 4 * i, chunk = thread_id() % 32;
    const Word4 word = row < call.group ? load16(q + row * kHeadDim + chunk * 8) : Word4{};
    store16(shared.queries + row * kQueryBytes + chunk * 16, word);
  }
}

// Scores of 16 positions of the tile for all rows, those of the warp. score[j][2 h + c]: row g + 8
// h, position 16 · warp + 8 j + 2 p + c. Components 0 … 127 and 128 … 255 have a chain each.
template <int kRowsEach>
TENON_DEVICE void score_tile(const Sm90Call& call, const DecodeShared<kRowsEach>& shared,
                             int visible, float (&score)[2][4]) {
  const int lane = thread_id() % kWave, matrix = lane / 8, in = lane % 8;
  const int warp = thread_id() / kWave;
  const int q_row = in + (kRowsEach > 2 ? matrix % 2 * 8 : 0);
  const std::uint32_t q =
      shared_address(shared.queries) + static_cast<std::uint32_t>(q_row * kQueryBytes);
  const std::uint32_t k = shared_address(shared.k);
  const int key = 16 * warp + matrix / 2 * 8 + in;
  float sum[2][2][4] = {};
  TENON_UNROLL
  for (int step = 0; step < 8; ++step) {
    TENON_UNROLL
    for (int part = 0; part < 2; ++part) {
      const int slab = 2 * part + step / 4, chunk = step % 4 * 2;
      std::uint32_t a[4], b[4];
      load_matrices(a, q + static_cast<std::uint32_t>(slab * 128 + (chunk + matrix / 2) * 16));
      load_matrices(b, k + static_cast<std::uint32_t>(slab * kSlabBytes +
                                                      slab_place(key, chunk + matrix % 2)));
      add_product_16x8(sum[part][0], a, b[0], b[1]);
      add_product_16x8(sum[part][1], a, b[2], b[3]);
    }
  }
  TENON_UNROLL
  for (int i = 0; i < 8; ++i) {
    const int position = 16 * warp + i / 4 * 8 + lane % 4 * 2 + i % 2;
    const float found = (sum[0][i / 4][i % 4] + sum[1][i / 4][i % 4]) * call.scale;
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

// Weights from scores, to shared memory; their sums by warps.
template <int kRowsEach>
TENON_DEVICE void weigh_tile(DecodeShared<kRowsEach>& shared, const float (&peaks)[4][16], int rank,
                             const float (&score)[2][4]) {
  const int lane = thread_id() % kWave, warp = thread_id() / kWave, g = lane / 4, p = lane % 4;
  TENON_UNROLL
  for (int h = 0; h < kRowsEach / 2; ++h) {
    float peak = peaks[0][g + 8 * h];
    for (int tile = 1; tile <= rank; ++tile) peak = max_f(peak, peaks[tile][g + 8 * h]);
    const float base = base_of(peak);
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
}

// Σ w · v over the tile for 64 components, those of the warp: sum[j][2 h + c] is row g + 8 h,
// component 64 · warp + 8 j + 2 p + c.
template <int kRowsEach>
TENON_DEVICE void add_values(const DecodeShared<kRowsEach>& shared, float (&sum)[8][4]) {
  const int lane = thread_id() % kWave, warp = thread_id() / kWave, matrix = lane / 8,
            in = lane % 8;
  const int w_row = in + (kRowsEach > 2 ? matrix % 2 * 8 : 0);
  const std::uint32_t w = shared_address(shared.weights) +
                          static_cast<std::uint32_t>(w_row * kWeightBytes + matrix / 2 * 16);
  const std::uint32_t v = shared_address(shared.v) + static_cast<std::uint32_t>(warp * kSlabBytes);
  TENON_UNROLL
  for (int step = 0; step < 4; ++step) {
    std::uint32_t a[4];
    load_matrices(a, w + static_cast<std::uint32_t>(step * 32));
    const int key = 16 * step + matrix % 2 * 8 + in;
    TENON_UNROLL
    for (int pair = 0; pair < 4; ++pair) {
      std::uint32_t b[4];
      load_transposed(b, v + static_cast<std::uint32_t>(slab_place(key, 2 * pair + matrix / 2)));
      add_product_16x8(sum[2 * pair], a, b[0], b[1]);
      add_product_16x8(sum[2 * pair + 1], a, b[2], b[3]);
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

// Every lane of a warp has the same row and half of it: a group of 128.
TENON_DEVICE void finish_unit(const Sm90Call& call, const Part& part, int row, int index,
                              const Sums& sums) {
  const int head = part.kv_head * call.group + row;
  const int first = index / 16 % 4 * 64 + index / 4 % 4 * 16 + index % 4 * 2;
  const float inverse = 1.0f / sums.total;
  const bf16* gate = gate_of(call, part.token, head);
  const std::uint32_t low =
      finish_pair(sums.total, inverse, sums.o.x, sums.o.y, offset(gate, first));
  const std::uint32_t high =
      finish_pair(sums.total, inverse, sums.o.z, sums.o.w, offset(gate, first + 8));
  store_bf16(call, part.token, head * kHeadDim + first, low, high);
  if (call.quant.codes == nullptr) return;
  const ChosenScale chosen =
      choose_scale<bf16>(call.quant, max_lane(larger(larger_half(low), larger_half(high))));
  store_codes(call, part.token, head * kHeadDim + first, low, high, chosen.multiplier);
  if (thread_id() % kWave == 0)
    store_scale(call.quant, part.token, head * 2 + first / 128, chosen.word);
}

// A slot of the workspace, as one block sees it: float4 [rows · 64], then peaks and totals by rows.
template <int kRowsEach>
TENON_DEVICE std::byte* slot_of(const Walk& walk, const Part& part, int partial, int rank) {
  const std::int64_t number =
      std::int64_t{walk.firsts[part.sequence] + partial} * walk.call.kv_heads + part.kv_head;
  return walk.call.slots + (number * kClusterRanks + rank) * rank_bytes(kRowsEach);
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
template <int kRowsEach>
TENON_DEVICE Sums load_slot(const std::byte* slot, int index) {
  const auto* rows = reinterpret_cast<const float*>(slot + kRowsEach * 1024);
  return {rows[index / 64], rows[kRowsEach + index / 64],
          reinterpret_cast<const float4*>(slot)[index]};
}

// Whether this block's result of the part was the last one that its rows wait for.
template <int kRowsEach>
TENON_DEVICE bool arrive_last(const Walk& walk, const Part& part, int rank,
                              DecodeShared<kRowsEach>& shared) {
  std::uint32_t* counter = walk.call.counters +
                           (part.sequence * walk.call.kv_heads + part.kv_head) * kClusterRanks +
                           rank;
  sync_block();
  if (thread_id() == 0) {
    fence_device();
    const bool is_last = atomic_add(counter, 1u) + 1u == static_cast<std::uint32_t>(part.partials);
    if (is_last) {
      *counter = 0;  // for the next call
      fence_device();
    }
    shared.is_last = is_last;
  }
  sync_block();
  return shared.is_last != 0;
}

// The partials of a sequence meet, several loads at a time.
template <int kRowsEach>
TENON_DEVICE Sums join_slots(const Walk& walk, const Part& part, int rank, int index) {
  constexpr int kAtOnce = 8;
  Sums whole;
  TENON_NO_UNROLL
  for (int first = 0; first < part.partials; first += kAtOnce) {
    Sums next[kAtOnce];
    TENON_UNROLL
    for (int i = 0; i < kAtOnce; ++i)
      if (first + i < part.partials)
        next[i] = load_slot<kRowsEach>(slot_of<kRowsEach>(walk, part, first + i, rank), index);
    TENON_UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + i == 0) {
        whole = next[0];
      } else if (first + i < part.partials) {
        join(whole, next[i]);
      }
    }
  }
  return whole;
}

// Rows behind the last sequence are zeros.
TENON_DEVICE void clear_padding(const Sm90Call& call) {
  const int width = call.q_heads * kHeadDim;
  for (int row = call.starts[call.sequences] + block_id(); row < call.tokens;
       row += grid_blocks()) {
    for (int i = thread_id() * 8; call.out != nullptr && i < width; i += block_threads() * 8)
      store16(call.out + row * call.out_stride + i, Word4{});
    if (call.quant.codes == nullptr) continue;
    for (int i = thread_id() * 16; i < width; i += block_threads() * 16)
      store16(call.quant.codes + row * call.quant.codes_stride + i, Word4{});
    for (int group = thread_id(); group < call.quant.num_groups; group += block_threads())
      store_scale(call.quant, row, group, choose_scale<bf16>(call.quant, 0).word);
  }
}

template <int kRowsEach>
TENON_KERNEL_RESIDENT(kDecodeThreads, 2)
decode_kernel(TENON_ARGS(Sm90Call) call) {
  using Shared = DecodeShared<kRowsEach>;
  constexpr int kUnits = kRowsEach / 2;  // of four components, of each thread
  TENON_SHARED_TILES(memory);
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const int rank = block_id() % kClusterRanks, warp = thread_id() / kWave,
            lane = thread_id() % kWave;
  if (thread_id() == 0) {
    for (Mbarrier* each : {&shared.k_full, &shared.v_full, &shared.peaks_full[0],
                           &shared.peaks_full[1], &shared.inbox_full})
      barrier_init(each, 1);
    publish_barriers();
    prefetch_map(&call.k);
    prefetch_map(&call.v);
  }
  sync_wave();
  sync_block();
  cluster_arrive();
  wait_for_previous();
  if (thread_id() == 0) let_next_start();
  sync_wave();
  if (warp == 0) count_partials(call, shared.firsts);
  sync_block();
  cluster_wait();  // all have set their barriers

  Walk walk{call, shared.firsts, grid_blocks() / kClusterRanks,
            shared.firsts[call.sequences] * call.kv_heads <= call.num_slots,
            block_id() / kClusterRanks};
  Part part = find_part(walk);
  if (thread_id() == 0 && part.sequence >= 0 && part.visible(rank) > 0) {
    fetch_tile(call, part, rank, &call.k, shared.k, &shared.k_full);
    fetch_tile(call, part, rank, &call.v, shared.v, &shared.v_full);
  }
  sync_wave();
  std::uint32_t tile_phase = 0;  // of k_full and v_full
  Sums whole[kUnits];
  TENON_NO_UNROLL
  for (std::uint32_t step = 0; part.sequence >= 0; ++step) {
    const Part next = part_after(walk, part);
    const bool more = next.sequence >= 0 && next.visible(rank) > 0;
    const int tiles = part.tiles(), visible = part.visible(rank);
    const std::uint32_t turn = step % 2;
    float(&peaks)[kClusterRanks][16] = shared.peaks[turn];
    if (thread_id() == 0) {
      barrier_arrive_expect(&shared.peaks_full[turn], kClusterRanks * 64);
      barrier_arrive_expect(&shared.inbox_full,
                            static_cast<std::uint32_t>(tiles * (kRowsEach * 1024 + 64)));
    }
    sync_wave();
    if (visible > 0) load_queries(call, part, shared);
    sync_block();

    // Phase 1: scores of this block's tile; everybody learns every tile's maxima.
    float score[2][4];
    if (visible > 0) {
      barrier_wait(&shared.k_full, tile_phase);
      score_tile(call, shared, visible, score);
    } else {
      for (auto& of : score)
        for (float& each : of) each = -kInfinity;
    }
    TENON_UNROLL
    for (int h = 0; h < 2; ++h) {
      const float most = quad_max(max_f(max_f(score[0][2 * h], score[0][2 * h + 1]),
                                        max_f(score[1][2 * h], score[1][2 * h + 1])));
      if (lane % 4 == 0) shared.warp_peaks[warp][lane / 4 + 8 * h] = most;
    }
    sync_block();  // k has been read
    if (thread_id() == 0 && more) fetch_tile(call, next, rank, &call.k, shared.k, &shared.k_full);
    sync_wave();
    if (thread_id() < 16) {
      float most[4];
      TENON_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int row = lane % 4 * 4 + i;
        most[i] = max_f(max_f(shared.warp_peaks[0][row], shared.warp_peaks[1][row]),
                        max_f(shared.warp_peaks[2][row], shared.warp_peaks[3][row]));
      }
      send_rows(most, peaks[rank], &shared.peaks_full[turn]);
    }
    sync_wave();
    barrier_wait_cluster(&shared.peaks_full[turn], step / 2 % 2);

    // Phase 2: weights and weighted values, to the blocks of their rows.
    if (visible > 0) {
      if (visible < kTile) {
        barrier_wait(&shared.v_full, tile_phase);
        clear_tail(shared.v, 4, visible, thread_id(), kDecodeThreads);
      }
      weigh_tile(shared, peaks, rank, score);
      sync_block();
      barrier_wait(&shared.v_full, tile_phase);
      float sum[8][4] = {};
      add_values(shared, sum);
      sync_block();  // v has been read
      tile_phase ^= 1;
      if (thread_id() < 16) {
        float total[4];
        TENON_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int row = lane % 4 * 4 + i;
          total[i] = ((shared.warp_totals[0][row] + shared.warp_totals[1][row]) +
                      shared.warp_totals[2][row]) +
                     shared.warp_totals[3][row];
        }
        send_rows(total, shared.totals[rank], &shared.inbox_full);
      }
      sync_wave();
      send_values(shared, rank, sum);
    }
    if (thread_id() == 0 && more) fetch_tile(call, next, rank, &call.v, shared.v, &shared.v_full);
    sync_wave();
    barrier_wait_cluster(&shared.inbox_full, step % 2);

    // Phase 3: tiles meet, then partials.
    bool ends = true;
    TENON_UNROLL
    for (int i = 0; i < kUnits; ++i) {
      const int index = thread_id() + kDecodeThreads * i, row = rank * kRowsEach + index / 64;
      const Sums sums = gather_tiles(shared, peaks, tiles, row, index);
      if (walk.in_slots && part.partials > 1) {
        store_slot<kRowsEach>(slot_of<kRowsEach>(walk, part, part.partial, rank), index, sums);
      } else if (part.partial == 0) {
        whole[i] = sums;
      } else {
        join(whole[i], sums);
      }
    }
    if (walk.in_slots && part.partials > 1) {
      ends = arrive_last(walk, part, rank, shared);
      TENON_UNROLL
      for (int i = 0; ends && i < kUnits; ++i)
        whole[i] = join_slots<kRowsEach>(walk, part, rank, thread_id() + kDecodeThreads * i);
    } else {
      ends = part.partial + 1 == part.partials;
    }
    TENON_UNROLL
    for (int i = 0; i < kUnits; ++i) {
      const int index = thread_id() + kDecodeThreads * i, row = rank * kRowsEach + index / 64;
      if (ends && row < call.group) finish_unit(call, part, row, index, whole[i]);
    }
    part = next;
  }
  clear_padding(call);
}

}  // namespace tenon::TENON_TARGET::attention
