// How heads of a few hundred floats are worked on by any target with the same bits: Simd, the
// neighbouring elements that one thread owns as one value, and dot(), a sum whose order does not
// depend on the wave width.
// Not here: rows that lanes hold in registers (device/reduce.cuh), 16-byte accesses
// (device/vec.cuh).
#pragma once

#include "tenon/core/fp8.h"
#include "tenon/device/device.cuh"
#include "tenon/device/math.cuh"

namespace tenon::TENON_TARGET {

// A float on the targets with waves, where neighbours belong to neighbouring threads; one vector
// register on the cpu target. Element-wise +, −, · work on both, so the width never shows in bits.
#if defined(TENON_WAVE) && TENON_WAVE == 1
#if defined(__AVX512F__)
#define TENON_PACK 16
#elif defined(__AVX__)
#define TENON_PACK 8
#else
#define TENON_PACK 4
#endif
inline constexpr int kSimd = TENON_PACK;
using Simd = float __attribute__((vector_size(kSimd * sizeof(float))));
using PackHalves = std::uint16_t __attribute__((vector_size(kSimd * sizeof(std::uint16_t))));
#else
#define TENON_PACK 1
inline constexpr int kSimd = 1;
using Simd = float;
#endif

// The order of dot(): slot s of kSlots sums the elements i ≡ s (mod kSlots) in index order; then
// the upper half of the slots is added to the lower half until one is left.
inline constexpr int kSlots = 32;
static_assert(kWave == 1 || kWave % kSlots == 0);
static_assert(kSlots % kSimd == 0);

constexpr int round_up_to_slots(int n) { return (n + kSlots - 1) / kSlots * kSlots; }

TENON_DEVICE Simd load_simd(const float* at) {
  Simd found;
  __builtin_memcpy(&found, at, sizeof found);
  return found;
}
TENON_DEVICE void store_simd(float* at, const Simd& value) {
  __builtin_memcpy(at, &value, sizeof value);
}
// A bf16 is the upper half of a float: zeros are interleaved below.
TENON_DEVICE Simd load_simd(const bf16* at) {
#if TENON_PACK == 1
  return to_float(*at);
#else
  PackHalves high;
  __builtin_memcpy(&high, at, sizeof high);
  const PackHalves low{};
#if TENON_PACK == 16
  return __builtin_bit_cast(
      Simd,
      __builtin_shufflevector(low, high, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8,
                              24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31));
#elif TENON_PACK == 8
  return __builtin_bit_cast(Simd, __builtin_shufflevector(low, high, 0, 8, 1, 9, 2, 10, 3, 11, 4,
                                                          12, 5, 13, 6, 14, 7, 15));
#else
  return __builtin_bit_cast(Simd, __builtin_shufflevector(low, high, 0, 4, 1, 5, 2, 6, 3, 7));
#endif
#endif
}

// Adds the upper half of the elements to the lower half until one is left.
TENON_DEVICE float halve_pack(Simd value) {
#if TENON_PACK == 1
  return value;
#else
#if TENON_PACK == 16
  value = value + __builtin_shufflevector(value, value, 8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11,
                                          12, 13, 14, 15);
  const Simd four =
      __builtin_shufflevector(value, value, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7);
  const auto low = __builtin_shufflevector(value + four, value, 0, 1, 2, 3);
#elif TENON_PACK == 8
  const auto low = __builtin_shufflevector(value, value, 0, 1, 2, 3) +
                   __builtin_shufflevector(value, value, 4, 5, 6, 7);
#else
  const auto low = value;
#endif
  return (low[0] + low[2]) + (low[1] + low[3]);
#endif
}

// Elements [0, n) of a bf16 row as floats, zeros up to `padded`. A block's work: sync afterwards.
TENON_DEVICE void load_row(const bf16* from, float* to, int n, int padded) {
  const int whole = n / kSimd * kSimd;
  for (int i = thread_id() * kSimd; i < whole; i += block_threads() * kSimd)
    store_simd(to + i, load_simd(from + i));
  for (int i = whole + thread_id(); i < padded; i += block_threads())
    to[i] = i < n ? to_float(from[i]) : 0.0f;
}

// Threads that compute one dot() together are a group. Different groups may take different rows.
TENON_DEVICE int slot_group() { return kWave == 1 ? 0 : thread_id() / kSlots; }
TENON_DEVICE int num_slot_groups() { return kWave == 1 ? 1 : block_threads() / kSlots; }

// out[x][y] = Σ a[x][i] · b[y][i] over i < n, a multiple of kSlots; elements are float or bf16.
// Every thread of a wave calls it and gets the sums. Several at once save loads on the cpu target.
template <int kA, int kB, class A, class B>
TENON_DEVICE void dots(const A* const (&a)[kA], const B* const (&b)[kB], int n,
                       float (&out)[kA][kB]) {
  if constexpr (kWave == 1) {
    constexpr int kPacks = kSlots / kSimd;
    Simd sum[kA * kB * kPacks] = {};
    for (int i = 0; i < n; i += kSlots) {
      TENON_UNROLL
      for (int p = 0; p < kPacks; ++p) {
        Simd of_b[kB];
        TENON_UNROLL
        for (int y = 0; y < kB; ++y) of_b[y] = load_simd(b[y] + i + p * kSimd);
        TENON_UNROLL
        for (int x = 0; x < kA; ++x) {
          const Simd of_a = load_simd(a[x] + i + p * kSimd);
          TENON_UNROLL
          for (int y = 0; y < kB; ++y) {
            Simd& to = sum[(x * kB + y) * kPacks + p];
            to = to + of_a * of_b[y];
          }
        }
      }
    }
    TENON_UNROLL
    for (int x = 0; x < kA * kB; ++x) {
      Simd* const of_pair = sum + x * kPacks;
      TENON_UNROLL
      for (int half = kPacks / 2; half > 0; half /= 2) {
        TENON_UNROLL
        for (int p = 0; p < half; ++p) of_pair[p] = of_pair[p] + of_pair[p + half];
      }
      out[x / kB][x % kB] = halve_pack(of_pair[0]);
    }
  } else {
    TENON_UNROLL
    for (int x = 0; x < kA * kB; ++x) {
      float sum = 0.0f;
      for (int i = thread_id() % kSlots; i < n; i += kSlots)
        sum = sum + load_simd(a[x / kB] + i) * load_simd(b[x % kB] + i);
      TENON_UNROLL
      for (int half = kSlots / 2; half > 0; half /= 2) sum = sum + shuffle_xor(sum, half);
      out[x / kB][x % kB] = sum;
    }
  }
}

template <class A, class B>
TENON_DEVICE float dot(const A* a, const B* b, int n) {
  float out[1][1];
  dots<1, 1, A, B>({a}, {b}, n, out);
  return out[0][0];
}

}  // namespace tenon::TENON_TARGET
