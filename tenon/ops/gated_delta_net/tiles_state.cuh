// Chunks of 64 tokens by tensor cores, second kernel: S from chunk to chunk. With the formulas of
// chunked.cuh, transposed, so that a wave has 16 columns of S from end to end in registers and what
// one product leaves is an operand of the next one:
//   Rᵀ = beta · (Vᵀ − e^G · Sᵀ·Kᵀ);  Dᵀ = Rᵀ·Tᵀ;  Oᵀ = e^G · Sᵀ·Qᵀ + Dᵀ·Pᵀ
//   Sᵀ ← e^(G_last) · Sᵀ + (e^(G_last − G) · D)ᵀ·K
// S, R, D, T and P are multiplied in two parts of bf16 each, q and k are bf16 as they are.
//
// Time is that of the chain over the chunks. So only what is on it is done by the four waves that
// have S. Four others make o, one chunk behind, of the operands S and D that the first four leave
// in shared memory, and copy the next chunk there.
#pragma once

#include "tenon/ops/gated_delta_net/tiles.cuh"

namespace tenon::TENON_TARGET::gated_delta_net {

inline constexpr int kStateColumns = 64;  // of S in a block: 16 for each wave of a role
inline constexpr int kStateThreads = 2 * kTileThreads;
inline constexpr int kDimSteps = kDim / 16, kTileSteps = kTile / 16;  // of products over them

// What the waves of S read of a chunk.
struct KeyShared {
  bf16* k;                   // [kTile, kKeyStride]
  bf16 *t_high, *t_low, *v;  // [kTile, kSquareStride]; v: the block's columns
  float* factors;            // [kTile, kFactors]
};
inline constexpr std::size_t kKeyBytes =
    (kTile * kKeyStride + 3 * kTile * kSquareStride) * sizeof(bf16) +
    kTile * kFactors * sizeof(float);
// And those of o.
struct QueryShared {
  bf16* q;               // [kTile, kKeyStride]
  bf16 *p_high, *p_low;  // [kTile, kSquareStride]
  float* factors;        // [kTile, kFactors]
};
inline constexpr std::size_t kQueryBytes =
    (kTile * kKeyStride + 2 * kTile * kSquareStride) * sizeof(bf16) +
    kTile * kFactors * sizeof(float);
// S and D as operands, of each wave: [step, part, lane].
inline constexpr std::size_t kOperandBytes = (kDimSteps + kTileSteps) * 2 * 32 * sizeof(Word4);
// Two chunks of each, for one is on its way while one is worked on.
inline constexpr std::size_t kStateShared =
    2 * (kKeyBytes + kQueryBytes) + kStateColumns / 16 * kOperandBytes;

TENON_DEVICE KeyShared keys_at(std::byte* memory, int stage) {
  KeyShared shared{};
  shared.k = reinterpret_cast<bf16*>(memory + stage * kKeyBytes);
  shared.t_high = shared.k + kTile * kKeyStride;
  shared.t_low = shared.t_high + kTile * kSquareStride;
  shared.v = shared.t_low + kTile * kSquareStride;
  shared.factors = reinterpret_cast<float*>(shared.v + kTile * kSquareStride);
  return shared;
}
TENON_DEVICE QueryShared queries_at(std::byte* memory, int stage) {
  QueryShared shared{};
  shared.q = reinterpret_cast<bf16*>(memory + 2 * kKeyBytes + stage * kQueryBytes);
  shared.p_high = shared.q + kTile * kKeyStride;
  shared.p_low = shared.p_high + kTile * kSquareStride;
  shared.factors = reinterpret_cast<float*>(shared.p_low + kTile * kSquareStride);
  return shared;
}
// Of the lane.
TENON_DEVICE Word4* operands_of(std::byte* memory, int wave) {
  std::byte* all = memory + 2 * (kKeyBytes + kQueryBytes) + wave * kOperandBytes;
  return reinterpret_cast<Word4*>(all) + lane_id();
}

// A sequence's chunks as a block sees them.
struct Chain {
  int begin, end, v_head, first_column;
  TENON_HD int chunks() const { return (end - begin + kTile - 1) / kTile; }
  TENON_HD TileChunk at(int i) const {
    const int first = begin + i * kTile;
    return {first, end - first < kTile ? end - first : kTile};
  }
};

// By the waves of o. Rows behind the sequence become zeros.
TENON_DEVICE void copy_keys(const KernelArgs& args, const Chain& chain, int i,
                            const KeyShared& to) {
  const TileChunk chunk = chain.at(i);
  const int k_head = chain.v_head / (args.v_heads / args.k_heads);
  const std::int64_t stride = args.scratch_stride;
  const bf16* u = u_of(args, chunk.first);
  const bf16* squares = squares_of(args, chunk.first, chain.v_head);
  copy_rows<kDim / 8>(u + (args.k_heads + k_head) * kDim, stride, chunk.count, to.k, kKeyStride);
  copy_rows<kTile / 8>(squares, stride, chunk.count, to.t_high, kSquareStride);
  copy_rows<kTile / 8>(squares + kTile, stride, chunk.count, to.t_low, kSquareStride);
  copy_rows<kStateColumns / 8>(u + (2 * args.k_heads + chain.v_head) * kDim + chain.first_column,
                               stride, chunk.count, to.v, kSquareStride);
  copy_rows<kFactors / 4>(
      reinterpret_cast<const bf16*>(factors_of(args, chunk.first, chain.v_head)), stride,
      chunk.count, reinterpret_cast<bf16*>(to.factors), kFactors * 2);
}
TENON_DEVICE void copy_queries(const KernelArgs& args, const Chain& chain, int i,
                               const QueryShared& to) {
  const TileChunk chunk = chain.at(i);
  const int k_head = chain.v_head / (args.v_heads / args.k_heads);
  const std::int64_t stride = args.scratch_stride;
  const bf16* squares = squares_of(args, chunk.first, chain.v_head) + 2 * kTile;
  copy_rows<kDim / 8>(u_of(args, chunk.first) + k_head * kDim, stride, chunk.count, to.q,
                      kKeyStride);
  copy_rows<kTile / 8>(squares, stride, chunk.count, to.p_high, kSquareStride);
  copy_rows<kTile / 8>(squares + kTile, stride, chunk.count, to.p_low, kSquareStride);
  copy_rows<kFactors / 4>(
      reinterpret_cast<const bf16*>(factors_of(args, chunk.first, chain.v_head)), stride,
      chunk.count, reinterpret_cast<bf16*>(to.factors), kFactors * 2);
}

// beta, e^G · k_scale, e^G · q_scale, e^(G_last − G) · k_scale of a token.
struct Factors {
  float of[4];
};
TENON_DEVICE Factors factors_at(const float* factors, int t) {
  const Word4 words = load16(factors + t * kFactors);
  return {{bits_float(words.x), bits_float(words.y), bits_float(words.z), bits_float(words.w)}};
}

// 16 columns of S, transposed: tile i has dk from 8 · i on.
using StateTiles = float[kDim / 8][4];
// 16 columns of values of the chunk's tokens, transposed: tile i has the tokens from 8 · i on.
using ValueTiles = float[kTile / 8][4];
// The same as operands: 16 tokens each.
using ValueParts = SplitA[kTileSteps];

TENON_DEVICE void split_values(const ValueTiles& values, ValueParts& to) {
  TENON_UNROLL
  for (int step = 0; step < kTileSteps; ++step)
    to[step] = split_a(values[2 * step], values[2 * step + 1]);
}

// An operand of step `step`, to or from shared memory.
TENON_DEVICE void store_operand(const SplitA& a, int step, Word4* to) {
  store16(to + 64 * step, Word4{a.high[0], a.high[1], a.high[2], a.high[3]});
  store16(to + 64 * step + 32, Word4{a.low[0], a.low[1], a.low[2], a.low[3]});
}
TENON_DEVICE SplitA load_operand(const Word4* from, int step) {
  const Word4 high = load16(from + 64 * step), low = load16(from + 64 * step + 32);
  return {{high.x, high.y, high.z, high.w}, {low.x, low.y, low.z, low.w}};
}

// An instruction waits for the one before that adds to the same tile, so what a loop does to its
// tiles it does to eight of them, or as many as there are, one after the other.

// to += a · Mᵀ, M the rows of a chunk's k or q, for one step over dk.
TENON_DEVICE void add_rows_product(const SplitA& a, const bf16* rows, int step, ValueTiles& to) {
  std::uint32_t m[kTileSteps][4];
  TENON_UNROLL
  for (int pair = 0; pair < kTileSteps; ++pair)
    load_two_b(rows + 16 * pair * kKeyStride + 16 * step, kKeyStride, m[pair]);
  TENON_UNROLL
  for (int part = 0; part < 2; ++part) {
    TENON_UNROLL
    for (int tile = 0; tile < 2 * kTileSteps; ++tile)
      add_product(to[tile], part == 0 ? a.high : a.low, m[tile / 2][2 * (tile % 2)],
                  m[tile / 2][2 * (tile % 2) + 1]);
  }
}

// to += values · Mᵀ for a lower triangular M in two parts; what both low parts would add is left
// out.
TENON_DEVICE void add_triangular(const ValueParts& values, const bf16* high, const bf16* low,
                                 ValueTiles& to) {
  TENON_UNROLL
  for (int step = 0; step < kTileSteps; ++step) {
    std::uint32_t m[2][kTileSteps][4];
    TENON_UNROLL
    for (int pair = step; pair < kTileSteps; ++pair) {
      const int at = 16 * pair * kSquareStride + 16 * step;
      load_two_b(high + at, kSquareStride, m[0][pair]);
      load_two_b(low + at, kSquareStride, m[1][pair]);
    }
    TENON_UNROLL
    for (int part = 0; part < 3; ++part) {
      TENON_UNROLL
      for (int tile = 2 * step; tile < 2 * kTileSteps; ++tile) {
        const std::uint32_t(&b)[4] = m[part == 1 ? 1 : 0][tile / 2];
        add_product(to[tile], part == 2 ? values[step].low : values[step].high, b[2 * (tile % 2)],
                    b[2 * (tile % 2) + 1]);
      }
    }
  }
}

// Sᵀ += valuesᵀ·K.
TENON_DEVICE void add_to_state(const bf16* k, const ValueParts& values, StateTiles& s) {
  TENON_UNROLL
  for (int step = 0; step < kTileSteps; ++step) {
    TENON_UNROLL
    for (int four = 0; four < kDimSteps; four += 4) {  // pairs of tiles
      std::uint32_t b[4][4];
      TENON_UNROLL
      for (int pair = 0; pair < 4; ++pair)
        load_two_b_transposed(k + 16 * step * kKeyStride + 16 * (four + pair), kKeyStride, b[pair]);
      TENON_UNROLL
      for (int part = 0; part < 2; ++part) {
        TENON_UNROLL
        for (int i = 0; i < 8; ++i)
          add_product(s[2 * four + i], part == 0 ? values[step].high : values[step].low,
                      b[i / 2][2 * (i % 2)], b[i / 2][2 * (i % 2) + 1]);
      }
    }
  }
}

// A chunk by a wave of S, whose columns of v are at `column`. S moves on; S as it was and D stay in
// `operands`.
TENON_DEVICE void step_state(const KeyShared& chunk, int count, int column, StateTiles& s,
                             Word4* operands) {
  const int g = lane_id() / 4, q = lane_id() % 4;
  ValueTiles values = {};
  TENON_UNROLL
  for (int step = 0; step < kDimSteps; ++step) {
    const SplitA a = split_a(s[2 * step], s[2 * step + 1]);
    store_operand(a, step, operands);
    add_rows_product(a, chunk.k, step, values);
  }
  TENON_UNROLL
  for (int tile = 0; tile < kTile / 8; ++tile) {
    TENON_UNROLL
    for (int c = 0; c < 2; ++c) {
      const int t = 8 * tile + 2 * q + c;
      const Factors factors = factors_at(chunk.factors, t);
      TENON_UNROLL
      for (int half = 0; half < 2; ++half) {
        const float v = to_float(chunk.v[t * kSquareStride + column + g + 8 * half]);
        float& value = values[tile][c + 2 * half];
        value = factors.of[0] * (v - factors.of[1] * value);
      }
    }
  }
  ValueParts parts;
  split_values(values, parts);
  ValueTiles d = {};
  add_triangular(parts, chunk.t_high, chunk.t_low, d);
  split_values(d, parts);
  TENON_UNROLL
  for (int step = 0; step < kTileSteps; ++step)
    store_operand(parts[step], kDimSteps + step, operands);
  TENON_UNROLL
  for (int tile = 0; tile < kTile / 8; ++tile) {
    TENON_UNROLL
    for (int c = 0; c < 2; ++c) {
      const float left = chunk.factors[(8 * tile + 2 * q + c) * kFactors + 3];
      d[tile][c] = d[tile][c] * left;
      d[tile][c + 2] = d[tile][c + 2] * left;
    }
  }
  split_values(d, parts);
  const float decay = chunk.factors[(count - 1) * kFactors + 4];
  TENON_UNROLL
  for (int tile = 0; tile < kDim / 8; ++tile) {
    TENON_UNROLL
    for (int at = 0; at < 4; ++at) s[tile][at] = s[tile][at] * decay;
  }
  add_to_state(chunk.k, parts, s);
}

// What a wave of o takes of a chunk from the wave of S with the same columns.
struct Operands {
  SplitA s[kDimSteps], d[kTileSteps];
};
// o of a chunk, to the wave's columns of the first token's row.
TENON_DEVICE void step_outputs(const QueryShared& chunk, int count, const Operands& operands,
                               bf16* o, std::int64_t o_stride) {
  const int g = lane_id() / 4, q = lane_id() % 4;
  ValueTiles out = {};
  TENON_UNROLL
  for (int step = 0; step < kDimSteps; ++step)
    add_rows_product(operands.s[step], chunk.q, step, out);
  TENON_UNROLL
  for (int tile = 0; tile < kTile / 8; ++tile) {
    TENON_UNROLL
    for (int c = 0; c < 2; ++c) {
      const float grown = chunk.factors[(8 * tile + 2 * q + c) * kFactors + 2];
      out[tile][c] = out[tile][c] * grown;
      out[tile][c + 2] = out[tile][c + 2] * grown;
    }
  }
  add_triangular(operands.d, chunk.p_high, chunk.p_low, out);
  bf16* row = o + 2 * q * o_stride + g;
  TENON_UNROLL
  for (int tile = 0; tile < kTile / 8; ++tile) {
    TENON_UNROLL
    for (int c = 0; c < 2; ++c) {
      if (8 * tile + 2 * q + c < count) {
        row[0] = to_bf16(out[tile][c]);
        row[8] = to_bf16(out[tile][c + 2]);
      }
      row += c == 0 ? o_stride : 7 * o_stride;
    }
  }
}

// The barrier of both roles. In round i, the first: what was copied for the round is there, and so
// are the operands of chunk i − 1. The second: those have been read.
TENON_DEVICE void meet() { sync_roles(); }

TENON_DEVICE void run_state(const KernelArgs& args, const Sequence& sequence, const Chain& chain,
                            std::byte* memory) {
  const int g = lane_id() / 4, q = lane_id() % 4, column = 16 * wave_id();
  // Where element `at` of tile `tile` of S lies in a slot.
  const auto place = [&](int tile, int at) {
    return (8 * tile + 2 * q + at % 2) * kDim + chain.first_column + column + g + 8 * (at / 2);
  };
  const float* from = state_of(args, sequence.from, chain.v_head);
  StateTiles s;
  TENON_UNROLL
  for (int tile = 0; tile < kDim / 8; ++tile) {
    TENON_UNROLL
    for (int at = 0; at < 4; ++at) s[tile][at] = from == nullptr ? 0.0f : from[place(tile, at)];
  }
  const int chunks = chain.chunks();
  TENON_NO_UNROLL
  for (int i = 0; i <= chunks; ++i) {
    meet();
    meet();
    if (i < chunks)
      step_state(keys_at(memory, i % 2), chain.at(i).count, column, s,
                 operands_of(memory, wave_id()));
  }
  float* to = state_of(args, sequence.to, chain.v_head);
  if (to == nullptr) return;
  TENON_UNROLL
  for (int tile = 0; tile < kDim / 8; ++tile) {
    TENON_UNROLL
    for (int at = 0; at < 4; ++at) to[place(tile, at)] = s[tile][at];
  }
}

TENON_DEVICE void run_outputs(const KernelArgs& args, const Chain& chain, std::byte* memory) {
  const int wave = wave_id() - kTileThreads / kWave, chunks = chain.chunks();
  copy_keys(args, chain, 0, keys_at(memory, 0));
  TENON_NO_UNROLL
  for (int i = 0; i <= chunks; ++i) {
    await_copies();
    meet();
    Operands operands;
    if (i > 0) {
      const Word4* from = operands_of(memory, wave);
      TENON_UNROLL
      for (int step = 0; step < kDimSteps; ++step) operands.s[step] = load_operand(from, step);
      TENON_UNROLL
      for (int step = 0; step < kTileSteps; ++step)
        operands.d[step] = load_operand(from, kDimSteps + step);
    }
    meet();
    if (i + 1 < chunks) copy_keys(args, chain, i + 1, keys_at(memory, (i + 1) % 2));
    if (i < chunks) copy_queries(args, chain, i, queries_at(memory, i % 2));
    if (i == 0) continue;
    const TileChunk chunk = chain.at(i - 1);
    step_outputs(queries_at(memory, (i - 1) % 2), chunk.count, operands,
                 o_of(args, chunk.first, chain.v_head) + chain.first_column + 16 * wave,
                 args.scratch_stride);
  }
}

}  // namespace tenon::TENON_TARGET::gated_delta_net
