// The decoder with a made-up family: attention layers without gates and dense mlps, weights from
// memory. What families say as data is used, and what one rank meets alone all ranks hear.
// Not here: Qwen3.5 (qwen3_5_test.cc, golden_test.cc).
#include "tenon/models/decoder.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <iterator>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <utility>

#include "tests/support/model_driver.h"
#include "tests/support/ranks.h"
#include "tests/support/small_model.h"

namespace tenon {
namespace {

using test::run_ranks;

using test::ModelDriver;
using test::prompt;

constexpr int kHidden = 128, kHeadDim = 64, kHeads = 2, kWidth = 128, kVocab = 64, kLayers = 2;

class MadeUp : public DecoderFiles {
 public:
  explicit MadeUp(float norm_offset) : norm_offset_(norm_offset) {}

  Result<Facts> look(const ModelOptions&, const Communicator&) override {
    return Facts{{"layers", layers_fact}};
  }
  Result<DecoderSpec> count(const ModelOptions& options, Device device) override {
    only_counts_ = true;
    TENON_ASSIGN(Stream stream, Stream::create(device));
    auto counted = load(options, stream);
    only_counts_ = false;
    return counted;
  }
  Result<DecoderSpec> load(const ModelOptions& options, Stream& stream) override {
    if (!broken.empty() && !only_counts_) return Status::error(Code::kIo, broken);
    stream_ = &stream;
    random_.seed(1);
    DecoderSpec spec;
    spec.hidden = kHidden;
    spec.norm_offset = norm_offset_;
    spec.num_ids = spec.vocab_width = kVocab;
    spec.embedding = matrix(kVocab, kHidden);
    spec.head = spec.embedding;
    spec.final_norm = norm(kHidden);
    const TensorView cos_sin = rotary_table(options.max_context);
    for (int i = 0; i < kLayers; ++i) {
      AttentionSpec attention;
      attention.q_heads = kHeads;
      attention.kv_heads = 1;
      attention.head_dim = kHeadDim;
      attention.norm_offset = norm_offset_;
      attention.gated = false;
      attention.qkv.weight = matrix((kHeads + 2) * kHeadDim, kHidden);
      attention.q_norm = norm(kHeadDim);
      attention.k_norm = norm(kHeadDim);
      attention.cos_sin = cos_sin;
      attention.out.weight = matrix(kHidden, kHeads * kHeadDim);
      DenseSpec dense;
      dense.width = kWidth;
      dense.gate_up.weight = matrix(2 * kWidth, kHidden);
      dense.down.weight = matrix(kHidden, kWidth);
      spec.layers.push_back({norm(kHidden), norm(kHidden), attention, dense});
    }
    spec.eos_ids = {5};
    for (const Buffer& each : memory_) spec.weight_bytes += static_cast<std::int64_t>(each.bytes());
    spec.memory = std::exchange(memory_, {});
    return spec;
  }

  std::string broken;             // load() fails with this
  std::string layers_fact = "2";  // all ranks must have it alike

 private:
  TensorView allocate(DType dtype, std::initializer_list<std::int64_t> shape) {
    TensorView made = view(nullptr, dtype, stream_->device(), shape);
    memory_.push_back(*Buffer::allocate(stream_->device(), made.bytes()));
    made.data = memory_.back().data();
    return made;
  }
  TensorView matrix(std::int64_t out, std::int64_t in) {
    std::normal_distribution<float> normal(0, 1 / std::sqrt(static_cast<float>(in)));
    const TensorView made = allocate(DType::kBF16, {out, in});
    for (std::int64_t i = 0; i < made.size(); ++i) made.as<bf16>()[i] = to_bf16(normal(random_));
    return made;
  }
  // The same factors whatever the offset is.
  TensorView norm(std::int64_t width) {
    std::normal_distribution<float> normal(0, 0.2f);
    const TensorView made = allocate(DType::kF32, {width});
    for (std::int64_t i = 0; i < width; ++i) {
      const float around_zero = normal(random_);
      made.as<float>()[i] = norm_offset_ == 1 ? around_zero : 1 + around_zero;
    }
    return made;
  }
  TensorView rotary_table(int positions) {
    constexpr int kPairs = 8;
    const TensorView made = allocate(DType::kF32, {positions, 2 * kPairs});
    for (int position = 0; position < positions; ++position)
      for (int i = 0; i < kPairs; ++i) {
        const double angle = position * std::pow(1e4, -1.0 * i / kPairs);
        float* row = made.as<float>() + position * 2 * kPairs;
        row[i] = static_cast<float>(std::cos(angle));
        row[kPairs + i] = static_cast<float>(std::sin(angle));
      }
    return made;
  }

  const float norm_offset_;
  bool only_counts_ = false;
  Stream* stream_ = nullptr;
  std::mt19937 random_;
  std::vector<Buffer> memory_;
};

void with_decoder(MadeUp& files, const std::function<void(Model&, Stream&)>& body) {
  run_ranks(1, [&](int, Communicator& comm) {
    auto stream = Stream::create(comm.device());
    ASSERT_TRUE(stream);
    auto model = open_decoder(files, "nowhere", test::small_options(), comm, *stream);
    ASSERT_TRUE(model) << model.status().to_string();
    body(**model, *stream);
  });
}

TEST(Decoder, IsWhatItsSpecSays) {
  MadeUp files(1);
  with_decoder(files, [](Model& model, Stream&) {
    EXPECT_EQ(model.vocab_size(), kVocab);
    EXPECT_EQ(model.num_ids(), kVocab);
    EXPECT_EQ(model.eos_ids(), std::vector<std::int32_t>{5});
    const CacheLayout layout = model.cache_layout();
    ASSERT_EQ(layout.caches.size(), 2u * kLayers);
    EXPECT_EQ(layout.caches[0].name, "layer 0 k");
    EXPECT_EQ(layout.caches[3].name, "layer 1 v");
    EXPECT_EQ(layout.token_bytes(), 2 * 2 * kLayers * kHeadDim);
    EXPECT_EQ(layout.sequence_bytes(), 0);
  });
}

// Norms stored around zero and norms stored around one are the same model, bit for bit: with f32
// weights the offset is added before anything is rounded.
TEST(Decoder, NormOffsetIsData) {
  MadeUp around_zero(1), around_one(0);
  std::vector<std::vector<float>> found;
  for (MadeUp* files : {&around_zero, &around_one})
    with_decoder(*files, [&](Model& model, Stream& stream) {
      ModelDriver driver(model, 4, stream);
      found.push_back(driver.step({{0, prompt(9, 1, kVocab)}}).rows.at(0));
      found.push_back(driver.step({{0, {3}}, {1, prompt(2, 2, kVocab)}}).rows.at(0));
    });
  ASSERT_EQ(found.size(), 4u);
  EXPECT_EQ(found[0], found[2]);
  EXPECT_EQ(found[1], found[3]);
  EXPECT_NE(found[0], found[1]);
  EXPECT_TRUE(std::isfinite(test::rms(found[0])));
}

TEST(Decoder, HoldsWhatWasPlanned) {
  for (const bool mixed : {false, true})
    run_ranks(2, [&](int, Communicator& comm) {
      MadeUp files(1);
      auto stream = Stream::create(comm.device());
      ASSERT_TRUE(stream);
      ModelOptions options = test::small_options();
      if (mixed) options.more_stages = {StagePolicy::kMixed};
      std::optional<ModelPlan> plan;
      options.planned = [&](const ModelPlan& each) {
        plan = each;
        return Status::ok();
      };
      auto model = open_decoder(files, "nowhere", options, comm, *stream);
      ASSERT_TRUE(model) << model.status().to_string();
      ASSERT_TRUE(plan);
      const ModelMemory held = (*model)->memory();
      EXPECT_GT(held.weights, 0);
      EXPECT_GT(held.scratch, 0);
      EXPECT_GT(held.boundaries, 0);
      EXPECT_EQ(plan->memory.weights, held.weights);
      EXPECT_EQ(plan->memory.scratch, held.scratch);
      EXPECT_EQ(plan->memory.boundaries, held.boundaries);
      EXPECT_EQ(plan->vocab_size, (*model)->vocab_size());
      EXPECT_EQ(plan->caches.token_bytes(), (*model)->cache_layout().token_bytes());
    });
}

// Every step counts once for each site, in the bucket of its tokens and the stage of its arm.
TEST(Decoder, BoundaryUsesAreStepsTimesSites) {
  constexpr int kMostTokens = 24, kArms = 3;
  run_ranks(2, [&](int, Communicator& comm) {
    MadeUp files(1);
    auto stream = Stream::create(comm.device());
    ASSERT_TRUE(stream);
    ModelOptions options = test::small_options();
    options.force_stage = StagePolicy::kOneKernel;
    options.more_stages = {StagePolicy::kGeneric, StagePolicy::kMixed};
    auto model = open_decoder(files, "nowhere", options, comm, *stream);
    ASSERT_TRUE(model) << model.status().to_string();
    // So many steps of the first two arms have so many tokens.
    const auto steps_of = [](int arm, int tokens) {
      return static_cast<std::uint64_t>(arm == 0 ? tokens : 1000 * tokens);
    };
    StepCounts steps(kMostTokens, kArms), none(kMostTokens, kArms);
    std::uint64_t all_steps = 0;
    for (int arm = 0; arm < 2; ++arm)
      for (int tokens = 1; tokens <= kMostTokens; ++tokens)
        for (std::uint64_t i = 0; i < steps_of(arm, tokens); ++i) steps.add(tokens, arm);
    steps.add(kMostTokens, 2);
    // Of each arm, by site and stage: sites take the stages 1, 2, 3 in turn where they are mixed.
    const std::map<std::pair<std::string, Stage>, std::array<std::uint64_t, kArms>> sites{
        {{"embedding", Stage::kOneKernel}, {1, 0, 1}}, {{"embedding", Stage::kGeneric}, {0, 1, 0}},
        {{"mixer", Stage::kOneKernel}, {2, 0, 1}},     {{"mixer", Stage::kTwoKernels}, {0, 0, 1}},
        {{"mixer", Stage::kGeneric}, {0, 2, 0}},       {{"mlp", Stage::kOneKernel}, {1, 0, 0}},
        {{"mlp", Stage::kGeneric}, {0, 1, 1}},         {{"final", Stage::kOneKernel}, {1, 0, 0}},
        {{"final", Stage::kTwoKernels}, {0, 0, 1}},    {{"final", Stage::kGeneric}, {0, 1, 0}}};
    const auto uses = (*model)->boundary_uses(steps);
    std::set<int> buckets;
    for (const BoundaryUse& use : uses) buckets.insert(use.max_rows);
    EXPECT_GT(buckets.size(), 1u);
    EXPECT_EQ(*buckets.rbegin(), kMostTokens);
    EXPECT_EQ(uses.size(), buckets.size() * sites.size());
    for (const BoundaryUse& use : uses) {
      const auto own = buckets.find(use.max_rows);
      const int above = own == buckets.begin() ? 0 : *std::prev(own);
      ASSERT_TRUE(sites.contains({use.site, use.stage})) << use.site;
      const auto& of_arms = sites.at({use.site, use.stage});
      std::uint64_t wanted = use.max_rows == kMostTokens ? of_arms[2] : 0;
      for (int tokens = above + 1; tokens <= use.max_rows; ++tokens)
        for (int arm = 0; arm < 2; ++arm)
          wanted += of_arms[static_cast<std::size_t>(arm)] * steps_of(arm, tokens);
      EXPECT_EQ(use.count, wanted) << use.site << ", up to " << use.max_rows << " rows";
      EXPECT_GT(use.threads, 0);
      all_steps += use.count;
    }
    EXPECT_EQ(all_steps, 5u * (300u + 300000u + 1u)) << "there are five sites";
    for (const BoundaryUse& use : (*model)->boundary_uses(none)) EXPECT_EQ(use.count, 0u);
  });
}

TEST(Decoder, IsNotLoadedWhereItsPlanIsRefused) {
  MadeUp files(1);
  files.broken = "load() was called";
  run_ranks(1, [&](int, Communicator& comm) {
    auto stream = Stream::create(comm.device());
    ASSERT_TRUE(stream);
    ModelOptions options = test::small_options();
    options.planned = [](const ModelPlan&) {
      return Status::error(Code::kOutOfMemory, "too large");
    };
    const auto model = open_decoder(files, "nowhere", options, comm, *stream);
    EXPECT_EQ(model.status().message(), "load nowhere: too large");
  });
}

TEST(Decoder, WhatOneRankMeetsAllRanksHear) {
  const auto statuses = [](const std::function<void(int, MadeUp&)>& prepare) {
    std::vector<Status> found(2);
    run_ranks(2, [&](int rank, Communicator& comm) {
      MadeUp files(1);
      prepare(rank, files);
      auto stream = Stream::create(comm.device());
      ASSERT_TRUE(stream);
      found[static_cast<std::size_t>(rank)] =
          open_decoder(files, "nowhere", test::small_options(), comm, *stream).status();
    });
    return found;
  };
  const auto expect_all = [](const std::vector<Status>& found, std::string_view piece) {
    for (const Status& each : found) {
      ASSERT_FALSE(each);
      EXPECT_NE(each.message().find(piece), std::string_view::npos) << each.to_string();
      EXPECT_NE(each.message().find("load nowhere"), std::string_view::npos) << each.to_string();
    }
  };
  expect_all(statuses([](int rank, MadeUp& files) {
               if (rank == 1) files.broken = "the disk is gone";
             }),
             "the disk is gone");
  expect_all(statuses([](int rank, MadeUp& files) {
               if (rank == 1) files.layers_fact = "3";
             }),
             "layers");
}

}  // namespace
}  // namespace tenon
