// The body of host_gemm.cuh for one instruction set; included by it once for each, hence no guard.

#define TENON_ISA_INLINE TENON_ISA_CODE static inline __attribute__((always_inline))

namespace tenon::TENON_TARGET::TENON_ISA {

inline constexpr int kWidth = TENON_ISA_WIDTH;
inline constexpr int kRegisters = kWidth == 16 ? 32 : 16;

// --- one register ------------------------------------------------------------------------------

// fuse() is a · b + c with one rounding. multiply_add() is for exact products only: with one
// rounding or two, whatever the processor does faster.

// decode() of a weight is exact up to a factor for e4m3: the code's bits moved into a binary16,
// whose bias differs by 8. decode_x() multiplies by that factor's inverse, so that products are
// right; it also turns the NaN code, which reads as ±480, into a NaN.

#if TENON_ISA_WIDTH == 16
using Vector = __m512;
TENON_ISA_INLINE Vector splat(float value) { return _mm512_set1_ps(value); }
TENON_ISA_INLINE Vector load(const float* at) { return _mm512_loadu_ps(at); }
TENON_ISA_INLINE void store(float* at, Vector value) { _mm512_storeu_ps(at, value); }
TENON_ISA_INLINE Vector fuse(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
TENON_ISA_INLINE Vector multiply_add(Vector a, Vector b, Vector c) { return fuse(a, b, c); }
TENON_ISA_INLINE Vector decode(const std::uint8_t* at) {
  const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
  const __m256i moved = _mm256_slli_epi16(_mm256_cvtepi8_epi16(codes), 7);
  const __m256i halves = _mm256_and_si256(moved, _mm256_set1_epi16(static_cast<short>(0xbf80)));
  return _mm512_maskz_cvtph_ps(0xffff, halves);  // maskz: plain forms warn of their own headers
}
TENON_ISA_INLINE Vector decode(const std::uint16_t* at) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
  const __m512i words = _mm512_maskz_cvtepu16_epi32(0xffff, halves);
  return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xffff, words, 16));
}
// Whether any of four columns holds a NaN code. size is a multiple of 128.
TENON_ISA_INLINE bool any_holds_nan(const std::uint8_t* const* codes, int size) {
  const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
  __m512i largest = sign;
  for (int c = 0; c < kGroup; ++c)
    for (int i = 0; i < size; i += 64)
      largest = _mm512_max_epu8(largest, _mm512_or_si512(_mm512_loadu_si512(codes[c] + i), sign));
  return _mm512_cmpeq_epi8_mask(largest, _mm512_set1_epi8(-1)) != 0;
}
#elif TENON_ISA_WIDTH == 8
using Vector = __m256;
TENON_ISA_INLINE Vector splat(float value) { return _mm256_set1_ps(value); }
TENON_ISA_INLINE Vector load(const float* at) { return _mm256_loadu_ps(at); }
TENON_ISA_INLINE void store(float* at, Vector value) { _mm256_storeu_ps(at, value); }
TENON_ISA_INLINE Vector fuse(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
TENON_ISA_INLINE Vector multiply_add(Vector a, Vector b, Vector c) { return fuse(a, b, c); }
TENON_ISA_INLINE Vector decode(const std::uint8_t* at) {
  const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(at));
  const __m128i moved = _mm_slli_epi16(_mm_cvtepi8_epi16(codes), 7);
  return _mm256_cvtph_ps(_mm_and_si128(moved, _mm_set1_epi16(static_cast<short>(0xbf80))));
}
TENON_ISA_INLINE Vector decode(const std::uint16_t* at) {
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}
TENON_ISA_INLINE bool any_holds_nan(const std::uint8_t* const* codes, int size) {
  const __m256i sign = _mm256_set1_epi8(static_cast<char>(0x80));
  __m256i largest = sign;
  for (int c = 0; c < kGroup; ++c)
    for (int i = 0; i < size; i += 32) {
      const __m256i mine = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes[c] + i));
      largest = _mm256_max_epu8(largest, _mm256_or_si256(mine, sign));
    }
  return _mm256_movemask_epi8(_mm256_cmpeq_epi8(largest, _mm256_set1_epi8(-1))) != 0;
}
#else  // any processor: the compiler finds what there is for four floats
using Vector = float __attribute__((vector_size(16)));
using Words = std::uint32_t __attribute__((vector_size(16)));
TENON_ISA_INLINE Vector splat(float value) { return Vector{value, value, value, value}; }
TENON_ISA_INLINE Vector load(const float* at) {
  Vector value;
  std::memcpy(&value, at, sizeof value);
  return value;
}
TENON_ISA_INLINE void store(float* at, Vector value) { std::memcpy(at, &value, sizeof value); }
TENON_ISA_INLINE Vector multiply_add(Vector a, Vector b, Vector c) { return a * b + c; }
TENON_ISA_INLINE Vector fuse(Vector a, Vector b, Vector c) {
  return Vector{fma_f(a[0], b[0], c[0]), fma_f(a[1], b[1], c[1]), fma_f(a[2], b[2], c[2]),
                fma_f(a[3], b[3], c[3])};
}
// The value of each code, by 2^-8. An integer times the unit of the subnormals, 2^-9.
struct E4m3Table {
  float values[256];
  constexpr E4m3Table() : values() {
    for (int code = 0; code < 256; ++code) {
      const int mantissa = code & 7, exponent = code >> 3 & 15;
      const int units = exponent == 0 ? mantissa : (8 + mantissa) << (exponent - 1);
      const float value = (code & 0x7f) == 0x7f ? __builtin_nanf("") : float(units) * 0x1p-17f;
      values[code] = code < 128 ? value : -value;
    }
  }
};
inline constexpr E4m3Table kE4m3;
TENON_ISA_INLINE Vector decode(const std::uint8_t* at) {
  return Vector{kE4m3.values[at[0]], kE4m3.values[at[1]], kE4m3.values[at[2]], kE4m3.values[at[3]]};
}
TENON_ISA_INLINE Vector decode(const std::uint16_t* at) {
  const Words halves{at[0], at[1], at[2], at[3]};
  return __builtin_bit_cast(Vector, halves << 16);
}
TENON_ISA_INLINE bool any_holds_nan(const std::uint8_t* const*, int) { return false; }
#endif

TENON_ISA_INLINE Vector decode(const float* at) { return load(at); }

TENON_ISA_INLINE Vector decode_x(const std::uint8_t* at) {
  const Vector value = decode(at) * splat(0x1p16f);
  const Vector largest = splat(448.0f * 0x1p8f);
  const auto is_nan_code = (value > largest) | (value < -largest);
  return is_nan_code ? splat(bits_float(0x7fc00000u)) : value;
}
TENON_ISA_INLINE Vector decode_x(const std::uint16_t* at) { return decode(at); }

// --- one tile ----------------------------------------------------------------------------------

// A piece of a segment: elements [begin, begin + size) of every row. A row of bf16 may end in the
// middle of the 16 lanes; zeros follow it then.
struct Chunk {
  int begin, size;
  bool begins_segment;
  int whole() const { return size / kLanes * kLanes; }
  int padded() const { return (size + kLanes - 1) / kLanes * kLanes; }
};

// Elements [from, chunk.size) of a row's chunk as floats, padded to whole lanes.
template <bool kIsX, class Code>
TENON_ISA_INLINE void expand(const Code* row, Chunk chunk, int from, float* to) {
  for (int i = from; i < chunk.whole(); i += kWidth) {
    if constexpr (kIsX) {
      store(to + i, decode_x(row + i));
    } else {
      store(to + i, decode(row + i));
    }
  }
  if (chunk.whole() == chunk.size) return;
  Code tail[kLanes] = {};
  std::memcpy(tail, row + chunk.whole(),
              static_cast<std::size_t>(chunk.size - chunk.whole()) * sizeof(Code));
  for (int i = 0; i < kLanes; i += kWidth) store(to + chunk.whole() + i, decode(tail + i));
}

template <class Code>
TENON_ISA_CODE void load_x(const HostTile& tile, Chunk chunk, HostScratch& scratch) {
  const GemmScales& scales = tile.scales;
  for (int row = 0; row < tile.num_rows; ++row) {
    const std::int64_t token = token_of(tile.call, tile.first_row + row);
    const Code* codes = static_cast<const Code*>(tile.call.x) + token * tile.call.x_stride;
    expand<true>(codes + chunk.begin, chunk, 0, scratch.x[row]);
    if constexpr (sizeof(Code) == 1) {
      const float* scale = scales.x + token * scales.x_row_stride;
      const int first_block = chunk.begin / kGemmBlock;
      for (int block = 0; block < chunk.size / kGemmBlock; ++block)
        scratch.x_scale[row][block] = scale[(first_block + block) * scales.x_block_stride];
    }
  }
}

// Whether a column of weights holds a NaN code: the low seven bits plus one reach bit 7.
TENON_ISA_INLINE bool holds_nan(const std::uint8_t* codes, int size) {
  unsigned seen = 0;
  for (int i = 0; i < size; ++i) seen |= (codes[i] & 0x7fu) + 1u;
  return (seen & 0x80u) != 0;
}

// Marks the columns of a group whose weights hold a NaN code, which decode() does not know. Nearly
// always there is none: one pass over all four tells.
TENON_ISA_CODE inline void mark_damage(const std::uint8_t* const* codes, int column, Chunk chunk,
                                       HostScratch& scratch) {
  bool* damaged = scratch.damaged + column;
  if (chunk.begin == 0)
    for (int c = 0; c < kGroup; ++c) damaged[c] = false;
  if (!any_holds_nan(codes, chunk.size)) return;
  for (int c = 0; c < kGroup; ++c) damaged[c] = damaged[c] || holds_nan(codes[c], chunk.size);
}

// Products of kRows rows of x and kColumns columns of weights, for the lanes of one register:
// elements begin, begin + 16, … below end.
template <int kRows, int kColumns, class Weight>
TENON_ISA_INLINE void add_products(const float (*x)[kHostStride], const Weight* const* weight,
                                   int begin, int end, Vector (&sum)[kRows][kColumns]) {
  TENON_UNROLL
  for (int at = begin; at < end; at += kLanes) {
    Vector of_row[kRows];
    TENON_UNROLL
    for (int r = 0; r < kRows; ++r) of_row[r] = load(x[r] + at);
    TENON_UNROLL
    for (int c = 0; c < kColumns; ++c) {
      const Vector w = decode(weight[c] + at);
      TENON_UNROLL
      for (int r = 0; r < kRows; ++r) sum[r][c] = multiply_add(of_row[r], w, sum[r][c]);
    }
  }
}

// What add_chunk works on: some rows, and some columns with their weights.
template <class Weight>
struct Operands {
  const Weight* weight[kGroup];
  const float* weight_scale;  // of the chunk's blocks; null for bf16
  int row, column;
};

// The sums of kRows × kColumns outputs, for the lanes of one register, from the scratch or zero.
template <int kRows, int kColumns>
TENON_ISA_INLINE void load_sums(const float (*sums)[kHostColumns][kLanes], int column, int lane,
                                bool zero, Vector (&sum)[kRows][kColumns]) {
  TENON_UNROLL
  for (int r = 0; r < kRows; ++r) {
    TENON_UNROLL
    for (int c = 0; c < kColumns; ++c)
      sum[r][c] = zero ? splat(0.0f) : load(sums[r][column + c] + lane);
  }
}
template <int kRows, int kColumns>
TENON_ISA_INLINE void store_sums(float (*sums)[kHostColumns][kLanes], int column, int lane,
                                 const Vector (&sum)[kRows][kColumns]) {
  TENON_UNROLL
  for (int r = 0; r < kRows; ++r) {
    TENON_UNROLL
    for (int c = 0; c < kColumns; ++c) store(sums[r][column + c] + lane, sum[r][c]);
  }
}

// Adds a chunk of fp8 to the sums, block by block.
template <int kRows, int kColumns, class Weight>
TENON_ISA_CODE void add_scaled_chunk(const Operands<Weight>& of, Chunk chunk,
                                     HostScratch& scratch) {
  // More sums than these would not stay in registers beside the products of a block.
  constexpr bool kKeep = kRows * kColumns * 2 + kRows < kRegisters;
  const auto* x = scratch.x + of.row;
  auto* sums = scratch.sums + of.row;
  for (int lane = 0; lane < kLanes; lane += kWidth) {
    Vector sum[kRows][kColumns];
    if (kKeep) load_sums(sums, of.column, lane, chunk.begins_segment, sum);
    for (int block = 0; block < chunk.size / kGemmBlock; ++block) {
      Vector part[kRows][kColumns] = {};
      const int begin = block * kGemmBlock;
      add_products(x, of.weight, begin + lane, begin + kGemmBlock, part);
      if (!kKeep) load_sums(sums, of.column, lane, chunk.begins_segment && block == 0, sum);
      TENON_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const Vector scale = splat(scratch.x_scale[of.row + r][block] * of.weight_scale[block]);
        TENON_UNROLL
        for (int c = 0; c < kColumns; ++c) sum[r][c] = fuse(part[r][c], scale, sum[r][c]);
      }
      if (!kKeep) store_sums(sums, of.column, lane, sum);
    }
    if (kKeep) store_sums(sums, of.column, lane, sum);
  }
}

// Adds a chunk of bf16 to the sums.
template <int kRows, int kColumns, class Weight>
TENON_ISA_CODE void add_plain_chunk(const Operands<Weight>& of, Chunk chunk, HostScratch& scratch) {
  const auto* x = scratch.x + of.row;
  auto* sums = scratch.sums + of.row;
  const float* end[kColumns];  // the end of a row that fills no lanes was expanded
  for (int c = 0; c < kColumns; ++c) end[c] = scratch.weight[of.column % kGroup + c];
  const bool expanded = sizeof(Weight) == sizeof(float);
  const int whole = expanded ? chunk.padded() : chunk.whole();
  for (int lane = 0; lane < kLanes; lane += kWidth) {
    Vector sum[kRows][kColumns];
    load_sums(sums, of.column, lane, chunk.begins_segment, sum);
    add_products(x, of.weight, lane, whole, sum);
    if (whole < chunk.padded()) add_products(x, end, whole + lane, chunk.padded(), sum);
    store_sums(sums, of.column, lane, sum);
  }
}

template <bool kScaled, int kRows, int kColumns, class Weight>
TENON_ISA_INLINE void add_chunk(const Operands<Weight>& of, Chunk chunk, HostScratch& scratch) {
  if constexpr (kScaled) {
    add_scaled_chunk<kRows, kColumns>(of, chunk, scratch);
  } else {
    add_plain_chunk<kRows, kColumns>(of, chunk, scratch);
  }
}

// The right half of the columns.
template <class Weight>
TENON_ISA_INLINE void move_right(Operands<Weight>& of) {
  of.column += kGroup / 2;
  of.weight[0] = of.weight[2];
  of.weight[1] = of.weight[3];
}

// Up to four rows: weights are decoded in registers. The registers suffice for four sums or eight.
template <class Code>
TENON_ISA_CODE void add_few_rows(Operands<Code> of, int num_rows, Chunk chunk,
                                 HostScratch& scratch) {
  constexpr bool kScaled = sizeof(Code) == 1;
  if (num_rows == 1) return add_chunk<kScaled, 1, kGroup>(of, chunk, scratch);
  for (int half = 0; half < 2; ++half) {
    if (num_rows == 2) add_chunk<kScaled, 2, kGroup / 2>(of, chunk, scratch);
    if (num_rows == 3) add_chunk<kScaled, 3, kGroup / 2>(of, chunk, scratch);
    if (num_rows == 4) add_chunk<kScaled, 4, kGroup / 2>(of, chunk, scratch);
    move_right(of);
  }
}

// Any number of rows, with weights that were decoded before. Tiles as large as the registers allow:
// fp8 needs two for each output.
template <bool kScaled>
TENON_ISA_CODE void add_many_rows(Operands<float> of, int num_rows, Chunk chunk,
                                  HostScratch& scratch) {
  constexpr int kRows = kScaled && kRegisters >= 32 ? 3 : 4;
  constexpr int kColumns = kRegisters >= 32 ? kGroup : kGroup / 2;
  for (int c = 0; c < kGroup; ++c) of.weight[c] = scratch.weight[c];
  for (int column = 0; column < kGroup; column += kColumns) {
    of.row = 0;
    for (; num_rows - of.row >= kRows; of.row += kRows)
      add_chunk<kScaled, kRows, kColumns>(of, chunk, scratch);
    for (; num_rows - of.row >= 2; of.row += 2) add_chunk<kScaled, 2, kColumns>(of, chunk, scratch);
    for (; num_rows - of.row >= 1; of.row += 1) add_chunk<kScaled, 1, kColumns>(of, chunk, scratch);
    move_right(of);
  }
}

// All columns of the tile, four at a time.
template <class Code>
TENON_ISA_CODE void add_columns(const HostTile& tile, Chunk chunk, HostScratch& scratch) {
  constexpr bool kScaled = sizeof(Code) == 1;
  const GemmCall& call = tile.call;
  const Code* weights =
      static_cast<const Code*>(call.weight) + tile.expert * call.expert_stride + chunk.begin;
  for (int column = 0; column < tile.num_columns; column += kGroup) {
    const bool few = tile.num_rows <= 4;
    Operands<Code> of{{}, nullptr, 0, column};
    for (int c = 0; c < kGroup; ++c) {
      const int mine = column + c < tile.num_columns ? column + c : tile.num_columns - 1;
      of.weight[c] = weights + (tile.first_column + mine) * call.weight_stride;
      expand<false>(of.weight[c], chunk, few ? chunk.whole() : 0, scratch.weight[c]);
    }
    if constexpr (kScaled) {
      mark_damage(of.weight, column, chunk, scratch);
      of.weight_scale = tile.scales.weight + tile.expert * tile.scales.weight_expert_stride +
                        (tile.first_column + column) / kGemmBlock * tile.scales.weight_row_stride +
                        chunk.begin / kGemmBlock;
    }
    if (few) {
      add_few_rows(of, tile.num_rows, chunk, scratch);
    } else {
      add_many_rows<kScaled>({{}, of.weight_scale, 0, column}, tile.num_rows, chunk, scratch);
    }
  }
}

using Quad = float __attribute__((vector_size(16)));
TENON_ISA_INLINE Quad load_quad(const float* at) {
  Quad value;
  std::memcpy(&value, at, sizeof value);
  return value;
}
// Lanes l, l + 4, l + 8, l + 12 of the 16.
TENON_ISA_INLINE Quad fold_to_four(const float* lanes) {
  return (load_quad(lanes) + load_quad(lanes + 8)) + (load_quad(lanes + 4) + load_quad(lanes + 12));
}

// The lanes of every output added up at the end of a segment; four columns at a time.
template <class Code>
TENON_ISA_CODE void finish_segment(const HostTile& tile, bool is_first, bool is_last,
                                   HostScratch& scratch) {
  for (int row = 0; row < tile.num_rows; ++row)
    for (int column = 0; column < tile.num_columns; column += kGroup) {
      const auto* sums = scratch.sums[row] + column;
      const Quad a = fold_to_four(sums[0]), b = fold_to_four(sums[1]);
      const Quad c = fold_to_four(sums[2]), d = fold_to_four(sums[3]);
      const Quad ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
      const Quad ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
      const Quad cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5);
      const Quad cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
      const Quad ab = ab_low + ab_high, cd = cd_low + cd_high;  // lanes 0, 1 of a, b; of c, d
      Quad sum =
          __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
      float* const whole = scratch.whole[row] + column;
      if (!is_first) sum = load_quad(whole) + sum;
      if (!is_last) {
        std::memcpy(whole, &sum, sizeof sum);
        continue;
      }
      for (int i = 0; i < kGroup && column + i < tile.num_columns; ++i) {
        const bool damaged = sizeof(Code) == 1 && scratch.damaged[column + i];
        store_output(tile.call, tile.first_row + row, tile.first_column + column + i,
                     damaged ? bits_float(0x7fc00000u) : sum[i]);
      }
    }
}

// The tile of num_rows × num_columns outputs. Code: std::uint8_t for e4m3, std::uint16_t for bf16.
template <class Code>
TENON_ISA_CODE void run_tile(const HostTile& tile) {
  TENON_DYNAMIC_SHARED(HostScratch, memory);
  HostScratch& scratch = *memory;
  const Segments cut = segments_of(tile.call.n, tile.call.k);
  for (int segment = 0; segment < cut.count; ++segment) {
    const bool is_last = segment + 1 == cut.count;
    const int first = cut.begin(segment), end = is_last ? tile.call.k : cut.begin(segment + 1);
    for (int begin = first; begin < end; begin += kHostChunk) {
      const int left = end - begin;
      const Chunk chunk{begin, left < kHostChunk ? left : kHostChunk, begin == first};
      load_x<Code>(tile, chunk, scratch);
      add_columns<Code>(tile, chunk, scratch);
    }
    finish_segment<Code>(tile, segment == 0, is_last, scratch);
  }
}

}  // namespace tenon::TENON_TARGET::TENON_ISA

#undef TENON_ISA_INLINE
