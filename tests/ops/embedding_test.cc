// embedding against a plain copy, bit for bit; over ranks the slices add up to the whole table.
#include "tenon/ops/embedding/embedding.h"

#include <gtest/gtest.h>

#include <random>

#include "tests/support/op_suite.h"

namespace tenon::embedding {
namespace {

using test::DeviceFixture;
using test::Way;

struct Shape {
  int vocab = 5, hidden = 8;
  std::int32_t vocab_begin = 0;
  DType dtype = DType::kBF16;
  int padding = 0;  // elements between rows of the table and of out
};

std::vector<std::uint16_t> random_halves(int count) {
  std::mt19937 random(1);
  std::vector<std::uint16_t> found(static_cast<std::size_t>(count));
  for (auto& each : found) each = static_cast<std::uint16_t>(random());
  return found;
}

Args put(DeviceFixture& fixture, const Shape& shape, const std::vector<std::uint16_t>& table,
         const std::vector<std::int32_t>& ids) {
  const int stride = shape.hidden + shape.padding;
  const auto tokens = static_cast<std::int64_t>(ids.size());
  Args args;
  args.ids = fixture.put(ids, DType::kI32, {tokens});
  args.table = fixture.put(table, shape.dtype, {shape.vocab, stride});
  args.table.shape[1] = shape.hidden;
  args.vocab_begin = shape.vocab_begin;
  args.out.addend = fixture.rows(shape.dtype, tokens, shape.hidden, stride);
  return args;
}

void expect_copies(const Shape& shape, const std::vector<std::int32_t>& ids) {
  const int stride = shape.hidden + shape.padding;
  const auto table = random_halves(shape.vocab * stride);
  std::vector<std::uint16_t> expected;
  for (const std::int32_t id : ids)
    for (int i = 0; i < shape.hidden; ++i) {
      const std::int64_t row = std::int64_t{id} - shape.vocab_begin;
      const bool mine = row >= 0 && row < shape.vocab;
      expected.push_back(mine ? table[static_cast<std::size_t>(row * stride + i)] : 0);
    }
  test::for_each_way(kOp, [&](const Way& way) {
    DeviceFixture fixture(way.target);
    const Args args = put(fixture, shape, table, ids);
    test::run_forced(fixture, args, way.variant);
    EXPECT_EQ(fixture.get<std::uint16_t>(args.out.addend), expected);
  });
}

TEST(Embedding, CopiesItsSliceAndZerosTheRest) {
  expect_copies({.vocab = 5, .hidden = 8, .vocab_begin = 10}, {10, 14, 9, 15, 0, -1, 12, 12});
  expect_copies({.vocab = 1, .hidden = 16}, {0});
  expect_copies({.vocab = 3, .hidden = 8}, {2147483647, -2147483647 - 1, 2});
}

TEST(Embedding, AnyWidthAndStride) {
  for (const int hidden : {8, 16, 248, 256, 264, 1032, 2048})
    for (const int padding : {0, 8, 24})
      expect_copies({.vocab = 7, .hidden = hidden, .vocab_begin = 3, .padding = padding},
                    {3, 9, 10, 2, 5});
}

TEST(Embedding, TakesBothHalfTypes) {
  expect_copies({.vocab = 4, .hidden = 24, .dtype = DType::kF16}, {3, 1, 4});
}

TEST(Embedding, NoTokensIsFine) { expect_copies({}, {}); }

TEST(Embedding, RefusalsSayWhatIsAccepted) {
  DeviceFixture fixture(Target::kCpu);
  const Args good = put(fixture, {}, random_halves(40), {0, 1, 2});
  test::expect_refusals(
      kOp, good,
      {{[](Args& a) { a.ids.dtype = DType::kI64; },
        "embedding: ids is i64 [3] on cpu:0 but must be of type i32"},
       {[](Args& a) { a.table.dtype = DType::kF32; },
        "embedding: table is f32 [5, 8] on cpu:0 but must be of type bf16 or f16"},
       {[](Args& a) { a.out.addend.dtype = DType::kF16; },
        "embedding: out is f16 [3, 8] on cpu:0 but must be of type bf16"},
       {[](Args& a) { a.table.shape[1] = a.out.addend.shape[1] = 4; },
        "embedding: table is bf16 [5, 4] on cpu:0 but hidden must be a multiple of 8"},
       {[](Args& a) { a.vocab_begin = -1; }, "embedding: vocab_begin is -1 but must be at least 0"},
       {[](Args& a) { a.table.stride[0] = 9; },
        "embedding: table is bf16 [5, 8] on cpu:0 but every row must begin at a multiple of "
        "16 bytes"},
       {[](Args& a) { a.ids.device.index = 1; },
        "embedding: ids is i32 [3] on cpu:1, table is bf16 [5, 8] on cpu:0 and out is bf16 "
        "[3, 8] on cpu:0; all must lie on one device"}});
}

TEST(Embedding, TrafficReadsAndWritesEveryRow) {
  DeviceFixture fixture(Target::kCpu);
  const Args args = put(fixture, {}, random_halves(40), {0, 1, 2});
  EXPECT_EQ(traffic(args).memory_bytes, 2 * 3 * 16 + 3 * 4);
}

}  // namespace
}  // namespace tenon::embedding
