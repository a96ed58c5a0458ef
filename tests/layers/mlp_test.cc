// The two mlps against plain double-precision readings, alone and cut over ranks: the addends of
// all ranks sum to the whole.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/support/layer_bench.h"
#include "tests/support/targets.h"

namespace tenon {
namespace {

using test::Doubles;
using test::LayerBench;
using test::TestMatrix;

constexpr int kMaxRows = 24, kHidden = 128;

// Some rows and columns of a matrix as a matrix of its own; whole blocks of 128 when fp8.
TestMatrix block(LayerBench& layer, const TestMatrix& whole, std::vector<std::int64_t> rows,
                 std::int64_t first_column, std::int64_t columns) {
  TestMatrix part;
  part.in = columns;
  for (std::int64_t row : rows)
    for (std::int64_t i = 0; i < columns; ++i)
      part.values.push_back(whole.at(row, first_column + i));
  part.matrix.weight =
      layer.put_bf16(part.values, {static_cast<std::int64_t>(rows.size()), columns});
  return part;
}

std::vector<std::int64_t> counted(std::int64_t begin, std::int64_t count) {
  std::vector<std::int64_t> rows;
  for (std::int64_t i = 0; i < count; ++i) rows.push_back(begin + i);
  return rows;
}

// down(silu(gate) · up) with gate rows before up rows.
Doubles swiglu(const Doubles& x, const TestMatrix& gate_up, const TestMatrix& down,
               std::int64_t width, std::int64_t expert = 0) {
  const std::int64_t base = expert * 2 * width;
  const Doubles gate = product(x, gate_up, base, width);
  const Doubles up = product(x, gate_up, base + width, width);
  Doubles activation;
  for (std::size_t i = 0; i < gate.size(); ++i) activation.push_back(test::silu(gate[i]) * up[i]);
  return product(activation, down, expert * kHidden, kHidden);
}

TEST(Dense, IsGateUpDown) {
  constexpr int kWidth = 256;
  for (Target target : test::usable_targets()) {
    for (bool fp8 : {false, true}) {
      SCOPED_TRACE(test::to_string(target) + (fp8 ? " fp8" : " bf16"));
      LayerBench layer(target, kMaxRows, kHidden);
      const auto gate_up = layer.matrix(fp8, 2 * kWidth, kHidden);
      const auto down = layer.matrix(fp8, kHidden, kWidth);
      const auto dense = Dense::make("mlp", {kWidth, gate_up.matrix, down.matrix},
                                     layer.context.partial, layer.context);
      ASSERT_TRUE(dense) << dense.status().message();
      EXPECT_EQ(dense->forms().fp8, fp8);
      EXPECT_EQ(dense->forms().bf16, !fp8);
      for (int rows : {1, 3}) {
        const auto x = layer.normed_rows(rows);
        const TensorView out = layer.context.partial.rows(0, rows);
        ASSERT_TRUE(dense->run(x.rows, out, layer.bench.stream()));
        EXPECT_LT(test::relative_rms(layer.get_bf16(out),
                                     swiglu(fp8 ? x.fp8 : x.bf16, gate_up, down, kWidth)),
                  fp8 ? test::kFp8Chain : test::kBf16Chain);
      }
    }
  }
}

// A rank without a share adds zeros, whatever was there, and still asks for what the others ask.
TEST(Dense, WithoutAShareAddsNothing) {
  LayerBench layer(Target::kCpu, kMaxRows, kHidden);
  DenseSpec spec;
  spec.gate_up.weight.dtype = spec.down.weight.dtype = DType::kE4M3;
  const auto dense = Dense::make("mlp", spec, layer.context.partial, layer.context);
  ASSERT_TRUE(dense) << dense.status().message();
  EXPECT_TRUE(dense->forms().fp8);
  const TensorView out = layer.put_bf16(layer.normal(2 * kHidden, 1), {2, kHidden});
  ASSERT_TRUE(dense->run(layer.normed_rows(2).rows, out, layer.bench.stream()));
  EXPECT_EQ(layer.get_bf16(out), Doubles(2 * kHidden, 0.0));
}

struct MoeCase {
  int experts = 16, top_k = 4, width = 128, shared_width = 128;
};

struct MoeWeights {
  TestMatrix router, gate_up, down, shared_gate_up, shared_down;
  MoeWeights(LayerBench& layer, const MoeCase& moe, bool fp8)
      : router(layer.matrix(false, moe.experts + 1, kHidden)),  // last the shared expert's gate
        gate_up(layer.matrix(fp8, 2 * moe.width, kHidden, moe.experts)),
        down(layer.matrix(fp8, kHidden, moe.width, moe.experts)),
        shared_gate_up(layer.matrix(fp8, 2 * moe.shared_width, kHidden)),
        shared_down(layer.matrix(fp8, kHidden, moe.shared_width)) {}
};

// The whole block: softmax over all experts, the largest top_k renormalised, shared expert gated.
Doubles whole_moe(const MoeCase& moe, const MoeWeights& weights, const Doubles& bf16,
                  const Doubles& read) {
  const std::size_t rows = bf16.size() / kHidden;
  const Doubles logits = product(bf16, weights.router, 0, moe.experts);
  const Doubles gate = product(bf16, weights.router, moe.experts, 1);
  Doubles out = swiglu(read, weights.shared_gate_up, weights.shared_down, moe.shared_width);
  for (std::size_t row = 0; row < rows; ++row) {
    double* to = out.data() + row * kHidden;
    for (int i = 0; i < kHidden; ++i) to[i] *= test::sigmoid(gate[row]);
    std::vector<std::pair<double, int>> order;
    for (int e = 0; e < moe.experts; ++e)
      order.emplace_back(
          -logits[row * static_cast<std::size_t>(moe.experts) + static_cast<std::size_t>(e)], e);
    std::sort(order.begin(), order.end());
    double total = 0;
    for (int k = 0; k < moe.top_k; ++k)
      total += std::exp(-order[static_cast<std::size_t>(k)].first);
    const Doubles x(read.begin() + static_cast<std::ptrdiff_t>(row * kHidden),
                    read.begin() + static_cast<std::ptrdiff_t>((row + 1) * kHidden));
    for (int k = 0; k < moe.top_k; ++k) {
      const auto [logit, expert] = order[static_cast<std::size_t>(k)];
      const Doubles routed = swiglu(x, weights.gate_up, weights.down, moe.width, expert);
      for (int i = 0; i < kHidden; ++i)
        to[i] += std::exp(-logit) / total * routed[static_cast<std::size_t>(i)];
    }
  }
  return out;
}

TensorView expert_range(const TensorView& all, std::int64_t begin, std::int64_t count) {
  return all.data == nullptr ? all : all.rows(begin, count);
}

// Experts [first, first + count) and, on one rank only, the shared expert.
ExpertsSpec placed(const MoeCase& moe, const MoeWeights& weights, int first, int count,
                   bool with_shared) {
  ExpertsSpec spec;
  spec.experts = moe.experts;
  spec.top_k = moe.top_k;
  spec.first_expert = first;
  spec.local_experts = count;
  spec.width = moe.width;
  spec.router = weights.router.matrix;
  spec.gate_up = {expert_range(weights.gate_up.matrix.weight, first, count),
                  expert_range(weights.gate_up.matrix.scale, first, count)};
  spec.down = {expert_range(weights.down.matrix.weight, first, count),
               expert_range(weights.down.matrix.scale, first, count)};
  if (with_shared)
    spec.shared = {moe.shared_width, weights.shared_gate_up.matrix, weights.shared_down.matrix};
  else
    spec.shared.gate_up.weight.dtype = weights.shared_gate_up.matrix.weight.dtype;
  return spec;
}

TEST(Experts, OfAllRanksSumToTheWhole) {
  const MoeCase moe;
  for (Target target : test::usable_targets()) {
    for (bool fp8 : {false, true}) {
      for (int ranks : {1, 2}) {
        SCOPED_TRACE(test::to_string(target) + (fp8 ? " fp8 " : " bf16 ") + std::to_string(ranks));
        LayerBench layer(target, kMaxRows, kHidden);
        const MoeWeights weights(layer, moe, fp8);
        const auto x = layer.normed_rows(3);
        Doubles sum(3 * kHidden);
        for (int rank = 0; rank < ranks; ++rank) {
          const int count = moe.experts / ranks;
          const auto experts =
              Experts::make(placed(moe, weights, rank * count, count, rank == 0), layer.context);
          ASSERT_TRUE(experts) << experts.status().message();
          EXPECT_TRUE(experts->forms().bf16);  // the router reads it
          EXPECT_EQ(experts->forms().fp8, fp8);
          const PartialRows out{layer.context.partial.rows(0, 3)};
          ASSERT_TRUE(experts->run(x.rows, out, layer.bench.stream()));
          const Doubles part = layer.get_bf16(out.addend);
          for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += part[i];
        }
        EXPECT_LT(test::relative_rms(sum, whole_moe(moe, weights, x.bf16, fp8 ? x.fp8 : x.bf16)),
                  fp8 ? test::kFp8Chain : test::kBf16Chain);
      }
    }
  }
}

// Rows alone, some and all together have the same bits, whatever the others' experts are.
TEST(Experts, ARowDoesNotDependOnTheOthers) {
  const MoeCase moe;
  for (Target target : test::usable_targets())
    for (bool fp8 : {false, true}) {
      SCOPED_TRACE(test::to_string(target) + (fp8 ? " fp8" : " bf16"));
      LayerBench layer(target, kMaxRows, kHidden);
      const MoeWeights weights(layer, moe, fp8);
      const auto x = layer.normed_rows(kMaxRows);
      const auto experts = Experts::make(placed(moe, weights, 0, moe.experts, true), layer.context);
      ASSERT_TRUE(experts) << experts.status().message();
      const auto run = [&](int first, int rows) {
        NormedRows some;
        some.bf16 = x.rows.bf16->rows(first, rows);
        some.fp8 = x.rows.fp8;
        some.fp8->data = some.fp8->data.rows(first, rows);
        some.fp8->scale = some.fp8->scale.rows(first, rows);
        const PartialRows out{layer.context.partial.rows(0, rows)};
        EXPECT_TRUE(experts->run(some, out, layer.bench.stream()));
        return layer.get_bf16(out.addend);
      };
      const Doubles together = run(0, kMaxRows);
      for (const int rows : {1, 2, 9})
        for (int first = 0; first + rows <= kMaxRows; ++first) {
          const Doubles expected(together.begin() + first * kHidden,
                                 together.begin() + (first + rows) * kHidden);
          EXPECT_EQ(run(first, rows), expected) << rows << " rows from " << first;
        }
    }
}

// Slices by intermediate features: what shard rules do to gate, up and down.
TEST(Dense, SlicesSumToTheWhole) {
  constexpr int kWidth = 96, kCut = 40;
  LayerBench layer(Target::kCpu, kMaxRows, kHidden);
  const auto gate_up = layer.matrix(false, 2 * kWidth, kHidden);
  const auto down = layer.matrix(false, kHidden, kWidth);
  const auto x = layer.normed_rows(2);
  Doubles sum(2 * kHidden);
  for (int begin : {0, kCut}) {
    const int width = begin == 0 ? kCut : kWidth - kCut;
    auto rows = counted(begin, width);
    for (std::int64_t each : counted(kWidth + begin, width)) rows.push_back(each);
    const auto my_gate_up = block(layer, gate_up, rows, 0, kHidden);
    const auto my_down = block(layer, down, counted(0, kHidden), begin, width);
    const auto dense = Dense::make("mlp", {width, my_gate_up.matrix, my_down.matrix},
                                   layer.context.partial, layer.context);
    ASSERT_TRUE(dense) << dense.status().message();
    const TensorView out = layer.context.partial.rows(0, 2);
    ASSERT_TRUE(dense->run(x.rows, out, layer.bench.stream()));
    const Doubles part = layer.get_bf16(out);
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += part[i];
  }
  EXPECT_LT(test::relative_rms(sum, swiglu(x.bf16, gate_up, down, kWidth)), test::kBf16Chain);
}

}  // namespace
}  // namespace tenon
