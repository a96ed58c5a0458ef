// What is said of a checkpoint from its headers is what loading it gives.
#include "tenon/models/inspect.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "tenon/models/qwen3_5/inspect.h"
#include "tests/support/small_model.h"

namespace tenon {
namespace {

using test::OnDisk;
using test::run_ranks;
using test::TinyShape;

std::vector<int> all_sizes() {
  std::vector<int> sizes(kMaxRanks);
  std::iota(sizes.begin(), sizes.end(), 1);
  return sizes;
}

ModelSummary inspected(const std::string& directory) {
  const auto found = inspect_model(directory, all_sizes());
  EXPECT_TRUE(found) << found.status().to_string();
  return found ? *found : ModelSummary{};
}

std::vector<TinyShape> shapes() {
  TinyShape dense = test::dense_shape(), moe = test::moe_shape();
  TinyShape sixteen_bits = dense, flat = moe, ragged = dense;
  sixteen_bits.fp8 = false;
  sixteen_bits.tied = true;
  flat.flat = true;
  flat.moe_intermediate = 256;  // sliced by two ranks, placed whole by four
  ragged.vocab = 255;           // the last rank has fewer rows
  ragged.intermediate = 384;    // three blocks
  return {dense, moe, sixteen_bits, flat, ragged};
}

TEST(Inspect, BytesAreThoseOfTheLoadedModel) {
  for (const TinyShape& shape : shapes()) {
    const OnDisk disk(shape, shape.flat ? "model." : "model.language_model.");
    const ModelSummary found = inspected(disk.where());
    const ModelOptions options = test::small_options();
    for (const TeamSummary& team : found.teams) {
      if (!team.refusals.empty() || team.size > 4) continue;
      SCOPED_TRACE(std::to_string(team.size) + " ranks, vocabulary " + std::to_string(shape.vocab));
      ASSERT_EQ(team.weight_bytes.size(), static_cast<std::size_t>(team.size));
      test::with_model(team.size, disk.where(), options, [&](int rank, Model& model, Stream&) {
        EXPECT_EQ(model.weight_bytes(), team.weight_bytes[static_cast<std::size_t>(rank)] +
                                            options.max_context * found.rope_bytes_per_position);
        const CacheLayout caches = model.cache_layout();
        EXPECT_GT(caches.token_bytes(), 0);
        EXPECT_EQ(caches.token_bytes(), team.caches.token_bytes());
        EXPECT_EQ(caches.sequence_bytes(), team.caches.sequence_bytes());
      });
    }
  }
}

TEST(Inspect, SizesThatArePossibleAreThoseThatLoad) {
  for (const TinyShape& shape : shapes()) {
    const OnDisk disk(shape, shape.flat ? "model." : "model.language_model.");
    for (const TeamSummary& team : inspected(disk.where()).teams) {
      SCOPED_TRACE(std::to_string(team.size) + " ranks");
      run_ranks(team.size, [&](int, Communicator& comm) {
        auto stream = Stream::create(comm.device());
        ASSERT_TRUE(stream);
        const auto model = open_model(disk.where(), test::small_options(), comm, *stream);
        EXPECT_EQ(static_cast<bool>(model), team.refusals.empty()) << model.status().to_string();
        if (!model) {
          EXPECT_NE(model.status().message().find(team.refusals.front()), std::string::npos)
              << model.status().message();
        }
      });
    }
  }
}

TEST(Inspect, EveryReasonIsNamed) {
  const OnDisk disk(TinyShape{.layers = 4, .vocab = 256, .experts = 4, .moe_intermediate = 128});
  const ModelSummary found = inspected(disk.where());
  const std::vector<std::string>& why = found.teams[2].refusals;
  ASSERT_EQ(why.size(), 5u);
  const char* names[] = {"num_attention_heads = 4", "linear_num_key_heads = 4",
                         "linear_num_value_heads = 8", "num_key_value_heads = 2",
                         "num_experts = 4"};
  for (std::size_t i = 0; i < why.size(); ++i)
    EXPECT_NE(why[i].find(names[i]), std::string::npos) << why[i];
}

// A mistake that only the tensors show.
TEST(Inspect, TensorsAreAskedForAsInLoading) {
  const std::string config = test::tiny_config(test::dense_shape());
  test::FileTensors tensors = test::tiny_tensors(config);
  auto& first = tensors.at("model.language_model.layers.0.input_layernorm.weight");
  first.shape = {128};
  first.bytes.resize(256);
  const OnDisk disk(config, tensors);
  for (const TeamSummary& team : inspected(disk.where()).teams) {
    if (team.size > 2) continue;
    ASSERT_EQ(team.refusals.size(), 1u);
    EXPECT_NE(team.refusals[0].find("input_layernorm"), std::string::npos) << team.refusals[0];
  }
}

TEST(Inspect, TensorsHaveKinds) {
  const OnDisk disk(test::moe_shape());
  const ModelSummary found = inspected(disk.where());
  std::int64_t bytes = 0;
  for (const TensorSummary& each : found.tensors) {
    EXPECT_NE(each.kind, "other") << each.name;
    bytes += each.bytes;
  }
  EXPECT_GT(bytes, 0);
  const auto has = [&](const char* kind) {
    return std::any_of(found.tensors.begin(), found.tensors.end(),
                       [&](const TensorSummary& each) { return each.kind == kind; });
  };
  for (const char* kind : {"embedding", "head", "experts", "shared expert", "router", "attention",
                           "delta-net", "norms"})
    EXPECT_TRUE(has(kind)) << kind;
}

TEST(Inspect, UnreadKeysAreThoseThatChangeNothing) {
  const auto unread = qwen3_5::unread_keys(R"({
    "architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5",
    "transformers_version": "5.1", "eos_token_id": 3, "tie_word_embeddings": false,
    "text_config": {"hidden_size": 256, "num_hidden_layers": 4, "vocab_size": 256,
      "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 512,
      "linear_num_key_heads": 4, "linear_num_value_heads": 8, "use_cache": true, "novelty": 7,
      "rope_parameters": {"rope_type": "default"}, "attention_bias": false}})");
  EXPECT_EQ(unread, (std::vector<std::string>{"transformers_version", "text_config.novelty",
                                              "text_config.use_cache"}));
}

}  // namespace
}  // namespace tenon
