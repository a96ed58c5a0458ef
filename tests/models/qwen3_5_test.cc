// The whole model on random tiny checkpoints: what it loads and refuses, how it is cut for a team,
// how many boundaries it has, and that no choice of stage, batch or chunk changes a bit.
// Not here: right values (golden_test.cc).
#include "tenon/models/model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <mutex>

#include "tenon/models/qwen3_5/config.h"
#include "tests/support/copy_back.h"
#include "tests/support/operator_new.h"
#include "tests/support/small_model.h"
#include "tests/support/targets.h"

// Every allocation of this program, device memory of the host targets included.
extern "C" void* aligned_alloc(std::size_t alignment, std::size_t bytes) {
  ++tenon::test::num_allocations;
  void* memory = nullptr;
  return posix_memalign(&memory, alignment, bytes) == 0 ? memory : nullptr;
}

namespace tenon::qwen3_5 {
namespace {

using test::dense_shape;
using test::host_targets;
using test::logits_of;
using test::ModelDriver;
using test::moe_shape;
using test::OnDisk;
using test::prompt;
using test::RankOptions;
using test::rms;
using test::rms_difference;
using test::run_ranks;
using test::small_options;
using test::TempDirectory;
using test::TinyShape;
using test::Turn;
using test::with_model;

TEST(Qwen3_5, LayersMeetInTwoLPlusOneBoundaries) {
  const OnDisk moe(moe_shape());
  with_model(2, moe.where(), small_options(), [](int, Model& model, Stream& stream) {
    ModelDriver driver(model, 4, stream);
    driver.step({{0, prompt(5, 1)}});
    driver.step({{0, prompt(1, 2)}});
    std::map<std::string, std::uint64_t> by_site;
    for (const BoundaryUse& use : model.boundary_uses(driver.counts()))
      by_site[use.site] += use.count;
    const std::map<std::string, std::uint64_t> wanted{
        {"embedding", 2}, {"mixer", 2 * 4}, {"mlp", 2 * 3}, {"final", 2}};
    EXPECT_EQ(by_site, wanted);
  });
}

TEST(Qwen3_5, NothingIsAllocatedInAStep) {
  const OnDisk moe(moe_shape());
  run_ranks(1, [&](int, Communicator& comm) {
    auto stream = Stream::create(comm.device());
    ASSERT_TRUE(stream);
    auto model = open_model(moe.where(), small_options(), comm, *stream);
    ASSERT_TRUE(model) << model.status().to_string();
    ModelDriver driver(**model, 4, *stream);
    long during_forward = -1;
    driver.around_forward = [&](const std::function<void()>& forward) {
      const long before = test::num_allocations;
      forward();
      during_forward = test::num_allocations - before;
    };
    driver.step({{0, prompt(5, 1)}, {1, prompt(3, 2)}});
    EXPECT_EQ(during_forward, 0);
    driver.step({{0, prompt(1, 1)}, {1, prompt(1, 2)}});
    EXPECT_EQ(during_forward, 0);
  });
}

TEST(Qwen3_5, NoStageChangesABit) {
  const OnDisk moe(moe_shape());
  const std::vector<Turn> turns{{0, prompt(5, 1)}, {2, prompt(1, 2)}};
  for (int size : {1, 2}) {
    SCOPED_TRACE("ranks " + std::to_string(size));
    ModelOptions options = small_options();
    options.force_stage = StagePolicy::kGeneric;
    const auto generic = logits_of(size, moe.where(), options, turns, 0);
    ASSERT_EQ(generic.size(), 256u);
    for (const StagePolicy policy : {StagePolicy::kFree, StagePolicy::kOneKernel,
                                     StagePolicy::kTwoKernels, StagePolicy::kMixed}) {
      options.force_stage = policy;
      EXPECT_EQ(logits_of(size, moe.where(), options, turns, 0), generic)
          << "stage " << static_cast<int>(policy);
    }
  }
}

TEST(Qwen3_5, ForcedStagesRun) {
  const OnDisk dense(dense_shape());
  for (const StagePolicy policy : {StagePolicy::kOneKernel, StagePolicy::kTwoKernels,
                                   StagePolicy::kGeneric, StagePolicy::kMixed}) {
    ModelOptions options = small_options();
    options.force_stage = policy;
    with_model(2, dense.where(), options, [&](int, Model& model, Stream& stream) {
      ModelDriver driver(model, 4, stream);
      driver.step({{0, prompt(3, 1)}});
      std::map<int, std::uint64_t> by_stage, wanted;
      for (const BoundaryUse& use : model.boundary_uses(driver.counts()))
        if (use.count > 0) by_stage[static_cast<int>(use.stage)] += use.count;
      if (policy == StagePolicy::kMixed)
        wanted = {{1, 3}, {2, 3}, {3, 3}};
      else
        wanted[static_cast<int>(policy)] = 9;
      EXPECT_EQ(by_stage, wanted);
    });
  }
}

// A sequence's logits do not depend on what else is in the batch, on padding, or on its slot.
TEST(Qwen3_5, SequencesDoNotSeeEachOther) {
  const OnDisk moe(moe_shape());
  with_model(1, moe.where(), small_options(), [](int, Model& model, Stream& stream) {
    ModelDriver alone(model, 4, stream), together(model, 4, stream);
    const auto a = alone.step({{0, prompt(7, 1)}});
    const auto b = alone.step({{1, prompt(2, 2)}});
    const auto both = together.step({{3, prompt(2, 2)}, {0, prompt(7, 1)}}, 3, 1);
    EXPECT_EQ(both.rows.at(0), b.rows.at(0));
    EXPECT_EQ(both.rows.at(1), a.rows.at(0));
    const auto next = alone.step({{0, {17}}});
    const auto mixed = together.step({{0, {17}}, {2, prompt(4, 3)}});
    EXPECT_EQ(mixed.rows.at(0), next.rows.at(0));
    const auto third = alone.step({{0, {18}}});
    const auto padded = together.step({{0, {18}}}, 3, 3);  // as a decode step is padded
    EXPECT_EQ(padded.rows.at(0), third.rows.at(0));
  });
}

// Boundaries run on padding too: what it holds must be finite, and is nothing but padding's.
TEST(Qwen3_5, PaddingHoldsFiniteNumbers) {
  const OnDisk moe(moe_shape());
  with_model(2, moe.where(), small_options(), [](int, Model& model, Stream& stream) {
    ModelDriver driver(model, 4, stream);
    driver.wants_hidden = true;
    for (const int length : {6, 1}) {
      const auto found = driver.step({{1, prompt(length, 1)}}, 5, 2);
      ASSERT_TRUE(found.hidden);
      ASSERT_EQ(found.hidden->shape[0], length + 5);
      const auto* values = found.hidden->as<bf16>();
      for (std::int64_t i = 0; i < found.hidden->size(); ++i)
        ASSERT_TRUE(std::isfinite(to_float(values[i]))) << "element " << i;
      const std::int64_t width = found.hidden->shape[1];
      for (int row = length + 1; row < length + 5; ++row)
        for (std::int64_t i = 0; i < width; ++i)
          ASSERT_EQ(values[row * width + i].bits, values[length * width + i].bits);
    }
    driver.wants_hidden = false;
    EXPECT_FALSE(driver.step({{1, {3}}}).hidden);
  });
}

// Any number of a sequence's rows may have logits: each is that of the prompt up to there.
TEST(Qwen3_5, EveryTokenMayHaveLogits) {
  const OnDisk dense(dense_shape());
  ModelOptions options = small_options();
  options.max_logits = 12;
  with_model(1, dense.where(), options, [](int, Model& model, Stream& stream) {
    ModelDriver all(model, 4, stream), last(model, 4, stream);
    all.every_token = true;
    const auto first = prompt(5, 1), second = prompt(7, 2);
    const auto found = all.step({{0, first}, {1, second}});
    ASSERT_EQ(found.rows.size(), 12u);
    const auto wanted = last.step({{0, first}, {1, second}});
    EXPECT_EQ(found.rows[4], wanted.rows[0]);
    EXPECT_EQ(found.rows[11], wanted.rows[1]);
    EXPECT_NE(found.rows[3], found.rows[4]);
    StepView step;
    step.shape = {13, 1, 13, false};
    EXPECT_NE(model.forward(step, {}, stream)
                  .status()
                  .message()
                  .find("the number of rows of logits is 13; accepted: 0 to 12"),
              std::string::npos);
  });
}

// Rows of the last step may get logits after it, the same bits, in any order and number.
TEST(Qwen3_5, FurtherRowsMayHaveLogits) {
  const OnDisk dense(dense_shape());
  ModelOptions options = small_options();
  options.max_logits = 12;
  with_model(2, dense.where(), options, [](int, Model& model, Stream& stream) {
    ModelDriver all(model, 4, stream), last(model, 4, stream);
    all.every_token = true;
    const auto first = prompt(5, 1), second = prompt(7, 2);
    const auto wanted = all.step({{0, first}, {1, second}});
    last.step({{0, first}, {1, second}});
    test::DeviceArray<std::int32_t> numbers(stream, 12);
    for (const std::vector<std::int32_t>& rows :
         {std::vector<std::int32_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, {9, 2, 9}, {4}}) {
      numbers.put(rows);
      const auto count = static_cast<std::int64_t>(rows.size());
      const auto made =
          model.logits_of(view(numbers.data(), DType::kI32, stream.device(), {count}), stream);
      ASSERT_TRUE(made) << made.status().to_string();
      EXPECT_EQ(made->vocab_begin, wanted.vocab_begin);
      const std::int64_t width = made->logits.shape[1];
      std::vector<float> found(static_cast<std::size_t>(count * width));
      ASSERT_TRUE(test::copy_back(stream, found.data(), made->logits.data, made->logits.bytes()));
      for (std::int64_t row = 0; row < count; ++row)
        EXPECT_EQ(
            std::vector<float>(found.begin() + row * width, found.begin() + (row + 1) * width),
            wanted.rows[static_cast<std::size_t>(rows[static_cast<std::size_t>(row)])]);
    }
    EXPECT_NE(model.logits_of(view(numbers.data(), DType::kI32, stream.device(), {13}), stream)
                  .status()
                  .message()
                  .find("the number of rows of logits is 13; accepted: 1 to 12"),
              std::string::npos);
  });
}

// A prompt cut anywhere gives nearly the same logits as in one piece. Only the cuts that the
// scheduler makes give the same ones (tests/runtime/exactness_test.cc).
TEST(Qwen3_5, PromptsMayComeInPieces) {
  const OnDisk dense(dense_shape());
  with_model(1, dense.where(), small_options(), [](int, Model& model, Stream& stream) {
    ModelDriver whole(model, 4, stream), pieces(model, 4, stream);
    const auto ids = prompt(23, 1);
    const auto expected = whole.step({{0, ids}}).rows.at(0);
    pieces.step({{0, {ids.begin(), ids.begin() + 9}}});
    pieces.step({{0, {ids.begin() + 9, ids.begin() + 10}}});
    const auto found = pieces.step({{0, {ids.begin() + 10, ids.end()}}}).rows.at(0);
    EXPECT_LT(rms_difference(found, expected), 0.02 * rms(expected));
  });
}

// Cutting the model changes only where sums are rounded. In fp8 that is noise of about a twentieth
// of the logits (tests/data/goldens/README.md); a wrong cut gives unrelated logits, a distance
// of 1.4.
TEST(Qwen3_5, TeamsAgree) {
  struct Case {
    const char* what;
    TinyShape shape;
    int size;
  };
  TinyShape replicated = dense_shape(), uneven = dense_shape(), bf16 = moe_shape();
  TinyShape sliced = moe_shape(), padded = dense_shape();
  replicated.kv_heads = 1;
  uneven.intermediate = 384;  // three blocks of 128 for two or four ranks
  bf16.fp8 = false;
  sliced.moe_intermediate = 256;
  padded.vocab = 250;
  const std::vector<Case> cases{{"dense", dense_shape(), 2},
                                {"dense", dense_shape(), 4},
                                {"kv heads replicated", replicated, 2},
                                {"uneven blocks", uneven, 2},
                                {"ranks without a block", uneven, 4},
                                {"experts placed", moe_shape(), 4},
                                {"experts sliced", sliced, 2},
                                {"bf16 experts", bf16, 2},
                                {"padded vocabulary", padded, 4}};
  const std::vector<Turn> turns{{0, prompt(9, 1)}};
  for (const Case& each : cases) {
    SCOPED_TRACE(std::string(each.what) + " on " + std::to_string(each.size) + " ranks");
    const OnDisk files(each.shape);
    const auto alone = logits_of(1, files.where(), small_options(), turns, 0);
    auto team = logits_of(each.size, files.where(), small_options(), turns, 0);
    ASSERT_GE(team.size(), alone.size());
    for (std::size_t id = alone.size(); id < team.size(); ++id)
      EXPECT_EQ(team[id], -std::numeric_limits<float>::infinity());
    team.resize(alone.size());
    EXPECT_GT(rms(alone), 0.1);
    EXPECT_LT(rms_difference(team, alone), (each.shape.fp8 ? 0.2 : 0.05) * rms(alone));
  }
}

// The emulated targets run the same model; the cpu's products have bits of their own.
TEST(Qwen3_5, RunsOnEveryTarget) {
  TinyShape shape = moe_shape();
  shape.hidden = 128;
  shape.heads = 2;
  shape.kv_heads = 1;
  shape.k_heads = 1;
  shape.v_heads = 2;
  shape.shared_intermediate = 128;
  const OnDisk files(shape);
  std::vector<float> expected;
  for (Target target : host_targets()) {
    SCOPED_TRACE(name(target));
    RankOptions ranks;
    ranks.target = target;
    std::vector<float> found;
    run_ranks(1, ranks, [&](int, Communicator& comm) {
      auto stream = Stream::create(comm.device());
      ASSERT_TRUE(stream);
      auto model = open_model(files.where(), small_options(), comm, *stream);
      ASSERT_TRUE(model) << model.status().to_string();
      ModelDriver driver(**model, 4, *stream);
      driver.step({{0, prompt(3, 1)}});
      const auto rows = driver.step({{0, prompt(1, 2)}, {1, prompt(2, 3)}}).rows;
      ASSERT_EQ(rows.size(), 2u);
      found = rows[0];
      found.insert(found.end(), rows[1].begin(), rows[1].end());
    });
    if (expected.empty()) expected = found;
    ASSERT_EQ(found.size(), expected.size());
    EXPECT_LT(rms_difference(found, expected), 0.2 * rms(expected));
  }
}

TEST(Qwen3_5, ReadsTextOnlyAndTiedCheckpoints) {
  TinyShape shape = dense_shape();
  shape.tied = shape.flat = true;
  const OnDisk flat(shape, "model.");
  shape.flat = false;
  const OnDisk nested(shape);
  const std::vector<Turn> turns{{0, prompt(4, 1)}};
  // Names differ, therefore weights: only that both load and give finite logits.
  for (const OnDisk* files : {&flat, &nested}) {
    const auto logits = logits_of(1, files->where(), small_options(), turns, 0);
    ASSERT_EQ(logits.size(), 256u);
    EXPECT_TRUE(std::isfinite(rms(logits)));
  }
}

TEST(Qwen3_5, StopsOnEveryEndToken) {
  const OnDisk files(dense_shape());
  test::write_file(files.path() / "generation_config.json", R"({"eos_token_id":[7,255,9]})");
  with_model(1, files.where(), small_options(), [](int, Model& model, Stream&) {
    EXPECT_EQ(model.eos_ids(), (std::vector<std::int32_t>{255, 7, 9}));
    EXPECT_EQ(model.vocab_size(), 256);
  });
}

TEST(Qwen3_5, RefusesStepsThatDoNotFit) {
  const OnDisk files(dense_shape());
  with_model(1, files.where(), small_options(), [](int, Model& model, Stream& stream) {
    StepView step;
    step.shape.tokens = 25;
    const auto refused = model.forward(step, {}, stream);
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.status().message().find("the number of tokens is 25; accepted: 1 to 24"),
              std::string::npos)
        << refused.status().message();
    step.shape.tokens = step.shape.sequences = 1;
    EXPECT_NE(model.forward(step, {}, stream).status().message().find("the number of caches is 0"),
              std::string::npos);
  });
}

TEST(Qwen3_5, RefusesBrokenCheckpoints) {
  const std::string config = test::tiny_config(dense_shape());
  const auto tensors = test::tiny_tensors(config);
  const std::string layer = "model.language_model.layers.3.";
  struct Case {
    std::function<void(test::FileTensors&)> damage;
    std::string sentence;
  };
  const std::vector<Case> cases{
      {[&](auto& t) { t.erase(layer + "self_attn.k_norm.weight"); }, "k_norm.weight\" is missing"},
      {[&](auto& t) { t.erase(layer + "self_attn.k_proj.weight_scale_inv"); },
       "k_proj.weight_scale_inv\" is missing; wanted bf16 or f32 or f16 [4, 2]"},
      {[&](auto& t) { t[layer + "mlp.up_proj.bias"] = t[layer + "self_attn.k_norm.weight"]; },
       "no place for: \"" + layer + "mlp.up_proj.bias\""},
      {[&](auto& t) {
         t[layer + "mlp.up_proj.weight"].shape = {256, 512};
       },
       "is F8_E4M3 [256, 512]; wanted bf16 or e4m3fn [512, 256]"},
      {[&](auto& t) { t.erase("lm_head.weight"); }, "\"lm_head.weight\" is missing"},
      {[&](auto& t) { t.erase("model.language_model.embed_tokens.weight"); },
       "holds neither \"model.language_model.embed_tokens.weight\""},
      {[&](auto& t) {
         test::FileTensor& k = t[layer + "self_attn.k_proj.weight"];
         k.type = "BF16";
         k.bytes.resize(2 * k.bytes.size());
         t.erase(layer + "self_attn.k_proj.weight_scale_inv");
       },
       "k_proj.weight\" is bf16 but \"" + layer +
           "self_attn.q_proj.weight\", with which it is fused"},
  };
  for (const Case& each : cases) {
    TempDirectory directory;
    test::FileTensors damaged = tensors;
    each.damage(damaged);
    test::write_checkpoint(directory.path(), config, damaged, 0);
    run_ranks(1, [&](int, Communicator& comm) {
      auto stream = Stream::create(comm.device());
      ASSERT_TRUE(stream);
      const auto model = open_model(directory.path().string(), small_options(), comm, *stream);
      ASSERT_FALSE(model) << each.sentence;
      EXPECT_NE(model.status().message().find(each.sentence), std::string::npos)
          << model.status().message();
    });
  }
}

// The vision tower and the draft head are left alone.
TEST(Qwen3_5, SkipsWhatIsNotText) {
  const std::string config = test::tiny_config(dense_shape());
  test::FileTensors tensors = test::tiny_tensors(config);
  const test::FileTensor some = tensors.at("lm_head.weight");
  for (const char* name : {"model.visual.blocks.0.attn.qkv.weight", "mtp.fc.weight"})
    tensors[name] = some;
  TempDirectory directory;
  test::write_checkpoint(directory.path(), config, tensors, 3);
  std::int64_t done = 0, total = -1;
  std::string limit;
  ModelOptions options = small_options();
  options.progress = [&](std::int64_t now, std::int64_t all, std::string_view by) {
    EXPECT_GE(now, done);
    EXPECT_TRUE(limit.empty()) << "more was said behind the end";
    done = now, total = all, limit = by;
  };
  with_model(1, directory.path().string(), options, [](int, Model&, Stream&) {});
  EXPECT_EQ(done, total);
  EXPECT_NE(limit.find(" % of the time of "), std::string::npos) << limit;
}

TEST(Qwen3_5, OneRankThatCannotLoadStopsAll) {
  const OnDisk good(dense_shape());
  TempDirectory empty;
  test::write_file(empty.path() / "config.json", good.config);
  run_ranks(2, [&](int rank, Communicator& comm) {
    auto stream = Stream::create(comm.device());
    ASSERT_TRUE(stream);
    const auto model = open_model(rank == 0 ? good.where() : empty.path().string(), small_options(),
                                  comm, *stream);
    ASSERT_FALSE(model);
    for (const std::string_view part : {"rank 1: ", "holds neither"})
      EXPECT_NE(model.status().message().find(part), std::string::npos) << model.status().message();
  });
}

TEST(Qwen3_5, NamesTheArchitecturesItKnows) {
  TempDirectory directory;
  test::write_file(directory.path() / "config.json", R"({"architectures":["Llama"]})");
  run_ranks(1, [&](int, Communicator& comm) {
    auto stream = Stream::create(comm.device());
    ASSERT_TRUE(stream);
    const auto model = open_model(directory.path().string(), {}, comm, *stream);
    ASSERT_FALSE(model);
    EXPECT_NE(model.status().message().find("\"Llama\"; accepted: Qwen3_5ForConditionalGeneration"),
              std::string::npos)
        << model.status().message();
  });
}

// --- config and shares ----------------------------------------------------------------------

void expect_refused(const Status& status, std::string_view sentence) {
  ASSERT_FALSE(status) << "accepted, but should say: " << sentence;
  EXPECT_NE(status.message().find(sentence), std::string_view::npos) << status.message();
}

// The config text with one key replaced or added in text_config.
std::string with_key(const std::string& key, const std::string& value) {
  std::string text = test::tiny_config(moe_shape());
  const std::string old = "\"" + key + "\": ";
  const std::size_t at = text.find(old);
  if (at == std::string::npos) {
    const std::string opening = "\"text_config\": {";
    text.insert(text.find(opening) + opening.size(), "\"" + key + "\": " + value + ",");
    return text;
  }
  const std::size_t begin = at + old.size();
  const std::size_t end =
      text[begin] == '[' ? text.find(']', begin) + 1 : text.find_first_of(",\n", begin);
  return text.replace(begin, end - begin, value);
}

TEST(Qwen3_5Config, ReadsTheReleasedKeys) {
  const auto config = parse_config(test::tiny_config(moe_shape()));
  ASSERT_TRUE(config) << config.status().message();
  EXPECT_EQ(config->hidden, 256);
  EXPECT_EQ(config->layers.size(), 4u);
  EXPECT_EQ(config->layers[2], LayerKind::kDeltaNet);
  EXPECT_EQ(config->layers[3], LayerKind::kAttention);
  EXPECT_EQ(config->rotary_dim, 64);
  EXPECT_EQ(config->rope_theta, 1e7);
  EXPECT_EQ(config->experts, 4);
  EXPECT_EQ(config->conv_dim(), 2 * 4 * 128 + 8 * 128);
  EXPECT_EQ(config->tied, false);
}

TEST(Qwen3_5Config, RefusesWhatItDoesNotCompute) {
  expect_refused(parse_config("").status(), "config: is not valid JSON at line 1, column 1");
  expect_refused(parse_config("[]").status(), "not a JSON object");
  expect_refused(parse_config("{\"text_config\":3}").status(), "\"text_config\" is not an object");
  expect_refused(parse_config("{}").status(), "says which model this is");
  const std::vector<std::array<std::string, 3>> cases{
      {"hidden_act", "\"gelu\"", "\"hidden_act\" is \"gelu\"; accepted: \"silu\""},
      {"attention_bias", "true", "\"attention_bias\" is true"},
      {"attn_output_gate", "false", "\"attn_output_gate\" is false"},
      {"output_gate_type", "\"sigmoid\"", "accepted: \"silu\" or \"swish\""},
      {"linear_conv_kernel_dim", "3", "accepted: 4"},
      {"mlp_only_layers", "[1]", "\"mlp_only_layers\" is [1]"},
      {"hidden_size", "-8", "\"hidden_size\" is -8"},
      {"hidden_size", "257", "accepted: a multiple of 8"},
      {"head_dim", "16777216", "\"head_dim\" is 16777216; accepted: a positive integer of at most"},
      {"linear_num_key_heads", "16777216", "\"linear_num_key_heads\" is 16777216; accepted"},
      {"num_attention_heads", "2147483647", "\"num_attention_heads\" is 2147483647; accepted"},
      {"num_hidden_layers", "2147483647", "\"num_hidden_layers\" is 2147483647; accepted"},
      {"hidden_size", "1e99", "\"hidden_size\" is 1e+99"},
      {"hidden_size", "\"wide\"", "\"hidden_size\" is \"wide\""},
      {"num_key_value_heads", "3", "accepted: a multiple of num_key_value_heads = 3"},
      {"linear_num_value_heads", "6", "accepted: a multiple of linear_num_key_heads = 4"},
      {"linear_key_head_dim", "64", "\"linear_key_head_dim\" is 64; accepted: 128"},
      {"num_hidden_layers", "5", "a list of 5 times"},
      {"num_experts_per_tok", "9", "accepted: at most num_experts = 4"},
      {"rope_type", "\"yarn\"", "\"rope_parameters.rope_type\" is \"yarn\"; accepted: \"default\""},
      {"partial_rotary_factor", "0.3", "accepted: an even number up to head_dim"},
      {"quant_method", "\"awq\"",
       "\"quantization_config.quant_method\" is \"awq\"; accepted: \"fp8\""},
      {"weight_block_size", "[64]", "\"quantization_config.weight_block_size\" is"},
  };
  for (const auto& [key, value, sentence] : cases) {
    SCOPED_TRACE(key + " = " + value);
    expect_refused(parse_config(with_key(key, value)).status(), sentence);
  }
}

Config tiny(const TinyShape& shape) {
  auto config = parse_config(test::tiny_config(shape));
  EXPECT_TRUE(config) << config.status().message();
  return config ? *config : Config{};
}

TEST(Qwen3_5Share, RefusesImpossibleTeams) {
  TinyShape shape = dense_shape();
  expect_refused(share(tiny(shape), true, 0, 3).status(),
                 "a team of 3 ranks does not divide num_attention_heads = 4");
  shape.heads = shape.kv_heads = 6;
  expect_refused(share(tiny(shape), true, 0, 3).status(),
                 "does not divide linear_num_key_heads = 4");
  shape.heads = 12;
  shape.k_heads = shape.v_heads = 12;
  expect_refused(share(tiny(shape), true, 0, 4).status(),
                 "num_key_value_heads = 6 neither divides nor is divided by a team of 4");
  TinyShape moe = moe_shape();
  moe.experts = 6;
  moe.moe_intermediate = 256;
  expect_refused(share(tiny(moe), true, 0, 4).status(),
                 "can neither slice moe_intermediate_size = 256 into multiples of 128 nor divide "
                 "num_experts = 6");
}

TEST(Qwen3_5Share, SlicesOrPlacesExperts) {
  TinyShape moe = moe_shape();
  moe.moe_intermediate = 512;
  for (int rank = 0; rank < 4; ++rank) {
    const auto sliced = share(tiny(moe), true, rank, 4);
    ASSERT_TRUE(sliced);
    EXPECT_EQ(sliced->experts, (Range{0, 4}));
    EXPECT_EQ(sliced->moe_intermediate, (Range{128 * rank, 128}));
  }
  moe.moe_intermediate = 256;
  for (int rank = 0; rank < 4; ++rank) {
    const auto placed = share(tiny(moe), true, rank, 4);
    ASSERT_TRUE(placed);
    EXPECT_EQ(placed->experts, (Range{rank, 1}));
    EXPECT_EQ(placed->moe_intermediate, (Range{0, 256}));
  }
}

// The facts of the released sizes at 8 ranks.
TEST(Qwen3_5Share, CutsTheReleasedSizes) {
  Config large = tiny(moe_shape());  // 397B-A17B
  large.q_heads = 32;
  large.kv_heads = 2;
  large.k_heads = 16;
  large.v_heads = 64;
  large.vocab = 248320;
  large.experts = 512;
  large.moe_intermediate = large.shared_intermediate = 1024;
  const auto seventh = share(large, true, 7, 8);
  ASSERT_TRUE(seventh);
  EXPECT_EQ(seventh->q_heads, 4);
  EXPECT_EQ(seventh->kv_heads, 1);
  EXPECT_EQ(seventh->first_kv_head, 1);
  EXPECT_EQ(share(large, true, 3, 8)->first_kv_head, 0);
  EXPECT_EQ(seventh->first_v_head, 56);
  EXPECT_EQ(seventh->moe_intermediate, (Range{896, 128}));
  EXPECT_EQ(seventh->vocab, (Range{7 * 31040, 31040}));
  Config small = large;  // 35B-A3B: slices of 64 would cut a scale block
  small.experts = 256;
  small.moe_intermediate = small.shared_intermediate = 512;
  std::int64_t shared = 0;
  for (int rank = 0; rank < 8; ++rank) {
    const auto mine = share(small, true, rank, 8);
    ASSERT_TRUE(mine);
    EXPECT_EQ(mine->experts, (Range{32 * rank, 32}));
    EXPECT_EQ(mine->shared_intermediate.begin, shared);
    EXPECT_EQ(mine->shared_intermediate.count % 128, 0);
    shared += mine->shared_intermediate.count;
  }
  EXPECT_EQ(shared, 512);
}

}  // namespace
}  // namespace tenon::qwen3_5
