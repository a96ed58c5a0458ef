// Chunks of 64 tokens by tensor cores, second kernel: S from chunk to chunk. With the formulas of
// chunked.cuh, transposed, so that a wave has 16 columns of S from end to end in registers and what
// one product leaves is an operand of the next one:
//   Rᵀ = beta · (Vᵀ − e^G · Sᵀ·Kᵀ);  Dᵀ = Rᵀ·Tᵀ;  Oᵀ = e^G · Sᵀ·Qᵀ + Dᵀ·Pᵀ
//   Sᵀ ← e^(G_last) · Sᵀ + (e^(G_last − G) · D)ᵀ·K
// S, R, D, T and P are multiplied in two parts of bf16 each, q and k are bf16 as they are.
#pragma once

#include "tenon/ops/gated_delta_net/tiles.cuh"

namespace tenon::TENON_TARGET::gated_delta_net {

inline constexpr int kStateColumns = 64;  // of S in a block: 16 a wave
static_assert(kTileThreads / kWave * 16 == kStateColumns || kWave != 32);

// A chunk in shared memory.
struct StateShared {
  bf16 *q, *k;       // [kTile, kKeyStride]
  bf16* squares[4];  // [kTile, kSquareStride]: T high, low, P high, low
  bf16* v;           // [kTile, kSquareStride]: the block's columns
  float* factors;    // [kTile, kFactors]
};
inline constexpr std::size_t kStateBytes =
    (2 * kTile * kKeyStride + 5 * kTile * kSquareStride) * sizeof(bf16) +
    kTile * kFactors * sizeof(float);
// The next chunk is on its way while one is worked on. The emulators' blocks have room for one.
inline constexpr int kStateStages = kKernelsAreOrdered ? 2 : 1;
inline constexpr std::size_t kStateShared = kStateStages * kStateBytes;

TENON_DEVICE StateShared state_shared(std::byte* memory, int stage) {
  auto* next = reinterpret_cast<bf16*>(memory + stage * kStateBytes);
  StateShared shared{};
  shared.q = next;
  shared.k = next + kTile * kKeyStride;
  next += 2 * kTile * kKeyStride;
  for (bf16*& each : shared.squares) {
    each = next;
    next += kTile * kSquareStride;
  }
  shared.v = next;
  shared.factors = reinterpret_cast<float*>(next + kTile * kSquareStride);
  return shared;
}

TENON_DEVICE void copy_chunk(const KernelArgs& args, const TileChunk& chunk, int v_head,
                             int first_column, const StateShared& to) {
  const int k_head = v_head / (args.v_heads / args.k_heads);
  const bf16* u = u_of(args, chunk.first);
  const std::int64_t stride = args.scratch_stride;
  copy_rows(u + k_head * kDim, stride, chunk.count, kDim / 8, to.q, kKeyStride);
  copy_rows(u + (args.k_heads + k_head) * kDim, stride, chunk.count, kDim / 8, to.k, kKeyStride);
  const bf16* squares = squares_of(args, chunk.first, v_head);
  TENON_UNROLL
  for (int i = 0; i < 4; ++i)
    copy_rows(squares + i * kTile, stride, chunk.count, kTile / 8, to.squares[i], kSquareStride);
  copy_rows(u + (2 * args.k_heads + v_head) * kDim + first_column, stride, chunk.count,
            kStateColumns / 8, to.v, kSquareStride);
  copy_rows(reinterpret_cast<const bf16*>(factors_of(args, chunk.first, v_head)), stride,
            chunk.count, kFactors / 4, reinterpret_cast<bf16*>(to.factors), kFactors * 2);
}

// beta, e^G · k_scale, e^G · q_scale, e^(G_last − G) · k_scale of a token.
struct Factors {
  float of[4];
};
TENON_DEVICE Factors factors_at(const StateShared& chunk, int t) {
  const Word4 words = load16(chunk.factors + t * kFactors);
  return {{bits_float(words.x), bits_float(words.y), bits_float(words.z), bits_float(words.w)}};
}

// 16 columns of S, transposed: tile i has dk from 8 · i on.
using StateTiles = float[kDim / 8][4];
// 16 columns of values of the chunk's tokens, transposed: tile i has the tokens from 8 · i on.
using ValueTiles = float[kTile / 8][4];
// The same as operands: 16 tokens each.
using ValueParts = SplitA[kTile / 16];

TENON_DEVICE void split_values(const ValueTiles& values, ValueParts& to) {
  TENON_UNROLL
  for (int step = 0; step < kTile / 16; ++step)
    to[step] = split_a(values[2 * step], values[2 * step + 1]);
}

// An instruction waits for the one before that adds to the same tile, so all that a loop does to
// its tiles it does to eight of them, or as many as there are, one after the other.

// Sᵀ·Kᵀ and Sᵀ·Qᵀ.
TENON_DEVICE void read_state(const StateShared& chunk, const StateTiles& s, ValueTiles& of_k,
                             ValueTiles& of_q) {
  TENON_UNROLL
  for (int step = 0; step < kDim / 16; ++step) {
    const SplitA a = split_a(s[2 * step], s[2 * step + 1]);
    TENON_UNROLL
    for (int two = 0; two < kTile / 16; two += 2) {  // pairs of tiles
      std::uint32_t k[2][4], q[2][4];
      TENON_UNROLL
      for (int pair = 0; pair < 2; ++pair) {
        const int at = 16 * (two + pair) * kKeyStride + 16 * step;
        load_two_b(chunk.k + at, kKeyStride, k[pair]);
        load_two_b(chunk.q + at, kKeyStride, q[pair]);
      }
      TENON_UNROLL
      for (int part = 0; part < 2; ++part) {
        TENON_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int half = 2 * (i % 2);
          add_product(of_k[2 * two + i], part == 0 ? a.high : a.low, k[i / 2][half],
                      k[i / 2][half + 1]);
          add_product(of_q[2 * two + i], part == 0 ? a.high : a.low, q[i / 2][half],
                      q[i / 2][half + 1]);
        }
      }
    }
  }
}

// to += values · Mᵀ for a lower triangular M in two parts; what both low parts would add is left
// out.
TENON_DEVICE void add_triangular(const ValueParts& values, const bf16* high, const bf16* low,
                                 ValueTiles& to) {
  constexpr int kPairs = kTile / 16;
  TENON_UNROLL
  for (int step = 0; step < kPairs; ++step) {
    std::uint32_t m[2][kPairs][4];
    TENON_UNROLL
    for (int pair = step; pair < kPairs; ++pair) {
      const int at = 16 * pair * kSquareStride + 16 * step;
      load_two_b(high + at, kSquareStride, m[0][pair]);
      load_two_b(low + at, kSquareStride, m[1][pair]);
    }
    TENON_UNROLL
    for (int part = 0; part < 3; ++part) {
      TENON_UNROLL
      for (int tile = 2 * step; tile < 2 * kPairs; ++tile) {
        const std::uint32_t(&b)[4] = m[part == 1 ? 1 : 0][tile / 2];
        add_product(to[tile], part == 2 ? values[step].low : values[step].high, b[2 * (tile % 2)],
                    b[2 * (tile % 2) + 1]);
      }
    }
  }
}

// Sᵀ += valuesᵀ·K.
TENON_DEVICE void add_to_state(const StateShared& chunk, const ValueParts& values, StateTiles& s) {
  TENON_UNROLL
  for (int step = 0; step < kTile / 16; ++step) {
    TENON_UNROLL
    for (int four = 0; four < kDim / 16; four += 4) {  // pairs of tiles
      std::uint32_t k[4][4];
      TENON_UNROLL
      for (int pair = 0; pair < 4; ++pair)
        load_two_b_transposed(chunk.k + 16 * step * kKeyStride + 16 * (four + pair), kKeyStride,
                              k[pair]);
      TENON_UNROLL
      for (int part = 0; part < 2; ++part) {
        TENON_UNROLL
        for (int i = 0; i < 8; ++i)
          add_product(s[2 * four + i], part == 0 ? values[step].high : values[step].low,
                      k[i / 2][2 * (i % 2)], k[i / 2][2 * (i % 2) + 1]);
      }
    }
  }
}

// A chunk: o of its tokens goes to `o`, which is at the wave's columns of the first one, and S
// moves on. `column`: of the wave, within the block.
TENON_DEVICE void step_chunk(const StateShared& chunk, int count, int column, StateTiles& s,
                             bf16* o, std::int64_t o_stride) {
  const int g = lane_id() / 4, q = lane_id() % 4;
  ValueTiles values = {}, out = {};
  read_state(chunk, s, values, out);
  TENON_UNROLL
  for (int tile = 0; tile < kTile / 8; ++tile) {
    TENON_UNROLL
    for (int c = 0; c < 2; ++c) {
      const int t = 8 * tile + 2 * q + c;
      const Factors factors = factors_at(chunk, t);
      TENON_UNROLL
      for (int half = 0; half < 2; ++half) {
        const float v = to_float(chunk.v[t * kSquareStride + column + g + 8 * half]);
        float& value = values[tile][c + 2 * half];
        value = factors.of[0] * (v - factors.of[1] * value);
        out[tile][c + 2 * half] = out[tile][c + 2 * half] * factors.of[2];
      }
    }
  }
  ValueParts parts;
  split_values(values, parts);
  ValueTiles d = {};
  add_triangular(parts, chunk.squares[0], chunk.squares[1], d);
  split_values(d, parts);
  add_triangular(parts, chunk.squares[2], chunk.squares[3], out);
  TENON_UNROLL
  for (int tile = 0; tile < kTile / 8; ++tile) {
    TENON_UNROLL
    for (int c = 0; c < 2; ++c) {
      const int t = 8 * tile + 2 * q + c;
      const float left = factors_at(chunk, t).of[3];
      TENON_UNROLL
      for (int half = 0; half < 2; ++half) {
        if (t < count) o[t * o_stride + g + 8 * half] = to_bf16(out[tile][c + 2 * half]);
        d[tile][c + 2 * half] = d[tile][c + 2 * half] * left;
      }
    }
  }
  const float decay = chunk.factors[(count - 1) * kFactors + 4];
  TENON_UNROLL
  for (int tile = 0; tile < kDim / 8; ++tile) {
    TENON_UNROLL
    for (int at = 0; at < 4; ++at) s[tile][at] = s[tile][at] * decay;
  }
  split_values(d, parts);
  add_to_state(chunk, parts, s);
}

// All chunks of one sequence, for kStateColumns columns of one v head.
TENON_DEVICE void run_tiles(const KernelArgs& args, const Sequence& sequence, int v_head,
                            int first_column, std::byte* memory) {
  const int g = lane_id() / 4, q = lane_id() % 4, column = 16 * wave_id();
  const auto chunk_from = [&](int first) {
    const int left = sequence.end - first;
    return TileChunk{first, left < kTile ? left : kTile};
  };
  // Where element `at` of tile `tile` of S lies in a slot.
  const auto place = [&](int tile, int at) {
    return (8 * tile + 2 * q + at % 2) * kDim + first_column + column + g + 8 * (at / 2);
  };
  if constexpr (kStateStages > 1)
    copy_chunk(args, chunk_from(sequence.begin), v_head, first_column, state_shared(memory, 0));
  const float* from = state_of(args, sequence.from, v_head);
  StateTiles s;
  TENON_UNROLL
  for (int tile = 0; tile < kDim / 8; ++tile) {
    TENON_UNROLL
    for (int at = 0; at < 4; ++at) s[tile][at] = from == nullptr ? 0.0f : from[place(tile, at)];
  }
  int stage = 0;
  for (int first = sequence.begin; first < sequence.end; first += kTile) {
    const TileChunk chunk = chunk_from(first);
    if constexpr (kStateStages == 1) {
      sync_block();  // the readers of the last chunk are done
      copy_chunk(args, chunk, v_head, first_column, state_shared(memory, 0));
    }
    await_copies();
    sync_block();  // of all threads; and the readers of the last chunk are done
    if (kStateStages > 1 && first + kTile < sequence.end)
      copy_chunk(args, chunk_from(first + kTile), v_head, first_column,
                 state_shared(memory, 1 - stage));
    step_chunk(state_shared(memory, stage), chunk.count, column, s,
               o_of(args, first, v_head) + first_column + column, args.scratch_stride);
    if constexpr (kStateStages > 1) stage = 1 - stage;
  }
  float* to = state_of(args, sequence.to, v_head);
  if (to == nullptr) return;
  TENON_UNROLL
  for (int tile = 0; tile < kDim / 8; ++tile) {
    TENON_UNROLL
    for (int at = 0; at < 4; ++at) to[place(tile, at)] = s[tile][at];
  }
}

}  // namespace tenon::TENON_TARGET::gated_delta_net
