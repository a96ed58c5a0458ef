// Made weights: one model whatever the team, of a plausible size, with routers that have
// favourites.
#include "tenon/models/dummy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <map>

#include "tenon/core/fp8.h"
#include "tenon/models/inspect.h"
#include "tenon/models/shard.h"
#include "tests/support/device_fixture.h"
#include "tests/support/small_model.h"
#include "tests/support/targets.h"

namespace tenon {
namespace {

using test::TinyShape;

// A directory with a config.json and nothing else.
struct ConfigOnly : test::TempDirectory {
  explicit ConfigOnly(const TinyShape& shape) {
    std::ofstream(path() / "config.json") << test::tiny_config(shape);
  }
  std::string where() const { return path().string(); }
};

ModelOptions dummy_options(std::uint64_t seed = 0) {
  ModelOptions options = test::small_options();
  options.weights = {LoadFormat::kDummy, seed};
  return options;
}

std::vector<float> first_logits(int size, const std::string& model, std::uint64_t seed = 0) {
  return test::logits_of(size, model, dummy_options(seed), {{0, test::prompt(20, 1)}}, 0);
}

std::vector<TensorRecipe> recipes() {
  return {{"a.weight", DType::kBF16, {6, 30}, 0.5f, 0.25f},
          {"b.weight", DType::kE4M3, {6, 30}},
          {"c.weight", DType::kF32, {6, 30}, -1, 2},
          {"d.weight", DType::kBF16, {6, 30}, 0, 1, true}};
}

std::vector<std::byte> bytes_of(const Weights& weights, const char* name) {
  const StoredTensor& tensor = *weights.find(name);
  std::vector<std::byte> bytes(tensor.bytes);
  EXPECT_TRUE(weights.source().reader()->read(tensor, 0, bytes.size(), bytes.data()));
  return bytes;
}

TEST(Dummy, AnyPartOfATensorIsThatPartOfTheWhole) {
  const Weights weights = made_weights(recipes(), 3);
  for (const TensorRecipe& each : recipes()) {
    const StoredTensor& tensor = *weights.find(each.name);
    const auto whole = bytes_of(weights, each.name.c_str());
    const auto reader = weights.source().reader();
    const std::size_t size = size_of(each.dtype);
    for (std::size_t begin = 0; begin < whole.size(); begin += size)
      for (std::size_t count = size; begin + count <= whole.size(); count += 3 * size) {
        std::vector<std::byte> part(count);
        ASSERT_TRUE(reader->read(tensor, begin, count, part.data()));
        ASSERT_EQ(std::memcmp(part.data(), whole.data() + begin, count), 0)
            << each.name << " bytes " << begin << " + " << count;
      }
  }
}

std::vector<std::byte> bytes_at(test::DeviceFixture& on, const TensorView& tensor) {
  const auto count = static_cast<std::int64_t>(tensor.bytes());
  return on.get<std::byte>(view(tensor.data, DType::kU8, tensor.device, {count}));
}

// Rows 1 to 5 and, below them, row 0 of a tensor, as the loader puts them onto a target; on GPUs
// they are made there.
std::vector<std::byte> loaded_on(Target target, const TensorRecipe& recipe, DType as) {
  test::DeviceFixture on(target);
  ShardLoader loader(made_weights({recipe}, 3), {}, on.stream(), {});
  const std::int64_t width = recipe.shape.back();
  const auto found =
      loader.rows(recipe.name, {recipe.dtype}, recipe.shape, {{1, 5}, {0, 1}}, as, {6, width});
  EXPECT_TRUE(found) << found.status().to_string();
  EXPECT_TRUE(loader.finish());
  return found ? bytes_at(on, *found) : std::vector<std::byte>();
}

TEST(Dummy, TargetsHoldTheSameBits) {
  for (const Target target : test::usable_targets())
    for (const TensorRecipe& each : recipes())
      for (const DType as : {each.dtype, DType::kF32}) {
        if (as != each.dtype && each.dtype == DType::kE4M3) continue;
        EXPECT_EQ(loaded_on(target, each, as), loaded_on(Target::kCpu, each, as))
            << each.name << " on " << name(target) << " as " << name(as);
      }
}

// What GPUs load by, on every target.
TEST(Dummy, ASourceMakesWhatItReads) {
  for (const Target target : test::usable_targets()) {
    test::DeviceFixture on(target);
    Weights weights = made_weights(recipes(), 3);
    for (const TensorRecipe& each : recipes()) {
      const auto taken = weights.take(each.name, {each.dtype}, each.shape);
      ASSERT_TRUE(taken) << taken.status().to_string();
      ASSERT_TRUE(taken->source->makes());
      const std::vector<std::byte> nothing(4 * 11 * size_of(each.dtype));
      const TensorView to = on.put(nothing, each.dtype, {4, 11});
      const Status made = taken->source->make(*taken->stored, 2, 13, to, on.stream());
      ASSERT_TRUE(made) << made.to_string();
      std::vector<std::byte> read(nothing.size());
      const auto reader = taken->source->reader();
      const std::size_t size = size_of(each.dtype);
      for (std::size_t row = 0; row < 4; ++row)
        ASSERT_TRUE(reader->read(*taken->stored, ((2 + row) * 30 + 13) * size, 11 * size,
                                 read.data() + row * 11 * size));
      EXPECT_EQ(bytes_at(on, to), read) << each.name << " on " << name(target);
    }
  }
}

TEST(Dummy, NamesAndSeedsMakeOtherElements) {
  auto renamed = recipes();
  renamed[1].name = "other.weight";
  const auto b = bytes_of(made_weights(recipes(), 3), "b.weight");
  EXPECT_EQ(b, bytes_of(made_weights(recipes(), 3), "b.weight"));
  EXPECT_NE(b, bytes_of(made_weights(recipes(), 4), "b.weight"));
  EXPECT_NE(b, bytes_of(made_weights(renamed, 3), "other.weight"));
}

TEST(Dummy, ElementsHaveTheSizesThatRecipesSay) {
  const std::int64_t rows = 64, columns = 1024;
  const Weights weights = made_weights({{"bf16", DType::kBF16, {rows, columns}, 1, 0.5f},
                                        {"f32", DType::kF32, {rows, columns}, 0, 2},
                                        {"fp8", DType::kE4M3, {rows, columns}}},
                                       0);
  double sum = 0, squares = 0, codes = 0;
  const auto bf16s = bytes_of(weights, "bf16"), f32s = bytes_of(weights, "f32"),
             fp8s = bytes_of(weights, "fp8");
  const auto count = static_cast<std::size_t>(rows * columns);
  for (std::size_t i = 0; i < count; ++i) {
    bf16 half;
    float single = 0;
    std::memcpy(&half, bf16s.data() + i * sizeof half, sizeof half);
    std::memcpy(&single, f32s.data() + i * sizeof single, sizeof single);
    const float code = from_fp8<DType::kE4M3>(std::to_integer<std::uint8_t>(fp8s[i]));
    ASSERT_LE(std::fabs(to_float(half) - 1), 0.5f);
    ASSERT_LE(std::fabs(single), 2);
    ASSERT_LT(std::fabs(code), 2);  // and no NaN
    sum += to_float(half);
    squares += static_cast<double>(single) * single;
    codes += static_cast<double>(code) * code;
  }
  const double number = static_cast<double>(count);
  EXPECT_NEAR(sum / number, 1, 0.01);
  EXPECT_NEAR(std::sqrt(squares / number), 2 / std::sqrt(3.0), 0.02);
  EXPECT_NEAR(std::sqrt(codes / number), made_code_rms(), 0.01);
}

// What one rank of a team loads of an fp8 projection: rows of it, and columns of another.
std::vector<std::byte> loaded(int rank, int size, bool columns) {
  auto stream = Stream::create(Device{Target::kCpu, 0});
  EXPECT_TRUE(stream);
  const std::int64_t extent = 512;
  const float scale = 1 / made_code_rms();
  ShardLoader loader(made_weights({{"p.weight", DType::kE4M3, {extent, extent}},
                                   {"p.weight_scale_inv", DType::kBF16, {4, 4}, scale, scale / 4}},
                                  0),
                     {}, *stream, {});
  const Range mine = even_slice(extent, rank, size), all{0, extent};
  const LinearPart part{"p", extent, extent, {columns ? all : mine}, columns ? mine : all};
  const auto matrix = loader.linear({&part, 1});
  EXPECT_TRUE(matrix) << matrix.status().to_string();
  if (!matrix) return {};
  EXPECT_TRUE(loader.finish());
  std::vector<std::byte> bytes;
  for (const TensorView& each : {matrix->weight, matrix->scale}) {
    const auto* data = each.as<std::byte>();
    bytes.insert(bytes.end(), data, data + each.bytes());
  }
  return bytes;
}

TEST(Dummy, SlicesAreThoseOfTheWhole) {
  const auto whole = loaded(0, 1, false);
  ASSERT_EQ(whole.size(), 512u * 512 + 4 * 4 * sizeof(float));
  for (const int size : {2, 4})
    for (int rank = 0; rank < size; ++rank) {
      const auto width = static_cast<std::size_t>(512 / size);
      const auto rows = loaded(rank, size, false), columns = loaded(rank, size, true);
      ASSERT_EQ(rows.size(), whole.size() / static_cast<std::size_t>(size));
      ASSERT_EQ(columns.size(), rows.size());
      const std::size_t first = static_cast<std::size_t>(rank) * width;
      EXPECT_EQ(std::memcmp(rows.data(), whole.data() + first * 512, width * 512), 0);
      for (std::size_t row = 0; row < 512; ++row)
        ASSERT_EQ(
            std::memcmp(columns.data() + row * width, whole.data() + row * 512 + first, width), 0);
      const std::size_t part = 4 * sizeof(float) / static_cast<std::size_t>(size);
      EXPECT_EQ(std::memcmp(rows.data() + width * 512,
                            whole.data() + 512 * 512 + static_cast<std::size_t>(rank) * part * 4,
                            part * 4),
                0);
      for (std::size_t row = 0; row < 4; ++row)
        EXPECT_EQ(std::memcmp(columns.data() + 512 * width + row * part,
                              whole.data() + 512 * 512 + row * 4 * sizeof(float) +
                                  static_cast<std::size_t>(rank) * part,
                              part),
                  0);
    }
}

// Logits differ between teams by the rounding of sums at least. In fp8 up to 19 % were seen, on
// four ranks; why so much is not known, so that the bits of the slices are compared by a test of
// their own.
TEST(Dummy, EveryTeamRunsTheSameModel) {
  for (const bool fp8 : {false, true})
    for (TinyShape shape : {test::dense_shape(), test::moe_shape()}) {
      shape.fp8 = fp8;
      const ConfigOnly config(shape);
      const auto one = first_logits(1, config.where());
      ASSERT_EQ(one.size(), 256u);
      for (const float each : one) ASSERT_TRUE(std::isfinite(each));
      EXPECT_GT(test::rms(one), 0.1);
      EXPECT_LT(test::rms(one), 10);
      for (const int size : {2, 4}) {
        SCOPED_TRACE((fp8 ? "fp8, " : "bf16, ") + std::to_string(size) + " ranks");
        const auto team = first_logits(size, config.where());
        ASSERT_EQ(team.size(), one.size());
        EXPECT_LT(test::rms_difference(one, team), (fp8 ? 0.3 : 0.1) * test::rms(one));
      }
      // Another model is further away.
      EXPECT_GT(test::rms_difference(one, first_logits(1, config.where(), 7)), test::rms(one));
      EXPECT_EQ(one, first_logits(1, (config.path() / "config.json").string()));
    }
}

TEST(Dummy, ManyLayersStayInRange) {
  TinyShape deep = test::dense_shape();
  deep.layers = 64;
  const ConfigOnly config(deep);
  const auto logits = first_logits(1, config.where());
  for (const float each : logits) ASSERT_TRUE(std::isfinite(each));
  EXPECT_GT(test::rms(logits), 0.1);
  EXPECT_LT(test::rms(logits), 10);
}

TEST(Dummy, WithoutTheWordFilesAreWanted) {
  const ConfigOnly config(test::dense_shape());
  test::run_ranks(1, [&](int, Communicator& comm) {
    auto stream = Stream::create(comm.device());
    ASSERT_TRUE(stream);
    const auto model = open_model(config.where(), test::small_options(), comm, *stream);
    ASSERT_FALSE(model);
    EXPECT_NE(model.status().message().find("model.safetensors"), std::string::npos);
  });
}

// Rows of unit variance through the router of the 35B: 8 of 256 for each token.
TEST(Dummy, RoutersHaveFavourites) {
  constexpr int kExperts = 256, kTop = 8, kHidden = 512, kTokens = 400;
  const Weights weights = made_weights(
      {{"layer.mlp.gate.weight", DType::kBF16, {kExperts, kHidden}, 0, unit_spread(kHidden), true}},
      0);
  const auto bytes = bytes_of(weights, "layer.mlp.gate.weight");
  std::vector<float> router(std::size_t{kExperts} * kHidden);
  for (std::size_t i = 0; i < router.size(); ++i) {
    bf16 value;
    std::memcpy(&value, bytes.data() + i * sizeof value, sizeof value);
    router[i] = to_float(value);
  }
  std::vector<int> chosen(kExperts);
  for (int token = 0; token < kTokens; ++token) {
    std::vector<float> row;
    for (const std::int32_t each : test::prompt(kHidden, token, 4096))
      row.push_back((static_cast<float>(each) / 2048 - 1) * std::sqrt(3.0f));
    std::vector<std::pair<float, int>> logits;
    for (int expert = 0; expert < kExperts; ++expert) {
      float sum = 0;
      for (std::size_t i = 0; i < kHidden; ++i)
        sum += row[i] * router[static_cast<std::size_t>(expert) * kHidden + i];
      logits.emplace_back(-sum, expert);
    }
    std::partial_sort(logits.begin(), logits.begin() + kTop, logits.end());
    for (int i = 0; i < kTop; ++i) ++chosen[static_cast<std::size_t>(logits[i].second)];
  }
  std::sort(chosen.rbegin(), chosen.rend());
  const double mean = static_cast<double>(kTokens) * kTop / kExperts;
  EXPECT_GT(chosen.front(), 3 * mean);
  EXPECT_LT(chosen.front(), 0.9 * kTokens);  // nobody is always chosen
  EXPECT_LT(chosen[kExperts / 2], mean);     // most are chosen seldom
  EXPECT_GT(std::count_if(chosen.begin(), chosen.end(), [](int each) { return each > 0; }),
            kExperts / 4);
}

// What published_tensors() lists is what the loader takes, nothing less and nothing more.
TEST(Dummy, EveryPublishedSizeCanBeInspected) {
  const std::map<std::string, double> parameters{{"Qwen3.5-0.8B", 0.75e9},
                                                 {"Qwen3.5-2B", 1.88e9},
                                                 {"Qwen3.5-4B", 4.21e9},
                                                 {"Qwen3.5-9B", 8.95e9},
                                                 {"Qwen3.5-27B-FP8", 26.9e9},
                                                 {"Qwen3.5-35B-A3B-FP8", 34.7e9},
                                                 {"Qwen3.5-122B-A10B-FP8", 122.1e9},
                                                 {"Qwen3.5-397B-A17B-FP8", 396.3e9}};
  const std::string configs = std::string(TENON_SOURCE_DIR) + "/checkpoints/configs/";
  for (const auto& [name, wanted] : parameters) {
    SCOPED_TRACE(name);
    const std::vector<int> sizes{1, 2};
    const auto found = inspect_model(configs + name, sizes, {LoadFormat::kDummy, 0});
    ASSERT_TRUE(found) << found.status().to_string();
    double number = 0;
    std::int64_t bytes = 0;
    for (const TensorSummary& each : found->tensors) {
      bytes += each.bytes;
      if (each.name.ends_with("_scale_inv")) continue;
      double elements = 1;
      for (const std::int64_t extent : each.shape) elements *= static_cast<double>(extent);
      number += elements;
    }
    EXPECT_NEAR(number / wanted, 1, 0.01);
    for (const TeamSummary& team : found->teams) {
      ASSERT_TRUE(team.refusals.empty()) << team.refusals.front();
      std::int64_t all = 0;
      for (const std::int64_t each : team.weight_bytes) all += each;
      // Norms, routers and kv heads are held several times, scales are widened to f32.
      EXPECT_GE(all, bytes) << team.size;
      EXPECT_LT(static_cast<double>(all), 1.05 * static_cast<double>(bytes)) << team.size;
    }
  }
}

}  // namespace
}  // namespace tenon
