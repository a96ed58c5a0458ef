// The recurrence of one token in one kernel, from the rows of the projection to the outputs:
// convolution, norms, gates, delta rule, gated norm, quantisation, new states. Bits are those of
// conv_kernel, recurrent_kernel and finish_kernel one after another.
//
// A block has one v head of one sequence, and a thread of each team one column of S. S is on its
// way into shared memory, or with its last rows into registers, while the convolution and the norms
// are computed, and is read there twice and written out once. Where both are too small, it is read
// from global memory. What one sequence costs is a chain of short steps: two teams share them; one
// does all where kTeams is 1 (HeadForm).
//
// Blocks whose v heads share a k head all compute its convolution. None of them may write what
// another one reads: that is why a slot keeps one input more than the convolution looks back, so
// that the place of the new one holds an input that nobody reads any more.
#pragma once

#include "tenon/device/copy.cuh"
#include "tenon/device/reduce.cuh"
#include "tenon/ops/gated_delta_net/rows.cuh"

namespace tenon::TENON_TARGET::gated_delta_net {

// Rows of S for which a block has shared memory or registers: all on CUDA, none where a block has
// 64 KiB of shared memory, as on HIP; and half of them on emu32, so that both ways are met.
inline constexpr int kHeldRows = kWave != 32 ? 0 : kKernelsAreOrdered ? kDim : kDim / 2;
constexpr std::size_t decode_shared(int held_rows) { return held_rows * kDim * sizeof(float); }

// Whether the thread's team does the first part (q, k, Sᵀk) or the second (v, gates, Sᵀq); a single
// team does both.
template <int kTeams>
TENON_DEVICE bool does(int part) {
  return kTeams == 1 || thread_id() / kDim == part;
}
TENON_DEVICE int own_column() { return thread_id() % kDim; }

// The channels of a column in a row of qkv: of q, of k and of v; and whose part they are.
TENON_DEVICE int part_of(int channel) { return channel == 2 ? 1 : 0; }
struct Channels {
  int of[3];
};
TENON_DEVICE Channels channels_of(const KernelArgs& args, int v_head) {
  const int k_head = v_head / (args.v_heads / args.k_heads);
  return {{k_head * kDim + own_column(), (args.k_heads + k_head) * kDim + own_column(),
           (2 * args.k_heads + v_head) * kDim + own_column()}};
}

// Of the convolution, for these channels.
struct Weights {
  bf16 of[3][4];
};
TENON_DEVICE Weights load_weights(const KernelArgs& args, const Channels& channels) {
  Weights weights;
  TENON_UNROLL
  for (int c = 0; c < 3; ++c)
    for (int tap = 0; tap < 4; ++tap)
      weights.of[c][tap] = load_constant(args.conv_weight + std::int64_t{channels.of[c]} * 4 + tap);
  return weights;
}

// What the convolution reads of the thread's channels, by lag.
struct Inputs {
  bf16 of[kHistory + 1][3];
};
// Those of earlier steps.
template <int kTeams>
TENON_DEVICE void load_kept_inputs(const KernelArgs& args, const Sequence& sequence,
                                   const Channels& channels, Inputs& inputs) {
  TENON_UNROLL
  for (int lag = 1; lag <= kHistory; ++lag) {
    const bf16* row = input_row(args, sequence, -lag);
    TENON_UNROLL
    for (int c = 0; c < 3; ++c)
      inputs.of[lag][c] = row != nullptr && does<kTeams>(part_of(c))
                              ? load_constant(row + channels.of[c])
                              : bf16{0};
  }
}
// Where the rows of this step have what the thread needs, in elements.
struct Places {
  std::int64_t qkv[3], z, a, b;
};
TENON_DEVICE Places places_of(const KernelArgs& args, int token, int v_head,
                              const Channels& channels) {
  Places at{};
  TENON_UNROLL
  for (int c = 0; c < 3; ++c) {
    at.qkv[c] = token * args.qkv_stride + channels.of[c];
    hold(at.qkv[c]);
  }
  at.z = token * args.z_stride + v_head * kDim + own_column();
  at.a = token * args.a_stride + v_head;
  at.b = token * args.b_stride + v_head;
  hold(at.z);
  hold(at.a);
  hold(at.b);
  return at;
}
template <int kTeams>
TENON_DEVICE void load_new_input(const KernelArgs& args, const Places& at, Inputs& inputs) {
  TENON_UNROLL
  for (int c = 0; c < 3; ++c)
    inputs.of[0][c] = does<kTeams>(part_of(c)) ? args.qkv[at.qkv[c]] : bf16{0};
}
// The new input goes to its place; the others too where the sequence moves to another slot. One
// block of those that share a k head writes its channels.
template <int kTeams>
TENON_DEVICE void keep_own_inputs(const KernelArgs& args, const Sequence& sequence, int v_head,
                                  const Channels& channels, const Inputs& inputs) {
  if (sequence.to < 0) return;
  const bool writes_key = v_head % (args.v_heads / args.k_heads) == 0;
  TENON_UNROLL
  for (int lag = 0; lag <= kHistory; ++lag) {
    if (lag > 0 && sequence.from == sequence.to) return;
    bf16* kept = kept_row(args, sequence.to, sequence.position - lag);
    TENON_UNROLL
    for (int c = 0; c < 3; ++c)
      if ((c == 2 || writes_key) && does<kTeams>(part_of(c)))
        kept[channels.of[c]] = inputs.of[lag][c];
  }
}

// How a block has its head: how many teams of threads, how many rows of S in shared memory, and how
// many, the last ones, in registers. Others are read from global memory. kAlone: a multiprocessor
// has one such block at a time, for a wave of no team takes the registers of a second one.
template <int kTeamsOf, int kHeldRowsOf, int kRestRows = 0, bool kAlone = false>
struct HeadForm {
  static constexpr int kTeams = kTeamsOf, kHeld = kHeldRowsOf, kRest = kRestRows;
  static constexpr bool kIsAlone = kAlone;
  static constexpr int kThreads = kTeams * kDim + (kAlone ? kWave : 0);
  TENON_DEVICE bool in_team() { return !kAlone || thread_id() < kTeams * kDim; }
  static constexpr int kRows = kRest > 0 ? 8 : 16;  // that are on their way together
  static_assert(kHeld % kRows == 0 && (kDim - kRest) % (2 * kRows) == 0);
  static_assert(kTeams == 1 || kRest == 0);
};

// The thread's column of S: its first kHeld rows in shared memory, its last kRest in registers, all
// rows in global memory.
template <int kRest>
struct StateColumn {
  const float* held;
  const float* data;  // null: zeros
  float rest[kRest > 0 ? kRest : 1];
};
// Rows [row, row + kRows) of it, which are none of the last kRest.
template <int kHeld, int kRest, int kRows>
TENON_DEVICE void load_rows(const StateColumn<kRest>& column, int row, float (&to)[kRows]) {
  if (kHeld == kDim || row < kHeld) {
    TENON_UNROLL
    for (int i = 0; i < kRows; ++i) to[i] = column.held[(row + i) * kDim];
  } else {
    TENON_UNROLL
    for (int i = 0; i < kRows; ++i)
      to[i] = column.data == nullptr ? 0.0f : column.data[(row + i) * kDim];
  }
}
// As many elements of q or k, from shared memory.
template <int kRows>
TENON_DEVICE void load_keys(const float* keys, int row, float (&to)[kRows]) {
  TENON_UNROLL
  for (int i = 0; i < kRows; i += 4) {
    const Word4 four = load16(keys + row + i);
    to[i] = bits_float(four.x);
    to[i + 1] = bits_float(four.y);
    to[i + 2] = bits_float(four.z);
    to[i + 3] = bits_float(four.w);
  }
}

// Sᵀk and Sᵀq of the column, rows ascending. What comes next is on its way while rows are added.
struct Projections {
  float of_k, of_q;
};
template <class Form>
TENON_DEVICE Projections project_column(const StateColumn<Form::kRest>& column, const float* keys,
                                        const float* queries) {
  constexpr int kRows = Form::kRows, kLast = kDim - Form::kRest;
  Projections sums{};
  float s[2][kRows], k[2][kRows], q[2][kRows];
  const auto load = [&](int half, int row) {
    load_rows<Form::kHeld>(column, row, s[half]);
    load_keys(keys, row, k[half]);
    load_keys(queries, row, q[half]);
  };
  const auto add = [&](const float* own, int half) {
    TENON_UNROLL
    for (int i = 0; i < kRows; ++i) {
      sums.of_k = sums.of_k + k[half][i] * own[i];
      sums.of_q = sums.of_q + q[half][i] * own[i];
    }
  };
  load(0, 0);
  TENON_NO_UNROLL
  for (int row = 0; row < kLast; row += 2 * kRows) {
    load(1, row + kRows);
    add(s[0], 0);
    if (row + 2 * kRows < kLast) load(0, row + 2 * kRows);
    add(s[1], 1);
  }
  TENON_UNROLL
  for (int row = kLast; row < kDim; row += kRows) {
    load_keys(keys, row, k[0]);
    load_keys(queries, row, q[0]);
    add(column.rest + (row - kLast), 0);
  }
  return sums;
}

// S ← decay · S + k ⊗ d for rows [first, last) of the column, which are none of the last kRest.
template <class Form>
TENON_DEVICE void update_column(const StateColumn<Form::kRest>& from, float* to, const float* keys,
                                float decay, float d, int first, int last) {
  constexpr int kRows = Form::kRows;
  TENON_NO_UNROLL
  for (int row = first; row < last; row += 2 * kRows) {
    float s[2][kRows], k[2][kRows];
    TENON_UNROLL
    for (int half = 0; half < 2; ++half) {
      load_rows<Form::kHeld>(from, row + half * kRows, s[half]);
      load_keys(keys, row + half * kRows, k[half]);
    }
    TENON_UNROLL
    for (int i = 0; i < 2 * kRows; ++i)
      to[(row + i) * kDim] = decay * s[i / kRows][i % kRows] + k[i / kRows][i % kRows] * d;
  }
}
// The same for the last kRest.
template <class Form>
TENON_DEVICE void update_rest(const StateColumn<Form::kRest>& from, float* to, const float* keys,
                              float decay, float d) {
  constexpr int kRows = Form::kRows, kLast = kDim - Form::kRest;
  TENON_UNROLL
  for (int row = kLast; row < kDim; row += kRows) {
    float k[kRows];
    load_keys(keys, row, k);
    TENON_UNROLL
    for (int i = 0; i < kRows; ++i)
      to[(row + i) * kDim] = decay * from.rest[row - kLast + i] + k[i] * d;
  }
}

// What the threads of a block hand each other.
struct DecodeShared {
  float *raw_q, *raw_k, *q, *k, *v, *silu_z, *d, *o;  // [kDim]; raw: not yet scaled
  float* gates;                                       // beta, decay
  std::uint32_t* most;                                // of the outputs of each wave
};

// The scales of q and k, and k·q of the scaled ones: dot() three times, step by step together.
struct KeyScales {
  float q, k, k_dot_q;
};
TENON_DEVICE KeyScales scale_keys(const DecodeShared& shared) {
  float sums[3] = {};
  TENON_UNROLL
  for (int i = 0; i < kDim; i += kSlots) {
    const int at = i + thread_id() % kSlots;
    const float q = shared.raw_q[at], k = shared.raw_k[at];
    sums[0] = sums[0] + q * q;
    sums[1] = sums[1] + k * k;
    sums[2] = sums[2] + k * q;
  }
  TENON_UNROLL
  for (int half = kSlots / 2; half > 0; half /= 2) {
    float others[3];
    TENON_UNROLL
    for (int i = 0; i < 3; ++i) others[i] = shuffle_xor(sums[i], half);
    TENON_UNROLL
    for (int i = 0; i < 3; ++i) sums[i] = sums[i] + others[i];
  }
  // Roots and quotients are slow: half of the lanes have those of q, the others those of k.
  const bool has_q = thread_id() % 2 == 0;
  const float root = key_scale(has_q ? sums[0] : sums[1]);
  const float own = has_q ? root * kQueryFactor : root;
  const float other = shuffle_xor(own, 1);
  const float of_q = has_q ? own : other, of_k = has_q ? other : own;
  return {of_q, of_k, sums[2] * of_k * of_q};
}

// The output of the thread's column, as finish_head() makes it, by one team: o and silu(z) are
// there. Every wave has the sum of squares; the largest magnitudes of the waves meet in `most`.
TENON_DEVICE bf16 norm_output(const KernelArgs& args, const DecodeShared& shared, float norm) {
  const int slot = thread_id() % kSlots, mine = own_column();
  float squares = 0.0f;
  TENON_UNROLL
  for (int i = 0; i < kDim; i += kSlots) {
    const float o = shared.o[slot + i];
    squares = squares + o * o;
  }
  TENON_UNROLL
  for (int half = kSlots / 2; half > 0; half /= 2) squares = squares + shuffle_xor(squares, half);
  const float rstd = rsqrt_f(squares / static_cast<float>(kDim) + args.eps);
  const bf16 rounded = to_bf16(shared.o[mine] * rstd * norm * shared.silu_z[mine]);
  const std::uint32_t most = max_lane(rounded.bits & 0x7fffu);
  if (lane_id() == 0) shared.most[wave_id()] = most;
  return rounded;
}
TENON_DEVICE void store_result(const KernelArgs& args, int token, int v_head,
                               const DecodeShared& shared, bf16 rounded) {
  const int column = v_head * kDim + own_column();
  if (args.out != nullptr) args.out[token * args.out_stride + column] = rounded;
  if (args.quant.codes == nullptr) return;
  std::uint32_t absmax = 0;
  TENON_UNROLL
  for (int wave = 0; wave < kDim / kWave; ++wave) absmax = larger(absmax, shared.most[wave]);
  const QuantSpec row = at_row(args.quant, token);
  const ChosenScale chosen = choose_scale<bf16>(row, absmax);
  const float n = to_float(rounded) * chosen.multiplier;
  const std::uint32_t code =
      row.is_fnuz ? pack_fp8x4<DType::kE4M3Fnuz>(n, n, n, n) : pack_fp8x4<DType::kE4M3>(n, n, n, n);
  row.codes[column] = static_cast<std::byte>(code & 0xffu);
  if (own_column() == 0) store_scale(row, 0, v_head, chosen.word);
}

// What a head needs of earlier steps and of weights, and where the rest will be.
template <class Form>
struct Ahead {
  Sequence sequence{};
  Places places{};
  bool decodes = false;     // the sequence has one token in this step
  bool is_padding = false;  // the row of this number belongs to no sequence
  Inputs inputs{};
  StateColumn<Form::kRest> column{};
  float norm, a_log, dt_bias;
};
template <class Form>
TENON_DEVICE void load_constants(const KernelArgs& args, int v_head, Ahead<Form>& ahead) {
  ahead.norm = load_constant(args.norm + own_column());
  ahead.a_log = load_constant(args.a_log + v_head);
  ahead.dt_bias = load_constant(args.dt_bias + v_head);
}
// Loads what no kernel but this one writes, and starts to copy rows of S into dynamic shared
// memory.
template <class Form>
TENON_DEVICE void load_state(const KernelArgs& args, int index, int v_head,
                             const Channels& channels, Ahead<Form>& ahead) {
  ahead.is_padding = index < args.tokens && index >= load_constant(args.starts + args.sequences);
  if (index >= args.sequences) return;
  ahead.sequence =
      sequence_by(args, index, [](const std::int32_t* at) { return load_constant(at); });
  ahead.decodes = ahead.sequence.end - ahead.sequence.begin == 1;
  if (!ahead.decodes) return;
  const float* const from = state_of(args, ahead.sequence.from, v_head);
  ahead.column.data = from == nullptr ? nullptr : from + own_column();
  if constexpr (Form::kHeld > 0) {
    TENON_DYNAMIC_SHARED(float, tile);
    constexpr int kStride = Form::kTeams * kDim * 4;
    ahead.column.held = tile + own_column();
    float* const first = tile + thread_id() * 4;
    if (from == nullptr && Form::in_team()) {
      for (int i = 0; i < Form::kHeld * kDim / kStride; ++i) store16(first + i * kStride, Word4{});
    } else if (Form::in_team()) {
      TENON_UNROLL
      for (int i = 0; i < Form::kHeld * kDim / kStride; ++i)
        copy_async16(first + i * kStride, from + thread_id() * 4 + i * kStride);
    }
  }
  TENON_UNROLL
  for (int i = 0; i < Form::kRest; ++i)
    ahead.column.rest[i] =
        from == nullptr ? 0.0f : load_constant(ahead.column.data + (kDim - Form::kRest + i) * kDim);
  load_kept_inputs<Form::kTeams>(args, ahead.sequence, channels, ahead.inputs);
  ahead.places = places_of(args, ahead.sequence.begin, v_head, channels);
}

// All of one token of one v head by kTeams · kDim threads, after load_state().
template <class Form>
TENON_DEVICE void decode_head(const KernelArgs& args, int v_head, const Channels& channels,
                              const Weights& weights, const Ahead<Form>& ahead) {
  constexpr int kTeams = Form::kTeams;
  TENON_SHARED(float, floats, 8 * kDim + 4);
  TENON_SHARED(std::uint32_t, most, kDim / kWave);
  const DecodeShared shared{floats,
                            floats + kDim,
                            floats + 2 * kDim,
                            floats + 3 * kDim,
                            floats + 4 * kDim,
                            floats + 5 * kDim,
                            floats + 6 * kDim,
                            floats + 7 * kDim,
                            floats + 8 * kDim,
                            most};
  const Sequence& sequence = ahead.sequence;
  const int mine = own_column(), token = sequence.begin;
  float* const to = state_of(args, sequence.to, v_head);

  // The first team goes from q and k to the outputs. What the second has to bring comes in the
  // shadow of that: v, silu(z), the gates.
  const Places& at = ahead.places;
  Inputs inputs = ahead.inputs;
  load_new_input<kTeams>(args, at, inputs);
  bf16 z{0};
  GateInputs gate_inputs{};
  if (does<kTeams>(1)) {
    z = args.z[at.z];
    gate_inputs = {to_float(args.a[at.a]), to_float(args.b[at.b]), ahead.a_log, ahead.dt_bias};
  }
  float* const places[3] = {shared.raw_q, shared.raw_k, shared.v};
  TENON_UNROLL
  for (int c = 0; c < 3; ++c)
    if (does<kTeams>(part_of(c)))
      places[c][mine] = to_float(convolve_channel(weights.of[c], inputs.of[3][c], inputs.of[2][c],
                                                  inputs.of[1][c], inputs.of[0][c]));
  sync_block();
  KeyScales scales{};
  if (does<kTeams>(0)) {
    scales = scale_keys(shared);
    shared.q[mine] = shared.raw_q[mine] * scales.q;
    shared.k[mine] = shared.raw_k[mine] * scales.k;
  }
  if (does<kTeams>(1)) shared.silu_z[mine] = silu_f(to_float(z));
  await_copies();
  sync_block();
  Projections sums{};
  if (does<kTeams>(0)) sums = project_column<Form>(ahead.column, shared.k, shared.q);
  if (does<kTeams>(1) && mine < kWave) {  // all lanes the same: more waves would be in the way
    const Gates gates = gates_of(gate_inputs);
    if (mine == 0) {
      shared.gates[0] = gates.beta;
      shared.gates[1] = exp_f(gates.log_decay);
    }
  }
  if (kTeams > 1 && does<kTeams>(1))
    keep_own_inputs<kTeams>(args, sequence, v_head, channels, inputs);
  sync_block();
  const float beta = shared.gates[0], decay = shared.gates[1];
  if (does<kTeams>(0)) {
    const float d = beta * (shared.v[mine] - decay * sums.of_k);
    shared.d[mine] = d;
    shared.o[mine] = to_float(to_bf16(decay * sums.of_q + scales.k_dot_q * d));
  }
  sync_block();
  // The second team makes most of the new state. A single one makes it first, so that it is on its
  // way to memory while the outputs are made.
  constexpr int kFirst = kTeams == 1 ? kDim - Form::kRest : kDim / 4, kSecond = kDim - kDim / 4;
  const auto update = [&](int first, int last) {
    if (to != nullptr)
      update_column<Form>(ahead.column, to + mine, shared.k, decay, shared.d[mine], first, last);
  };
  bf16 rounded{0};
  if (kTeams == 1 || does<kTeams>(1)) update(0, kFirst);
  if (kTeams == 1 && Form::kRest > 0 && to != nullptr)
    update_rest<Form>(ahead.column, to + mine, shared.k, decay, shared.d[mine]);
  if (does<kTeams>(0)) rounded = norm_output(args, shared, ahead.norm);
  sync_block();
  if (does<kTeams>(0)) {
    store_result(args, token, v_head, shared, rounded);
    keep_own_inputs<kTeams>(args, sequence, v_head, channels, inputs);
  }
  if (v_head == 0 && args.quant.codes != nullptr) pad_scales(args.quant, token);
  if (kTeams > 1 && Form::in_team())
    update(does<kTeams>(0) ? kSecond : kFirst, does<kTeams>(0) ? kDim : kSecond);
}

}  // namespace tenon::TENON_TARGET::gated_delta_net
