// The two token mixers against plain double-precision readings of the model: a prompt of two
// sequences, then one more token of each from the caches.
#include <gtest/gtest.h>

#include <array>

#include "tests/support/layer_bench.h"
#include "tests/support/targets.h"

namespace tenon {
namespace {

using test::DeviceFixture;
using test::Doubles;
using test::LayerBench;
using test::TestMatrix;

constexpr int kMaxRows = 8, kHidden = 128, kSequences = 2, kBlocks = 2;
constexpr double kEps = 1e-6;

// Rows of a step and the views that describe it.
struct Step {
  StepView view;
  std::vector<int> sequence, position;  // of each row
};

// Sequence s gets counts[s] tokens behind the lengths[s] it has.
Step make_step(LayerBench& layer, const std::vector<int>& lengths, const std::vector<int>& counts) {
  Step step;
  int longest = 0;
  std::vector<std::int32_t> positions, slots, starts{0}, totals, table, states, fresh;
  for (int s = 0; s < kSequences; ++s) {
    const int length = lengths[static_cast<std::size_t>(s)],
              count = counts[static_cast<std::size_t>(s)];
    for (int i = length; i < length + count; ++i) {
      positions.push_back(i);
      const int block = i / layer.context.block_tokens * kSequences + s;
      slots.push_back(block * layer.context.block_tokens + i % layer.context.block_tokens);
      step.sequence.push_back(s);
      step.position.push_back(i);
    }
    starts.push_back(static_cast<std::int32_t>(positions.size()));
    totals.push_back(length + count);
    for (int block = 0; block < kBlocks; ++block) table.push_back(block * kSequences + s);
    states.push_back(kSequences - 1 - s);
    fresh.push_back(length == 0);
    longest = std::max(longest, count);
  }
  step.view.shape = {static_cast<int>(positions.size()), kSequences, 0, longest == 1};
  step.view.positions = layer.put_i32(positions);
  step.view.slot_mapping = layer.put_i32(slots);
  step.view.sequence_starts = layer.put_i32(starts);
  step.view.sequence_lengths = layer.put_i32(totals);
  step.view.block_table = layer.put_i32(table);
  step.view.block_table =
      view(step.view.block_table.data, DType::kI32, layer.bench.device(), {kSequences, kBlocks});
  step.view.state_from = step.view.state_to = layer.put_i32(states);
  step.view.fresh = layer.put_i32(fresh);
  return step;
}

std::span<const double> head(const Doubles& rows, std::size_t row, std::size_t width,
                             std::size_t begin, std::size_t count) {
  return std::span(rows).subspan(row * width + begin, count);
}

double dot(std::span<const double> a, std::span<const double> b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// --- attention ------------------------------------------------------------------------------

// With gates and norms that are stored around zero, as Qwen3.5 has them, or with neither.
template <std::size_t kHeadDim, std::size_t kRotaryDim>
struct AttentionModel {
  static constexpr std::size_t kDim = kHeadDim, kHeads = 2, kRotary = kRotaryDim;
  bool gated;
  double norm_offset;
  std::size_t q_stride, width;  // of a head of q, of a projected row
  TestMatrix qkv, out;
  Doubles q_norm, k_norm;
  std::vector<std::vector<Doubles>> k, v;  // [sequence][position]

  AttentionModel(LayerBench& layer, bool fp8, bool has_gates)
      : gated(has_gates),
        norm_offset(has_gates ? 1 : 0),
        q_stride((has_gates ? 2 : 1) * kDim),
        width(kHeads * q_stride + 2 * kDim),
        qkv(layer.matrix(fp8, static_cast<std::int64_t>(width), kHidden)),
        out(layer.matrix(fp8, kHidden, kHeads * kDim)),
        q_norm(layer.normal(kDim, 0.2)),
        k_norm(layer.normal(kDim, 0.2)),
        k(kSequences),
        v(kSequences) {
    for (Doubles* norm : {&q_norm, &k_norm})
      for (double& each : *norm)
        each = to_float(to_bf16(static_cast<float>(each + 1 - norm_offset)));
  }

  static double angle(int position, std::size_t i) {
    return position * std::pow(1e4, -2.0 * static_cast<double>(i) / kRotary);
  }
  static Doubles cos_sin() {
    Doubles table;
    for (int position = 0; position < 16; ++position) {
      for (std::size_t i = 0; i < kRotary / 2; ++i) table.push_back(std::cos(angle(position, i)));
      for (std::size_t i = 0; i < kRotary / 2; ++i) table.push_back(std::sin(angle(position, i)));
    }
    return table;
  }

  Doubles normed_and_rotated(std::span<const double> from, const Doubles& norm,
                             int position) const {
    const double rstd = 1 / std::sqrt(dot(from, from) / kDim + kEps);
    Doubles to;
    for (std::size_t i = 0; i < kDim; ++i) to.push_back(from[i] * rstd * (norm_offset + norm[i]));
    for (std::size_t i = 0; i < kRotary / 2; ++i) {
      const double c = std::cos(angle(position, i)), s = std::sin(angle(position, i));
      const double a = to[i], b = to[i + kRotary / 2];
      to[i] = a * c - b * s;
      to[i + kRotary / 2] = b * c + a * s;
    }
    return to;
  }

  // Adds the step's tokens to the caches and returns the layer's output.
  Doubles run(const Doubles& x, const Step& step) {
    const std::size_t after_q = kHeads * q_stride;
    const Doubles rows = product(x, qkv, 0, static_cast<std::int64_t>(width));
    Doubles mixed;
    for (std::size_t t = 0; t < step.sequence.size(); ++t) {
      const auto s = static_cast<std::size_t>(step.sequence[t]);
      const auto value = head(rows, t, width, after_q + kDim, kDim);
      k[s].push_back(
          normed_and_rotated(head(rows, t, width, after_q, kDim), k_norm, step.position[t]));
      v[s].emplace_back(value.begin(), value.end());
      for (std::size_t h = 0; h < kHeads; ++h) {
        const Doubles q =
            normed_and_rotated(head(rows, t, width, h * q_stride, kDim), q_norm, step.position[t]);
        Doubles sum(kDim);
        double total = 0;
        for (std::size_t j = 0; j < k[s].size(); ++j) {
          const double weight = std::exp(dot(q, k[s][j]) / std::sqrt(double{kDim}));
          total += weight;
          for (std::size_t i = 0; i < kDim; ++i) sum[i] += weight * v[s][j][i];
        }
        const auto gate = gated ? head(rows, t, width, h * q_stride + kDim, kDim) : q;
        for (std::size_t i = 0; i < kDim; ++i)
          mixed.push_back(sum[i] / total * (gated ? test::sigmoid(gate[i]) : 1.0));
      }
    }
    return product(mixed, out, 0, kHidden);
  }
};

template <class Model>
void expect_attention(Target target, int block_tokens, bool fp8, bool gated) {
  SCOPED_TRACE(test::to_string(target) + (fp8 ? " fp8" : " bf16") + (gated ? " gated" : "") +
               ", heads of " + std::to_string(Model::kDim));
  LayerBench layer(target, kMaxRows, kHidden);
  layer.context.block_tokens = block_tokens;
  Model model(layer, fp8, gated);
  AttentionSpec spec;
  spec.gated = gated;
  spec.norm_offset = static_cast<float>(model.norm_offset);
  spec.q_heads = Model::kHeads;
  spec.kv_heads = 1;
  spec.head_dim = Model::kDim;
  spec.qkv = model.qkv.matrix;
  spec.q_norm = layer.put_bf16(model.q_norm, {Model::kDim});
  spec.k_norm = layer.put_bf16(model.k_norm, {Model::kDim});
  spec.cos_sin = layer.put_f32(Model::cos_sin(), {16, Model::kRotary});
  spec.out = model.out.matrix;
  auto attention = Attention::make(spec, layer.context);
  ASSERT_TRUE(attention) << attention.status().message();
  EXPECT_EQ(attention->forms().fp8, fp8);
  EXPECT_EQ(attention->forms().bf16, !fp8);
  const Mixer mixer(*std::move(attention), 0);
  const std::initializer_list<std::int64_t> pages{kBlocks * kSequences, block_tokens, 1,
                                                  Model::kDim};
  const std::size_t elements =
      kBlocks * kSequences * static_cast<std::size_t>(block_tokens) * Model::kDim;
  const TensorView k = layer.put_bf16(Doubles(elements, NAN), pages);
  const TensorView v = layer.put_bf16(Doubles(elements, NAN), pages);
  const std::array<TensorView, 2> caches{k, v};

  const Step prompt = make_step(layer, {0, 0}, {5, 2}), next = make_step(layer, {5, 2}, {1, 1});
  for (const Step* step : {&prompt, &next}) {
    const auto x = layer.normed_rows(step->view.shape.tokens);
    const PartialRows out{layer.context.partial.rows(0, step->view.shape.tokens)};
    ASSERT_TRUE(mixer.run(x.rows, step->view, caches, out, layer.bench.stream()));
    EXPECT_LT(
        test::relative_rms(layer.get_bf16(out.addend), model.run(fp8 ? x.fp8 : x.bf16, *step)),
        fp8 ? test::kFp8Chain : test::kBf16Chain);
  }
}

TEST(Attention, ReadsWhatTheModelSays) {
  for (Target target : test::usable_targets())
    for (bool fp8 : {false, true})
      for (bool gated : {true, false}) {
        expect_attention<AttentionModel<128, 8>>(target, 4, fp8, gated);
        expect_attention<AttentionModel<256, 64>>(target, 64, fp8, gated);
      }
}

// --- delta net ------------------------------------------------------------------------------

struct DeltaNetModel {
  static constexpr std::size_t kDim = 128, kKeys = 1, kValues = 2;
  static constexpr std::size_t kConv = (2 * kKeys + kValues) * kDim,
                               kWidth = kConv + kValues * kDim;
  TestMatrix qkvz, ba, out;
  Doubles conv, a_log, dt_bias, norm;
  std::vector<std::vector<Doubles>> inputs;  // [sequence][position]: before the convolution
  std::vector<Doubles> state;                // [sequence][v head, dk, dv]

  DeltaNetModel(LayerBench& layer, bool fp8)
      : qkvz(layer.matrix(fp8, kWidth, kHidden)),
        ba(layer.matrix(false, 2 * kValues, kHidden)),
        out(layer.matrix(fp8, kHidden, kValues * kDim)),
        conv(layer.normal(kConv * 4, 0.5)),
        a_log(layer.normal(kValues, 0.5)),
        dt_bias(layer.normal(kValues, 0.5)),
        norm(layer.normal(kDim, 0.2)),
        inputs(kSequences),
        state(kSequences, Doubles(kValues * kDim * kDim)) {
    for (double& each : norm) each += 1;
  }

  // silu of the four last inputs of each channel.
  Doubles convolved(const std::vector<Doubles>& history) const {
    Doubles u;
    for (std::size_t c = 0; c < kConv; ++c) {
      double sum = 0;
      for (std::size_t lag = 0; lag < 4 && lag < history.size(); ++lag)
        sum += conv[4 * c + 3 - lag] * history[history.size() - 1 - lag][c];
      u.push_back(test::silu(sum));
    }
    return u;
  }

  // One token of one v head: S ← e^g·S; S += k ⊗ β(v − Sᵀk); o = Sᵀq, normed and gated.
  void mix_head(std::span<const double> q, std::span<const double> k, std::span<const double> v,
                std::span<const double> z, double beta, double decay, double* s,
                Doubles* mixed) const {
    const double q_size = std::sqrt(dot(q, q) + 1e-6) * std::sqrt(double{kDim});
    const double k_size = std::sqrt(dot(k, k) + 1e-6);
    Doubles o(kDim);
    for (std::size_t i = 0; i < kDim * kDim; ++i) s[i] *= decay;
    for (std::size_t j = 0; j < kDim; ++j) {
      double memory = 0;
      for (std::size_t i = 0; i < kDim; ++i) memory += s[i * kDim + j] * k[i] / k_size;
      const double d = beta * (v[j] - memory);
      for (std::size_t i = 0; i < kDim; ++i) s[i * kDim + j] += k[i] / k_size * d;
      for (std::size_t i = 0; i < kDim; ++i) o[j] += s[i * kDim + j] * q[i] / q_size;
    }
    const double rstd = 1 / std::sqrt(dot(o, o) / kDim + kEps);
    for (std::size_t j = 0; j < kDim; ++j)
      mixed->push_back(o[j] * rstd * norm[j] * test::silu(z[j]));
  }

  Doubles run(const Doubles& read, const Doubles& bf16, const Step& step) {
    const Doubles rows = product(read, qkvz, 0, kWidth), gates = product(bf16, ba, 0, 2 * kValues);
    Doubles mixed;
    for (std::size_t t = 0; t < step.sequence.size(); ++t) {
      const auto s = static_cast<std::size_t>(step.sequence[t]);
      const auto input = head(rows, t, kWidth, 0, kConv);
      inputs[s].emplace_back(input.begin(), input.end());
      const Doubles u = convolved(inputs[s]);
      for (std::size_t h = 0; h < kValues; ++h) {
        const double b = gates[t * 2 * kValues + h], a = gates[t * 2 * kValues + kValues + h];
        const double g = -std::exp(a_log[h]) * std::log1p(std::exp(a + dt_bias[h]));
        mix_head(head(u, 0, 0, 0, kDim), head(u, 0, 0, kKeys * kDim, kDim),
                 head(u, 0, 0, (2 * kKeys + h) * kDim, kDim),
                 head(rows, t, kWidth, kConv + h * kDim, kDim), test::sigmoid(b), std::exp(g),
                 state[s].data() + h * kDim * kDim, &mixed);
      }
    }
    return product(mixed, out, 0, kHidden);
  }
};

TEST(DeltaNet, ReadsWhatTheModelSays) {
  using Model = DeltaNetModel;
  for (Target target : test::usable_targets()) {
    for (bool fp8 : {false, true}) {
      SCOPED_TRACE(test::to_string(target) + (fp8 ? " fp8" : " bf16"));
      LayerBench layer(target, kMaxRows, kHidden);
      Model model(layer, fp8);
      DeltaNetSpec spec;
      spec.k_heads = Model::kKeys;
      spec.v_heads = Model::kValues;
      spec.qkvz = model.qkvz.matrix;
      spec.ba = model.ba.matrix;
      spec.conv_weight = layer.put_bf16(model.conv, {Model::kConv, 4});
      spec.a_log = layer.put_f32(model.a_log, {Model::kValues});
      spec.dt_bias = layer.put_f32(model.dt_bias, {Model::kValues});
      spec.norm = layer.put_f32(model.norm, {Model::kDim});
      spec.out = model.out.matrix;
      auto delta_net = DeltaNet::make(spec, layer.context);
      ASSERT_TRUE(delta_net) << delta_net.status().message();
      EXPECT_EQ(delta_net->forms().fp8, fp8);
      EXPECT_TRUE(delta_net->forms().bf16);  // b and a are never quantised
      const Mixer mixer(*std::move(delta_net), 0);
      const TensorView conv_state = layer.put_bf16(Doubles(kSequences * 4 * Model::kConv, NAN),
                                                   {kSequences, 4, Model::kConv});
      const TensorView state =
          layer.put_f32(Doubles(kSequences * Model::kValues * Model::kDim * Model::kDim, NAN),
                        {kSequences, Model::kValues, Model::kDim, Model::kDim});
      const std::array<TensorView, 2> caches{conv_state, state};

      const Step prompt = make_step(layer, {0, 0}, {5, 2}), next = make_step(layer, {5, 2}, {1, 1});
      for (const Step* step : {&prompt, &next}) {
        const auto x = layer.normed_rows(step->view.shape.tokens);
        const PartialRows out{layer.context.partial.rows(0, step->view.shape.tokens)};
        ASSERT_TRUE(mixer.run(x.rows, step->view, caches, out, layer.bench.stream()));
        EXPECT_LT(test::relative_rms(layer.get_bf16(out.addend),
                                     model.run(fp8 ? x.fp8 : x.bf16, x.bf16, *step)),
                  fp8 ? test::kFp8Chain : test::kBf16Chain);
      }
    }
  }
}

}  // namespace
}  // namespace tenon
