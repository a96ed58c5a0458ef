// Small random Qwen3.5 models on disk, opened by teams of ranks that are threads. Header-only: it
// needs the models floor.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "tenon/models/model.h"
#include "tests/support/model_driver.h"
#include "tests/support/ranks.h"
#include "tests/support/tiny_model.h"

namespace tenon::test {

// The smallest models with both kinds of layer.
inline TinyShape dense_shape() { return {.layers = 4, .vocab = 256, .intermediate = 512}; }
inline TinyShape moe_shape() {
  return {.layers = 4, .vocab = 256, .experts = 4, .top_k = 2, .moe_intermediate = 128};
}

struct OnDisk : TempDirectory {
  explicit OnDisk(const TinyShape& shape, std::string_view prefix = "model.language_model.")
      : config(tiny_config(shape)) {
    write_checkpoint(path(), config, tiny_tensors(config, prefix), 2);
  }
  OnDisk(std::string json, const FileTensors& tensors) : config(std::move(json)) {
    write_checkpoint(path(), config, tensors, 0);
  }
  std::string config;
  std::string where() const { return path().string(); }
};

inline std::vector<std::int32_t> prompt(int length, int seed, int vocab = 256) {
  std::vector<std::int32_t> ids;
  for (int i = 0; i < length; ++i)
    ids.push_back(
        static_cast<std::int32_t>(splitmix64(static_cast<std::uint64_t>(seed * 1000 + i)) %
                                  static_cast<std::uint64_t>(vocab)));
  return ids;
}

inline ModelOptions small_options() {
  ModelOptions options;
  options.max_tokens_per_step = 24;
  options.max_sequences = 4;
  options.max_context = 256;
  return options;
}

// Opens the model on every rank of a team and runs `body`.
inline void with_model(int size, const std::string& directory, const ModelOptions& options,
                       const std::function<void(int rank, Model&, Stream&)>& body) {
  run_ranks(size, [&](int rank, Communicator& comm) {
    auto stream = Stream::create(comm.device());
    ASSERT_TRUE(stream);
    auto model = open_model(directory, options, comm, *stream);
    ASSERT_TRUE(model) << model.status().to_string();
    body(rank, **model, *stream);
  });
}

// Logits of one prompt from every rank, side by side.
inline std::vector<float> logits_of(int size, const std::string& directory,
                                    const ModelOptions& options, const std::vector<Turn>& turns,
                                    std::size_t row) {
  std::vector<ShardRows> shards(static_cast<std::size_t>(size));
  with_model(size, directory, options, [&](int rank, Model& model, Stream& stream) {
    ModelDriver driver(model, options.max_sequences, stream);
    shards[static_cast<std::size_t>(rank)] = driver.step(turns);
  });
  std::vector<float> all;
  for (const ShardRows& shard : shards) {
    if (row >= shard.rows.size()) return {};
    EXPECT_EQ(shard.vocab_begin, static_cast<int>(all.size()));
    all.insert(all.end(), shard.rows[row].begin(), shard.rows[row].end());
  }
  return all;
}

inline double rms(const std::vector<float>& values) {
  double sum = 0;
  for (float each : values) sum += static_cast<double>(each) * each;
  return std::sqrt(sum / static_cast<double>(values.size()));
}

inline double rms_difference(const std::vector<float>& a, const std::vector<float>& b) {
  std::vector<float> difference;
  for (std::size_t i = 0; i < a.size(); ++i) difference.push_back(a[i] - b[i]);
  return rms(difference);
}

}  // namespace tenon::test
