// Attention of sequences with one token in the step, where there are many: a block works on a whole
// partial, one tile after the other, with the bits of decode_kernel. No block waits for another, so
// three tiles of k and three of v are on their way to each multiprocessor all the time. Every
// result goes to a slot and is ended by join_kernel; where slots are too few a block walks over all
// partials of a sequence and leaves one result.
#pragma once

#include "tenon/ops/attention/sm90_decode.cuh"

namespace tenon::TENON_TARGET::attention {

inline constexpr int kStreamStages = 3;

template <int kRowsEach>
struct StreamShared {
  static constexpr int kRows = kClusterRanks * kRowsEach;
  struct Stage {
    std::byte k[kTileBytes], v[kTileBytes];
  };
  alignas(1024) Stage stage[kStreamStages];
  alignas(16) std::byte queries[kRows * kQueryBytes], weights[kRows * kWeightBytes];
  float warp_peaks[kComputeWarps][16], warp_totals[kComputeWarps][16];
  Mbarrier k_full[kStreamStages], v_full[kStreamStages];
  Mbarrier k_empty[kStreamStages], v_empty[kStreamStages];
  HeadNorms norms;
  Sequences sequences;
};

static_assert(sizeof(StreamShared<4>) <= 227 * 1024);

// Lane i < 4: the block of the cache where tile i of a part lies; −1: there is none. Asked for long
// before it is used: a load takes microseconds behind the tiles that are on their way.
TENON_DEVICE int tile_block(const Sm90Call& call, const Part& part) {
  const int tile = thread_id() % kWave;
  return tile < part.tiles() ? block_at(call, part.sequence, part.partial * kPartial + tile * kTile)
                             : -1;
}

// The warp that fetches tiles.
template <int kRowsEach>
TENON_DEVICE void fetch_stream(Walk walk, StreamShared<kRowsEach>& shared) {
  const Sm90Call& call = walk.call;
  RingPlace place;
  int uses = 0;
  const auto fetch = [&](const Part& part, int block, int tile) {
    const int row = row_in(call, shuffle_from(block, tile), part.partial * kPartial + tile * kTile);
    const int stage = place.stage;
    if (thread_id() % kWave == 0) {
      if (uses >= kStreamStages) barrier_wait(&shared.k_empty[stage], place.parity ^ 1);
      fetch_tile(part, &call.k, row, shared.stage[stage].k, &shared.k_full[stage]);
      if (uses >= kStreamStages) barrier_wait(&shared.v_empty[stage], place.parity ^ 1);
      fetch_tile(part, &call.v, row, shared.stage[stage].v, &shared.v_full[stage]);
    }
    sync_wave();
    place.next(kStreamStages);
    ++uses;
  };
  Part part = find_part(walk);
  int block = tile_block(call, part);
  TENON_NO_UNROLL
  while (part.sequence >= 0) {
    const int tiles = part.tiles();
    if (tiles > 0) fetch(part, block, 0);
    const Part next = part_after(walk, part);
    const int next_block = tile_block(call, next);
    TENON_NO_UNROLL
    for (int tile = 1; tile < tiles; ++tile) fetch(part, block, tile);
    part = next;
    block = next_block;
  }
}

// Of the thread's rows g + 8 h: sums, and o[j][2 h + c] of component 64 · warp + 8 j + 2 p + c.
template <int kRowsEach>
struct StreamSums {
  static constexpr int kHalves = kRowsEach / 2;
  float peak[kHalves], total[kHalves], o[8][2 * kHalves];
};
template <int kRowsEach>
TENON_DEVICE void clear_sums(StreamSums<kRowsEach>& sums) {
  TENON_UNROLL
  for (int h = 0; h < kRowsEach / 2; ++h) {
    sums.peak[h] = -kInfinity;
    sums.total[h] = 0.0f;
  }
  TENON_UNROLL
  for (auto& row : sums.o)
    for (float& each : row) each = 0.0f;
}
// As join() of Sums.
template <int kRowsEach>
TENON_DEVICE void join_sums(StreamSums<kRowsEach>& whole, const StreamSums<kRowsEach>& next) {
  TENON_UNROLL
  for (int h = 0; h < kRowsEach / 2; ++h) {
    const float peak = max_f(whole.peak[h], next.peak[h]), base = base_of(peak);
    const float keep = fast_exp2(whole.peak[h] - base), add = fast_exp2(next.peak[h] - base);
    whole.peak[h] = peak;
    whole.total[h] = whole.total[h] * keep + next.total[h] * add;
    TENON_UNROLL
    for (int i = 0; i < 16; ++i) {
      float& o = whole.o[i / 2][2 * h + i % 2];
      o = o * keep + next.o[i / 2][2 * h + i % 2] * add;
    }
  }
}

// A thread's place in a slot: visit(h, floats of components, floats of rows).
template <int kRowsEach, class Visit>
TENON_DEVICE void visit_slot(const Sm90Call& call, int slot, const Visit& visit) {
  const int lane = thread_id() % kWave, warp = thread_id() / kWave, g = lane / 4, p = lane % 4;
  TENON_UNROLL
  for (int h = 0; h < kRowsEach / 2; ++h) {
    const int row = g + 8 * h, local = row % kRowsEach;
    std::byte* at = slot_of(call, slot, row / kRowsEach, kRowsEach);
    visit(h, reinterpret_cast<float4*>(at) + local * 64 + warp * 16 + p,
          reinterpret_cast<float*>(at + kRowsEach * 1024) + local);
  }
}
template <int kRowsEach>
TENON_DEVICE void store_sums(const Sm90Call& call, int slot, const StreamSums<kRowsEach>& sums) {
  visit_slot<kRowsEach>(call, slot, [&](int h, float4* o, float* row) {
    TENON_UNROLL
    for (int pair = 0; pair < 4; ++pair)
      o[4 * pair] = {sums.o[2 * pair][2 * h], sums.o[2 * pair][2 * h + 1],
                     sums.o[2 * pair + 1][2 * h], sums.o[2 * pair + 1][2 * h + 1]};
    if (thread_id() / kWave != 0 || thread_id() % 4 != 0) return;
    row[0] = sums.peak[h];
    row[kRowsEach] = sums.total[h];
  });
}
template <int kRowsEach>
TENON_DEVICE void load_sums(const Sm90Call& call, int slot, StreamSums<kRowsEach>& sums) {
  visit_slot<kRowsEach>(call, slot, [&](int h, const float4* o, const float* row) {
    TENON_UNROLL
    for (int pair = 0; pair < 4; ++pair) {
      const float4 found = o[4 * pair];
      sums.o[2 * pair][2 * h] = found.x;
      sums.o[2 * pair][2 * h + 1] = found.y;
      sums.o[2 * pair + 1][2 * h] = found.z;
      sums.o[2 * pair + 1][2 * h + 1] = found.w;
    }
    sums.peak[h] = row[0];
    sums.total[h] = row[kRowsEach];
  });
}

// One tile of a part.
template <int kRowsEach>
TENON_DEVICE void stream_tile(const Sm90Call& call, const Part& part, int tile,
                              const RingPlace& place, const RawRows<kRowsEach>& raw,
                              StreamShared<kRowsEach>& shared, StreamSums<kRowsEach>& sums) {
  const int lane = thread_id() % kWave, warp = thread_id() / kWave, g = lane / 4;
  const int visible = part.visible(tile), stage = place.stage;
  const bool adds = call.heads.k != nullptr && part.is_newest(tile);
  std::byte *const k = shared.stage[stage].k, *const v = shared.stage[stage].v;
  barrier_wait(&shared.k_full[stage], place.parity);
  if (adds && warp == kKeyWarp) put_key(raw.extra, k, visible - 1);
  if (tile == 0 || adds) sync_first_threads<kComputeThreads>();  // q or the new key is there
  float score[2][4];
  score_tile<kRowsEach>(call.scale, shared.queries, k, visible, score);
  if (lane == 0) barrier_arrive(&shared.k_empty[stage]);
  store_peaks(shared, score);
  sync_first_threads<kComputeThreads>();
  float rescale[kRowsEach / 2];
  TENON_UNROLL
  for (int h = 0; h < kRowsEach / 2; ++h) {
    const float peak = max_f(sums.peak[h], tile_peak(shared, g + 8 * h));
    rescale[h] = fast_exp2(sums.peak[h] - base_of(peak));
    sums.peak[h] = peak;
    weigh_row(shared, h, base_of(peak), score);
  }
  barrier_wait(&shared.v_full[stage], place.parity);
  if (visible < kTile || adds) {
    clear_tail(v, 4, visible, thread_id(), kComputeThreads);
    if (adds && warp == kValueWarp) put_value(raw.value(), v, visible - 1);
  }
  sync_first_threads<kComputeThreads>();
  float sum[8][4] = {};
  add_values<kRowsEach>(shared.weights, v, sum);
  sync_wave();
  if (lane == 0) barrier_arrive(&shared.v_empty[stage]);
  TENON_UNROLL
  for (int h = 0; h < kRowsEach / 2; ++h) {
    sums.total[h] = fma_f(sums.total[h], rescale[h], tile_total(shared, g + 8 * h));
    TENON_UNROLL
    for (int i = 0; i < 16; ++i) {
      float& o = sums.o[i / 2][2 * h + i % 2];
      o = fma_f(o, rescale[h], sum[i / 2][2 * h + i % 2]);
    }
  }
}

// The four warps that compute.
template <int kRowsEach>
TENON_DEVICE void compute_stream(Walk walk, const NormShare& norms,
                                 StreamShared<kRowsEach>& shared) {
  const Sm90Call& call = walk.call;
  Part part = find_part(walk);
  RawRows<kRowsEach> raw;
  if (part.sequence >= 0) read_angles(call.heads, part, raw);
  store_norms(call.heads, norms, shared.norms);
  sync_first_threads<kComputeThreads>();
  wait_for_rows();
  if (part.sequence >= 0) read_rows(call, part, part.tiles() - 1, raw);
  RingPlace place;
  StreamSums<kRowsEach> sums;
  TENON_NO_UNROLL
  while (part.sequence >= 0) {
    store_queries(call, shared.norms, raw, shared.queries);
    const int tiles = part.tiles();
    if (call.heads.k != nullptr && part.is_newest(tiles - 1))
      write_new(call, part, shared.norms, raw);
    const Part next = part_after(walk, part);
    RawRows<kRowsEach> next_raw;
    if (next.sequence >= 0) {
      read_angles(call.heads, next, next_raw);
      read_rows(call, next, next.tiles() - 1, next_raw);
    }
    clear_sums(sums);
    TENON_NO_UNROLL
    for (int tile = 0; tile < tiles; ++tile) {
      stream_tile(call, part, tile, place, raw, shared, sums);
      place.next(kStreamStages);
    }
    const int slot = slot_number(walk, part);
    if (!walk.in_slots && part.partial > 0) {  // the slot has what is joined so far
      StreamSums<kRowsEach> whole;
      load_sums(call, slot, whole);
      join_sums(whole, sums);
      sync_first_threads<kComputeThreads>();  // all have read the row's maximum and sum
      store_sums(call, slot, whole);
    } else {
      store_sums(call, slot, sums);
    }
    part = next;
    raw = next_raw;
  }
}

template <int kRowsEach>
TENON_KERNEL_RESIDENT(kDecodeThreads, 1)
stream_kernel(TENON_ARGS(Sm90Call) call) {
  using Shared = StreamShared<kRowsEach>;
  TENON_SHARED_TILES(memory);
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const int warp = thread_id() / kWave;
  if (thread_id() == 0) {
    for (int stage = 0; stage < kStreamStages; ++stage) {
      barrier_init(&shared.k_full[stage], 1);
      barrier_init(&shared.v_full[stage], 1);
      barrier_init(&shared.k_empty[stage], kComputeWarps);
      barrier_init(&shared.v_empty[stage], kComputeWarps);
    }
    publish_barriers();
    prefetch_map(&call.k);
    prefetch_map(&call.v);
  }
  sync_wave();
  const NormShare norms = load_norms(call.heads);
  wait_without_heads(call);
  if (warp == 0) read_sequences(call, shared.sequences);
  sync_block();
  const Walk walk{call, shared.sequences, grid_blocks(),
                  shared.sequences.firsts[call.sequences] * call.kv_heads <= call.num_slots,
                  block_id()};
  if (warp < kComputeWarps) {
    compute_stream(walk, norms, shared);
    clear_padding(call);
  } else {
    fetch_stream(walk, shared);
    wait_for_previous();
  }
}

}  // namespace tenon::TENON_TARGET::attention
