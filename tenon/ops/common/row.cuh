// One row of a boundary on one block: which vectors a thread owns, residual add, sum of squares and
// norm (docs/boundary.md steps 2 to 8). The bits depend neither on the number of threads of the
// block nor on the wave width. Not here: where the sums come from (each op), groups and fp8 codes
// (quantize.cuh).
#pragma once

#include <optional>

#include "tenon/core/tensor.h"
#include "tenon/device/device.cuh"
#include "tenon/device/math.cuh"
#include "tenon/device/reduce.cuh"
#include "tenon/device/vec.cuh"
#include "tenon/ops/common/wide.cuh"

namespace tenon::TENON_TARGET {

inline constexpr int kMaxHidden = 16384;
inline constexpr int kMaxVectors = kMaxHidden / kVector;

// The most threads of a block that works on a row: the bound of its kernel.
#if defined(__CUDACC__)
inline constexpr int kRowThreads = 1024;
#else
inline constexpr int kRowThreads = kWave == 1 ? 1 : 512;
#endif

// The vectors of a row that one thread owns: [first, first + count). `length` is the power of two
// that every thread owns, those past the end of the row included, so that runs, waves and blocks
// cover aligned powers of two of the tree of step 6. kMaxSpan is 1 where the block has a thread for
// every vector and no other.
struct ThreadSpan {
  int first, count, length;
};
template <int kMaxSpan>
TENON_DEVICE ThreadSpan own_span(int num_vectors) {
  if constexpr (kMaxSpan == 1) return {thread_id(), 1, 1};
  int length = 1;
  while (length * block_threads() < num_vectors) length *= 2;
  const int first = thread_id() * length;
  const int left = num_vectors - first;
  return {first, left < 0 ? 0 : left < length ? left : length, length};
}

// Kernels hold a thread's vectors in an array of kMaxSpan, which stays in registers on targets with
// waves. Host side: call.operator()<kMaxSpan>() with the smallest instance that serves a row of
// `hidden` elements on `threads` threads.
template <class Call>
auto with_span(int threads, int hidden, const Call& call) {
  if constexpr (kWave == 1) {
    return call.template operator()<kMaxVectors>();
  } else {
    const int vectors = hidden / kVector;
    if (vectors == threads) return call.template operator()<1>();
    if (vectors <= 2 * threads) return call.template operator()<2>();
    TENON_CHECK(vectors <= 4 * threads);
    return call.template operator()<4>();
  }
}
// Host side: threads for a row, one vector each where the block may be that large.
inline int row_threads(int hidden, int max_threads) {
  if constexpr (kWave == 1) {
    return 1;
  } else {
    const int wanted = (hidden / kVector + kWave - 1) / kWave * kWave;
    TENON_CHECK(max_threads >= kRowThreads);  // every device there is allows 1024
    const int threads = wanted < kRowThreads ? wanted : kRowThreads;
    return threads < 64 ? 64 : threads;
  }
}

// Step 5 for each vector.
template <int kVectors>
TENON_DEVICE void square_sums(const float (&h)[kVectors * kVector], float* partials) {
  for (int i = 0; i < kVectors; ++i) {
    float sum = h[i * kVector] * h[i * kVector];
    for (int k = 1; k < kVector; ++k) sum = sum + h[i * kVector + k] * h[i * kVector + k];
    partials[i] = sum;
  }
}

// Step 6 within a span: adjacent pairs first. An odd last one moves up as it is, which is what
// adding the padding does: partials are sums of squares, so none is -0.
template <int kMaxSpan>
TENON_DEVICE float run_sum(float (&partials)[kMaxSpan], int count) {
  if constexpr (kMaxSpan <= 4) {
    const auto at = [&](int i) { return i < count ? partials[i] : 0.0f; };
    if constexpr (kMaxSpan == 1) return at(0);
    if constexpr (kMaxSpan == 2) return at(0) + at(1);
    if constexpr (kMaxSpan == 4) return (at(0) + at(1)) + (at(2) + at(3));
  } else {
    if (count == 0) return 0.0f;
    while (count > 1) {
      const int pairs = count / 2;
      for (int i = 0; i < pairs; ++i) partials[i] = partials[2 * i] + partials[2 * i + 1];
      if (count % 2 != 0) partials[pairs] = partials[count - 1];
      count = pairs + count % 2;
    }
    return partials[0];
  }
}

// What steps 2 to 8 need of a call, or of one of its rows. Strides are in bytes.
struct NormSpec {
  const void* weight;
  std::byte* residual;
  std::byte* norm;  // null where nobody wants the 16-bit rows
  std::int64_t residual_stride, norm_stride;
  int hidden;
  float eps, offset;
  bool weight_is_f32, fresh_residual;
};

TENON_DEVICE NormSpec at_row(NormSpec spec, int row) {
  spec.residual += row * spec.residual_stride;
  if (spec.norm != nullptr) spec.norm += row * spec.norm_stride;
  return spec;
}

// Host side: what a call's tensors mean to the kernels; the caller adds eps, offset and
// fresh_residual.
inline NormSpec norm_spec(const TensorView& weight, const TensorView& residual,
                          const std::optional<TensorView>& norm) {
  NormSpec spec{};
  spec.weight = weight.data;
  spec.weight_is_f32 = weight.dtype == DType::kF32;
  spec.residual = residual.as<std::byte>();
  spec.residual_stride = residual.stride[0] * 2;
  spec.hidden = static_cast<int>(residual.shape[1]);
  if (norm) {
    spec.norm = norm->as<std::byte>();
    spec.norm_stride = norm->stride[0] * 2;
  }
  return spec;
}

// Steps 2 and 3: sums, rounded, plus the residual, rounded. Leaves the new residual in `h`, as
// floats, and in `held`.
template <class T, int kVectors>
TENON_DEVICE void add_residual(float (&h)[kVectors * kVector], const std::byte* residual,
                               bool fresh, Word4* held) {
  constexpr int kSize = kVectors * kVector;
  round_through<T>(h);
  if (!fresh) {
    float old[kSize];
    load_floats<T, kVectors>(reinterpret_cast<const T*>(residual), old);
    for (int k = 0; k < kSize; ++k) h[k] = h[k] + old[k];
    round_through<T>(h);
  }
  round_pack<T, kVectors>(h, held);
}

// Where the weights of vectors from `vector` on lie.
TENON_DEVICE const std::byte* weights_at(const NormSpec& spec, int vector) {
  return static_cast<const std::byte*>(spec.weight) + vector * (spec.weight_is_f32 ? 32 : 16);
}

// Step 8 for vectors whose weights lie at `weights`; h: their residual.
template <class T, int kVectors>
TENON_DEVICE void scale_by_weight(const float (&h)[kVectors * kVector], Word4* held, float rstd,
                                  const NormSpec& spec, const std::byte* weights) {
  constexpr int kSize = kVectors * kVector;
  float n[kSize], weight[kSize];
  if (spec.weight_is_f32) {
    load_floats<float, kVectors>(reinterpret_cast<const float*>(weights), weight);
  } else {
    load_floats<T, kVectors>(reinterpret_cast<const T*>(weights), weight);
  }
  for (int k = 0; k < kSize; ++k) n[k] = (h[k] * rstd) * (spec.offset + weight[k]);
  round_pack<T, kVectors>(n, held);
}

// What the vectors of a thread need besides their sums, on its way while the sums are awaited.
// Longer runs would not stay in registers: their rows are read when they are needed.
struct Prefetched {
  Word4 residual, weights[2];
};
template <int kMaxSpan>
inline constexpr bool kReadsAhead = kMaxSpan <= 2 && kWave > 1;
template <int kMaxSpan>
struct PrefetchedRow {
  Prefetched of[kReadsAhead<kMaxSpan> ? kMaxSpan : 1];
};
template <int kMaxSpan>
TENON_DEVICE PrefetchedRow<kMaxSpan> prefetch_row(const NormSpec& spec, const ThreadSpan& span) {
  PrefetchedRow<kMaxSpan> ahead{};
  if constexpr (kReadsAhead<kMaxSpan>) {
    for_vectors<kMaxSpan>(span.count, [&]<int kVectors>(int i) {
      const int vector = span.first + i;
      const std::byte* const weights = weights_at(spec, vector);
      if (!spec.fresh_residual) ahead.of[i].residual = load16(spec.residual + vector * 16);
      ahead.of[i].weights[0] = load16(weights);
      if (spec.weight_is_f32) ahead.of[i].weights[1] = load16(weights + 16);
    });
  }
  return ahead;
}

// Steps 2 to 8 of the row that `spec` is at. load_sums.operator()<kVectors>(vector, s) fills the
// fp32 sums of step 1 from that vector on; sum_of_row(x) is the sum of what all threads of the row
// bring, as step 6 has it. Leaves the norm in `held` and stores it where it is wanted. Every thread
// of the row must call this.
template <class T, int kMaxSpan, class SumOfRow, class LoadSums>
TENON_DEVICE void norm_row(const NormSpec& spec, SumOfRow sum_of_row, const ThreadSpan& span,
                           const PrefetchedRow<kMaxSpan>& ahead, Word4 (&held)[kMaxSpan],
                           LoadSums load_sums) {
  std::byte* const residual = spec.residual;
  constexpr bool kAhead = kReadsAhead<kMaxSpan>;
  float partials[kMaxSpan];
  partials[0] = 0.0f;  // of a thread that owns nothing
  const auto bytes = [](const Word4* words) { return reinterpret_cast<const std::byte*>(words); };
  for_vectors<kMaxSpan>(span.count, [&]<int kVectors>(int i) {
    const int vector = span.first + i;
    float h[kVectors * kVector] = {};  // a lost call leaves them alone
    load_sums.template operator()<kVectors>(vector, h);
    const std::byte* const old = kAhead ? bytes(&ahead.of[i].residual) : residual + vector * 16;
    add_residual<T, kVectors>(h, old, spec.fresh_residual, &held[i]);
    store_vectors<kVectors>(residual + vector * 16, &held[i]);
    square_sums<kVectors>(h, &partials[i]);
  });
  const float square = sum_of_row(run_sum(partials, span.count));
  const float rstd = rsqrt_f(square / static_cast<float>(spec.hidden) + spec.eps);
  for_vectors<kMaxSpan>(span.count, [&]<int kVectors>(int i) {
    const int vector = span.first + i;
    float h[kVectors * kVector];
    unpack<T, kVectors>(&held[i], h);
    scale_by_weight<T, kVectors>(h, &held[i], rstd, spec,
                                 kAhead ? bytes(ahead.of[i].weights) : weights_at(spec, vector));
    if (spec.norm != nullptr) store_vectors<kVectors>(spec.norm + vector * 16, &held[i]);
  });
}

}  // namespace tenon::TENON_TARGET
