// Products and lookups by rows: which form of the input they read, every row count of every bucket,
// slices of the vocabulary; against plain sums in double.
#include <gtest/gtest.h>

#include "tests/support/layer_bench.h"
#include "tests/support/targets.h"

namespace tenon {
namespace {

using test::DeviceFixture;
using test::Doubles;
using test::LayerBench;

constexpr int kMaxRows = 5, kHidden = 256;

TEST(RowPlans, CoverEveryRowCount) {
  std::vector<std::int64_t> asked;
  const auto make_plan = [&](std::int64_t rows) -> Result<Plan> {
    asked.push_back(rows);
    Plan plan;
    plan.rows = rows;
    return plan;
  };
  const auto plans = RowPlans::make(11, make_plan);
  ASSERT_TRUE(plans);
  EXPECT_EQ(asked, (std::vector<std::int64_t>{1, 2, 4, 8, 11}));
  for (const auto& [rows, bucket] :
       {std::pair{0, 1}, {1, 1}, {2, 2}, {3, 4}, {4, 4}, {5, 8}, {8, 8}, {9, 11}, {11, 11}})
    EXPECT_EQ(plans->at(rows).rows, bucket) << rows;

  asked.clear();
  ASSERT_TRUE(RowPlans::make(8, make_plan));
  EXPECT_EQ(asked, (std::vector<std::int64_t>{1, 2, 4, 8}));
  const auto refuse = [](std::int64_t rows) -> Result<Plan> {
    if (rows > 2) return Status::error(Code::kUnsupported, "no more than 2");
    return Plan{};
  };
  EXPECT_FALSE(RowPlans::make(8, refuse));
}

TEST(Scratch, IsSharedByLabelAndShape) {
  DeviceFixture bench(Target::kCpu);
  Scratch scratch(bench.stream(), kMaxRows);
  const TensorView a = DeviceFixture::must(scratch.rows("a", DType::kBF16, 8));
  EXPECT_EQ(DeviceFixture::must(scratch.rows("a", DType::kBF16, 8)).data, a.data);
  EXPECT_NE(DeviceFixture::must(scratch.rows("a", DType::kBF16, 9)).data, a.data);
  EXPECT_NE(DeviceFixture::must(scratch.rows("b", DType::kBF16, 8)).data, a.data);
  EXPECT_EQ(a.shape[0], kMaxRows);
  for (std::uint16_t each : bench.get<std::uint16_t>(a)) EXPECT_EQ(each, 0);
  EXPECT_EQ(scratch.take_buffers().size(), 3u);
  EXPECT_NE(
      test::refusal(scratch.codes("c", 2, 100).status()).find("100 features cannot be quantised"),
      std::string::npos);
}

// Only the form that the weight reads is given: the other one cannot be touched.
TEST(Linear, ReadsTheFormOfItsWeight) {
  for (Target target : test::usable_targets()) {
    for (bool fp8 : {false, true}) {
      SCOPED_TRACE(test::to_string(target) + (fp8 ? " fp8" : " bf16"));
      LayerBench layer(target, kMaxRows, kHidden);
      constexpr int kOut = 136;  // a ragged block of scales
      const auto weight = layer.matrix(fp8, kOut, kHidden);
      const TensorView out = DeviceFixture::must(layer.scratch.rows("out", DType::kBF16, kOut));
      const auto linear = Linear::make(weight.matrix, layer.context.x, out, layer.context.where);
      ASSERT_TRUE(linear) << linear.status().message();
      NormedForms forms;
      linear->add_to(&forms);
      EXPECT_EQ(forms.fp8, fp8);
      EXPECT_EQ(forms.bf16, !fp8);
      for (int rows : {1, 3, 5}) {
        auto x = layer.normed_rows(rows);
        const Doubles expected = product(fp8 ? x.fp8 : x.bf16, weight, 0, kOut);
        (fp8 ? x.rows.bf16.reset() : x.rows.fp8.reset());
        ASSERT_TRUE(linear->run(x.rows, out.rows(0, rows), layer.bench.stream()));
        EXPECT_LT(test::relative_rms(layer.get_bf16(out.rows(0, rows)), expected), 1.0 / 256);
      }
    }
  }
}

TEST(OutProjection, ActivatesQuantisesAndProjects) {
  constexpr int kWidth = 128, kOut = 24;
  for (Target target : test::usable_targets()) {
    for (bool fp8 : {false, true}) {
      for (bool gated : {false, true}) {
        SCOPED_TRACE(test::to_string(target) + (fp8 ? " fp8" : " bf16") + (gated ? " gated" : ""));
        LayerBench layer(target, kMaxRows, kHidden);
        const auto weight = layer.matrix(fp8, kOut, kWidth);
        const int in_width = gated ? 2 * kWidth : kWidth;
        const TensorView in = DeviceFixture::must(layer.scratch.rows("in", DType::kBF16, in_width));
        const TensorView out = DeviceFixture::must(layer.scratch.rows("out", DType::kBF16, kOut));
        const auto prologue = gated ? fp8_quant::Prologue::kSiluMul : fp8_quant::Prologue::kNone;
        const auto projection =
            OutProjection::make("test", weight.matrix, prologue, in, out, layer.context);
        ASSERT_TRUE(projection) << projection.status().message();
        for (int rows : {1, 4, 5}) {
          const Doubles values = layer.normal(rows * in_width, 1);
          Doubles activation;
          for (int row = 0; row < rows; ++row)
            for (int i = 0; i < kWidth; ++i) {
              const double* at = values.data() + row * in_width + i;
              activation.push_back(gated ? test::silu(at[0]) * at[kWidth] : at[0]);
            }
          ASSERT_TRUE(projection->run(layer.put_bf16(values, {rows, in_width}), out.rows(0, rows),
                                      layer.bench.stream()));
          EXPECT_LT(test::relative_rms(layer.get_bf16(out.rows(0, rows)),
                                       product(activation, weight, 0, kOut)),
                    fp8 ? test::kFp8Chain : test::kBf16Chain);
        }
      }
    }
  }
}

// Two slices of one table add up to the whole lookup.
TEST(Embedding, RanksSlicesAddUp) {
  constexpr int kVocab = 7, kSplit = 4;
  for (Target target : test::usable_targets()) {
    SCOPED_TRACE(test::to_string(target));
    LayerBench layer(target, kMaxRows, kHidden);
    const Doubles table = layer.normal(kVocab * kHidden, 1);
    const TensorView all = layer.put_bf16(table, {kVocab, kHidden});
    const std::vector<std::int32_t> ids{6, 0, 3, 4};
    Doubles sum(ids.size() * kHidden);
    for (int begin : {0, kSplit}) {
      const int count = begin == 0 ? kSplit : kVocab - kSplit;
      const auto embedding = Embedding::make(all.rows(begin, count), begin, layer.context);
      ASSERT_TRUE(embedding) << embedding.status().message();
      const PartialRows out{layer.context.partial.rows(0, 4)};
      ASSERT_TRUE(embedding->run(layer.put_i32(ids), out, layer.bench.stream()));
      const Doubles part = layer.get_bf16(out.addend);
      for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += part[i];
    }
    for (std::size_t row = 0; row < ids.size(); ++row)
      for (int i = 0; i < kHidden; ++i)
        ASSERT_EQ(sum[row * kHidden + i], table[static_cast<std::size_t>(ids[row]) * kHidden + i]);
  }
}

TEST(Head, GivesTheChosenRowsAndMinusInfinityBehindTheTable) {
  constexpr int kFilled = 6, kWidth = 8;
  for (Target target : test::usable_targets()) {
    SCOPED_TRACE(test::to_string(target));
    LayerBench layer(target, kMaxRows, kHidden);
    const auto table = layer.matrix(false, kFilled, kHidden);
    const auto head = Head::make(table.matrix.weight, 8, kWidth, layer.context);
    ASSERT_TRUE(head) << head.status().message();
    const auto x = layer.normed_rows(kMaxRows);
    for (const std::vector<std::int32_t>& rows : {std::vector<std::int32_t>{4}, {0, 3, 2}}) {
      const auto shard = head->run(x.rows, layer.put_i32(rows), layer.bench.stream());
      ASSERT_TRUE(shard) << shard.status().message();
      EXPECT_EQ(shard->vocab_begin, 8);
      const auto logits = layer.bench.get<float>(shard->logits);
      ASSERT_EQ(logits.size(), rows.size() * kWidth);
      const Doubles all = product(x.bf16, table, 0, kFilled);
      for (std::size_t r = 0; r < rows.size(); ++r)
        for (std::size_t n = 0; n < kWidth; ++n) {
          const float found = logits[r * kWidth + n];
          if (n >= kFilled)
            EXPECT_EQ(found, -INFINITY);
          else  // fp32 sums of 256 products of about 1/16
            EXPECT_NEAR(found, all[static_cast<std::size_t>(rows[r]) * kFilled + n], 1e-4);
        }
    }
  }
}

// A rank behind the end of the vocabulary has only −infinity to offer.
TEST(Head, MayHaveNoTable) {
  LayerBench layer(Target::kCpu, kMaxRows, kHidden);
  const TensorView nothing = view(nullptr, DType::kBF16, layer.bench.device(), {0, kHidden});
  const auto head = Head::make(nothing, 16, 4, layer.context);
  ASSERT_TRUE(head) << head.status().message();
  const auto shard =
      head->run(layer.normed_rows(2).rows, layer.put_i32({1, 0}), layer.bench.stream());
  ASSERT_TRUE(shard);
  for (float each : layer.bench.get<float>(shard->logits)) EXPECT_EQ(each, -INFINITY);
}

}  // namespace
}  // namespace tenon
