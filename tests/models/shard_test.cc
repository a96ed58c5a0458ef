// Slices of a checkpoint on the device: rows, columns, fused projections, experts, and the fp8
// scales that go with them; slices that would cut a scale block are refused.
#include "tenon/models/shard.h"

#include <gtest/gtest.h>

#include <array>

#include "tenon/core/fp8.h"
#include "tests/support/device_fixture.h"
#include "tests/support/targets.h"
#include "tests/support/tiny_model.h"

namespace tenon {
namespace {

using test::DeviceFixture;
using test::FileTensor;
using test::FileTensors;

template <class T, class Value>
FileTensor numbered(std::string type, std::vector<std::int64_t> shape, Value value) {
  std::int64_t count = 1;
  for (std::int64_t extent : shape) count *= extent;
  FileTensor tensor{std::move(type), std::move(shape), {}};
  for (std::int64_t i = 0; i < count; ++i) {
    const T element = value(i);
    const auto* bytes = reinterpret_cast<const std::byte*>(&element);
    tensor.bytes.insert(tensor.bytes.end(), bytes, bytes + sizeof(T));
  }
  return tensor;
}
// Bits that count up: slices are recognised by them.
FileTensor bf16_numbers(std::vector<std::int64_t> shape, int from = 0) {
  return numbered<std::uint16_t>("BF16", std::move(shape), [=](std::int64_t i) {
    return static_cast<std::uint16_t>(from + i);
  });
}
// Codes that tell their block of 128 × 128, and scales that tell theirs.
FileTensor fp8_blocks(std::int64_t out, std::int64_t in, int from = 0) {
  return numbered<std::uint8_t>("F8_E4M3", {out, in}, [=](std::int64_t i) {
    return static_cast<std::uint8_t>(from + i / in / 128 * ((in + 127) / 128) + i % in / 128);
  });
}
template <class T>
FileTensor scale_blocks(std::string type, std::int64_t high, std::int64_t wide, int from,
                        T (*encode)(float)) {
  return numbered<T>(std::move(type), {high, wide},
                     [=](std::int64_t i) { return encode(static_cast<float>(from + i)); });
}
std::uint16_t encode_bf16(float value) { return to_bf16(value).bits; }
std::uint16_t encode_f16(float value) { return to_f16(value).bits; }
float encode_f32(float value) { return value; }

// A loader over the given tensors.
struct Loaded {
  explicit Loaded(const FileTensors& tensors) : bench(Target::kCpu) {
    test::write_checkpoint(directory.path(), "{}", tensors, 0);
    auto weights = Weights::open(directory.path().string());
    EXPECT_TRUE(weights) << weights.status().message();
    loader.emplace(*std::move(weights), std::vector<std::string_view>{"skip."}, bench.stream(),
                   [this](std::int64_t done, std::int64_t total, std::string_view) {
                     progress = {done, total};
                   });
  }
  test::TempDirectory directory;
  DeviceFixture bench;
  std::optional<ShardLoader> loader;
  std::pair<std::int64_t, std::int64_t> progress;
};

TEST(Slices, CoverEverythingOnce) {
  for (int size : {1, 2, 3, 8})
    for (std::int64_t extent : {1, 7, 8, 100, 384, 1024})
      for (std::int64_t block : {1, 8, 128}) {
        std::int64_t reached = 0, smallest = extent, largest = 0;
        for (int rank = 0; rank < size; ++rank) {
          const Range mine = block_slice(extent, block, rank, size);
          ASSERT_EQ(mine.begin, reached);
          ASSERT_TRUE(mine.begin % block == 0 || mine.count == 0);
          reached = mine.end();
          smallest = std::min(smallest, mine.count);
          largest = std::max(largest, mine.count);
        }
        EXPECT_EQ(reached, extent);
        EXPECT_LT(largest - smallest, 2 * block);
      }
  EXPECT_EQ(even_slice(12, 2, 3), (Range{8, 4}));
}

TEST(ShardLoader, TakesRowsOfAnyShape) {
  Loaded files({{"conv", bf16_numbers({6, 1, 4})}, {"vector", bf16_numbers({5})}});
  const auto rows =
      files.loader->rows("conv", {DType::kBF16}, {6, 1, 4}, {{1, 1}, {4, 2}}, DType::kBF16, {3, 4});
  ASSERT_TRUE(rows) << rows.status().message();
  const auto part = files.loader->vector("vector", {DType::kBF16}, 5, {2, 2}, DType::kF32);
  ASSERT_TRUE(part) << part.status().message();
  EXPECT_TRUE(files.loader->finish());
  EXPECT_EQ(files.bench.get<std::uint16_t>(*rows),
            (std::vector<std::uint16_t>{4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23}));
  EXPECT_EQ(files.bench.get<float>(*part),
            (std::vector<float>{to_float(bf16{2}), to_float(bf16{3})}));
  EXPECT_EQ(files.progress, (std::pair<std::int64_t, std::int64_t>{24 + 4, 24 + 4}));
  EXPECT_EQ(files.loader->device_bytes(), 24 + 8);
}

TEST(ShardLoader, RoundsF32ToBf16) {
  Loaded files({{"conv", numbered<float>("F32", {3, 1, 2}, [](std::int64_t i) {
                   return 1 + static_cast<float>(i) / 256;  // every second one is a tie
                 })}});
  const auto rows = files.loader->rows("conv", {DType::kBF16, DType::kF32}, {3, 1, 2}, {{1, 2}},
                                       DType::kBF16, {2, 2});
  ASSERT_TRUE(rows) << rows.status().message();
  ASSERT_TRUE(files.loader->finish());
  const std::uint16_t one = to_bf16(1.0f).bits;
  EXPECT_EQ(files.bench.get<std::uint16_t>(*rows),
            (std::vector<std::uint16_t>{
                static_cast<std::uint16_t>(one + 1), static_cast<std::uint16_t>(one + 2),
                static_cast<std::uint16_t>(one + 2), static_cast<std::uint16_t>(one + 2)}));
}

// A copy is told by the bytes of this rank's rows; only then it is taken.
TEST(ShardLoader, SkipsACopyOfAnotherTensor) {
  FileTensor other = bf16_numbers({4, 3});
  other.bytes.back() ^= std::byte{1};
  Loaded files({{"a", bf16_numbers({4, 3})},
                {"copy", bf16_numbers({4, 3})},
                {"flat", bf16_numbers({12})},
                {"other", other}});
  const auto skips = [&](std::string_view name, Range rows) {
    const auto skipped = files.loader->skip_copy(name, "a", rows);
    EXPECT_TRUE(skipped) << skipped.status().message();
    return skipped && *skipped;
  };
  EXPECT_FALSE(skips("other", {2, 2}));
  EXPECT_FALSE(skips("other", {0, 5}));
  EXPECT_FALSE(skips("flat", {0, 4}));
  EXPECT_FALSE(skips("missing", {0, 4}));
  EXPECT_TRUE(skips("other", {0, 3}));
  EXPECT_TRUE(skips("copy", {0, 4}));
  EXPECT_FALSE(files.loader->finish());  // "a" and "flat"
  ASSERT_TRUE(files.loader->rows("a", {DType::kBF16}, {4, 3}, {{0, 4}}, DType::kBF16, {4, 3}));
  ASSERT_TRUE(files.loader->vector("flat", {DType::kBF16}, 12, {0, 12}, DType::kBF16));
  EXPECT_TRUE(files.loader->finish());
  EXPECT_EQ(files.progress.first, files.progress.second);
}

TEST(ShardLoader, StacksPartsOfOneFusedProjection) {
  Loaded files({{"a.weight", bf16_numbers({4, 3})}, {"b.weight", bf16_numbers({2, 3}, 100)}});
  const LinearPart parts[] = {{"a", 4, 3, {{3, 1}, {0, 1}}, {1, 2}}, {"b", 2, 3, {{1, 1}}, {1, 2}}};
  const auto matrix = files.loader->linear(parts);
  ASSERT_TRUE(matrix) << matrix.status().message();
  EXPECT_FALSE(matrix->is_fp8());
  ASSERT_TRUE(files.loader->finish());
  EXPECT_EQ(files.bench.get<std::uint16_t>(matrix->weight),
            (std::vector<std::uint16_t>{10, 11, 1, 2, 104, 105}));
}

TEST(ShardLoader, SlicesScalesWithTheirBlocks) {
  // a: 3 × 2 blocks, b: 1 ragged × 2; scales of three storage types give the same f32.
  for (int storage = 0; storage < 3; ++storage) {
    FileTensors tensors{{"a.weight", fp8_blocks(384, 256)}, {"b.weight", fp8_blocks(40, 256, 6)}};
    for (const auto& [name, high, from] : {std::tuple{"a", 3, 0}, {"b", 1, 6}})
      tensors[std::string(name) + ".weight_scale_inv"] =
          storage == 0   ? scale_blocks<std::uint16_t>("BF16", high, 2, from, encode_bf16)
          : storage == 1 ? scale_blocks<std::uint16_t>("F16", high, 2, from, encode_f16)
                         : scale_blocks<float>("F32", high, 2, from, encode_f32);
    Loaded files(tensors);
    const LinearPart parts[] = {{"a", 384, 256, {{256, 128}, {0, 128}}, {128, 128}},
                                {"b", 40, 256, {{0, 40}}, {128, 128}}};
    const auto matrix = files.loader->linear(parts);
    ASSERT_TRUE(matrix) << matrix.status().message();
    EXPECT_TRUE(matrix->is_fp8());
    EXPECT_TRUE(files.loader->finish());
    EXPECT_EQ(files.bench.get<float>(matrix->scale), (std::vector<float>{5, 1, 7}));
    const auto codes = files.bench.get<std::uint8_t>(matrix->weight);
    ASSERT_EQ(codes.size(), 296u * 128);
    for (std::size_t i = 0; i < codes.size(); ++i)  // each code names the block of its scale
      ASSERT_EQ(codes[i], (std::vector<int>{5, 1, 7})[i / 128 / 128]) << i;
  }
}

TEST(ShardLoader, RefusesToCutAScaleBlock) {
  const auto files_of = [](std::int64_t out, std::int64_t in) {
    return FileTensors{
        {"a.weight", fp8_blocks(out, in)},
        {"a.weight_scale_inv",
         scale_blocks<float>("F32", (out + 127) / 128, (in + 127) / 128, 0, encode_f32)},
        {"b.weight", fp8_blocks(out, in)},
        {"b.weight_scale_inv",
         scale_blocks<float>("F32", (out + 127) / 128, (in + 127) / 128, 0, encode_f32)}};
  };
  struct Case {
    std::int64_t out, in;
    std::vector<LinearPart> parts;
    const char* sentence;
  };
  const std::vector<Case> cases{
      {256,
       128,
       {{"a", 256, 128, {{64, 128}}, {0, 128}}},
       "elements 64 to 192 of 256 cut a block of 128"},
      {256, 128, {{"a", 256, 128, {{0, 64}}, {0, 128}}}, "elements 0 to 64 of 256 cut a block"},
      {128, 256, {{"a", 128, 256, {{0, 128}}, {0, 192}}}, "elements 0 to 192 of 256 cut a block"},
      {64,
       128,
       {{"a", 64, 128, {{0, 64}}, {0, 128}}, {"b", 64, 128, {{0, 64}}, {0, 128}}},
       "b: is stacked below 64 rows of fp8, which is not a multiple of 128"},
  };
  for (const Case& each : cases) {
    Loaded files(files_of(each.out, each.in));
    const std::string found = test::refusal(files.loader->linear(each.parts).status());
    EXPECT_NE(found.find(each.sentence), std::string::npos) << found;
  }
}

TEST(ShardLoader, PlacesExpertsAndTakesTheOthers) {
  FileTensors tensors;
  const std::array<std::string, 3> modules{"e0", "e1", "e2"};
  for (int e = 0; e < 3; ++e)
    tensors[modules[static_cast<std::size_t>(e)] + ".weight"] = bf16_numbers({2, 2}, 10 * e);
  Loaded files(tensors);
  std::vector<LinearPart> parts;
  for (int e = 0; e < 3; ++e)
    parts.push_back({modules[static_cast<std::size_t>(e)],
                     2,
                     2,
                     e == 0 ? std::vector<Range>{} : std::vector<Range>{{0, 2}},
                     {0, 2}});
  const auto matrix = files.loader->linear(parts, 2);
  ASSERT_TRUE(matrix) << matrix.status().message();
  EXPECT_EQ(matrix->weight.num_dims, 3);
  EXPECT_TRUE(files.loader->finish());
  EXPECT_EQ(files.bench.get<std::uint16_t>(matrix->weight),
            (std::vector<std::uint16_t>{10, 11, 12, 13, 20, 21, 22, 23}));
}

TEST(ShardLoader, CutsFusedExperts) {
  Loaded files({{"all", bf16_numbers({3, 4, 2})}, {"skip.this", bf16_numbers({1})}});
  const auto matrix =
      files.loader->fused_experts("all", {3, 4, 2}, {1, 2}, {{1, 1}, {3, 1}}, {0, 2});
  ASSERT_TRUE(matrix) << matrix.status().message();
  EXPECT_TRUE(files.loader->finish());
  EXPECT_EQ(files.bench.get<std::uint16_t>(matrix->weight),
            (std::vector<std::uint16_t>{10, 11, 14, 15, 18, 19, 22, 23}));
}

// A rank without a share still knows what the others compute with.
TEST(ShardLoader, AnEmptyShareKeepsItsType) {
  Loaded files({{"a.weight", fp8_blocks(128, 128)},
                {"a.weight_scale_inv", scale_blocks<float>("F32", 1, 1, 0, encode_f32)}});
  const LinearPart part{"a", 128, 128, {{128, 0}}, {0, 128}};
  const auto matrix = files.loader->linear({&part, 1});
  ASSERT_TRUE(matrix) << matrix.status().message();
  EXPECT_FALSE(*matrix);
  EXPECT_TRUE(matrix->is_fp8());
}

// Stacks larger than what is staged at once, of whole rows and of columns, arrive whole.
TEST(ShardLoader, OnDevicesLargeStacksArriveWhole) {
  const auto targets = test::device_targets();
  if (targets.empty()) GTEST_SKIP() << test::kNoDevice;
  constexpr std::int64_t kHigh = 70'001, kWide = 520;  // 73 MB of bf16
  test::TempDirectory directory;
  FileTensors tensors;
  tensors["large"] = bf16_numbers({kHigh, kWide});
  test::write_checkpoint(directory.path(), "{}", tensors, 0);
  for (const Target target : targets) {
    DeviceFixture on(target);
    auto weights = Weights::open(directory.path().string());
    ASSERT_TRUE(weights) << weights.status().to_string();
    ShardLoader loader(*std::move(weights), {}, on.stream(), {});
    const auto found = loader.rows("large", {DType::kBF16}, {kHigh, kWide},
                                   {{5, kHigh - 5}, {0, 5}}, DType::kBF16, {kHigh, kWide});
    ASSERT_TRUE(found) << found.status().to_string();
    ASSERT_TRUE(loader.finish());
    const auto values = on.get<std::uint16_t>(*found);
    for (std::int64_t row = 0; row < kHigh; ++row)
      for (const std::int64_t column : {std::int64_t{0}, kWide - 1})
        ASSERT_EQ(values[static_cast<std::size_t>(row * kWide + column)],
                  static_cast<std::uint16_t>((row + 5) % kHigh * kWide + column))
            << "row " << row << ", column " << column;
  }
}

}  // namespace
}  // namespace tenon
