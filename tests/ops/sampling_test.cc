// sampling against a sort of the whole row, token for token, and between targets, with edited
// logits and without; the frequencies of its draws; its reports.
#include "tenon/ops/sampling/sampling.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <tuple>

#include "tenon/ops/sampling/philox.cuh"
#include "tests/support/exact_math.h"
#include "tests/support/op_suite.h"

namespace tenon::sampling {
namespace {

using test::DeviceFixture;
using test::Way;

struct Row {
  float temperature = 0, top_p = 1;
  std::int32_t top_k = 0, position = 0;
  std::int64_t seed = 0;
  float min_p = 0;
  float repetition = 1, frequency = 0, presence = 0;
  std::vector<Edit> edits = {};
  std::int32_t wanted = -1;              // ids of its report
  std::vector<std::uint32_t> mask = {};  // empty: none
};

struct Problem {
  int slices = 1, width = 8, num_tokens = 8;
  std::vector<Row> rows;
  std::vector<float> logits;  // [slices, rows, width]
  float& logit(int row, int id) {
    return logits[static_cast<std::size_t>(
        (id / width * static_cast<int>(rows.size()) + row) * width + id % width)];
  }
};

Problem make_problem(int slices, int width, int num_tokens, std::vector<Row> rows,
                     float spread = 2.0f) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal(0.0f, spread);
  Problem problem{slices, width, num_tokens, std::move(rows), {}};
  problem.logits.resize(static_cast<std::size_t>(slices * width) * problem.rows.size());
  for (float& each : problem.logits) each = normal(random);
  return problem;
}

// Masks lie in the reverse order of their rows, and have a word more than they need.
void put_masks(DeviceFixture& fixture, const Problem& problem, Args& args) {
  const auto rows = static_cast<std::int64_t>(problem.rows.size());
  const auto words = static_cast<std::size_t>(problem.num_tokens + 31) / 32 + 1;
  std::vector<std::int32_t> which, allowed;
  std::int32_t masks = 0;
  for (const Row& row : problem.rows) masks += row.mask.empty() ? 0 : 1;
  if (masks == 0) return;
  allowed.resize(static_cast<std::size_t>(masks) * words, -1);
  for (const Row& row : problem.rows) {
    which.push_back(row.mask.empty() ? -1 : --masks);
    if (!row.mask.empty())
      std::copy_n(row.mask.begin(), std::min(words, row.mask.size()),
                  allowed.begin() + std::ptrdiff_t{masks} * static_cast<std::ptrdiff_t>(words));
  }
  const auto width = static_cast<std::int64_t>(words);
  const auto count = static_cast<std::int64_t>(allowed.size()) / width;
  args.mask = Mask{.allowed = fixture.put(allowed, DType::kI32, {count, width}),
                   .which = fixture.put(which, DType::kI32, {rows})};
}

// What only some problems have.
void put_more(DeviceFixture& fixture, const Problem& problem, Args& args) {
  const auto rows = static_cast<std::int64_t>(problem.rows.size());
  std::vector<float> min_p, repetition, frequency, presence;
  std::vector<std::int32_t> list, begins{0}, wanted;
  bool reports = false;
  for (const Row& row : problem.rows) {
    min_p.push_back(row.min_p);
    repetition.push_back(row.repetition);
    frequency.push_back(row.frequency);
    presence.push_back(row.presence);
    wanted.push_back(row.wanted);
    reports = reports || row.wanted >= 0;
    for (const Edit& edit : row.edits) {
      list.insert(list.end(), {edit.id, std::bit_cast<std::int32_t>(edit.bias), edit.said});
    }
    begins.push_back(static_cast<std::int32_t>(list.size() / 3));
  }
  if (std::any_of(min_p.begin(), min_p.end(), [](float each) { return each != 0; }))
    args.min_p = fixture.put(min_p, DType::kF32, {rows});
  if (!list.empty()) {
    const auto edits = static_cast<std::int64_t>(list.size() / 3);
    args.edits = Edits{.list = fixture.put(list, DType::kI32, {edits, 3}),
                       .begins = fixture.put(begins, DType::kI32, {rows + 1}),
                       .repetition = fixture.put(repetition, DType::kF32, {rows}),
                       .frequency = fixture.put(frequency, DType::kF32, {rows}),
                       .presence = fixture.put(presence, DType::kF32, {rows}),
                       .saved = fixture.blank(DType::kF32, {edits}, 0xff)};
  }
  if (reports)
    args.report = Report{.wanted = fixture.put(wanted, DType::kI32, {rows}),
                         .drawn = fixture.blank(DType::kF32, {rows}, 0xff),
                         .largest = fixture.blank(DType::kF32, {rows}, 0xff),
                         .mass = fixture.blank(DType::kI64, {rows}, 0xff),
                         .ids = fixture.blank(DType::kI32, {rows, kMaxLikely}, 0xff),
                         .logits = fixture.blank(DType::kF32, {rows, kMaxLikely}, 0xff)};
}

Args put(DeviceFixture& fixture, const Problem& problem) {
  const auto rows = static_cast<std::int64_t>(problem.rows.size());
  std::vector<float> temperature, top_p;
  std::vector<std::int32_t> top_k, position;
  std::vector<std::int64_t> seed;
  for (const Row& row : problem.rows) {
    temperature.push_back(row.temperature);
    top_p.push_back(row.top_p);
    top_k.push_back(row.top_k);
    position.push_back(row.position);
    seed.push_back(row.seed);
  }
  Args args;
  args.logits = fixture.put(problem.logits, DType::kF32, {problem.slices, rows, problem.width});
  args.num_tokens = problem.num_tokens;
  args.temperature = fixture.put(temperature, DType::kF32, {rows});
  args.top_k = fixture.put(top_k, DType::kI32, {rows});
  args.top_p = fixture.put(top_p, DType::kF32, {rows});
  args.seed = fixture.put(seed, DType::kI64, {rows});
  args.position = fixture.put(position, DType::kI32, {rows});
  args.out = fixture.put(std::vector<std::int32_t>(problem.rows.size(), -7), DType::kI32, {rows});
  put_more(fixture, problem, args);
  put_masks(fixture, problem, args);
  return args;
}

std::vector<std::int32_t> run_way(const Problem& problem, const Way& way) {
  DeviceFixture fixture(way.target);
  const Args args = put(fixture, problem);
  test::run_forced(fixture, args, way.variant);
  const auto after = fixture.get<float>(args.logits);
  EXPECT_EQ(std::memcmp(after.data(), problem.logits.data(), after.size() * sizeof(float)), 0)
      << "logits are not what they were";
  return fixture.get<std::int32_t>(args.out);
}

void expect_all_draw(const Problem& problem, const std::vector<std::int32_t>& expected) {
  test::for_each_way(kOp, [&](const Way& way) { EXPECT_EQ(run_way(problem, way), expected); });
}

bool masked(const Row& row, int id) {
  return !row.mask.empty() && (row.mask.at(static_cast<std::size_t>(id / 32)) >> id % 32 & 1) == 0;
}

// The header's formula, rounding by rounding, then the mask.
void apply_edits(Problem& problem) {
  for (int r = 0; r < static_cast<int>(problem.rows.size()); ++r) {
    Row& row = problem.rows[static_cast<std::size_t>(r)];
    for (const Edit& edit : std::exchange(row.edits, {})) {
      float& logit = problem.logit(r, edit.id);
      logit += edit.bias;
      if (edit.said == 0) continue;
      logit = logit > 0 ? logit / row.repetition : logit * row.repetition;
      const float drawn = row.frequency * static_cast<float>(edit.said / 2);
      logit -= drawn;
      if (edit.said >= 2) logit -= row.presence;
    }
    for (int id = 0; id < problem.num_tokens; ++id)
      if (masked(row, id)) problem.logit(r, id) = -INFINITY;
    row.mask.clear();
  }
}

std::vector<int> sorted_candidates(Problem& problem, int row) {
  std::vector<int> ids;
  for (int id = 0; id < problem.num_tokens; ++id)
    if (problem.logit(row, id) > -INFINITY) ids.push_back(id);
  std::stable_sort(ids.begin(), ids.end(),
                   [&](int a, int b) { return problem.logit(row, a) > problem.logit(row, b); });
  return ids;
}

// What a row may draw, with the probability of each candidate, in order.
struct Allowed {
  std::vector<int> ids;
  std::vector<double> p;
};
Allowed allowed(Problem& problem, int r) {
  const Row& row = problem.rows[static_cast<std::size_t>(r)];
  Allowed found{sorted_candidates(problem, r), {}};
  if (row.top_k >= 1 && static_cast<std::size_t>(row.top_k) < found.ids.size())
    found.ids.resize(static_cast<std::size_t>(row.top_k));
  double total = 0;
  for (const int id : found.ids) {
    const double gap = double{problem.logit(r, id)} - double{problem.logit(r, found.ids[0])};
    const double p = std::exp(gap / double{row.temperature});
    if (p < row.min_p) break;
    found.p.push_back(p);
    total += p;
  }
  found.ids.resize(found.p.size());
  double mass = 0;
  std::size_t kept = 0;
  while (kept < found.ids.size() && (kept == 0 || row.top_p >= 1 || mass < row.top_p * total))
    mass += found.p[kept++];
  found.ids.resize(kept);
  found.p.resize(kept);
  for (double& p : found.p) p /= mass;
  return found;
}

// The token that the random bits of the row fall on, unless they fall within 1e-5 of an edge
// (−1 then): fp32 weights move edges by less.
int expected_token(Problem& problem, int r) {
  const Row& row = problem.rows[static_cast<std::size_t>(r)];
  const Allowed may = allowed(problem, r);
  const double uniform = std::ldexp(static_cast<double>(random_bits(row.seed, row.position)), -64);
  double below = 0;
  for (std::size_t i = 0; i < may.ids.size(); below += may.p[i++]) {
    if (uniform > below + 1e-5 && uniform < below + may.p[i] - 1e-5) return may.ids[i];
  }
  return -1;
}

// What the header says, to the bit, of a row without edits.
std::int32_t exact_token(Problem& problem, int r) {
  const Row& row = problem.rows[static_cast<std::size_t>(r)];
  std::vector<int> ids = sorted_candidates(problem, r);
  if (ids.empty()) return -1;
  if (!(row.temperature > 0)) return ids[0];
  if (row.top_k >= 1 && static_cast<std::size_t>(row.top_k) < ids.size())
    ids.resize(static_cast<std::size_t>(row.top_k));
  const float largest = problem.logit(r, ids[0]), min_p = std::min(std::max(row.min_p, 0.0f), 1.0f);
  const std::uint64_t least = static_cast<std::uint64_t>(std::ldexp(min_p, 24)) << 16;
  std::vector<std::uint64_t> up_to;  // 0 for those that min_p drops
  std::uint64_t total = 0;
  for (const int id : ids) {
    const float logit = problem.logit(r, id), x = (logit - largest) / row.temperature;
    const std::uint64_t mass = logit == largest
                                   ? std::uint64_t{1} << 40
                                   : static_cast<std::uint64_t>(std::ldexp(test::exact_exp(x), 40));
    if (mass >= least) total += mass;
    up_to.push_back(mass >= least ? total : 0);
  }
  std::uint64_t share = total;
  if (row.top_p < 1) {
    const auto p = static_cast<unsigned __int128>(std::ldexp(std::max(row.top_p, 0.0f), 24));
    share = std::max<std::uint64_t>(static_cast<std::uint64_t>((total * p + 0xffffff) >> 24), 1);
  }
  std::uint64_t kept = 0;
  for (std::size_t i = 0; i < ids.size() && kept < share; ++i) kept = std::max(kept, up_to[i]);
  const std::uint64_t below = multiply_high(random_bits(row.seed, row.position), kept);
  for (std::size_t i = 0; i < ids.size(); ++i)
    if (up_to[i] > below) return ids[i];
  return -2;
}

std::vector<std::int32_t> exact_tokens(Problem problem) {
  apply_edits(problem);
  std::vector<std::int32_t> tokens;
  for (int r = 0; r < static_cast<int>(problem.rows.size()); ++r)
    tokens.push_back(exact_token(problem, r));
  return tokens;
}

void expect_oracle_everywhere(Problem problem) {
  const auto reference = run_way(problem, test::on_cpu(kOp));
  const Problem as_asked = problem;
  apply_edits(problem);
  ASSERT_EQ(reference.size(), problem.rows.size());
  int certain = 0;
  for (int r = 0; r < static_cast<int>(problem.rows.size()); ++r) {
    const int expected = expected_token(problem, r);
    if (expected < 0) continue;
    ++certain;
    EXPECT_EQ(reference[static_cast<std::size_t>(r)], expected) << "row " << r;
  }
  EXPECT_GT(2 * certain, static_cast<int>(problem.rows.size()));
  EXPECT_EQ(reference, exact_tokens(as_asked));
  expect_all_draw(as_asked, reference);
}

// One row per setting, each with its own seed and position.
std::vector<Row> settings(float temperature) {
  std::vector<Row> rows;
  for (const std::int32_t top_k : {0, 1, 2, 20, 255, 256, 257, 5000})
    for (const float top_p : {1.0f, 0.95f, 0.5f, 0.01f, 0.0f}) {
      const auto i = static_cast<std::int32_t>(rows.size());
      rows.push_back({temperature, top_p, top_k, 100 + i, std::int64_t{i} * 1'234'567'891'011});
    }
  return rows;
}

TEST(Sampling, GreedyTakesTheLargestAndTheLowestIdOnTies) {
  Problem problem = make_problem(3, 5, 13, std::vector<Row>(4));
  for (const int id : {4, 5, 12}) problem.logit(1, id) = 50.0f;
  problem.logit(2, 12) = INFINITY;
  problem.logit(3, 14) = 1000.0f;  // past num_tokens
  for (int r = 0; r < 4; ++r) problem.logit(r, 13) = 900.0f;
  std::vector<std::int32_t> expected;
  for (int r = 0; r < 4; ++r) expected.push_back(sorted_candidates(problem, r)[0]);
  EXPECT_EQ(expected[1], 4);
  EXPECT_EQ(expected[2], 12);
  expect_all_draw(problem, expected);
}

TEST(Sampling, GreedyKnowsNoNegativeZero) {
  Problem problem = make_problem(1, 4, 4, std::vector<Row>(2));
  problem.logits = {-0.0f, 0.0f, -1.0f, -2.0f, -1.0f, 0.0f, -0.0f, 0.0f};
  expect_all_draw(problem, {0, 1});
}

TEST(Sampling, DrawsWhatTheHeaderSays) {
  expect_oracle_everywhere(make_problem(1, 2, 2, settings(1.0f)));
  expect_oracle_everywhere(make_problem(2, 37, 70, settings(0.6f)));
  expect_oracle_everywhere(make_problem(4, 300, 1177, settings(1.0f)));
  expect_oracle_everywhere(make_problem(1, 1500, 1500, settings(5.0f)));  // past the sorted list
}

TEST(Sampling, DrawsPastTheSortedListAmongTies) {
  Problem problem = make_problem(1, 1000, 1000, settings(1.0f));
  for (float& logit : problem.logits) logit = std::round(logit * 0.5f);
  expect_oracle_everywhere(problem);
  std::fill(problem.logits.begin(), problem.logits.end(), 3.0f);
  expect_oracle_everywhere(problem);
}

// Rows as wide as a model's vocabulary, in which many candidates are kept.
std::vector<Row> wide_settings() {
  std::vector<Row> rows{{}};
  for (const float temperature : {1.0f, 5.0f})
    for (const std::int32_t top_k : {0, 20, 3000})
      for (const float top_p : {1.0f, 0.95f, 0.2f})
        rows.push_back(
            {temperature, top_p, top_k, 7, static_cast<std::int64_t>(rows.size()) << 32});
  rows[3].min_p = 0.01f;
  for (int i = 0; i < 500; ++i)
    rows[5].edits.push_back({i * 400, i % 3 == 0 ? 4.0f : -2.0f, i % 7});
  rows[5].repetition = 1.5f;
  std::mt19937 random(3);
  for (const std::size_t row : {0, 4, 5, 8})  // half of all ids, or few
    for (int word = 0; word < 7760; ++word)
      rows[row].mask.push_back(
          static_cast<std::uint32_t>(row == 8 && word % 97 != 0 ? 0 : random()));
  if (test::is_small_run()) return {rows[0], rows[3], rows[5], rows[8], rows.back()};
  return rows;
}

void expect_wide(const Problem& problem) {
  const std::vector<std::int32_t> expected = exact_tokens(problem);
  test::for_each_way(kOp, [&](const Way& way) {
    if (test::is_slow(way.target)) return;
    EXPECT_EQ(run_way(problem, way), expected);
  });
}

TEST(Sampling, DrawsFromWideRows) {
  expect_wide(make_problem(2, 124'160, 248'077, wide_settings()));
  Problem odd =
      make_problem(3, 82'775, 248'320, wide_settings(), 3.0f);  // neighbours are not aligned
  for (std::size_t i = 0; i < odd.logits.size(); i += 3)
    odd.logits[i] = i % 2 == 0 ? NAN : -INFINITY;
  expect_wide(odd);
}

TEST(Sampling, DrawsAmongTiesOfWideRows) {
  Problem problem = make_problem(1, 248'320, 248'320, wide_settings());
  for (float& logit : problem.logits) logit = std::round(logit);
  for (const int id : {31'039, 31'040, 124'159, 124'160}) problem.logit(0, id) = 50.0f;
  expect_wide(problem);
  std::fill(problem.logits.begin(), problem.logits.end(), -2.5f);
  expect_wide(problem);
}

// One far from all others, which differ in their last bits; and the largest numbers that there are.
TEST(Sampling, DrawsWhereDistancesSayLittle) {
  Problem problem = make_problem(2, 100'000, 200'000, wide_settings(), 1e-3f);
  for (Row& row : problem.rows) row.temperature *= 1e5f;
  for (int r = 0; r < static_cast<int>(problem.rows.size()); ++r) problem.logit(r, 150'000) = 2e5f;
  expect_wide(problem);
  for (int r = 0; r < static_cast<int>(problem.rows.size()); ++r) {
    problem.logit(r, 17) = r % 2 == 0 ? 3e38f : INFINITY;
    for (int id = 1000; id < 1999; ++id) problem.logit(r, id) = -3e38f;
  }
  expect_wide(problem);
}

TEST(Sampling, MinPKeepsWhatIsLikelyEnough) {
  std::vector<Row> rows = settings(1.0f);
  for (std::size_t i = 0; i < rows.size(); ++i)
    rows[i].min_p = std::vector<float>{0.0f, 0.3f, 0.05f, 0.001f, 1.0f}[i % 5];
  expect_oracle_everywhere(make_problem(2, 150, 290, rows));
  for (Row& row : rows) row.temperature = 5.0f;
  expect_oracle_everywhere(make_problem(1, 1500, 1500, rows));  // more than the sorted list holds
}

// A row with edits, of which some decide what it draws.
Row edited_row(int row, int num_tokens) {
  std::mt19937 random(90u + static_cast<unsigned>(row));
  Row made{.temperature = row % 3 == 0 ? 0.0f : 0.9f, .position = row, .seed = 1234 + row};
  made.repetition = row % 2 == 0 ? 1.3f : 1.0f;
  made.frequency = row % 4 < 2 ? 0.7f : -0.4f;
  made.presence = row % 5 == 0 ? 1.5f : 0.0f;
  for (int id = static_cast<int>(random() % 3); id < num_tokens;
       id += 1 + static_cast<int>(random() % 6)) {
    Edit edit{.id = id, .said = static_cast<std::int32_t>(random() % 9)};
    if (random() % 4 == 0) edit.bias = static_cast<float>(random() % 100) / 10.0f - 5.0f;
    if (random() % 9 == 0) edit.bias = -INFINITY;
    made.edits.push_back(edit);
  }
  std::shuffle(made.edits.begin(), made.edits.end(), random);
  return made;
}

TEST(Sampling, EditsAreThoseOfTheHeader) {
  for (const auto& [slices, width, num_tokens] : {std::tuple{1, 30, 30}, {3, 70, 200}}) {
    std::vector<Row> rows;
    for (int row = 0; row < 40; ++row) rows.push_back(edited_row(row, num_tokens));
    rows[7].edits.clear();
    Problem problem = make_problem(slices, width, num_tokens, rows);
    const auto drawn = run_way(problem, test::on_cpu(kOp));
    Problem edited = problem;
    apply_edits(edited);
    EXPECT_EQ(drawn, run_way(edited, test::on_cpu(kOp)));
    for (Row& row : problem.rows) row.edits.clear();
    EXPECT_NE(drawn, run_way(problem, test::on_cpu(kOp))) << "no edit changed a token";
    problem.rows = rows;
    expect_oracle_everywhere(problem);
  }
}

TEST(Sampling, AnEditOfAnIdWithoutATokenIsNone) {
  Problem problem = make_problem(2, 8, 13, {Row{}});
  problem.rows[0].edits = {{.id = 13, .bias = 99}, {.id = -1, .bias = 99}, {.id = 99, .bias = 99}};
  expect_all_draw(problem, {sorted_candidates(problem, 0)[0]});
}

TEST(Sampling, ABanOfEverythingLeavesNothing) {
  Problem problem = make_problem(1, 3, 3, {Row{.temperature = 1, .wanted = 2}});
  for (const std::int32_t id : {0, 1, 2}) problem.rows[0].edits.push_back({id, -INFINITY, 0});
  expect_all_draw(problem, {-1});
}

// Some ids of 30: each row of a kind of its own, some with edits, one without any candidate.
TEST(Sampling, MasksLeaveIdsOut) {
  std::mt19937 random(11);
  for (const auto& [slices, width, num_tokens] : {std::tuple{1, 30, 30}, {3, 70, 200}}) {
    std::vector<Row> rows;
    for (int row = 0; row < 40; ++row) {
      rows.push_back(edited_row(row, num_tokens));
      if (row % 2 == 0) rows.back().edits.clear();
      if (row % 5 == 3) continue;
      for (int word = 0; word < (num_tokens + 31) / 32; ++word)
        rows.back().mask.push_back(static_cast<std::uint32_t>(random() & random()));
      rows.back().mask[0] |= 1;
    }
    Problem problem = make_problem(slices, width, num_tokens, rows);
    const auto drawn = run_way(problem, test::on_cpu(kOp));
    for (std::size_t row = 0; row < rows.size(); ++row)
      EXPECT_FALSE(masked(rows[row], drawn[row])) << row;
    for (Row& row : problem.rows) row.mask.clear();
    EXPECT_NE(drawn, run_way(problem, test::on_cpu(kOp))) << "no mask changed a token";
    problem.rows = rows;
    expect_oracle_everywhere(problem);
  }
  Problem nothing = make_problem(1, 30, 30, std::vector<Row>(3, Row{.temperature = 1}));
  nothing.rows[1].mask = {0xc000'0000};  // of ids that have no token
  nothing.rows[2].mask = {1u << 17};
  const auto first = run_way(nothing, test::on_cpu(kOp))[0];
  expect_all_draw(nothing, {first, -1, 17});
}

// Reports tell of the logits before the edits and the mask, at temperature 1.
TEST(Sampling, ReportsTellProbabilities) {
  std::vector<Row> rows;
  for (int row = 0; row < 24; ++row) {
    rows.push_back(edited_row(row, 250));
    if (row % 3 == 1) rows.back().mask.assign(8, 0x5a5a'5a5au);
    rows.back().wanted =
        row % 8 == 7 ? 99 : std::vector<int>{-1, 0, 1, 5, 20}[std::size_t(row) % 5];
  }
  Problem problem = make_problem(2, 130, 250, rows);
  for (int id = 0; id < 250; ++id) {
    problem.logit(3, id) = NAN;
    if (id >= 3) problem.logit(6, id) = -INFINITY;
  }
  rows[3].edits.clear();
  problem.rows[3].edits.clear();
  test::for_each_way(kOp, [&](const Way& way) {
    DeviceFixture fixture(way.target);
    const Args args = put(fixture, problem);
    test::run_forced(fixture, args, way.variant);
    const auto out = fixture.get<std::int32_t>(args.out),
               ids = fixture.get<std::int32_t>(args.report->ids);
    const auto drawn = fixture.get<float>(args.report->drawn);
    const auto largest = fixture.get<float>(args.report->largest);
    const auto logits = fixture.get<float>(args.report->logits);
    const auto mass = fixture.get<std::int64_t>(args.report->mass);
    for (int r = 0; r < 24; ++r) {
      SCOPED_TRACE(r);
      const auto at = static_cast<std::size_t>(r);
      if (rows[at].wanted < 0) {
        EXPECT_EQ(mass[at], -1) << "written, and nobody wanted it";
        continue;
      }
      const std::vector<int> order = sorted_candidates(problem, r);
      double total = 0;
      for (const int id : order)
        total += std::exp(double{problem.logit(r, id)} - double{problem.logit(r, order[0])});
      EXPECT_NEAR(std::ldexp(static_cast<double>(mass[at]), -40), total, 1e-5 * total);
      if (!order.empty()) {
        EXPECT_EQ(largest[at], problem.logit(r, order[0]));
      }
      if (out[at] >= 0) {
        EXPECT_EQ(drawn[at], problem.logit(r, out[at]));
      }
      const auto listed = std::min<std::size_t>(
          order.size(), static_cast<std::size_t>(std::min(rows[at].wanted, kMaxLikely)));
      for (std::size_t i = 0; i < kMaxLikely; ++i) {
        const std::size_t place = at * kMaxLikely + i;
        EXPECT_EQ(ids[place], i < listed ? order[i] : -1);
        if (i < listed) {
          EXPECT_EQ(logits[place], problem.logit(r, order[i]));
        }
      }
    }
  });
}

// With ids of the caller's, a report has their logits and places, before the edits; all else is as
// it was.
TEST(Sampling, ReportsAreOfGivenIds) {
  std::vector<Row> rows;
  for (int row = 0; row < 12; ++row) {
    rows.push_back(edited_row(row, 250));
    rows.back().wanted = row % 4 - 1;
  }
  Problem problem = make_problem(2, 130, 250, rows);
  problem.logit(2, 249) = problem.logit(2, 3) = -INFINITY;
  for (const int id : {40, 42, 200}) problem.logit(1, id) = problem.logit(1, 41);  // its equals
  for (int id = 0; id < 250; ++id) problem.logit(9, id) = -INFINITY;
  std::vector<std::int32_t> given;
  for (int row = 0; row < 12; ++row) given.push_back(row == 2 ? 249 : 41 * row % 250);
  test::for_each_way(kOp, [&](const Way& way) {
    DeviceFixture fixture(way.target);
    Args args = put(fixture, problem);
    test::run_forced(fixture, args, way.variant);
    const auto out = fixture.get<std::int32_t>(args.out);
    const auto largest = fixture.get<float>(args.report->largest);
    args.report->drawn = fixture.blank(DType::kF32, {12}, 0xff);
    args.report->given = fixture.put(given, DType::kI32, {12});
    args.report->before = fixture.blank(DType::kI32, {12}, 0xfe);
    test::run_forced(fixture, args, way.variant);
    EXPECT_EQ(fixture.get<std::int32_t>(args.out), out);
    const auto before = fixture.get<std::int32_t>(*args.report->before);
    const auto found = fixture.get<float>(args.report->drawn);
    for (int row = 0; row < 12; ++row) {
      const auto at = static_cast<std::size_t>(row);
      if (rows[at].wanted < 0) {
        EXPECT_TRUE(std::isnan(found[at])) << "written, and nobody wanted it";
        EXPECT_EQ(before[at], std::int32_t(0xfefefefe)) << "written, and nobody wanted it";
        continue;
      }
      const std::vector<int> order = sorted_candidates(problem, row);
      const auto place = std::find(order.begin(), order.end(), given[at]) - order.begin();
      EXPECT_EQ(before[at], order.empty() ? -1 : place) << row;
      EXPECT_EQ(found[at], problem.logit(row, given[at])) << row;
      EXPECT_EQ(fixture.get<float>(args.report->largest)[at], largest[at]);
    }
  });
}

TEST(Sampling, NaNAndMinusInfinityAreNeverDrawn) {
  Problem problem = make_problem(2, 20, 40, settings(2.0f));
  for (int r = 0; r < static_cast<int>(problem.rows.size()); ++r)
    for (int id = 0; id < 40; ++id)
      if (id % 4 != 2) problem.logit(r, id) = id % 4 == 1 ? NAN : -INFINITY;
  expect_oracle_everywhere(problem);
  std::vector<Row> rows(2);
  rows[1].temperature = 1.0f;
  Problem nothing = make_problem(1, 6, 6, rows);
  nothing.logits.assign(12, NAN);
  nothing.logits[3] = nothing.logits[9] = -INFINITY;
  expect_all_draw(nothing, {-1, -1});
}

TEST(Sampling, ExtremeSettingsAreDefined) {
  Problem problem = make_problem(1, 50, 50,
                                 {{.temperature = 1e-30f},
                                  {.temperature = NAN},
                                  {.temperature = -1.0f},
                                  {.temperature = 1.0f, .top_p = -1.0f},
                                  {.temperature = 1.0f, .top_k = 1},
                                  {.temperature = 1.0f},
                                  {.temperature = 1.0f, .top_p = NAN, .top_k = -5}});
  problem.logit(5, 33) = INFINITY;
  test::for_each_way(kOp, [&](const Way& way) {
    const auto drawn = run_way(problem, way);
    for (int r = 0; r < 6; ++r)
      EXPECT_EQ(drawn[static_cast<std::size_t>(r)], sorted_candidates(problem, r)[0]) << r;
    EXPECT_EQ(drawn[6], run_way(problem, test::on_cpu(kOp))[6]);
    EXPECT_GE(drawn[6], 0);
  });
}

TEST(Sampling, FrequenciesFollowTheProbabilities) {
  constexpr int kDraws = 20'000;
  std::vector<Row> rows;
  for (int i = 0; i < kDraws; ++i)
    rows.push_back({.temperature = 0.8f, .top_p = 0.9f, .top_k = 6, .position = i, .seed = 42});
  Problem problem = make_problem(1, 8, 8, rows, 1.0f);
  for (int r = 1; r < kDraws; ++r)
    for (int id = 0; id < 8; ++id) problem.logit(r, id) = problem.logit(0, id);
  std::vector<int> count(8, 0);
  for (const std::int32_t id : run_way(problem, test::on_cpu(kOp)))
    ++count[static_cast<std::size_t>(id)];
  const Allowed may = allowed(problem, 0);
  ASSERT_GE(may.ids.size(), 3u);
  int sum = 0;
  for (std::size_t i = 0; i < may.ids.size(); ++i) {
    const double expected = may.p[i] * kDraws;
    const int drawn = count[static_cast<std::size_t>(may.ids[i])];
    EXPECT_NEAR(drawn, expected, 5.0 * std::sqrt(expected * (1.0 - may.p[i])));  // five sigma
    sum += drawn;
  }
  EXPECT_EQ(sum, kDraws);
}

TEST(Sampling, SeedAndPositionAloneDecide) {
  std::vector<Row> rows(40, Row{.temperature = 5.0f, .position = 3, .seed = 9});
  Problem problem = make_problem(1, 64, 64, rows);
  for (int r = 1; r < 40; ++r)
    for (int id = 0; id < 64; ++id) problem.logit(r, id) = problem.logit(0, id);
  const auto same = run_way(problem, test::on_cpu(kOp));
  EXPECT_EQ(std::count(same.begin(), same.end(), same[0]), 40);
  for (int r = 0; r < 40; ++r) problem.rows[static_cast<std::size_t>(r)].position = r;
  auto by_position = run_way(problem, test::on_cpu(kOp));
  std::sort(by_position.begin(), by_position.end());
  EXPECT_GT(std::unique(by_position.begin(), by_position.end()) - by_position.begin(), 10);
}

TEST(Sampling, RefusalsSayWhatIsAccepted) {
  DeviceFixture fixture(Target::kCpu);
  Args good = put(
      fixture,
      make_problem(2, 8, 15,
                   std::vector<Row>(3, Row{.edits = {{1, 1.0f, 0}}, .wanted = 1, .mask = {7}})));
  good.report->given = good.report->before = good.top_k;
  test::expect_refusals(
      kOp, good,
      {{[](Args& a) { a.num_tokens = 17; },
        "sampling: num_tokens is 17 but must be 1 to 16 for logits f32 [2, 3, 8] on cpu:0"},
       {[](Args& a) { a.logits.dtype = DType::kBF16; },
        "sampling: logits is bf16 [2, 3, 8] on cpu:0 but must be of type f32"},
       {[](Args& a) { a.seed.dtype = DType::kI32; },
        "sampling: seed is i32 [3] on cpu:0 but must be of type i64"},
       {[](Args& a) { a.out.shape[0] = 2; },
        "sampling: out is i32 [2] on cpu:0 but must be [rows] with rows = 3"},
       {[](Args& a) { a.edits->begins.shape[0] = 3; },
        "sampling: begins is i32 [3] on cpu:0 but must be [begins] with begins = 4"},
       {[](Args& a) { a.mask->which.shape[0] = 2; },
        "sampling: which is i32 [2] on cpu:0 but must be [rows] with rows = 3"},
       {[](Args& a) { a.report->ids.shape[1] = 5; },
        "sampling: ids is i32 [3, 5] on cpu:0 but must be [rows, likely] with likely = 20"},
       {[](Args& a) { a.report->given->shape[0] = 2; },
        "sampling: given is i32 [2] on cpu:0 but must be [rows] with rows = 3"},
       {[](Args& a) { a.report->before->dtype = DType::kF32; },
        "sampling: before is f32 [3] on cpu:0 but must be of type i32"},
       {[](Args& a) { a.top_p.device.index = 1; },
        "sampling: top_p is f32 [3] on cpu:1 but logits is f32 [2, 3, 8] on cpu:0; all must lie "
        "on one device"}});
  const Args wide = put(fixture, make_problem(1, 70, 70, {Row{.mask = {1}}}));
  test::expect_refusals(
      kOp, wide,
      {{[](Args& a) {
          a.mask->allowed = view(a.mask->allowed.data, DType::kI32, a.mask->allowed.device, {1, 2});
        },
        "sampling: allowed is i32 [1, 2] on cpu:0 but num_tokens is 70, for which a mask has at "
        "least 3 words"}});
}

}  // namespace
}  // namespace tenon::sampling
