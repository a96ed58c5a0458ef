// Checkpoints as others write them, and what is wrong with them: every variation gives the right
// logits or a sentence, on all ranks of a team alike. Not here: config keys (config_test.cc), the
// formats of files (weights_test.cc).
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>

#include "tenon/core/fp8.h"
#include "tenon/models/eos.h"
#include "tests/support/small_model.h"

namespace tenon {
namespace {

using Json = nlohmann::json;
using test::dense_shape;
using test::FileTensor;
using test::FileTensors;
using test::logits_of;
using test::moe_shape;
using test::OnDisk;
using test::prompt;
using test::rms;
using test::rms_difference;
using test::run_ranks;
using test::small_options;
using test::TempDirectory;
using test::TinyShape;
using test::Turn;

const std::vector<Turn> kTurns{{0, prompt(9, 1)}};
const std::string kText = "model.language_model.";

std::vector<float> logits(const OnDisk& files, int size = 1) {
  return logits_of(size, files.where(), small_options(), kTurns, 0);
}

// What opening says, on every rank; a rank may have a directory of its own.
std::vector<std::string> refusals(const std::vector<std::string>& directories,
                                  const ModelOptions& options = small_options()) {
  std::vector<std::string> found(directories.size());
  run_ranks(static_cast<int>(directories.size()), [&](int rank, Communicator& comm) {
    auto stream = Stream::create(comm.device());
    ASSERT_TRUE(stream);
    const auto at = static_cast<std::size_t>(rank);
    const auto model = open_model(directories[at], options, comm, *stream);
    found[at] = model ? "accepted" : std::string(model.status().message());
  });
  return found;
}

void expect_refused(const std::string& directory, std::string_view sentence,
                    const ModelOptions& options = small_options()) {
  const std::string found = refusals({directory}, options).front();
  EXPECT_NE(found.find(sentence), std::string::npos) << found << "\nshould say: " << sentence;
}

// --- end of sequence ------------------------------------------------------------------------

TEST(EosIds, ComeFromEveryConfig) {
  struct Case {
    const char *config, *generation;
    std::vector<std::int32_t> ids;
  };
  const std::vector<Case> cases{
      {R"({"text_config": {"eos_token_id": 4}})", nullptr, {4}},
      {R"({"text_config": {}, "eos_token_id": [5, 6]})", nullptr, {5, 6}},
      {R"({"text_config": {"eos_token_id": 4}, "eos_token_id": 5})", nullptr, {4, 5}},
      {R"({"text_config": {"eos_token_id": 4}, "eos_token_id": [5, 4]})",
       R"({"eos_token_id": [6, 5]})",
       {4, 5, 6}},
      {R"({"text_config": {"eos_token_id": null}})", R"({"eos_token_id": 6})", {6}},
      {R"({"eos_token_id": 7})", R"({"do_sample": true})", {7}},
      {R"({})", R"({})", {}},
  };
  for (const Case& each : cases) {
    TempDirectory directory;
    test::write_file(directory.path() / "config.json", each.config);
    if (each.generation != nullptr)
      test::write_file(directory.path() / "generation_config.json", each.generation);
    const auto found = read_eos_ids(directory.path().string());
    ASSERT_TRUE(found) << found.status().message();
    EXPECT_EQ(*found, each.ids) << each.config;
  }
}

TEST(EosIds, SayWhereTheyAreWrong) {
  for (const char* wrong : {"\"x\"", "-1", "2147483648", "[1, null]", "1.5", "{}", "[[1]]"}) {
    TempDirectory directory;
    test::write_file(directory.path() / "config.json", R"({"text_config": {}})");
    test::write_file(directory.path() / "generation_config.json",
                     std::string(R"({"eos_token_id": )") + wrong + "}");
    const auto found = read_eos_ids(directory.path().string());
    ASSERT_FALSE(found) << wrong;
    EXPECT_NE(found.status().message().find("generation_config.json: \"eos_token_id\" is "),
              std::string_view::npos)
        << found.status().message();
  }
}

// As Qwen3.5-0.8B is published: no generation_config.json.
TEST(EosIds, OfTheRootReachTheModel) {
  Json config = Json::parse(test::tiny_config(dense_shape()));
  config["eos_token_id"] = {250, 251};
  const OnDisk files(config.dump(), test::tiny_tensors(config.dump()));
  test::with_model(1, files.where(), small_options(), [](int, Model& model, Stream&) {
    EXPECT_EQ(model.eos_ids(), (std::vector<std::int32_t>{255, 250, 251}));
  });
}

// --- context --------------------------------------------------------------------------------

TEST(Load, RefusesAContextBeyondTheModels) {
  const OnDisk files(dense_shape());  // max_position_embeddings 4096
  ModelOptions options = small_options();
  options.max_context = 4097;
  expect_refused(files.where(),
                 "max_context is 4097 but the checkpoint's \"max_position_embeddings\" is 4096; "
                 "accepted: at most that many",
                 options);
  options.max_context = 4096;
  EXPECT_EQ(refusals({files.where()}, options).front(), "accepted");
}

// --- ranks with different checkpoints -------------------------------------------------------

FileTensor as_bf16(const FileTensor& wide) {
  FileTensor narrow{"BF16", wide.shape, {}};
  for (std::size_t i = 0; i < wide.bytes.size(); i += sizeof(float)) {
    float value;
    std::memcpy(&value, wide.bytes.data() + i, sizeof value);
    const bf16 rounded = to_bf16(value);
    const auto* bytes = reinterpret_cast<const std::byte*>(&rounded);
    narrow.bytes.insert(narrow.bytes.end(), bytes, bytes + sizeof rounded);
  }
  return narrow;
}

FileTensor as_f32(const FileTensor& narrow) {
  FileTensor wide{"F32", narrow.shape, {}};
  for (std::size_t i = 0; i < narrow.bytes.size(); i += sizeof(bf16)) {
    bf16 value;
    std::memcpy(&value, narrow.bytes.data() + i, sizeof value);
    const float same = to_float(value);
    const auto* bytes = reinterpret_cast<const std::byte*>(&same);
    wide.bytes.insert(wide.bytes.end(), bytes, bytes + sizeof same);
  }
  return wide;
}

TEST(Load, RanksMustHoldTheSameCheckpoint) {
  const OnDisk good(moe_shape());
  const Json config = Json::parse(good.config);
  const FileTensors tensors = test::tiny_tensors(good.config);
  const std::string decay = kText + "layers.0.linear_attn.A_log";
  const std::string norm = kText + "layers.2.input_layernorm.weight";
  const std::string wide = kText + "layers.3.self_attn.o_proj.weight";
  struct Case {
    std::function<void(Json& text, FileTensors&)> change;
    std::string sentence;
  };
  const std::vector<Case> cases{
      {[](Json& text, auto&) { text["num_experts_per_tok"] = 1; },
       "num_experts_per_tok is 1, on rank 0 it is 2"},
      {[](Json& text, auto&) { text["rope_parameters"]["rope_theta"] = 10000; },
       "rope_theta is 10000, on rank 0 it is 10000000"},
      {[](Json& text, auto&) { text["rms_norm_eps"] = 1e-5; }, "rms_norm_eps is "},
      {[](Json& text, auto&) { text["eos_token_id"] = 3; },
       "eos_token_id is 3, on rank 0 it is 255"},
      {[&](Json&, auto& t) { t[decay] = as_bf16(t[decay]); },
       "tensor \"" + decay + "\" is BF16 [8], on rank 0 it is F32 [8]"},
      {[&](Json&, auto& t) { t[decay].bytes.back() ^= std::byte{1}; },
       "the data of tensor \"" + decay + "\" is "},
      {[&](Json&, auto& t) { t[norm].bytes[100] ^= std::byte{1}; },
       "the data of tensor \"" + norm + "\" is "},
      {[&](Json&, auto& t) { t[wide].bytes.back() ^= std::byte{1}; },
       "the data of tensor \"" + wide + "\" is "},
      {[&](Json&, auto& t) { t["model.extra"] = t[norm]; },
       "tensor \"model.extra\" is BF16 [256], on rank 0 it is missing"},
  };
  for (const Case& each : cases) {
    SCOPED_TRACE(each.sentence);
    Json other = config;
    FileTensors changed = tensors;
    each.change(other["text_config"], changed);
    const OnDisk bad(other.dump(), changed);
    for (const auto& found : refusals({good.where(), good.where(), bad.where(), good.where()})) {
      EXPECT_NE(found.find("rank 2: "), std::string::npos) << found;
      EXPECT_NE(found.find(each.sentence), std::string::npos) << found;
    }
  }
  // What is not used may differ, and so may the division into files.
  Json other = config;
  other["transformers_version"] = "4.57";
  FileTensors more = tensors;
  more["mtp.fc.weight"] = more.at(norm);
  const OnDisk same(other.dump(), more);
  for (const auto& found : refusals({good.where(), same.where()})) EXPECT_EQ(found, "accepted");
}

// No rank fails alone, whatever is missing.
TEST(Load, OneRankWithoutAConfigStopsAll) {
  const OnDisk good(dense_shape());
  const TempDirectory empty;
  TempDirectory foreign;
  test::write_file(foreign.path() / "config.json", R"({"architectures": ["Llama"]})");
  for (const auto& found : refusals({good.where(), empty.path().string()})) {
    EXPECT_NE(found.find("rank 1: "), std::string::npos) << found;
    EXPECT_NE(found.find("config.json: cannot be opened"), std::string::npos) << found;
  }
  for (const auto& found : refusals({good.where(), foreign.path().string()}))
    EXPECT_NE(found.find("rank 1: "), std::string::npos) << found;
}

// --- what others write ----------------------------------------------------------------------

// transformers ties them where both are equal, and believes the tensor where they differ.
TEST(Load, SkipsAHeadThatRepeatsTheEmbedding) {
  TinyShape shape = dense_shape();
  shape.tied = true;
  const std::string config = test::tiny_config(shape);
  FileTensors tensors = test::tiny_tensors(config);
  const OnDisk tied(config, tensors);
  const auto expected = logits(tied);

  tensors["lm_head.weight"] = tensors.at(kText + "embed_tokens.weight");
  const OnDisk redundant(config, tensors);
  EXPECT_EQ(logits(redundant), expected);
  EXPECT_EQ(logits(redundant, 2), logits(tied, 2));
  std::int64_t bytes[2] = {};
  for (const OnDisk* files : {&tied, &redundant})
    test::with_model(1, files->where(), small_options(), [&](int, Model& model, Stream&) {
      bytes[files == &tied ? 0 : 1] = model.weight_bytes();
    });
  EXPECT_EQ(bytes[0], bytes[1]);

  // Only the second rank's slice differs.
  tensors["lm_head.weight"].bytes.back() ^= std::byte{0x80};
  shape.tied = false;
  const OnDisk different(config, tensors), untied(test::tiny_config(shape), tensors);
  for (int size : {1, 2}) {
    EXPECT_EQ(logits(different, size), logits(untied, size));
    EXPECT_NE(logits(different, size), logits(tied, size));
  }
}

// The same tensors under the names and the config of a text-only export.
TEST(Load, FlatCheckpointsAreTheSameModel) {
  for (TinyShape shape : {dense_shape(), moe_shape()}) {
    for (bool fp8 : {true, false}) {
      shape.fp8 = fp8;
      const std::string nested = test::tiny_config(shape);
      const FileTensors tensors = test::tiny_tensors(nested);
      FileTensors renamed;
      for (const auto& [name, tensor] : tensors)
        renamed[name.starts_with(kText) ? "model." + name.substr(kText.size()) : name] = tensor;
      shape.flat = true;
      const OnDisk wrapped(nested, tensors), flat(test::tiny_config(shape), renamed);
      EXPECT_EQ(logits(flat), logits(wrapped));
      shape.flat = false;
    }
  }
}

// Small parameters come in bf16 or f32; the same values give the same bits.
TEST(Load, SmallParametersMayHaveEitherType) {
  const std::string config = test::tiny_config(dense_shape());
  FileTensors narrow = test::tiny_tensors(config), wide;
  for (auto& [name, tensor] : narrow)
    if (tensor.type == "F32") tensor = as_bf16(tensor);
  wide = narrow;
  int changed = 0;
  for (auto& [name, tensor] : wide)
    if (name.find("norm") != std::string::npos || name.ends_with("A_log") ||
        name.ends_with("dt_bias") || name.ends_with("conv1d.weight"))
      tensor = as_f32(tensor), ++changed;
  EXPECT_EQ(changed, 1 + 4 * 2 + 3 * 4 + 2);
  for (int size : {1, 2})
    EXPECT_EQ(logits(OnDisk(config, wide), size), logits(OnDisk(config, narrow), size));
}

// Norms of heads that bf16 cannot hold are not rounded to it.
TEST(Load, WideHeadNormsKeepTheirValues) {
  const std::string config = test::tiny_config(dense_shape());
  const FileTensors narrow = test::tiny_tensors(config);
  FileTensors wide = narrow;
  for (const char* which : {"q_norm", "k_norm"}) {
    FileTensor& norm = wide[kText + "layers.3.self_attn." + which + ".weight"];
    norm = as_f32(norm);
    for (std::size_t i = 0; i < norm.bytes.size(); i += sizeof(float)) {
      float value;
      std::memcpy(&value, norm.bytes.data() + i, sizeof value);
      value *= 1 + 0.9f / 512;  // just nearer to this bf16 than to the next
      std::memcpy(norm.bytes.data() + i, &value, sizeof value);
    }
    ASSERT_EQ(as_bf16(norm).bytes,
              narrow.at(kText + "layers.3.self_attn." + which + ".weight").bytes);
  }
  EXPECT_NE(logits(OnDisk(config, wide)), logits(OnDisk(config, narrow)));
}

TEST(Load, ServesEveryRatioOfValueHeads) {
  for (int ratio : {1, 2, 3, 4, 8}) {
    SCOPED_TRACE(ratio);
    TinyShape shape = dense_shape();
    shape.k_heads = 2;
    shape.v_heads = 2 * ratio;
    const OnDisk files(shape);
    const auto alone = logits(files), team = logits(files, 2);
    ASSERT_EQ(alone.size(), 256u);
    EXPECT_TRUE(std::isfinite(rms(alone)));
    EXPECT_LT(rms_difference(team, alone), 0.2 * rms(alone));
  }
}

// --- fp8 ------------------------------------------------------------------------------------

TEST(Load, RefusesFp8WithoutAWordAboutIt) {
  Json config = Json::parse(test::tiny_config(dense_shape()));
  const FileTensors tensors = test::tiny_tensors(config.dump());
  config.erase("quantization_config");
  const OnDisk files(config.dump(), tensors);
  expect_refused(files.where(),
                 "in_proj_qkv.weight\" is F8_E4M3 but config.json has no "
                 "\"quantization_config\"");
  config["text_config"]["quantization_config"] = {{"quant_method", "fp8"}};
  EXPECT_EQ(refusals({OnDisk(config.dump(), tensors).where()}).front(), "accepted");
}

TEST(Load, RefusesWhatModelOptWrites) {
  TinyShape shape = dense_shape();
  shape.fp8 = false;
  const OnDisk files(shape);
  test::write_file(files.path() / "hf_quant_config.json",
                   R"({"quantization": {"quant_algo": "NVFP4", "group_size": 16}})");
  expect_refused(files.where(), "hf_quant_config.json: \"quant_algo\" is \"NVFP4\"; accepted: no");
}

TEST(Load, RefusesFp8RowsThatAreNoWholeBlocks) {
  TinyShape shape = dense_shape();
  shape.hidden = 264;
  expect_refused(OnDisk(shape).where(),
                 "config: \"hidden_size\" is 264; accepted with fp8 weights: a multiple of 128");
  shape.fp8 = false;
  EXPECT_EQ(refusals({OnDisk(shape).where()}).front(), "accepted");
}

// Whatever the sizes: right logits on any team, or a sentence; never an access outside.
TEST(Load, OddSizesRunOrAreRefused) {
  std::vector<TinyShape> shapes;
  const auto add = [&](const std::function<void(TinyShape&)>& change) {
    for (const bool fp8 : {true, false})
      for (TinyShape shape : {dense_shape(), moe_shape()}) {
        shape.fp8 = fp8;
        change(shape);
        shapes.push_back(shape);
      }
  };
  add([](TinyShape& s) { s.hidden = 136; });
  add([](TinyShape& s) { s.hidden = 128; });
  add([](TinyShape& s) { s.head_dim = 64, s.heads = s.kv_heads = 3; });
  add([](TinyShape& s) { s.head_dim = 72; });
  add([](TinyShape& s) { s.head_dim = 40, s.heads = 2, s.kv_heads = 1; });
  add([](TinyShape& s) { s.intermediate = s.moe_intermediate = s.shared_intermediate = 192; });
  add([](TinyShape& s) { s.intermediate = s.moe_intermediate = s.shared_intermediate = 72; });
  add([](TinyShape& s) { s.intermediate = s.moe_intermediate = s.shared_intermediate = 20; });
  add([](TinyShape& s) { s.experts = s.experts > 0 ? 3 : 0; });
  add([](TinyShape& s) { s.k_heads = s.v_heads = 1; });
  add([](TinyShape& s) { s.vocab = 257; });
  int ran = 0;
  for (const TinyShape& shape : shapes) {
    const OnDisk files(shape);
    std::vector<float> alone;
    for (const int size : {1, 2}) {
      SCOPED_TRACE(files.config + " on " + std::to_string(size));
      const std::vector<std::string> said =
          refusals(std::vector<std::string>(static_cast<std::size_t>(size), files.where()));
      if (said.front() != "accepted") {
        EXPECT_GT(said.front().size(), 40u) << said.front();
        EXPECT_EQ(said.front().find("an exception"), std::string::npos) << said.front();
        continue;
      }
      ++ran;
      std::vector<float> found = logits(files, size);
      ASSERT_GE(found.size(), static_cast<std::size_t>(shape.vocab));
      found.resize(static_cast<std::size_t>(shape.vocab));
      EXPECT_TRUE(std::isfinite(rms(found)));
      if (alone.empty()) alone = found;
      EXPECT_LT(rms_difference(found, alone), (shape.fp8 ? 0.2 : 0.05) * rms(alone));
    }
  }
  EXPECT_GE(ran, 40);
}

// --- files ----------------------------------------------------------------------------------

TEST(Load, RefusesFilesThatAreNone) {
  for (const char* name : {"config.json", "generation_config.json", "model.safetensors.index.json",
                           "layers-0.safetensors"}) {
    SCOPED_TRACE(name);
    const OnDisk files(dense_shape());
    const auto at = files.path() / name;
    std::filesystem::remove(at);
    ASSERT_EQ(mkfifo(at.c_str(), 0600), 0);
    expect_refused(files.where(), std::string(name) + ": is a FIFO; accepted: a regular file");
    std::filesystem::remove(at);
    std::filesystem::create_directory(at);
    expect_refused(files.where(), std::string(name) + ": is a directory; accepted: a regular file");
    std::filesystem::remove(at);
    std::filesystem::create_symlink("/dev/zero", at);
    expect_refused(files.where(), std::string(name) + ": is a device; accepted: a regular file");
  }
}

TEST(Load, RefusesFilesThatAreCutShort) {
  const OnDisk files(dense_shape());
  const auto at = files.path() / "layers-1.safetensors";
  const auto whole = std::filesystem::file_size(at);
  for (const std::uintmax_t left : {whole - 1, whole / 2, std::uintmax_t{100}, std::uintmax_t{0}}) {
    std::filesystem::resize_file(at, left);
    expect_refused(files.where(), "layers-1.safetensors: ");
  }
}

// Files that change behind their headers: all ranks hear the same sentence, and nobody crashes.
TEST(Load, RefusesFilesThatChangeWhileTheyAreRead) {
  const auto said = [](const OnDisk& files, int size, const std::function<void()>& change) {
    ModelOptions options = small_options();
    const auto once = std::make_shared<std::once_flag>();
    options.planned = [=](const ModelPlan&) {  // headers are read, weights are not
      std::call_once(*once, change);
      return Status::ok();
    };
    return refusals(std::vector<std::string>(static_cast<std::size_t>(size), files.where()),
                    options);
  };
  for (const int size : {1, 2}) {
    const OnDisk files(dense_shape());
    const auto at = files.path() / "layers-1.safetensors";
    const auto whole = std::filesystem::file_size(at);
    for (const std::string& each :
         said(files, size, [&] { std::filesystem::resize_file(at, whole / 2); }))
      for (const char* part : {"layers-1.safetensors: became shorter while it was read: bytes ",
                               " were asked for, ", " were found"})
        EXPECT_NE(each.find(part), std::string::npos) << each;
    const OnDisk others(dense_shape());
    const auto there = others.path() / "layers-1.safetensors";
    for (const std::string& each : said(others, size, [&] {
           std::filesystem::rename(there, others.path() / "older");
           std::filesystem::copy_file(others.path() / "older", there);
         }))
      EXPECT_NE(each.find("layers-1.safetensors: is not the file any more whose header was read"),
                std::string::npos)
          << each;
  }
}

TEST(Load, SurvivesDeepNesting) {
  const std::string deep = std::string(100'000, '[') + std::string(100'000, ']');
  for (const char* name :
       {"config.json", "generation_config.json", "model.safetensors.index.json"}) {
    SCOPED_TRACE(name);
    const OnDisk files(dense_shape());
    for (const std::string& text : {deep, "{\"eos_token_id\": " + deep + "}"}) {
      test::write_file(files.path() / name, text);
      expect_refused(files.where(), "is nested more than 256 deep");
    }
  }
  const OnDisk files(dense_shape());
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(deep.size() >> (8 * i) & 0xff);
  test::write_file(files.path() / "layers-0.safetensors", bytes + deep);
  expect_refused(files.where(), "the header: is nested more than 256 deep");
}

// --- limits of the process ------------------------------------------------------------------

// Opens with some room above what the process has already; ends the process with what was said.
[[noreturn, maybe_unused]] void open_within(const std::string& directory, rlim_t room) {
  run_ranks(1, [&](int, Communicator& comm) {
    auto stream = Stream::create(comm.device());
    std::ifstream statm("/proc/self/statm");
    rlim_t pages = 0;
    statm >> pages;
    const rlim_t most = pages * static_cast<rlim_t>(sysconf(_SC_PAGESIZE)) + room;
    const rlimit limit{most, most};
    setrlimit(RLIMIT_AS, &limit);
    const auto model = open_model(directory, small_options(), comm, *stream);
    std::fprintf(stderr, "%s\n", model ? "accepted" : model.status().to_string().c_str());
    _exit(model ? 0 : 1);
  });
  _exit(2);
}

TEST(LoadDeathTest, TooLittleMemoryIsASentence) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer needs its address space";
#else
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const OnDisk files(dense_shape());
  for (const rlim_t room : {0u, 1u << 20, 4u << 20, 6u << 20, 8u << 20, 12u << 20})
    EXPECT_EXIT(
        open_within(files.where(), room),
        [](int status) { return WIFEXITED(status) && WEXITSTATUS(status) <= 1; },
        "accepted|ulimit -v|memory")
        << room;
  TinyShape shape = dense_shape();
  shape.vocab = 1 << 16;  // two tensors of 34 MB: no heap that is there already holds them
  const OnDisk large(shape);
  EXPECT_EXIT(open_within(large.where(), 1u << 20), testing::ExitedWithCode(1), "ulimit -v|memory");
#endif
}

TEST(LoadDeathTest, TooFewDescriptorsAreASentence) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const OnDisk files(dense_shape());
  const auto open_with_none_left = [&] {
    run_ranks(1, [&](int, Communicator& comm) {
      auto stream = Stream::create(comm.device());
      const int lowest = ::open("/dev/null", O_RDONLY);
      ::close(lowest);
      const rlimit limit{static_cast<rlim_t>(lowest), static_cast<rlim_t>(lowest)};
      setrlimit(RLIMIT_NOFILE, &limit);
      const auto model = open_model(files.where(), small_options(), comm, *stream);
      std::fprintf(stderr, "%s\n", model ? "accepted" : model.status().to_string().c_str());
      _exit(model ? 0 : 1);
    });
  };
  EXPECT_EXIT(open_with_none_left(), testing::ExitedWithCode(1),
              "config.json: cannot be opened: Too many open files");
}

}  // namespace
}  // namespace tenon
