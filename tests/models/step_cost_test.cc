// What a step needs at least, against sums by hand.
#include <gtest/gtest.h>

#include <cmath>

#include "tenon/models/decoder.h"

namespace tenon {
namespace {

std::byte memory;  // nothing is read

TensorView some(DType dtype, std::initializer_list<std::int64_t> shape) {
  return view(&memory, dtype, {}, shape);
}
Matrix fp8(std::int64_t out, std::int64_t in) {
  return {some(DType::kE4M3, {out, in}), some(DType::kF32, {out / 128, in / 128})};
}
Matrix bf16_matrix(std::int64_t out, std::int64_t in) {
  return {some(DType::kBF16, {out, in}), {}};
}
double bytes(int out, int in) { return 1.0 * out * in + 4.0 * (out / 128) * (in / 128); }

AttentionSpec attention() {
  AttentionSpec spec;
  spec.q_heads = 2;
  spec.kv_heads = 1;
  spec.head_dim = 64;
  spec.qkv = fp8(384, 128);
  spec.out = fp8(128, 128);
  return spec;
}

DecoderSpec spec_of(std::variant<DenseSpec, ExpertsSpec> mlp) {
  DecoderSpec spec;
  spec.hidden = 128;
  spec.head = some(DType::kBF16, {1000, 128});
  spec.layers.push_back({{}, {}, attention(), std::move(mlp)});
  return spec;
}

constexpr double kAttentionElements = 384.0 * 128 + 128.0 * 128;
constexpr double kHeadElements = 1000.0 * 128;

TEST(StepCost, ADenseDecodeStepByHand) {
  const DecoderSpec spec = spec_of(DenseSpec{256, fp8(512, 128), fp8(128, 256)});
  const StepCost cost = step_cost(spec, {.tokens = 3, .sequences = 3, .context = 100});
  EXPECT_DOUBLE_EQ(cost.weight_bytes, bytes(384, 128) + bytes(128, 128) + bytes(512, 128) +
                                          bytes(128, 256) + 2 * kHeadElements);
  // k and v of one head, bf16: 100 positions read and one written, of three sequences.
  EXPECT_DOUBLE_EQ(cost.cache_bytes, 3 * 101 * (2.0 * 64 * 2));
  const double products = kAttentionElements + 512.0 * 128 + 128.0 * 256 + kHeadElements;
  EXPECT_DOUBLE_EQ(cost.flops, 3 * (2 * products + 4.0 * 2 * 64 * 100));
}

TEST(StepCost, ATokenOfAPromptSeesWhatIsInFrontOfIt) {
  const DecoderSpec spec = spec_of(DenseSpec{256, fp8(512, 128), fp8(128, 256)});
  // One prompt of 4 tokens: 1 + 2 + 3 + 4 positions; one row of logits.
  const StepCost cost = step_cost(spec, {.tokens = 4, .sequences = 1, .context = 4});
  const double products = kAttentionElements + 512.0 * 128 + 128.0 * 256;
  EXPECT_DOUBLE_EQ(cost.flops,
                   4 * 2 * products + 2 * kHeadElements + 4.0 * 2 * 64 * (1 + 2 + 3 + 4));
}

TEST(StepCost, ExpertsAreReadAsFarAsTheyAreChosen) {
  ExpertsSpec experts;
  experts.experts = 8;
  experts.top_k = 2;
  experts.local_experts = 8;
  experts.router = bf16_matrix(8, 128);
  experts.gate_up = {some(DType::kE4M3, {8, 256, 128}), some(DType::kF32, {8, 2, 1})};
  experts.down = {some(DType::kE4M3, {8, 128, 128}), some(DType::kF32, {8, 1, 1})};
  const DecoderSpec spec = spec_of(experts);
  const double always = bytes(384, 128) + bytes(128, 128) + 2.0 * 8 * 128 + 2 * kHeadElements;
  const double all = 8 * (bytes(256, 128) + bytes(128, 128));
  const auto weights = [&](int tokens) {
    return step_cost(spec, {.tokens = tokens, .sequences = tokens, .context = 10}).weight_bytes;
  };
  EXPECT_DOUBLE_EQ(weights(1), always + all * 0.25);
  EXPECT_DOUBLE_EQ(weights(3), always + all * (1 - std::pow(0.75, 3)));
  EXPECT_NEAR(weights(500), always + all, 1);
}

TEST(StepCost, StatesAreReadAndWritten) {
  DecoderSpec spec = spec_of(DenseSpec{256, fp8(512, 128), fp8(128, 256)});
  DeltaNetSpec delta;
  delta.k_heads = 1;
  delta.v_heads = 2;
  delta.qkvz = fp8(768, 128);
  delta.ba = bf16_matrix(4, 128);
  delta.out = fp8(128, 256);
  spec.layers.front().mixer = delta;
  const auto state_bytes = static_cast<double>(cache_layout(spec).sequence_bytes());
  EXPECT_GE(state_bytes, 2 * 128 * 128 * 4);  // fp32, and what the convolution keeps
  const StepCost cost = step_cost(spec, {.tokens = 5, .sequences = 5, .context = 77});
  EXPECT_DOUBLE_EQ(cost.cache_bytes, 5 * 2 * state_bytes);
}

}  // namespace
}  // namespace tenon
