// The whole model against reference logits that transformers computed
// (tests/data/goldens/README.md): dense and MoE, fp8 and bf16, tied and untied, random and trained,
// on 1, 2 and 4 ranks, prompts in one step and in pieces, then forced decode steps.
//
// How near is near: the reference ran twice, in float32 ("fp32q") and in bf16 ("bf16q"). Ours
// rounds activations to bf16 in about as many places as the second, so row by row it should be
// about as far from fp32q as bf16q is. Three limits, each with its reason:
//   median over rows of the ratio of the two distances (rms): 1.25. Every row is such a ratio of
//   two
//     sums of hundreds of independent errors; a systematic loss of half a bit would show.
//   four fifths of the rows within twice bf16q's distance, in rms and at the worst element. A
//   near-tie
//     in a router, or an activation that falls on the next fp8 code, moves single rows further, and
//     where that happens is chance.
//   no row further away than 0.4 of the logits' own spread: a wrong binding (head order, scale,
//   norm,
//     state) is at 0.6 or above.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "tenon/models/model.h"
#include "tenon/models/weights.h"
#include "tests/support/model_driver.h"
#include "tests/support/ranks.h"
#include "tests/support/tiny_model.h"

namespace tenon {
namespace {

using test::ModelDriver;
using test::ShardRows;
using test::splitmix64;
using test::TempDirectory;

constexpr double kMedianRatio = 1.25, kRowRatio = 2, kRowShare = 0.8, kSpreadShare = 0.4;
constexpr int kDecodeSteps = 4;
constexpr int kRows = 1 + kDecodeSteps;

struct Golden {
  const char* name;
  int vocab, id_limit;
};
constexpr Golden kGoldens[] = {{"dense_untied", 512, 512},
                               {"dense_tied", 512, 512},
                               {"moe_wide_v", 512, 512},
                               {"moe_bf16", 512, 512},
                               {"tiny", 1024, 960}};

std::filesystem::path source() { return TENON_SOURCE_DIR; }

std::int32_t hashed_id(std::int64_t x, const Golden& golden) {
  return static_cast<std::int32_t>(splitmix64(static_cast<std::uint64_t>(x)) %
                                   static_cast<std::uint64_t>(golden.id_limit));
}

// [kRows][vocab] of one reference tensor.
using Rows = std::vector<std::vector<float>>;

class References {
 public:
  explicit References(const Golden& golden) : golden_(golden) {
    auto file = SafetensorsFile::open(
        (source() / "tests/data/goldens" / golden.name / "logits.safetensors").string());
    EXPECT_TRUE(file) << file.status().message();
    if (file) file_.emplace(*std::move(file));
  }

  Rows rows(const std::string& arithmetic, int length) const {
    const std::string name = arithmetic + ".T" + std::to_string(length);
    const auto found = file_->tensors().find(name);
    if (found == file_->tensors().end() || found->second.dtype != DType::kF32 ||
        found->second.shape != std::vector<std::int64_t>{kRows, golden_.vocab}) {
      ADD_FAILURE() << "no f32 [5, vocab] tensor " << name;
      return {};
    }
    Rows rows(kRows, std::vector<float>(static_cast<std::size_t>(golden_.vocab)));
    const std::byte* from = found->second.data;
    for (auto& row : rows) {
      std::memcpy(row.data(), from, row.size() * sizeof(float));
      from += row.size() * sizeof(float);
    }
    return rows;
  }

 private:
  const Golden& golden_;
  std::optional<SafetensorsFile> file_;
};

struct Distance {
  double rms = 0, worst = 0;
};
Distance distance(const std::vector<float>& a, const std::vector<float>& b) {
  Distance found;
  EXPECT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const double difference = std::abs(static_cast<double>(a[i]) - b[i]);
    found.rms += difference * difference / static_cast<double>(a.size());
    found.worst = std::max(found.worst, std::isfinite(difference) ? difference : 1e30);
  }
  found.rms = std::sqrt(found.rms);
  return found;
}

// Standard deviation of one row of logits.
double spread(const std::vector<float>& row) {
  double sum = 0, squares = 0;
  for (float each : row) sum += each, squares += static_cast<double>(each) * each;
  const auto count = static_cast<double>(row.size());
  return std::sqrt(squares / count - sum / count * (sum / count));
}

// The checkpoint's directory: the trained one of the repository, or a random one made here.
class Checkpoint {
 public:
  explicit Checkpoint(const Golden& golden) {
    if (std::string_view(golden.name) == "tiny") {
      directory_ = source() / "models/tiny";
      return;
    }
    const auto config =
        read_text((source() / "tests/data/goldens" / golden.name / "config.json").string());
    EXPECT_TRUE(config) << config.status().message();
    if (!config) return;
    made_.emplace();
    directory_ = made_->path();
    test::write_checkpoint(directory_, *config, test::tiny_tensors(*config), 2);
  }
  std::string directory() const { return directory_.string(); }

 private:
  std::optional<TempDirectory> made_;
  std::filesystem::path directory_;
};

// All rows of one prompt length on one rank; the prompt comes in steps of at most `piece` tokens.
std::vector<ShardRows> run_prompt(Model& model, Stream& stream, const Golden& golden, int length,
                                  int piece) {
  ModelDriver driver(model, 1, stream);
  std::vector<ShardRows> rows;
  for (int begin = 0; begin < length; begin += piece) {
    std::vector<std::int32_t> ids;
    for (int j = begin; j < std::min(length, begin + piece); ++j)
      ids.push_back(hashed_id(1000 * length + j, golden));
    ShardRows last = driver.step({{0, ids}});
    if (begin + piece >= length) rows.push_back(std::move(last));
  }
  for (int step = 0; step < kDecodeSteps; ++step)
    rows.push_back(driver.step({{0, {hashed_id(7777 + 1000 * length + step, golden)}}}));
  return rows;
}

// How a prompt is fed: its length, and the most tokens of one step.
struct Feed {
  int length, piece;
};
constexpr Feed kFeeds[] = {
    {1, 200},  {2, 200},   {3, 200}, {63, 200}, {64, 200},
    {65, 200}, {200, 200}, {65, 37}, {200, 37}};  // in pieces that split every chunk of 64

// found[feed][row], put together from the ranks' slices of the vocabulary.
std::vector<Rows> run_all(const Golden& golden, int size) {
  const Checkpoint checkpoint(golden);
  std::vector<Rows> found(std::size(kFeeds),
                          Rows(kRows, std::vector<float>(static_cast<std::size_t>(golden.vocab))));
  run_ranks(size, [&](int, Communicator& comm) {
    auto stream = Stream::create(comm.device());
    ASSERT_TRUE(stream);
    ModelOptions options;
    options.max_tokens_per_step = 200;
    options.max_sequences = 1;
    options.max_context = 256;
    auto model = open_model(checkpoint.directory(), options, comm, *stream);
    ASSERT_TRUE(model) << model.status().to_string();
    for (std::size_t i = 0; i < std::size(kFeeds); ++i) {
      const auto rows = run_prompt(**model, *stream, golden, kFeeds[i].length, kFeeds[i].piece);
      ASSERT_EQ(rows.size(), static_cast<std::size_t>(kRows));
      for (std::size_t row = 0; row < rows.size(); ++row) {
        ASSERT_EQ(rows[row].rows.size(), 1u);
        std::copy(rows[row].rows[0].begin(), rows[row].rows[0].end(),
                  found[i][row].begin() + rows[row].vocab_begin);
      }
    }
  });
  return found;
}

class GoldenLogits : public ::testing::TestWithParam<std::tuple<Golden, int>> {};

TEST_P(GoldenLogits, AreAsNearAsTheReferencesOwnRounding) {
  const auto& [golden, size] = GetParam();
  const std::vector<Rows> found = run_all(golden, size);
  const References references(golden);
  std::vector<double> ratios;
  std::size_t near = 0;
  for (std::size_t i = 0; i < std::size(kFeeds); ++i) {
    const Rows exact = references.rows("fp32q", kFeeds[i].length);
    const Rows rounded = references.rows("bf16q", kFeeds[i].length);
    ASSERT_EQ(exact.size(), static_cast<std::size_t>(kRows));
    ASSERT_EQ(rounded.size(), static_cast<std::size_t>(kRows));
    for (std::size_t row = 0; row < exact.size(); ++row) {
      const Distance ours = distance(found[i][row], exact[row]);
      const Distance theirs = distance(rounded[row], exact[row]);
      EXPECT_LT(ours.rms, kSpreadShare * spread(exact[row]))
          << "prompt of " << kFeeds[i].length << ", row " << row;
      near += ours.rms <= kRowRatio * theirs.rms && ours.worst <= kRowRatio * theirs.worst;
      ratios.push_back(ours.rms / theirs.rms);
    }
  }
  std::sort(ratios.begin(), ratios.end());
  EXPECT_LE(ratios[ratios.size() / 2], kMedianRatio);
  EXPECT_GE(static_cast<double>(near), kRowShare * static_cast<double>(ratios.size()));
  RecordProperty("median_ratio", std::to_string(ratios[ratios.size() / 2]));
  RecordProperty("near_rows", std::to_string(near) + " of " + std::to_string(ratios.size()));
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenLogits,
                         ::testing::Combine(::testing::ValuesIn(kGoldens),
                                            ::testing::Values(1, 2, 4)),
                         [](const auto& test) {
                           return std::string(std::get<0>(test.param).name) + "_on_" +
                                  std::to_string(std::get<1>(test.param));
                         });

}  // namespace
}  // namespace tenon
