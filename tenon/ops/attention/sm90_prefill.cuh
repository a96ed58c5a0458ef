// Attention of sequences with several tokens in the step. A block takes 128 rows of a kv head,
// which are (token, q head) pairs, and half of the components of v: so sums of the partial and of
// those before it both stay in registers. Two warpgroups of 64 rows multiply, a third one fetches
// tiles of k and v. The products of a tile's values and of the next tile's scores are started
// together; while one warpgroup works on weights, the tensor cores work for the other.
#pragma once

#include "tenon/device/cuda_hip/sm90/wgmma_bf16.cuh"
#include "tenon/ops/attention/sm90.cuh"

namespace tenon::TENON_TARGET::attention {

inline constexpr int kPromptRows = 128, kGroupRows = 64;
inline constexpr int kConsumers = 256, kPrefillThreads = kConsumers + 128;
inline constexpr int kStages = 3;

// Which rows a block has: pairs first, first + 1, … of the tokens [begin, end) of a sequence.
struct PromptTile {
  int sequence, begin, end, first, count;
};

struct PrefillShared {
  alignas(1024) std::byte q[2][kTileBytes];  // of each warpgroup
  struct Stage {
    std::byte k[kTileBytes], v[2 * kSlabBytes];
  } stage[kStages];
  Mbarrier full[kStages], empty[kStages];
  PromptTile tile;
};
static_assert(sizeof(PrefillShared::Stage) % 1024 == 0);

// One warp: tile number `index`, counted over the sequences that have several tokens. The last rows
// of a sequence, which see the most, go first.
TENON_DEVICE void find_tile(const Sm90Call& call, int index, PromptTile* found) {
  const int lane = thread_id() % kWave;
  if (lane == 0) found->sequence = -1;
  sync_wave();
  int before = 0;
  for (int base = 0; base < call.sequences && before <= index; base += kWave) {
    const int s = base + lane;
    const int begin = s < call.sequences ? call.starts[s] : 0;
    const int end = s < call.sequences ? call.starts[s + 1] : 0;
    const int rows = end - begin > 1 ? (end - begin) * call.group : 0;
    const int tiles = ceil_div(rows, kPromptRows);
    int sum = tiles;
    TENON_UNROLL
    for (int step = 1; step < kWave; step *= 2) {
      const int other = shuffle_from(sum, lane >= step ? lane - step : lane);
      if (lane >= step) sum += other;
    }
    const int mine = index - (before + sum - tiles);
    if (mine >= 0 && mine < tiles) {
      const int first = (tiles - 1 - mine) * kPromptRows, left = rows - first;
      *found = {s, begin, end, first, left < kPromptRows ? left : kPromptRows};
    }
    before += shuffle_from(sum, kWave - 1);
  }
}

struct PromptRow {
  int token, head, context;  // context: positions that it sees
};
// Rows that do not exist are like the last one.
TENON_DEVICE PromptRow row_of(const Sm90Call& call, const PromptTile& tile, int kv_head, int row) {
  const int pair = tile.first + (row < tile.count ? row : tile.count - 1);
  const int token = tile.begin + pair / call.group;
  return {token, kv_head * call.group + pair % call.group,
          call.lengths[tile.sequence] - (tile.end - token) + 1};
}

// One thread: all tiles of k, and the block's half of those of v.
TENON_DEVICE void fetch_tiles(const Sm90Call& call, PrefillShared& shared, int sequence,
                              int kv_head, int half, int tiles) {
  const std::uint64_t policy = policy_evict_last();
  const int byte = kv_head * kHeadDim * 2;
  RingPlace place;
  int row = cache_row(call, sequence, 0);
  TENON_NO_UNROLL
  for (int i = 0; i < tiles; ++i) {
    const int next = i + 1 < tiles ? cache_row(call, sequence, (i + 1) * kTile) : 0;
    if (i >= kStages) barrier_wait(&shared.empty[place.stage], place.parity ^ 1);
    PrefillShared::Stage& to = shared.stage[place.stage];
    Mbarrier* full = &shared.full[place.stage];
    barrier_arrive_expect(full, sizeof to);
    TENON_UNROLL
    for (int slab = 0; slab < 4; ++slab)
      copy_tile(to.k + slab * kSlabBytes, &call.k, byte + slab * 128, row, full, policy);
    TENON_UNROLL
    for (int slab = 0; slab < 2; ++slab)
      copy_tile(to.v + slab * kSlabBytes, &call.v, byte + half * 256 + slab * 128, row, full,
                policy);
    row = next;
    place.next(kStages);
  }
}

// The rows of a warpgroup, to shared memory.
TENON_DEVICE void load_rows(const Sm90Call& call, const PromptTile& tile, int kv_head, int group,
                            std::byte* to) {
  const int thread = thread_id() % 128, chunk = thread % 32;
  TENON_UNROLL
  for (int i = 0; i < kGroupRows / 4; ++i) {
    const int in = thread / 32 + 4 * i, row = group * kGroupRows + in, pair = tile.first + row;
    Word4 word{};
    if (row < tile.count) {
      const int token = tile.begin + pair / call.group;
      const int head = kv_head * call.group + pair % call.group;
      word = load16(call.q + token * call.q_token_stride + head * call.q_head_stride + chunk * 8);
    }
    store16(to + chunk / 8 * kSlabBytes + slab_place(in, chunk % 8), word);
  }
}

// What a thread has of its two rows: sums of the running partial and of those before it.
struct Softmax {
  float peak[2] = {-kInfinity, -kInfinity}, total[2] = {};
  float whole_peak[2] = {-kInfinity, -kInfinity}, whole_total[2] = {};
};

// A warp's 16 rows of q as the instruction wants them in registers.
TENON_DEVICE void hold_rows(const std::byte* q, std::uint32_t (&rows)[64]) {
  const int lane = thread_id() % kWave, matrix = lane / 8;
  const int row = thread_id() % 128 / kWave * 16 + matrix % 2 * 8 + lane % 8;
  TENON_UNROLL
  for (int step = 0; step < 16; ++step) {
    std::uint32_t word[4];
    load_matrices(word, shared_address(q) +
                            static_cast<std::uint32_t>(step / 4 * kSlabBytes +
                                                       slab_place(row, step % 4 * 2 + matrix / 2)));
    TENON_UNROLL
    for (int i = 0; i < 4; ++i) rows[4 * step + i] = word[i];
  }
}

// score[4 j + 2 h + c]: row h of the thread, position 8 j + 2 p + c of a tile.
TENON_DEVICE void start_scores(float (&score)[32], const std::uint32_t (&q)[64], std::uint64_t k) {
  TENON_UNROLL
  for (int step = 0; step < 16; ++step)
    add_bf16_product(score, q[4 * step], q[4 * step + 1], q[4 * step + 2], q[4 * step + 3],
                     descriptor_at(k, step / 4 * (kSlabBytes / 16) + step % 4 * 2), step > 0);
}
TENON_DEVICE void start_values(float (&o)[64], const std::uint32_t (&weight)[16], std::uint64_t v) {
  TENON_UNROLL
  for (int step = 0; step < 4; ++step)
    add_bf16_product(o, weight[4 * step], weight[4 * step + 1], weight[4 * step + 2],
                     weight[4 * step + 3], descriptor_at(v, 128 * step));
}

// Positions that a row does not see weigh nothing.
TENON_DEVICE void mask_scores(float (&score)[32], int first, const int (&context)[2]) {
  const int mine = first + thread_id() % 4 * 2;
  TENON_UNROLL
  for (int i = 0; i < 32; ++i)
    if (mine + i / 4 * 8 + i % 2 >= context[i / 2 % 2]) score[i] = -kInfinity;
}

// Scores become weights; sums so far shrink to the new maximum.
TENON_DEVICE void weigh_scores(float (&score)[32], float scale, Softmax& rows,
                               std::uint32_t (&weight)[16], float (&o)[64]) {
  TENON_UNROLL
  for (int h = 0; h < 2; ++h) {
    float most = score[2 * h];
    TENON_UNROLL
    for (int j = 0; j < 8; ++j)
      most = __builtin_fmaxf(most, __builtin_fmaxf(score[4 * j + 2 * h], score[4 * j + 2 * h + 1]));
    most = __builtin_fmaxf(most, shuffle_xor(most, 1));
    most = __builtin_fmaxf(most, shuffle_xor(most, 2));
    const float peak = __builtin_fmaxf(rows.peak[h], most * scale);
    const float base = peak == -kInfinity ? 0.0f : peak;
    const float rescale = fast_exp2(rows.peak[h] - base);
    float sum = 0.0f;
    TENON_UNROLL
    for (int j = 0; j < 8; ++j) {
      const float low = fast_exp2(fma_f(score[4 * j + 2 * h], scale, -base));
      const float high = fast_exp2(fma_f(score[4 * j + 2 * h + 1], scale, -base));
      sum = sum + (low + high);
      weight[j / 2 * 4 + j % 2 * 2 + h] = convert_bf16x2(low, high);
    }
    sum = sum + shuffle_xor(sum, 1);
    sum = sum + shuffle_xor(sum, 2);
    rows.total[h] = fma_f(rows.total[h], rescale, sum);
    rows.peak[h] = peak;
    TENON_UNROLL
    for (int j = 0; j < 16; ++j) {
      o[4 * j + 2 * h] = o[4 * j + 2 * h] * rescale;
      o[4 * j + 2 * h + 1] = o[4 * j + 2 * h + 1] * rescale;
    }
  }
}

// The partial that begins at `first` joins those before it, whose sums lie in `whole`, 128 floats
// between those of a thread. A row that sees nothing of it keeps what it has. All sums are left in
// o; if another partial follows they go to `whole`, and that one begins from nothing.
TENON_DEVICE void join_partial(Softmax& rows, int first, const int (&context)[2], bool is_last,
                               float (&o)[64], float* whole) {
  TENON_UNROLL
  for (int h = 0; h < 2; ++h) {
    float keep = 1.0f, add = 0.0f;
    if (context[h] > first) {
      const float peak = __builtin_fmaxf(rows.whole_peak[h], rows.peak[h]);
      const float base = peak == -kInfinity ? 0.0f : peak;
      keep = fast_exp2(rows.whole_peak[h] - base);
      add = fast_exp2(rows.peak[h] - base);
      rows.whole_peak[h] = peak;
      rows.whole_total[h] = rows.whole_total[h] * keep + rows.total[h] * add;
    }
    if (first > 0) {
      TENON_UNROLL
      for (int j = 0; j < 16; ++j) {
        TENON_UNROLL
        for (int i = 4 * j + 2 * h; i < 4 * j + 2 * h + 2; ++i)
          o[i] = whole[i * 128] * keep + o[i] * add;
      }
    }
    rows.peak[h] = -kInfinity;
    rows.total[h] = 0.0f;
  }
  if (is_last) return;
  TENON_UNROLL
  for (int i = 0; i < 64; ++i) {
    whole[i * 128] = o[i];
    o[i] = 0.0f;
  }
}

// Row h of the thread; four lanes have 128 components of it, from head · 256 + half · 128 on.
TENON_DEVICE void finish_prompt_row(const Sm90Call& call, const PromptRow& row, int half, int h,
                                    bool exists, float total, const float (&o)[64]) {
  const int p = thread_id() % 4, first = half * 128 + 2 * p;
  const float inverse = 1.0f / total;
  const Gates gate = exists ? gates_of(call, row.token, row.head) : Gates{nullptr};
  std::uint32_t word[16], most = 0;
  TENON_UNROLL
  for (int j = 0; j < 16; ++j) {
    word[j] = finish_pair(total, inverse, o[4 * j + 2 * h], o[4 * j + 2 * h + 1], gate,
                          read_gates(gate, first + 8 * j));
    most = larger(most, larger_half(word[j]));
  }
  most = larger(most, shuffle_xor(most, 1));
  most = larger(most, shuffle_xor(most, 2));
  if (!exists) return;
  const int column = row.head * kHeadDim + first;
  TENON_UNROLL
  for (int j = 0; j < 16; j += 2) store_bf16(call, row.token, column + 8 * j, word[j], word[j + 1]);
  if (call.quant.codes == nullptr) return;
  const ChosenScale chosen = choose_scale<bf16>(call.quant, most);
  TENON_UNROLL
  for (int j = 0; j < 16; j += 2)
    store_codes(call, row.token, column + 8 * j, word[j], word[j + 1], chosen.multiplier);
  if (p == 0) store_scale(call.quant, row.token, row.head * 2 + half, chosen.word);
}

TENON_DEVICE void attend_prompt(const Sm90Call& call, PrefillShared& shared, int kv_head, int half,
                                int tiles) {
  const PromptTile tile = shared.tile;
  // A value that the whole warp has stays in uniform registers, where descriptors belong.
  const int group = shuffle_from(thread_id() / 128, 0), lane = thread_id() % kWave;
  load_rows(call, tile, kv_head, group, shared.q[group]);
  sync_first_threads<kConsumers>();
  const int length = call.lengths[tile.sequence];
  const int mine = group * kGroupRows + thread_id() % 128 / kWave * 16 + lane / 4;
  const PromptRow row[2] = {row_of(call, tile, kv_head, mine),
                            row_of(call, tile, kv_head, mine + 8)};
  const int context[2] = {row[0].context, row[1].context};
  const int least = shuffle_from(context[0], 0);  // of the warp's rows
  std::uint32_t q[64];
  hold_rows(shared.q[group], q);
  sync_first_threads<kConsumers>();  // q has been read
  float* const whole = reinterpret_cast<float*>(shared.q[group]) + thread_id() % 128;
  const std::uint64_t k = tile_descriptor(shared.stage[0].k);
  const std::uint64_t v = wide_descriptor(shared.stage[0].v, kTile);
  constexpr int kStage = sizeof(PrefillShared::Stage) / 16;

  float score[32], o[64] = {};
  std::uint32_t weight[16];
  Softmax rows;
  RingPlace now, ahead;
  // Tile i from its scores on; with another one behind it, that one's scores too.
  const auto step = [&]<bool kMore>(int i) {
    const int first = i * kTile;
    if (first + kTile > least) mask_scores(score, first, context);
    weigh_scores(score, call.scale, rows, weight, o);
    if (first + kTile > length) {
      clear_tail(shared.stage[now.stage].v, 2, length - first, thread_id(), kConsumers);
      sync_first_threads<kConsumers>();
    }
    if constexpr (kMore) barrier_wait(&shared.full[ahead.stage], ahead.parity);
    wait_for_turn<kConsumers>(group);
    wgmma_begin();
    start_values(o, weight, descriptor_at(v, now.stage * kStage));
    if constexpr (kMore) start_scores(score, q, descriptor_at(k, ahead.stage * kStage));
    wgmma_commit();
    if (kMore || group == 0) pass_turn<kConsumers>(group);
    wgmma_wait_all();
    hold_sums(o);
    if constexpr (kMore) hold_sums(score);
    if (lane == 0) barrier_arrive(&shared.empty[now.stage]);
    now = ahead;
    ahead.next(kStages);
    if (!kMore || (first + kTile) % kPartial == 0)
      join_partial(rows, first / kPartial * kPartial, context, !kMore, o, whole);
  };
  if (tiles > 0) {
    if (group == 1) pass_turn<kConsumers>(group);
    barrier_wait(&shared.full[0], 0);
    wgmma_begin();
    start_scores(score, q, k);
    wgmma_commit();
    wgmma_wait_all();
    hold_sums(score);
    ahead.next(kStages);
    TENON_NO_UNROLL
    for (int i = 0; i + 1 < tiles; ++i) step.template operator()<true>(i);
    step.template operator()<false>(tiles - 1);
  }
  TENON_UNROLL
  for (int h = 0; h < 2; ++h)
    finish_prompt_row(call, row[h], half, h, mine + 8 * h < tile.count, rows.whole_total[h], o);
}

TENON_KERNEL_RESIDENT(kPrefillThreads, 1)
prefill_kernel(TENON_ARGS(Sm90Call) call) {
  TENON_SHARED_TILES(memory);
  PrefillShared& shared = *reinterpret_cast<PrefillShared*>(memory);
  const int half = block_id() % 2, kv_head = block_id() / 2 % call.kv_heads;
  if (thread_id() == kConsumers) {
    for (int stage = 0; stage < kStages; ++stage) {
      barrier_init(&shared.full[stage], 1);
      barrier_init(&shared.empty[stage], kConsumers / kWave);
    }
    publish_barriers();
    prefetch_map(&call.k);
    prefetch_map(&call.v);
  }
  wait_for_previous();
  if (thread_id() == 0) let_next_start();
  sync_wave();
  if (thread_id() < kWave) find_tile(call, block_id() / 2 / call.kv_heads, &shared.tile);
  sync_block();
  if (shared.tile.sequence < 0) return;  // a plan has blocks for every way of cutting its tokens
  const int context = row_of(call, shared.tile, kv_head, kPromptRows).context;
  const int tiles = context > 0 ? ceil_div(context, kTile) : 0;
  if (thread_id() >= kConsumers) {
    keep_40_registers();
    if (thread_id() == kConsumers)
      fetch_tiles(call, shared, shared.tile.sequence, kv_head, half, tiles);
    return;
  }
  take_232_registers();
  attend_prompt(call, shared, kv_head, half, tiles);
}

}  // namespace tenon::TENON_TARGET::attention
