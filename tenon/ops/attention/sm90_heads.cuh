// Queries on their way into a decode step, and the step's own key and value: as rope has left them,
// or, where the call asks for it, with the work of rope done here (ops/common/rotary.cuh). A warp
// has a row: lane l its elements l, l + 32, …, so the first two of a lane are a pair of the
// rotation.
#pragma once

#include "tenon/ops/attention/sm90.cuh"
#include "tenon/ops/common/rotary.cuh"

namespace tenon::TENON_TARGET::attention {

struct Part;

inline constexpr int kKeyWarp = 3, kValueWarp = 2;  // of the warps that compute
inline constexpr int kLaneElements = kHeadDim / 32;

// The weights of both head norms, in shared memory.
struct HeadNorms {
  float q[kHeadDim], k[kHeadDim];
};
// A thread's part of them, on its way; of the first kNormThreads of a block. As bits of what the
// tensors hold, so that nobody waits for it here.
inline constexpr int kNormThreads = 128;
struct NormShare {
  static constexpr int kEach = kHeadDim / kNormThreads;
  std::uint32_t q[kEach] = {}, k[kEach] = {};
};
TENON_DEVICE NormShare load_norms(const NewHeads& heads) {
  NormShare share;
  if (heads.k == nullptr || thread_id() >= kNormThreads) return share;
  TENON_UNROLL
  for (int n = 0; n < NormShare::kEach; ++n) {
    const int i = thread_id() + n * kNormThreads;
    const auto load = [&](const void* norm) -> std::uint32_t {
      if (heads.wide_norms) return load_constant(static_cast<const std::uint32_t*>(norm) + i);
      return load_constant(static_cast<const std::uint16_t*>(norm) + i);
    };
    share.q[n] = load(heads.q_norm);
    share.k[n] = load(heads.k_norm);
  }
  return share;
}
TENON_DEVICE void store_norms(const NewHeads& heads, const NormShare& share, HeadNorms& to) {
  TENON_UNROLL
  for (int n = 0; n < NormShare::kEach; ++n) {
    const int i = thread_id() + n * kNormThreads, shift = heads.wide_norms ? 0 : 16;
    to.q[i] = bits_float(share.q[n] << shift);
    to.k[i] = bits_float(share.k[n] << shift);
  }
}

// What a warp reads for a part: its rows of q, and besides k or v of the step's own token; and the
// cosine and the sine of the lane's pair. Rows behind the group are like its first; nobody uses
// what comes of them.
template <int kRowsEach>
struct RawRows {
  std::uint16_t q[kRowsEach][kLaneElements];
  std::uint16_t extra[1][kLaneElements] = {};
  float cosine = 1.0f, sine = 0.0f;
  TENON_HD Word4 value() const {
    return {std::uint32_t{extra[0][0]} | std::uint32_t{extra[0][1]} << 16,
            std::uint32_t{extra[0][2]} | std::uint32_t{extra[0][3]} << 16,
            std::uint32_t{extra[0][4]} | std::uint32_t{extra[0][5]} << 16,
            std::uint32_t{extra[0][6]} | std::uint32_t{extra[0][7]} << 16};
  }
};
TENON_DEVICE void read_row(const bf16* row, std::uint16_t (&to)[kLaneElements]) {
  TENON_UNROLL
  for (int i = 0; i < kLaneElements; ++i) to[i] = row[thread_id() % kWave + 32 * i].bits;
}
// Of the table, which no kernel writes: before the wait too.
template <int kRowsEach, class SomePart>
TENON_DEVICE void read_angles(const NewHeads& heads, const SomePart& part,
                              RawRows<kRowsEach>& raw) {
  if (heads.k == nullptr) return;
  const bool known = part.position >= 0 && part.position < heads.max_positions;
  const float* table = heads.cos_sin + std::int64_t{known ? part.position : 0} * kRotaryDim;
  raw.cosine = load_constant(table + thread_id() % kWave);
  raw.sine = load_constant(table + thread_id() % kWave + 32);
}
template <int kRowsEach, class SomePart>
TENON_DEVICE void read_rows(const Sm90Call& call, const SomePart& part, int rank,
                            RawRows<kRowsEach>& raw) {
  const int warp = thread_id() / kWave, lane = thread_id() % kWave;
  TENON_UNROLL
  for (int i = 0; i < kRowsEach; ++i) {
    const int row = warp + 4 * i < call.group ? warp + 4 * i : 0;
    read_row(call.q + part.token * call.q_token_stride +
                 (part.kv_head * call.group + row) * call.q_head_stride,
             raw.q[i]);
  }
  const NewHeads& heads = call.heads;
  if (heads.k == nullptr || !part.is_newest(rank)) return;
  if (warp == kKeyWarp)
    read_row(heads.k + part.token * heads.k_token_stride + part.kv_head * heads.k_head_stride,
             raw.extra[0]);
  if (warp == kValueWarp) {
    const bf16* v =
        heads.v + part.token * heads.v_token_stride + part.kv_head * heads.v_head_stride + lane * 8;
    TENON_UNROLL
    for (int i = 0; i < kLaneElements; ++i) raw.extra[0][i] = v[i].bits;
  }
}

// Norm and rotation of rows of the warp, as the kernel of rope does them; the rows together, for
// each is a long chain, and with a lane for the root of each.
template <int kRows>
TENON_DEVICE void norm_and_rotate(const NewHeads& heads, const float (&weight)[kHeadDim],
                                  float cosine, float sine,
                                  std::uint16_t (&row)[kRows][kLaneElements]) {
  const int lane = thread_id() % kWave;
  float squares[kRows];
  TENON_UNROLL
  for (int r = 0; r < kRows; ++r) {
    squares[r] = 0.0f;
    TENON_UNROLL
    for (int i = 0; i < kLaneElements; ++i) {
      const float x = to_float(bf16{row[r][i]});
      squares[r] = squares[r] + x * x;
    }
  }
  TENON_UNROLL
  for (int half = 16; half > 0; half /= 2) {
    TENON_UNROLL
    for (int r = 0; r < kRows; ++r) squares[r] = squares[r] + shuffle_xor(squares[r], half);
  }
  float mine = squares[0];
  TENON_UNROLL
  for (int r = 1; r < kRows; ++r) mine = lane == r ? squares[r] : mine;
  const float root = head_rstd(mine, kHeadDim, heads.eps);
  TENON_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const float rstd = shuffle_from(root, r);
    float x[kLaneElements];
    TENON_UNROLL
    for (int i = 0; i < kLaneElements; ++i)
      x[i] = normed_component(to_float(bf16{row[r][i]}), rstd, heads.norm_offset,
                              weight[lane + 32 * i]);
    const RotatedPair pair = rotate_pair(x[0], x[1], cosine, sine);
    row[r][0] = pair.first.bits;
    row[r][1] = pair.second.bits;
    TENON_UNROLL
    for (int i = 2; i < kLaneElements; ++i)  // values of bf16 already
      row[r][i] = static_cast<std::uint16_t>(float_bits(x[i]) >> 16);
  }
}

// The warp's rows of q as they are multiplied, to shared memory.
template <int kRowsEach>
TENON_DEVICE void store_queries(const Sm90Call& call, const HeadNorms& norms,
                                RawRows<kRowsEach>& raw, std::byte* queries) {
  constexpr int kRowBytes = 512 + 16;
  if (call.heads.k != nullptr) norm_and_rotate(call.heads, norms.q, raw.cosine, raw.sine, raw.q);
  TENON_UNROLL
  for (int i = 0; i < kRowsEach; ++i) {
    auto* to =
        reinterpret_cast<std::uint16_t*>(queries + (thread_id() / kWave + 4 * i) * kRowBytes);
    TENON_UNROLL
    for (int e = 0; e < kLaneElements; ++e) to[thread_id() % kWave + 32 * e] = raw.q[i][e];
  }
}

// The place of a token's head in the cache; −1: nowhere.
template <class SomePart>
TENON_DEVICE std::int64_t new_slot(const Sm90Call& call, const SomePart& part) {
  const std::int32_t slot = call.heads.slots[part.token];
  if (slot < 0 || slot >= call.num_blocks * call.block_tokens) return -1;
  return (std::int64_t{slot} * call.kv_heads + part.kv_head) * kHeadDim;
}

// Norm and rotation of the step's own key, which the key's warp has; both own rows to the cache.
// Every warp; to be done while tiles are on their way.
template <int kRowsEach, class SomePart>
TENON_DEVICE void write_new(const Sm90Call& call, const SomePart& part, const HeadNorms& norms,
                            RawRows<kRowsEach>& raw) {
  const int warp = thread_id() / kWave, lane = thread_id() % kWave;
  if (warp != kKeyWarp && warp != kValueWarp) return;
  const std::int64_t slot = new_slot(call, part);
  if (warp == kValueWarp) {
    if (slot >= 0) store16(call.heads.v_cache + slot + lane * 8, raw.value());
    return;
  }
  norm_and_rotate(call.heads, norms.k, raw.cosine, raw.sine, raw.extra);
  if (slot < 0) return;
  TENON_UNROLL
  for (int i = 0; i < kLaneElements; ++i)
    call.heads.k_cache[slot + lane + 32 * i] = bf16{raw.extra[0][i]};
}
// One warp: that key into row `row` of a tile.
TENON_DEVICE void put_key(const std::uint16_t (&key)[1][kLaneElements], std::byte* tile, int row) {
  TENON_UNROLL
  for (int i = 0; i < kLaneElements; ++i) {
    const int at = thread_id() % kWave + 32 * i;
    *reinterpret_cast<std::uint16_t*>(tile + at / 64 * kSlabBytes + slab_place(row, at % 64 / 8) +
                                      at % 8 * 2) = key[0][i];
  }
  fence_async();
}
// One warp: its value; a lane has eight elements.
TENON_DEVICE void put_value(Word4 value, std::byte* tile, int row) {
  const int lane = thread_id() % kWave;
  store16(tile + lane / 8 * kSlabBytes + slab_place(row, lane % 8), value);
  fence_async();
}

}  // namespace tenon::TENON_TARGET::attention
