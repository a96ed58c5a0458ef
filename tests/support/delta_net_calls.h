// Calls of gated_delta_net for tests: weights, rows of whole sequences, states, and steps that take
// any part of any of them.
#pragma once

#include <cmath>
#include <optional>
#include <random>

#include "tenon/core/fp8.h"
#include "tenon/ops/gated_delta_net/gated_delta_net.h"
#include "tests/support/op_suite.h"

namespace tenon::test {

constexpr int kD = gated_delta_net::kHeadDim;
inline std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

// --- a problem: weights, and the rows of whole sequences

struct Weights {
  int k_heads = 1, v_heads = 2;
  std::vector<bf16> conv;
  std::vector<float> a_log, dt_bias, norm;
  int conv_dim() const { return (2 * k_heads + v_heads) * kD; }
  int value_dim() const { return v_heads * kD; }
};

// One sequence's inputs: rows of qkv, z, b, a for all its tokens.
struct Rows {
  int tokens = 0;
  std::vector<bf16> qkv, z, b, a;
};

inline std::vector<bf16> random_bf16(std::mt19937& random, std::int64_t n, float spread,
                                     float mean = 0) {
  std::normal_distribution<float> normal;  // a spread of 0 is no distribution of the library's
  std::vector<bf16> found(at(n));
  for (bf16& each : found) each = to_bf16(mean + spread * normal(random));
  return found;
}

inline Weights make_weights(int k_heads, int v_heads) {
  std::mt19937 random(7);
  Weights weights;
  weights.k_heads = k_heads;
  weights.v_heads = v_heads;
  weights.conv = random_bf16(random, weights.conv_dim() * gated_delta_net::kTaps, 0.5f);
  std::uniform_real_distribution<float> decay(0.02f, 8.0f), bias(-4.0f, 1.0f), scale(0.5f, 1.5f);
  for (int h = 0; h < v_heads; ++h) {
    weights.a_log.push_back(std::log(decay(random)));
    weights.dt_bias.push_back(bias(random));
  }
  for (int i = 0; i < kD; ++i) weights.norm.push_back(scale(random));
  return weights;
}

inline Rows make_rows(const Weights& weights, int tokens, unsigned seed, float spread = 1.0f) {
  std::mt19937 random(seed);
  return {tokens,
          random_bf16(random, std::int64_t{tokens} * weights.conv_dim(), spread, spread / 5),
          random_bf16(random, std::int64_t{tokens} * weights.value_dim(), 1.5f),
          random_bf16(random, std::int64_t{tokens} * weights.v_heads, 1.5f),
          random_bf16(random, std::int64_t{tokens} * weights.v_heads, 1.5f)};
}

// --- the op under test

struct States {
  int slots = 0;
  std::vector<bf16> conv;
  std::vector<float> state;
};

// Slots full of values that must not leak into fresh sequences.
inline States make_states(const Weights& weights, int slots, bool poison = true) {
  std::mt19937 random(99);
  States states;
  states.slots = slots;
  states.conv = random_bf16(
      random, std::int64_t{slots} * gated_delta_net::kKeptInputs * weights.conv_dim(), 1.0f);
  std::normal_distribution<float> normal;
  states.state.resize(at(std::int64_t{slots} * weights.value_dim() * kD));
  for (float& each : states.state) each = poison ? 0.3f * normal(random) : 0.0f;
  return states;
}

inline constexpr int kSameSlot = -2;

// One sequence's part of a step: rows [begin, end) of `rows`, whose first one has position 0. A
// sequence that is not fresh then has inputs at positions below 0.
struct Part {
  const Rows* rows;
  int begin, end;
  int slot;
  bool fresh;
  int to = kSameSlot;  // where its state goes
};

struct StepOptions {
  Way way{Target::kCpu, "recurrent"};
  int extra_rows = 0;   // behind the last sequence
  int row_padding = 0;  // strided views: elements between rows
  bool bf16 = true;     // outputs that are wanted
  std::optional<ScaleLayout> fp8 = {};
  DType fp8_type = DType::kE4M3;
  const Plan* made_for_more = nullptr;  // a plan to run with, instead of making one
};

struct StepResult {
  std::vector<bf16> out, u;  // u: not of sequences that are decoded in one kernel
  std::vector<std::uint8_t> codes, scales;
};

// A matrix whose rows lie `stride` apart, gathered from the parts.
inline std::vector<bf16> gather(const std::vector<Part>& parts, std::vector<bf16> Rows::*member,
                                int width, const StepOptions& options) {
  std::vector<bf16> found;
  const auto gap = at(options.row_padding);
  for (const Part& part : parts)
    for (int t = part.begin; t < part.end; ++t) {
      const auto row = (part.rows->*member).begin() + std::int64_t{t} * width;
      found.insert(found.end(), row, row + width);
      found.insert(found.end(), gap, bf16{0x7fc0});
    }
  found.insert(found.end(), at(options.extra_rows) * (at(width) + gap), bf16{0x7fc0});
  return found;
}

inline gated_delta_net::Args put_step(DeviceFixture& fixture, const Weights& weights,
                                      const std::vector<Part>& parts, const States& states,
                                      const StepOptions& options) {
  std::vector<std::int32_t> starts{0}, lengths, from, to, fresh;
  int longest = 0;
  for (const Part& part : parts) {
    starts.push_back(starts.back() + part.end - part.begin);
    lengths.push_back(part.end);
    from.push_back(part.slot);
    to.push_back(part.to == kSameSlot ? part.slot : part.to);
    fresh.push_back(part.fresh ? 1 : 0);
    longest = std::max(longest, part.end - part.begin);
  }
  const std::int64_t tokens = starts.back() + options.extra_rows;
  const auto sequences = static_cast<std::int64_t>(parts.size());
  const auto put_rows = [&](std::vector<bf16> Rows::*member, int width) {
    TensorView found = fixture.put(gather(parts, member, width, options), DType::kBF16,
                                   {tokens, width + options.row_padding});
    found.shape[1] = width;
    return found;
  };
  gated_delta_net::Args args;
  args.qkv = put_rows(&Rows::qkv, weights.conv_dim());
  args.z = put_rows(&Rows::z, weights.value_dim());
  args.b = put_rows(&Rows::b, weights.v_heads);
  args.a = put_rows(&Rows::a, weights.v_heads);
  args.conv_weight =
      fixture.put(weights.conv, DType::kBF16, {weights.conv_dim(), gated_delta_net::kTaps});
  args.a_log = fixture.put(weights.a_log, DType::kF32, {weights.v_heads});
  args.dt_bias = fixture.put(weights.dt_bias, DType::kF32, {weights.v_heads});
  args.norm = fixture.put(weights.norm, DType::kF32, {kD});
  args.k_heads = weights.k_heads;
  args.v_heads = weights.v_heads;
  args.sequence_starts = fixture.put(starts, DType::kI32, {sequences + 1});
  args.sequence_lengths = fixture.put(lengths, DType::kI32, {sequences});
  args.state_from = fixture.put(from, DType::kI32, {sequences});
  args.state_to = fixture.put(to, DType::kI32, {sequences});
  args.fresh = fixture.put(fresh, DType::kI32, {sequences});
  args.conv_state = fixture.put(states.conv, DType::kBF16,
                                {states.slots, gated_delta_net::kKeptInputs, weights.conv_dim()});
  args.state = fixture.put(states.state, DType::kF32, {states.slots, weights.v_heads, kD, kD});
  args.scratch = fixture.blank(  // NaN
      DType::kBF16,
      {tokens,
       gated_delta_net::scratch_columns(weights.k_heads, weights.v_heads, fixture.device().target)},
      0xff);
  if (options.bf16)
    args.out.bf16 = fixture.rows(DType::kBF16, tokens, weights.value_dim(),
                                 weights.value_dim() + options.row_padding, 0xff);
  if (options.fp8) {
    const auto [high, wide] = scale_shape(*options.fp8, tokens, weights.value_dim(), kD);
    args.out.fp8 =
        QuantView{.data = fixture.rows(options.fp8_type, tokens, weights.value_dim(),
                                       weights.value_dim() + 2 * options.row_padding, 0xff),
                  .scale = fixture.blank(scale_dtype(*options.fp8), {high, wide}, 0xff),
                  .group = kD,
                  .layout = *options.fp8};
  }
  args.max_tokens_per_sequence = longest;
  return args;
}

// The variant that a plan forced to `way` has: those with chunks and decode leave each other's
// steps to one another, or to the recurrence where there is no decode.
inline std::string_view served_by(const Way& way, int max_tokens_per_sequence) {
  const bool decodes = max_tokens_per_sequence <= 1;
  if ((way.variant == "chunked" || way.variant == "tiles") && decodes)
    return wave_of(way.target) > 1 ? "decode" : "recurrent";
  return way.variant == "decode" && !decodes ? "chunked" : way.variant;
}

// The states are those after the step, as on the device.
inline StepResult run_step(const Weights& weights, const std::vector<Part>& parts, States& states,
                           const StepOptions& options) {
  DeviceFixture fixture(options.way.target);
  gated_delta_net::Args args = put_step(fixture, weights, parts, states, options);
  run_plan(fixture,
           options.made_for_more != nullptr
               ? *options.made_for_more
               : plan_forced(fixture, args, options.way.variant,
                             served_by(options.way, args.max_tokens_per_sequence)),
           args);
  states.conv = fixture.get<bf16>(args.conv_state);
  states.state = fixture.get<float>(args.state);
  StepResult result;
  args.scratch.shape[1] = weights.conv_dim();
  result.u = fixture.get<bf16>(args.scratch);
  if (args.out.bf16) result.out = fixture.get<bf16>(*args.out.bf16);
  if (args.out.fp8) {
    result.codes = fixture.get<std::uint8_t>(args.out.fp8->data);
    TensorView scales = args.out.fp8->scale;
    scales = view(scales.data, DType::kU8, scales.device,
                  {scales.shape[0], scales.shape[1] * std::int64_t{4}});
    result.scales = fixture.get<std::uint8_t>(scales);
  }
  return result;
}

}  // namespace tenon::test
