// How heads of a few hundred floats are worked on by any target with the same bits: Pack, the
// neighbouring elements that one thread owns as one value, and dot(), a sum whose order does not
// depend on the wave width.
// Not here: rows that lanes hold in registers (gpu/reduce.h), 16-byte accesses (gpu/vec.h).
#pragma once

#include "tenon/core/fp8.h"
#include "tenon/gpu/gpu.h"
#include "tenon/gpu/math.h"

namespace tenon::TENON_TARGET {

// A float on the targets with waves, where neighbours belong to neighbouring threads; one vector
// register on the cpu target. Element-wise +, −, · work on both, so the width never shows in bits.
#if defined(TENON_WAVE) && TENON_WAVE == 1
#if defined(__AVX512F__)
inline constexpr int kPack = 16;
#elif defined(__AVX__)
inline constexpr int kPack = 8;
#else
inline constexpr int kPack = 4;
#endif
using Pack = float __attribute__((vector_size(kPack * sizeof(float))));
using PackBits = std::uint32_t __attribute__((vector_size(kPack * sizeof(float))));
using PackHalves = std::uint16_t __attribute__((vector_size(kPack * sizeof(std::uint16_t))));
#else
inline constexpr int kPack = 1;
using Pack = float;
#endif

// The order of dot(): slot s of kSlots sums the elements i ≡ s (mod kSlots) in index order; then
// the upper half of the slots is added to the lower half until one is left.
inline constexpr int kSlots = 32;
static_assert(kWave == 1 || kWave % kSlots == 0);
static_assert(kSlots % kPack == 0);

constexpr int round_up_to_slots(int n) { return (n + kSlots - 1) / kSlots * kSlots; }

TENON_DEVICE Pack load_pack(const float* at) {
  Pack found;
  __builtin_memcpy(&found, at, sizeof found);
  return found;
}
TENON_DEVICE void store_pack(float* at, const Pack& value) {
  __builtin_memcpy(at, &value, sizeof value);
}
TENON_DEVICE Pack load_pack(const bf16* at) {
#if defined(TENON_WAVE) && TENON_WAVE == 1
  PackHalves halves;
  __builtin_memcpy(&halves, at, sizeof halves);
  const PackBits bits = __builtin_convertvector(halves, PackBits) << 16;
  return __builtin_bit_cast(Pack, bits);
#else
  return to_float(*at);
#endif
}

// Elements [0, n) of a bf16 row as floats, zeros up to `padded`. A block's work: sync afterwards.
TENON_DEVICE void load_row(const bf16* from, float* to, int n, int padded) {
  const int whole = n / kPack * kPack;
  for (int i = thread_id() * kPack; i < whole; i += block_threads() * kPack)
    store_pack(to + i, load_pack(from + i));
  for (int i = whole + thread_id(); i < padded; i += block_threads())
    to[i] = i < n ? to_float(from[i]) : 0.0f;
}

// Threads that compute one dot() together are a group. Different groups may take different rows.
TENON_DEVICE int slot_group() { return kWave == 1 ? 0 : thread_id() / kSlots; }
TENON_DEVICE int num_slot_groups() { return kWave == 1 ? 1 : block_threads() / kSlots; }

// Σ a[i] · b[i] over i < n, a multiple of kSlots; T is float or bf16. Every thread of a wave calls
// it and gets the sum.
template <class T>
TENON_DEVICE float dot(const T* a, const T* b, int n) {
  if constexpr (kWave == 1) {
    constexpr int kPacks = kSlots / kPack;
    Pack sum[kPacks] = {};
    for (int i = 0; i < n; i += kSlots) {
      TENON_UNROLL
      for (int p = 0; p < kPacks; ++p)
        sum[p] = sum[p] + load_pack(a + i + p * kPack) * load_pack(b + i + p * kPack);
    }
    TENON_UNROLL
    for (int half = kPacks / 2; half > 0; half /= 2) {
      TENON_UNROLL
      for (int p = 0; p < half; ++p) sum[p] = sum[p] + sum[p + half];
    }
    float last[kPack];
    __builtin_memcpy(last, &sum[0], sizeof last);
    TENON_UNROLL
    for (int half = kPack / 2; half > 0; half /= 2) {
      TENON_UNROLL
      for (int s = 0; s < half; ++s) last[s] = last[s] + last[s + half];
    }
    return last[0];
  } else {
    float sum = 0.0f;
    for (int i = thread_id() % kSlots; i < n; i += kSlots)
      sum = sum + load_pack(a + i) * load_pack(b + i);
    TENON_UNROLL
    for (int half = kSlots / 2; half > 0; half /= 2) sum = sum + shuffle_xor(sum, half);
    return sum;
  }
}

}  // namespace tenon::TENON_TARGET
