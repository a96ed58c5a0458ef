// Group quantisation of a row that a block holds (docs/boundary.md steps 9 and 10), and where codes
// and scales lie in each layout.
// Not here: rounding rules (core/fp8.h), where the rows come from.
#pragma once

#include <optional>

#include "tenon/core/fp8.h"
#include "tenon/core/tensor.h"
#include "tenon/ops/common/row.cuh"

namespace tenon::TENON_TARGET {

// What steps 9 and 10 need of a call. A null `codes` means that nobody wants fp8.
struct QuantSpec {
  std::byte* codes;
  std::byte* scales;
  std::int64_t codes_stride;  // bytes
  int rows, padded_rows;      // padded_rows: extent of the row dimension of the scales
  int num_groups;
  int group_vectors;  // vectors per group: 4, 8, 16 or 32
  int group_shift;    // 2 to that power they are
  ScaleLayout layout;
  bool is_fnuz;
};

// The same call as seen from one of its rows, which is then row 0.
TENON_DEVICE QuantSpec at_row(QuantSpec spec, int row) {
  if (spec.codes == nullptr) return spec;
  spec.codes += row * spec.codes_stride;
  spec.scales += row * (spec.layout == ScaleLayout::kRow ? std::int64_t{spec.num_groups} * 4 : 4);
  return spec;
}

// Writes the scale of (row, group): fp32 bits, or the biased exponent where scales are UE8M0.
TENON_DEVICE void store_scale(const QuantSpec& spec, int row, int group, std::uint32_t word) {
  if (spec.layout == ScaleLayout::kUe8m0Packed) {
    const std::int64_t at = std::int64_t{group / 4} * spec.padded_rows + row;
    spec.scales[at * 4 + group % 4] = static_cast<std::byte>(word);
  } else {
    const std::int64_t at = spec.layout == ScaleLayout::kRow
                                ? std::int64_t{row} * spec.num_groups + group
                                : std::int64_t{group} * spec.padded_rows + row;
    reinterpret_cast<float*>(spec.scales)[at] = bits_float(word);
  }
}

// Zeros where a layout has room that no (row, group) fills: the missing groups in the last word of
// `row`, and with the last row also the rows that pad the layout. Strided by the block.
TENON_DEVICE int padded_groups(const QuantSpec& spec) {
  return spec.layout == ScaleLayout::kUe8m0Packed ? (spec.num_groups + 3) / 4 * 4 : spec.num_groups;
}
TENON_DEVICE void pad_scale_groups(const QuantSpec& spec, int row) {
  for (int group = spec.num_groups + thread_id(); group < padded_groups(spec);
       group += block_threads())
    store_scale(spec, row, group, 0u);
}
TENON_DEVICE void pad_scale_rows(const QuantSpec& spec, int row) {
  if (row != spec.rows - 1 || spec.layout == ScaleLayout::kRow) return;
  for (int group = thread_id(); group < padded_groups(spec); group += block_threads())
    for (int pad = spec.rows; pad < spec.padded_rows; ++pad) store_scale(spec, pad, group, 0u);
}

// The usual call: bf16 or f16 weights, a residual that is read, fp8 as the cuda target makes it in
// groups of 128 with fp32 scales by rows, as in the boundaries of Qwen3.5-FP8. A kernel compiled
// for it has no branches on a row's way.
inline bool is_fast_path(const NormSpec& norm, const QuantSpec& quant) {
  return !norm.weight_is_f32 && !norm.fresh_residual && quant.codes != nullptr &&
         quant.layout == ScaleLayout::kRow && quant.group_shift == 4 && !quant.is_fnuz;
}
template <bool kFastPath>
TENON_DEVICE NormSpec choose_path(NormSpec spec) {
  if constexpr (kFastPath) spec.weight_is_f32 = spec.fresh_residual = false;
  return spec;
}
template <bool kFastPath>
TENON_DEVICE QuantSpec choose_path(QuantSpec spec) {
  if constexpr (kFastPath) {
    spec.is_fnuz = false;
    spec.layout = ScaleLayout::kRow;
    spec.group_shift = 4;
    spec.group_vectors = 16;
  }
  return spec;
}
// Host side: call.operator()<kFastPath>(). Only targets with waves have an instance of its own for
// usual calls, for bf16 rows that fit a block.
template <class T, int kMaxSpan, class Call>
auto with_path([[maybe_unused]] bool usual, const Call& call) {
  if constexpr (kWave > 1 && kMaxSpan == 1 && __is_same(T, bf16))
    if (usual) return call.template operator()<true>();
  return call.template operator()<false>();
}

// What lies beside a row's own scales.
TENON_DEVICE void pad_scales(const QuantSpec& spec, int row) {
  if (spec.layout == ScaleLayout::kRow) return;
  pad_scale_groups(spec, row);
  pad_scale_rows(spec, row);
}

// Step 10: the scale as it is stored, and the factor applied before rounding to a code.
struct ChosenScale {
  std::uint32_t word;
  float multiplier;
};
template <class T>
TENON_DEVICE ChosenScale choose_scale(const QuantSpec& spec, std::uint32_t absmax) {
  const float a = to_float(T{static_cast<std::uint16_t>(absmax)});
  const DType fp8 = spec.is_fnuz ? DType::kE4M3Fnuz : DType::kE4M3;
  if (spec.layout == ScaleLayout::kUe8m0Packed) {
    const Ue8m0Scale chosen = ue8m0_scale(a, fp8);
    return {chosen.biased, chosen.multiplier};
  }
  const GroupScale chosen = group_scale(a, fp8);
  return {float_bits(chosen.scale), chosen.multiplier};
}

template <class T, int kVectors>
TENON_DEVICE void encode_as(const QuantSpec& spec, const Word4* from, float multiplier, void* at) {
  if (spec.is_fnuz) {
    encode<T, DType::kE4M3Fnuz, kVectors>(from, multiplier, at);
  } else {
    encode<T, DType::kE4M3, kVectors>(from, multiplier, at);
  }
}

// Steps 9 and 10 of a row whose vectors the threads hold. Codes go to `codes`, one byte an element;
// put_scale(group, word) takes the scales. Every thread of the block must call this.
template <class T, int kMaxSpan, class PutScale>
TENON_DEVICE void quantize_row(const QuantSpec& spec, const ThreadSpan& span,
                               const Word4 (&held)[kMaxSpan], std::byte* codes,
                               PutScale put_scale) {
  const int group = spec.group_vectors;
  if constexpr (kMaxSpan > 4) {
    if (span.length >= group) {  // whole groups within each span
      for (int begin = 0; begin < span.count; begin += group) {
        std::uint32_t absmax = 0;
        for_vectors<kMaxSpan>(group, [&]<int kVectors>(int i) {
          absmax = larger(absmax, absmax_bits<kVectors>(&held[begin + i]));
        });
        const ChosenScale chosen = choose_scale<T>(spec, absmax);
        for_vectors<kMaxSpan>(group, [&]<int kVectors>(int i) {
          encode_as<T, kVectors>(spec, &held[begin + i], chosen.multiplier,
                                 codes + (span.first + begin + i) * kVector);
        });
        put_scale((span.first + begin) / group, chosen.word);
      }
      return;
    }
  }
  // A group lies on `lanes` neighbouring lanes of a wave; a span is no longer than a group.
  const int lanes = kMaxSpan == 1   ? group
                    : kMaxSpan <= 4 ? group >> (span.length / 2)
                                    : group / span.length;
  std::uint32_t absmax = 0;
  for_vectors<kMaxSpan>(span.count, [&]<int kVectors>(int i) {
    absmax = larger(absmax, absmax_bits<kVectors>(&held[i]));
  });
  TENON_UNROLL
  for (int mask = 1; mask < kWave; mask *= 2)
    if (mask < lanes) absmax = larger(absmax, shuffle_xor(absmax, mask));
  const ChosenScale chosen = choose_scale<T>(spec, absmax);
  for_vectors<kMaxSpan>(span.count, [&]<int kVectors>(int i) {
    encode_as<T, kVectors>(spec, &held[i], chosen.multiplier, codes + (span.first + i) * kVector);
  });
  if (span.count > 0 && (thread_id() & (lanes - 1)) == 0)
    put_scale(span.first >> spec.group_shift, chosen.word);
}

// The same for elements from `begin` on of the row that `spec` is at, straight to the tensors of
// the call. `begin` is a multiple of the group.
template <class T, int kMaxSpan>
TENON_DEVICE void quantize_to_tensors(const QuantSpec& spec, int begin, const ThreadSpan& span,
                                      const Word4 (&held)[kMaxSpan]) {
  const int first_group = (begin / kVector) >> spec.group_shift;
  quantize_row<T>(spec, span, held, spec.codes + begin, [&](int group, std::uint32_t word) {
    store_scale(spec, 0, first_group + group, word);
  });
}

// Host side: what a call's outputs mean to the kernels.
inline QuantSpec quant_spec(const std::optional<QuantView>& fp8) {
  QuantSpec spec{};
  if (!fp8) return spec;
  spec.codes = fp8->data.as<std::byte>();
  spec.scales = fp8->scale.as<std::byte>();
  spec.codes_stride = fp8->data.stride[0];
  spec.rows = static_cast<int>(fp8->data.shape[0]);
  spec.padded_rows = static_cast<int>(fp8->layout == ScaleLayout::kRow ? fp8->scale.shape[0]
                                                                       : fp8->scale.shape[1]);
  spec.num_groups = static_cast<int>(fp8->data.shape[1]) / fp8->group;
  spec.group_vectors = fp8->group / kVector;
  while (1 << spec.group_shift < spec.group_vectors) ++spec.group_shift;
  spec.layout = fp8->layout;
  spec.is_fnuz = fp8->data.dtype == DType::kE4M3Fnuz;
  return spec;
}

}  // namespace tenon::TENON_TARGET
