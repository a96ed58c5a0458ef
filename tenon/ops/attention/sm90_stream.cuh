// Attention of sequences with one token in the step, where there are many: a block works on a whole
// partial, one tile after the other, with the bits of decode_kernel. Blocks of a cluster would wait
// for each other behind the tiles that all of them have asked for. Every result goes to a slot and
// is ended by join_kernel; where slots are too few a block walks over all partials of a sequence
// and leaves one result.
#pragma once

#include "tenon/ops/attention/sm90_decode.cuh"

namespace tenon::TENON_TARGET::attention {

// The warp that fetches tiles, one thread.
template <int kRowsEach>
TENON_DEVICE void fetch_stream(Walk walk, DecodeShared<kRowsEach>& shared) {
  const Sm90Call& call = walk.call;
  std::uint32_t uses = 0;
  TENON_NO_UNROLL
  for (Part part = find_part(walk); part.sequence >= 0; part = part_after(walk, part)) {
    int row = cache_row(call, part.sequence, part.partial * kPartial);
    const int tiles = part.tiles();
    TENON_NO_UNROLL
    for (int tile = 0; tile < tiles; ++tile) {
      if (uses > 0) barrier_wait(&shared.k_empty, (uses - 1) % 2);
      fetch_tile(part, &call.k, row, shared.k, &shared.k_full);
      const int next = tile + 1 < tiles ? cache_row(call, part.sequence,
                                                    part.partial * kPartial + (tile + 1) * kTile)
                                        : 0;
      if (uses > 0) barrier_wait(&shared.v_empty, (uses - 1) % 2);
      fetch_tile(part, &call.v, row, shared.v, &shared.v_full);
      row = next;
      ++uses;
    }
  }
}

// Of the thread's rows g + 8 h: sums, and o[j][2 h + c] of component 64 · warp + 8 j + 2 p + c.
template <int kRowsEach>
struct StreamSums {
  static constexpr int kHalves = kRowsEach / 2;
  float peak[kHalves], total[kHalves], o[8][2 * kHalves];
};
template <int kRowsEach>
TENON_DEVICE void clear(StreamSums<kRowsEach>& sums) {
  TENON_UNROLL
  for (int h = 0; h < kRowsEach / 2; ++h) sums.peak[h] = -kInfinity, sums.total[h] = 0.0f;
  TENON_UNROLL
  for (auto& row : sums.o)
    for (float& each : row) each = 0.0f;
}
// As join() of Sums.
template <int kRowsEach>
TENON_DEVICE void join_stream(StreamSums<kRowsEach>& whole, const StreamSums<kRowsEach>& next) {
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
template <int kRowsEach>
TENON_DEVICE void store_stream(const Sm90Call& call, int slot, const StreamSums<kRowsEach>& sums) {
  const int lane = thread_id() % kWave, warp = thread_id() / kWave, g = lane / 4, p = lane % 4;
  TENON_UNROLL
  for (int h = 0; h < kRowsEach / 2; ++h) {
    const int row = g + 8 * h, local = row % kRowsEach;
    std::byte* to = slot_of(call, slot, row / kRowsEach, kRowsEach);
    TENON_UNROLL
    for (int pair = 0; pair < 4; ++pair)
      reinterpret_cast<float4*>(to)[local * 64 + warp * 16 + pair * 4 + p] = {
          sums.o[2 * pair][2 * h], sums.o[2 * pair][2 * h + 1], sums.o[2 * pair + 1][2 * h],
          sums.o[2 * pair + 1][2 * h + 1]};
    if (warp != 0 || p != 0) continue;
    auto* rows = reinterpret_cast<float*>(to + kRowsEach * 1024);
    rows[local] = sums.peak[h];
    rows[kRowsEach + local] = sums.total[h];
  }
}

template <int kRowsEach>
TENON_DEVICE void load_stream(const Sm90Call& call, int slot, StreamSums<kRowsEach>& sums) {
  const int lane = thread_id() % kWave, warp = thread_id() / kWave, g = lane / 4, p = lane % 4;
  TENON_UNROLL
  for (int h = 0; h < kRowsEach / 2; ++h) {
    const int row = g + 8 * h, local = row % kRowsEach;
    const std::byte* from = slot_of(call, slot, row / kRowsEach, kRowsEach);
    TENON_UNROLL
    for (int pair = 0; pair < 4; ++pair) {
      const float4 o = reinterpret_cast<const float4*>(from)[local * 64 + warp * 16 + pair * 4 + p];
      sums.o[2 * pair][2 * h] = o.x;
      sums.o[2 * pair][2 * h + 1] = o.y;
      sums.o[2 * pair + 1][2 * h] = o.z;
      sums.o[2 * pair + 1][2 * h + 1] = o.w;
    }
    const auto* rows = reinterpret_cast<const float*>(from + kRowsEach * 1024);
    sums.peak[h] = rows[local];
    sums.total[h] = rows[kRowsEach + local];
  }
}

// One tile of a part.
template <int kRowsEach>
TENON_DEVICE void stream_tile(const Sm90Call& call, const Part& part, int tile, std::uint32_t use,
                              const RawRows<kRowsEach>& raw, DecodeShared<kRowsEach>& shared,
                              StreamSums<kRowsEach>& sums) {
  const int lane = thread_id() % kWave, warp = thread_id() / kWave, g = lane / 4;
  const int visible = part.visible(tile);
  const bool adds = call.heads.k != nullptr && part.is_newest(tile);
  barrier_wait(&shared.k_full, use % 2);
  if (adds && warp == kKeyWarp)
    store_key(call, part, shared.norms, raw.extra, raw.cosine, raw.sine, shared.k, visible - 1);
  sync_first_threads<kComputeThreads>();  // q and the new key are there
  float score[2][4];
  score_tile(call, shared, visible, score);
  if (lane == 0) barrier_arrive(&shared.k_empty);
  TENON_UNROLL
  for (int h = 0; h < 2; ++h) {
    const float most = quad_max(max_f(max_f(score[0][2 * h], score[0][2 * h + 1]),
                                      max_f(score[1][2 * h], score[1][2 * h + 1])));
    if (lane % 4 == 0) shared.warp_peaks[warp][g + 8 * h] = most;
  }
  sync_first_threads<kComputeThreads>();
  float rescale[kRowsEach / 2];
  TENON_UNROLL
  for (int h = 0; h < kRowsEach / 2; ++h) {
    const int row = g + 8 * h;
    const float most = max_f(max_f(shared.warp_peaks[0][row], shared.warp_peaks[1][row]),
                             max_f(shared.warp_peaks[2][row], shared.warp_peaks[3][row]));
    const float peak = max_f(sums.peak[h], most);
    rescale[h] = fast_exp2(sums.peak[h] - base_of(peak));
    sums.peak[h] = peak;
    weigh_row(shared, h, base_of(peak), score);
  }
  if (visible < kTile || adds) {
    barrier_wait(&shared.v_full, use % 2);
    clear_tail(shared.v, 4, visible, thread_id(), kComputeThreads);
    if (adds && warp == kValueWarp) store_value(call, part, raw.value(), shared.v, visible - 1);
  }
  sync_first_threads<kComputeThreads>();
  barrier_wait(&shared.v_full, use % 2);
  float sum[8][4] = {};
  add_values(shared, sum);
  sync_wave();
  if (lane == 0) barrier_arrive(&shared.v_empty);
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
TENON_DEVICE void compute_stream(Walk walk, DecodeShared<kRowsEach>& shared) {
  const Sm90Call& call = walk.call;
  Part part = find_part(walk);
  RawRows<kRowsEach> raw;
  if (part.sequence >= 0) raw = read_rows<kRowsEach>(call, part, part.tiles() - 1);
  std::uint32_t uses = 0;
  StreamSums<kRowsEach> sums;
  TENON_NO_UNROLL
  while (part.sequence >= 0) {
    const Part next = part_after(walk, part);
    clear(sums);
    store_queries<kRowsEach>(call, part, shared.norms, raw, shared.queries);
    const int tiles = part.tiles();
    TENON_NO_UNROLL
    for (int tile = 0; tile < tiles; ++tile, ++uses)
      stream_tile(call, part, tile, uses, raw, shared, sums);
    if (next.sequence >= 0) raw = read_rows<kRowsEach>(call, next, next.tiles() - 1);
    if (walk.in_slots) {
      store_stream(
          call,
          (walk.sequences.firsts[part.sequence] + part.partial) * call.kv_heads + part.kv_head,
          sums);
    } else {
      // The slot has what is joined so far.
      const int slot = part.sequence * call.kv_heads + part.kv_head;
      StreamSums<kRowsEach> whole;
      clear(whole);
      if (part.partial > 0) load_stream(call, slot, whole);
      join_stream(whole, sums);
      sync_first_threads<kComputeThreads>();
      store_stream(call, slot, whole);
    }
    sync_first_threads<kComputeThreads>();  // q has been read
    part = next;
  }
}

template <int kRowsEach>
TENON_KERNEL_RESIDENT(kDecodeThreads, 2)
stream_kernel(TENON_ARGS(Sm90Call) call) {
  using Shared = DecodeShared<kRowsEach>;
  TENON_SHARED_TILES(memory);
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const int warp = thread_id() / kWave;
  if (thread_id() == 0) {
    for (Mbarrier* each : {&shared.k_full, &shared.v_full}) barrier_init(each, 1);
    for (Mbarrier* each : {&shared.k_empty, &shared.v_empty}) barrier_init(each, kComputeWarps);
    publish_barriers();
    prefetch_map(&call.k);
    prefetch_map(&call.v);
  }
  sync_wave();
  read_norms(call.heads, shared.norms);
  wait_for_previous();
  if (thread_id() == 0) let_next_start();
  sync_wave();
  if (warp == 0) read_sequences(call, shared.sequences);
  sync_block();
  leave_firsts(call, shared.sequences);
  const Walk walk{call, shared.sequences, grid_blocks(),
                  shared.sequences.firsts[call.sequences] * call.kv_heads <= call.num_slots,
                  block_id()};
  if (warp < kComputeWarps) {
    compute_stream(walk, shared);
    clear_padding(call);
  } else if (thread_id() == kComputeThreads) {
    fetch_stream(walk, shared);
  }
}

}  // namespace tenon::TENON_TARGET::attention
