#include "tests/device/reduce_test.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "tenon/core/fp8.h"
#include "tests/support/device_array.h"
#define TENON_TEST_SPACE reduce_test
#include "tests/support/kernels.inc"

namespace tenon {
namespace {

using reduce_test::kernels;
using test::DeviceArray;

// The oracle: the perfect binary tree, adjacent pairs first, padded with +0.
float tree_sum(std::vector<float> values) {
  std::size_t padded = 1;
  while (padded < values.size()) padded *= 2;
  values.resize(padded, 0.0f);
  for (; values.size() > 1; values.resize(values.size() / 2))
    for (std::size_t i = 0; i < values.size() / 2; ++i)
      values[i] = values[2 * i] + values[2 * i + 1];
  return values[0];
}

struct Out {
  std::vector<float> sum, max, lanes_sum, second;
  std::vector<int> lane;
  std::vector<std::uint32_t> most;
};

Out run(Target target, const std::vector<float>& in, std::uint64_t seed) {
  set_emu_seed(seed);
  auto stream = Stream::create({target, 0});
  EXPECT_TRUE(stream) << stream.status().to_string();
  const std::size_t count = in.size();
  DeviceArray<float> there(*stream, count), sum(*stream, count), max(*stream, count),
      lanes_sum(*stream, count), second(*stream, count);
  DeviceArray<int> lane(*stream, count);
  DeviceArray<std::uint32_t> most(*stream, count);
  there.put(in);
  const reduce_test::Args args{there.data(),  sum.data(),  max.data(), lanes_sum.data(),
                               second.data(), lane.data(), most.data()};
  LaunchShape shape;
  shape.threads = static_cast<int>(in.size());
  const Status status = launch(*stream, shape, kernels(target).reduce, args);
  EXPECT_TRUE(status) << status.to_string();
  return {sum.get(count),    max.get(count),  lanes_sum.get(count),
          second.get(count), lane.get(count), most.get(count)};
}

std::vector<int> sizes(Target target) {
  const int wave = kernels(target).wave;
  if (wave == 1) return {1};
  std::vector<int> found;
  for (int threads : {wave, 2 * wave, 3 * wave, 5 * wave, 512, 1024}) found.push_back(threads);
  return found;
}

std::vector<float> random_values(int count, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  std::vector<float> values;
  for (int i = 0; i < count; ++i)  // magnitudes far apart: the order of the sum matters
    values.push_back(std::ldexp(uniform(random), static_cast<int>(random() % 20)));
  return values;
}

TEST(Reduce, WaveIsWhatTheListSays) {
  for (Target target : test::usable_targets())
    EXPECT_EQ(kernels(target).wave, test::wave_of(target));
}

TEST(Reduce, SumsAreThePerfectTreeOnEveryThread) {
  for (Target target : test::usable_targets()) {
    const int wave = kernels(target).wave;
    for (int threads : sizes(target)) {
      for (std::uint64_t seed : {0u, 1u, 7u}) {
        SCOPED_TRACE(test::to_string(target) + " threads " + std::to_string(threads));
        const std::vector<float> in = random_values(threads, 17u + static_cast<unsigned>(threads));
        std::vector<float> doubled = in;
        for (float& each : doubled) each *= 2.0f;
        const Out out = run(target, in, seed);
        const int group = std::min(wave, 8);
        for (int i = 0; i < threads; ++i) {
          const auto at = static_cast<std::size_t>(i);
          ASSERT_EQ(out.sum[at], tree_sum(in)) << i;
          ASSERT_EQ(out.second[at], tree_sum(doubled)) << i;
          const auto first = in.begin() + i / group * group;
          ASSERT_EQ(out.lanes_sum[at], tree_sum({first, first + group})) << i;
          ASSERT_EQ(out.lane[at], i % wave + 1000 * (i / wave));
        }
      }
    }
  }
}

// As if the cluster were one block; of two clusters each its own.
TEST(Reduce, SumsOfClustersAreThePerfectTreeOnEveryThread) {
  for (Target target : test::usable_targets()) {
    if (kernels(target).cluster == nullptr) continue;
    auto stream = Stream::create({target, 0});
    ASSERT_TRUE(stream) << stream.status().to_string();
    for (int cluster : {2, 4, 8}) {
      for (int waves : {1, 3, 4}) {
        LaunchShape shape;
        shape.threads = waves * kernels(target).wave;
        shape.cluster = cluster;
        shape.blocks = cluster < 8 ? 2 * cluster : cluster;
        shape.cooperative = true;
        const int count = shape.blocks * shape.threads, of_one = cluster * shape.threads;
        const std::vector<float> in = random_values(count, static_cast<unsigned>(count));
        DeviceArray<float> there(*stream, in.size()), sum(*stream, in.size());
        there.put(in);
        reduce_test::Args args{};
        args.in = there.data();
        args.sum = sum.data();
        args.blocks_of_cluster = cluster;
        const Status status = launch(*stream, shape, kernels(target).cluster, args);
        ASSERT_TRUE(status) << status.to_string();
        const std::vector<float> found = sum.get(in.size());
        for (int i = 0; i < count; ++i) {
          const auto first = in.begin() + i / of_one * of_one;
          ASSERT_EQ(found[static_cast<std::size_t>(i)], tree_sum({first, first + of_one}))
              << test::to_string(target) << " cluster " << cluster << " waves " << waves << ", "
              << i;
        }
      }
    }
  }
}

// Negative floats have the largest bits: what is compared is unsigned.
TEST(Reduce, MaxLaneIsOfItsWaveAlone) {
  for (Target target : test::usable_targets()) {
    const int wave = kernels(target).wave;
    for (int threads : sizes(target)) {
      const std::vector<float> in = random_values(threads, 6);
      const Out out = run(target, in, 6);
      for (int i = 0; i < threads; ++i) {
        std::uint32_t most = 0;
        for (int k = i / wave * wave; k < i / wave * wave + wave; ++k)
          most = std::max(most, float_bits(in[static_cast<std::size_t>(k)]));
        ASSERT_EQ(out.most[static_cast<std::size_t>(i)], most)
            << test::to_string(target) << " threads " << threads << ", " << i;
      }
    }
  }
}

TEST(Reduce, OrderMattersInTheseValues) {  // otherwise the test above could not fail
  const std::vector<float> in = random_values(1024, 3);
  float serial = 0.0f;
  for (float each : in) serial += each;
  EXPECT_NE(serial, tree_sum(in));
}

TEST(Reduce, MaxKeepsNaN) {
  for (Target target : test::usable_targets()) {
    for (int threads : sizes(target)) {
      SCOPED_TRACE(test::to_string(target) + " threads " + std::to_string(threads));
      std::vector<float> in = random_values(threads, 5);
      float expected = in[0];
      for (float each : in) expected = std::max(expected, each);
      for (float each : run(target, in, 2).max) ASSERT_EQ(each, expected);
      for (int place : {0, threads / 2, threads - 1}) {
        std::vector<float> damaged = in;
        damaged[static_cast<std::size_t>(place)] = std::numeric_limits<float>::quiet_NaN();
        for (float each : run(target, damaged, 3).max) ASSERT_TRUE(std::isnan(each)) << place;
      }
      std::vector<float> lowest(in.size(), -std::numeric_limits<float>::infinity());
      for (float each : run(target, lowest, 4).max) ASSERT_EQ(each, lowest[0]);
    }
  }
}

}  // namespace
}  // namespace tenon
