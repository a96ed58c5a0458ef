// What tests of ops have in common: the loop over built targets and variants, the run of one of
// them, refusals as a table, and rows alone against rows together. The functions of an op (check,
// plan, run) are found beside its Args.
#pragma once

#include <functional>
#include <initializer_list>
#include <random>

#include "tests/support/device_fixture.h"
#include "tests/support/sizes.h"
#include "tests/support/targets.h"

namespace tenon::test {

// A variant of an op on a target that this build has and this machine can run.
struct Way {
  Target target = Target::kCpu;
  std::string_view variant;
};
inline std::string to_string(const Way& way) {
  return to_string(way.target) + " " + std::string(way.variant);
}

// On each target in order of preference.
inline std::vector<Way> all_ways(const Op& op) {
  std::vector<Way> found;
  for (const Target target : usable_targets())
    for (const Variant& each : variants(op, target)) found.push_back({target, each.name});
  return found;
}

// What other targets and variants are compared with.
inline Way on_cpu(const Op& op) { return {Target::kCpu, variants(op, Target::kCpu).front().name}; }

// Every case takes long there, so that tests have fewer of them.
inline bool is_slow(Target target) { return is_host(target) && wave_of(target) > 1; }

// Calls body(way) for each, traced; after a fatal failure no more.
template <class Body>
void for_each_way(const Op& op, const Body& body) {
  const std::vector<Way> ways = all_ways(op);
  if (ways.empty()) GTEST_SKIP() << "TEST_TARGETS names no target that this machine can run";
  for (const Way& way : ways) {
    SCOPED_TRACE(to_string(way));
    body(way);
    if (::testing::Test::HasFatalFailure()) return;
  }
}

// Stands in for the code of a variant and counts its launches.
class LaunchWitness {
 public:
  explicit LaunchWitness(Plan& plan) {
    real_ = plan.code;
    launches_ = 0;
    plan.code = &kCode;
  }
  int launches() const { return launches_; }

 private:
  static Status launch(const Recipe& recipe, const void* args, const ChannelView* team,
                       Stream& stream) {
    ++launches_;
    return real_->launch(recipe, args, team, stream);
  }
  static constexpr VariantCode kCode{nullptr, &launch, HostOnly{}};
  static inline thread_local const VariantCode* real_ = nullptr;
  static inline thread_local int launches_ = 0;
};

// A plan with this variant and no other. Its variant is `expected`, where one is given because the
// op serves such calls by another, and the same else.
template <class Args>
Plan plan_forced(const DeviceFixture& on, const Args& args, std::string_view variant,
                 std::string_view expected = {}) {
  if (expected.empty()) expected = variant;
  Result<Plan> planned = plan(args, on.where(), variant);
  if (!planned) {
    ADD_FAILURE() << planned.status().to_string();
    return {};
  }
  EXPECT_EQ(planned->variant_name, expected);
  for (const Variant& each : variants(*planned->op, on.device().target))
    EXPECT_EQ(each.name == expected, each.code == planned->code) << each.name;
  return *std::move(planned);
}

// Runs it to its end. The code of its variant is what ran, once.
template <class Args>
void run_plan(DeviceFixture& on, Plan planned, const Args& args) {
  ASSERT_NE(planned.code, nullptr);
  const LaunchWitness witness(planned);
  const Status ran = run(planned, args, on.stream());
  ASSERT_TRUE(ran) << ran.to_string();
  EXPECT_EQ(witness.launches(), 1);
  const Status done = on.stream().synchronize();
  ASSERT_TRUE(done) << done.to_string();
}

template <class Args>
void run_forced(DeviceFixture& on, const Args& args, std::string_view variant) {
  run_plan(on, plan_forced(on, args, variant), args);
}

// A change of good arguments, and words of the sentence that refuses them. Words that begin with
// the op's name are the whole sentence.
template <class Args>
struct Refusal {
  std::function<void(Args&)> change;
  std::string words;
};

// check() accepts `good` and refuses each change with its words; plan() refuses with the same.
template <class Args>
void expect_refusals(const Op& op, const Args& good,
                     std::initializer_list<std::type_identity_t<Refusal<Args>>> table) {
  const Status accepted = check(good);
  ASSERT_TRUE(accepted) << accepted.to_string();
  const Result<PlanContext> where = plan_context(Device{});
  ASSERT_TRUE(where) << where.status().to_string();
  for (const Refusal<Args>& each : table) {
    SCOPED_TRACE("expected: " + each.words);
    Args args = good;
    each.change(args);
    const Status refused = check(args);
    EXPECT_FALSE(refused) << "was accepted";
    const std::string sentence(refused.message());
    if (each.words.starts_with(std::string(op.name) + ": ")) {
      EXPECT_EQ(sentence, each.words);
    } else {
      EXPECT_NE(sentence.find(each.words), std::string::npos) << sentence;
    }
    const Result<Plan> planned = plan(args, *where);
    EXPECT_EQ(planned ? "was planned" : planned.status().message(), sentence);
  }
  const Result<Plan> unknown = plan(good, *where, "no_such_variant");
  EXPECT_FALSE(unknown) << "a variant that is not there was planned";
}

// What an op made of one row: the bytes of all its outputs, one after another.
using RowBytes = std::vector<std::uint8_t>;

// Appends to each row its part of an output that holds the rows one after another.
template <class T>
void append_rows(std::vector<RowBytes>& rows, const std::vector<T>& output) {
  const std::vector<std::uint8_t> bytes = bytes_of(output);
  ASSERT_EQ(bytes.size() % rows.size(), 0u);
  const std::size_t width = bytes.size() / rows.size();
  for (std::size_t row = 0; row < rows.size(); ++row)
    rows[row].insert(rows[row].end(), bytes.data() + row * width, bytes.data() + (row + 1) * width);
}

// run_rows({2, 0}) gives the results of rows 2 and 0 of the problem, which are all of the call. A
// row has the same bits alone, in the company of any others, twice in a call, and in any order.
template <class RunRows>
void expect_rows_alone_equal_together(int num_rows, const RunRows& run_rows) {
  std::vector<int> all;
  for (int row = 0; row < num_rows; ++row) all.push_back(row);
  const std::vector<RowBytes> together = run_rows(all);
  ASSERT_EQ(together.size(), all.size());
  for (const RowBytes& each : together) ASSERT_FALSE(each.empty());
  std::vector<std::vector<int>> calls(1, {all.rbegin(), all.rend()});
  for (int row = 0; row < num_rows; ++row) calls.push_back({row});
  std::mt19937 random(7);
  for (int call = 0; call < 4; ++call) {
    std::vector<int>& rows = calls.emplace_back();
    for (int i = 0; i <= num_rows / 2; ++i)
      rows.push_back(static_cast<int>(random() % static_cast<unsigned>(num_rows)));
  }
  for (const std::vector<int>& rows : calls) {
    const std::vector<RowBytes> some = run_rows(rows);
    ASSERT_EQ(some.size(), rows.size());
    for (std::size_t i = 0; i < rows.size(); ++i)
      ASSERT_EQ(some[i], together[static_cast<std::size_t>(rows[i])])
          << "row " << rows[i] << " in a call of " << rows.size();
  }
}

}  // namespace tenon::test
