// The sums of fp8_gemm and bf16_gemm to the bit, as docs/exactness.md defines them, written without
// any of their code but the places of the cuts.
#pragma once

#include <cmath>
#include <functional>
#include <string_view>
#include <vector>

#include "tenon/ops/common/segments.h"
#include "tests/support/tensor_core.h"

namespace tenon::test {

// One output: the products of its elements of k, and per block of 128 the product of its scales.
struct ProductTerms {
  int n = 0;                  // columns of the whole output
  std::vector<float> x, w;    // [k]
  std::vector<float> scales;  // [blocks of k] fp32; empty for bf16
  int k() const { return static_cast<int>(x.size()); }

  // x[i] · w[i], exact in fp32; zero past the end.
  float product(int i) const {
    if (i >= k()) return 0.0f;
    const auto at = static_cast<std::size_t>(i);
    return x[at] * w[at];
  }
};

// The block sum of the variant "simt": parts of 16 in order, then adjacent pairs.
inline float portable_block(const ProductTerms& terms, int begin) {
  std::vector<float> sums(8, 0.0f);
  for (int i = 0; i < 128; ++i) {
    float& sum = sums[static_cast<std::size_t>(i / 16)];
    sum = sum + terms.product(begin + i);
  }
  for (std::size_t left = 8; left > 1; left /= 2)
    for (std::size_t i = 0; i < left / 2; ++i) sums[i] = sums[2 * i] + sums[2 * i + 1];
  return sums[0];
}

inline float portable_segment(const ProductTerms& terms, int begin, int end) {
  float sum = 0.0f;
  for (int at = begin; at < end; at += 128) {
    const float scale =
        terms.scales.empty() ? 1.0f : terms.scales[static_cast<std::size_t>(at / 128)];
    sum = std::fma(portable_block(terms, at), scale, sum);
  }
  return sum;
}

// The segment of the variants "sm90".
inline float wgmma_segment(const ProductTerms& terms, int begin, int end) {
  float sum = 0.0f;
  for (int at = begin; at < end; at += 128) {
    if (!terms.scales.empty()) {
      sum = std::fma(wgmma_block(terms.x.data() + at, terms.w.data() + at, kWgmmaE4m3),
                     terms.scales[static_cast<std::size_t>(at / 128)], sum);
      continue;
    }
    std::vector<float> x(128, 0.0f), w(128, 0.0f);  // the last block may be short
    for (std::size_t i = 0; i < 128 && at + static_cast<int>(i) < terms.k(); ++i) {
      x[i] = terms.x[static_cast<std::size_t>(at) + i];
      w[i] = terms.w[static_cast<std::size_t>(at) + i];
    }
    sum = sum + wgmma_block(x.data(), w.data(), kWgmmaBf16);
  }
  return sum;
}

// The segment of the processor variants: 16 lanes that meet at its end.
inline float lanes_segment(const ProductTerms& terms, int begin, int end) {
  std::vector<float> lanes(16, 0.0f);
  for (std::size_t lane = 0; lane < 16; ++lane)
    for (int at = begin; at < end; at += 128) {
      float block = terms.scales.empty() ? lanes[lane] : 0.0f;
      for (int i = static_cast<int>(lane); i < 128; i += 16) block = block + terms.product(at + i);
      lanes[lane] =
          terms.scales.empty()
              ? block
              : std::fma(block, terms.scales[static_cast<std::size_t>(at / 128)], lanes[lane]);
    }
  for (std::size_t half = 8; half > 0; half /= 2)
    for (std::size_t lane = 0; lane < half; ++lane) lanes[lane] = lanes[lane] + lanes[lane + half];
  return lanes[0];
}

// What a variant makes of the output, before it is rounded to the output's type.
inline float exact_product(const ProductTerms& terms, std::string_view variant) {
  const Segments cut = segments_of(terms.n, terms.k());
  float sum = 0.0f;
  for (int segment = 0; segment < cut.count; ++segment) {
    const int begin = cut.begin(segment), end = cut.begin(segment + 1);
    const float found = variant == "simt"             ? portable_segment(terms, begin, end)
                        : variant.starts_with("sm90") ? wgmma_segment(terms, begin, end)
                                                      : lanes_segment(terms, begin, end);
    sum = segment == 0 ? found : sum + found;
  }
  return sum;
}

}  // namespace tenon::test
