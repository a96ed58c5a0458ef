// The choice of a token's experts on the way of another kernel, by a wave of 32 lanes: the softmax,
// the order and the ties are those of moe_route.h, and so are the bits. Keys are for moe_route's
// own kernels too.
//
// Who is chosen mostly shows by the logits alone, without exponentials and their sum: if the last
// one chosen is well above the next one, no rounding of p can turn them round. are_apart() says
// whether it is so; if not, p decides.
#pragma once

#include "tenon/device/ascending.cuh"
#include "tenon/device/math.cuh"
#include "tenon/device/reduce.cuh"

namespace tenon::TENON_TARGET {

// Keys order as p does: 0 for an expert that is taken or does not exist, 1 for a NaN. The largest
// is far below 2^31.
TENON_DEVICE std::uint32_t key_of(float p) { return is_nan(p) ? 1u : float_bits(p) + 2u; }
TENON_DEVICE float p_of(std::uint32_t key) {
  return bits_float(key == 1u ? 0x7fc00000u : key - 2u);
}

// Experts in slices of as many as there are lanes. Kernels are made for 8 slices and for 16.
inline constexpr int kChoiceLanes = 32, kMostChoiceSlices = 16;
inline constexpr int kMostChoiceExperts = kChoiceLanes * kMostChoiceSlices, kMostChoices = 16;
constexpr int choice_slices(std::int64_t experts) { return experts <= 8 * kChoiceLanes ? 8 : 16; }

// Integers that order as floats do, a NaN above all. Behind each of them there is another one.
TENON_DEVICE std::uint32_t ordered_bits(float x) {
  return is_nan(x) ? 0xfffffffeu : ascending_bits(x);
}
TENON_DEVICE float ordered_float(std::uint32_t x) {
  return x == 0xfffffffeu ? bits_float(0x7fc00000u) : ascending_float(x);
}

// Of the largest, the last chosen and the next logit, as ascending_bits(), of which none is a NaN:
// what the logits choose is what p chooses. The largest is at most 60 above the last one, so no p
// that counts is a denormal number; logit − largest is wrong by 2^-19 at most, an exponential and a
// quotient by two units in the last place each, so what lies 2^-14 apart stays in order. An
// infinity is never apart.
TENON_DEVICE bool are_apart(std::uint32_t first, std::uint32_t last, std::uint32_t next) {
  const float least = ascending_float(last);
  return ascending_float(first) - least < 60.0f &&
         (next == 0u || least - ascending_float(next) > 0x1p-14f);  // 0: there is none
}

// Of a lane: experts lane, lane + 32, …
template <int kSlices>
struct Logits {
  float of_lane[kSlices];
};
// from: of the lane's first expert.
template <int kSlices>
TENON_DEVICE Logits<kSlices> load_logits(int experts, const float* from) {
  Logits<kSlices> all;
  TENON_UNROLL
  for (int j = 0; j < kSlices; ++j)
    all.of_lane[j] = lane_id() + j * kChoiceLanes < experts ? from[j * kChoiceLanes] : -kInfinity;
  return all;
}
// exp(logit − the largest) of these experts, and its sum over all.
template <int kSlices>
TENON_DEVICE float exponentials(int experts, const Logits<kSlices>& all, float (&value)[kSlices]) {
  std::uint32_t most = ordered_bits(all.of_lane[0]);
  TENON_UNROLL
  for (int j = 1; j < kSlices; ++j) {
    const std::uint32_t other = ordered_bits(all.of_lane[j]);
    most = most > other ? most : other;
  }
  const float largest = ordered_float(max_lane(most));
  // Slot s of 64 adds experts s, s + 64, … in order; then the upper half of the slots is added to
  // the lower half, six times.
  float slot[2] = {};
  TENON_UNROLL
  for (int j = 0; j < kSlices; ++j) {
    value[j] = lane_id() + j * kChoiceLanes < experts ? exp_f(all.of_lane[j] - largest) : 0.0f;
    slot[j % 2] = slot[j % 2] + value[j];
  }
  float sum = slot[0] + slot[1];
  TENON_UNROLL
  for (int half = kChoiceLanes / 2; half > 0; half /= 2) sum = sum + shuffle_xor(sum, half);
  return sum;
}
// By a wave whose lane l < top_k has one of the chosen experts, and its p: which choice that is,
// and its weight, p over the sum of the chosen ones, added in order. in_order: memory of top_k
// floats.
struct WeightedChoice {
  int choice;
  float weight;
};
TENON_DEVICE WeightedChoice weigh(int top_k, int expert, float p, float* in_order) {
  const std::uint32_t key = key_of(p);
  WeightedChoice own{0, 0.0f};
  for (int other = 0; other < top_k; ++other) {
    const std::uint32_t its_key = shuffle_from(key, other);
    const int its_expert = shuffle_from(expert, other);
    own.choice += its_key > key || (its_key == key && its_expert < expert) ? 1 : 0;
  }
  if (lane_id() < top_k) in_order[own.choice] = p;
  sync_wave();
  float sum = 0.0f;
  for (int k = 0; k < top_k; ++k) sum = sum + in_order[k];
  own.weight = p / sum;
  return own;
}

}  // namespace tenon::TENON_TARGET
