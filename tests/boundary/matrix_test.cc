// Every stage of the chain against the oracle: one kernel in every variant, two kernels, generic;
// in every world, on every target. The one-kernel variants beyond their limits of rows are judged
// by tests/ops/fused_allreduce_rmsnorm_quant_test.cc. TEST_FULL runs the whole matrix.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>

#include "tenon/boundary/boundary.h"
#include "tests/support/boundary_matrix.h"
#include "tests/support/fake_ccl.h"
#include "tests/support/ranks.h"
#include "tests/support/targets.h"

namespace tenon {
namespace {

using test::BoundaryTensors;
using test::FusedCase;
using test::Judged;
using test::meet;
using test::RankOptions;
using test::run_ranks;

struct Chain {
  int stage;
  const char* variant;
};
constexpr Chain kChains[] = {{1, "one_shot"},
                             {1, "one_shot_packed"},
                             {1, "two_shot"},
                             {1, "two_shot_packed"},
                             {1, "one_shot_split"},
                             {2, ""},
                             {3, ""}};
constexpr std::string_view kSplit = "one_shot_split";  // not on every target and in every team
constexpr int kNumChains = std::size(kChains), kGenericChain = kNumChains - 1;

BoundarySpec spec_of(const reference::BoundaryCase& shape, const Chain& chain) {
  BoundarySpec spec;
  spec.site = "matrix";
  spec.hidden = shape.hidden;
  spec.max_rows = std::max(shape.rows, 1);
  spec.dtype = shape.dtype;
  spec.weight_dtype = shape.weight_dtype;
  spec.eps = shape.eps;
  spec.offset = shape.offset;
  spec.fresh_residual = shape.fresh_residual;
  spec.want_bf16 = shape.want_bf16;
  spec.want_fp8 = shape.want_fp8;
  spec.fp8 = shape.fp8;
  spec.group = shape.group;
  spec.layout = shape.layout;
  spec.force_stage = static_cast<StagePolicy>(chain.stage);
  spec.force_variant = chain.variant;
  return spec;
}

bool can_run(const Chain& chain, const reference::BoundaryCase& shape, Target target,
             int max_blocks) {
  const auto variants = test::variants_of(shape, target, max_blocks);
  return chain.stage != 1 ||
         std::find(variants.begin(), variants.end(), chain.variant) != variants.end();
}

// What is wrong with one case on one rank, or nothing. Sets `ran` to whether the chain could run.
std::string run_chain(const Judged& judged, const Chain& chain, const BoundaryTensors& tensors,
                      const std::shared_ptr<BoundaryChannel>& channel, int rank, Stream& stream,
                      bool* ran) {
  const reference::BoundaryCase& shape = judged.call.shape;
  auto boundary = Boundary::make(spec_of(shape, chain), channel);
  *ran = static_cast<bool>(boundary);
  if (!*ran) return boundary.status().to_string();
  if (static_cast<int>(boundary->stage(shape.rows)) != chain.stage) return "another stage runs";
  tensors.reset(stream);
  const Status status =
      boundary->run({tensors.addend}, tensors.residual, tensors.weight, tensors.out, stream);
  if (!status) return status.to_string();
  if (const Status done = stream.synchronize(); !done) return done.to_string();
  const std::string_view variant = chain.stage == 1 ? boundary->variant(shape.rows) : "";
  return test::compare_fused(judged.call, tensors, judged.expected, variant, rank, stream);
}

// Runs the cases of one target through the chains from first_chain on and compares them.
void judge_chains(int team, Target target, const char* transport, int first_chain) {
  std::vector<FusedCase> cases = test::boundary_matrix(team, test::pace_of(target));
  if (test::pace_of(target) == test::Pace::kFast) {
    for (const FusedCase& each : test::every_output(team, 2, 640)) cases.push_back(each);
    cases.push_back(test::mixed_case(team, 40, 2048, team));  // several blocks in stage 2
  }
  cases.push_back(test::mixed_case(team, 2, 512, 4));  // packs on every target
  for (FusedCase& each : cases) each.gap = 0;          // addends of a boundary have no gaps
  const std::vector<Judged> judged = test::judge(cases);
  std::atomic<int> num_run[kNumChains] = {};
  std::atomic<bool> splits = false;
  RankOptions options;
  options.target = target;
  options.transport = transport;
  run_ranks(team, options, [&](int rank, Communicator& comm) {
    auto stream = Stream::create(comm.device());
    ASSERT_TRUE(stream);
    if (rank == 0) splits = test::has_clusters(target) && team > 1 && comm.max_blocks() >= 8;
    for (const Judged& each : judged) {
      const reference::BoundaryCase& shape = each.call.shape;
      BoundaryChannel::Spec spec;
      spec.hidden = shape.hidden;
      spec.max_rows = std::max(shape.rows, 1);
      spec.dtype = shape.dtype;
      spec.sharded_residual = false;
      auto channel = BoundaryChannel::make(spec, comm);
      ASSERT_TRUE(channel) << channel.status().to_string();
      const BoundaryTensors tensors(shape, each.inputs, rank, comm.device(), *stream,
                                    each.call.gap);
      meet(comm);
      for (int chain = first_chain; chain < kNumChains; ++chain) {
        if (!can_run(kChains[chain], shape, target, comm.max_blocks())) continue;
        bool ran = false;
        ASSERT_EQ(run_chain(each, kChains[chain], tensors, *channel, rank, *stream, &ran), "")
            << "stage " << kChains[chain].stage << " " << kChains[chain].variant << ": "
            << reference::describe(shape) << ", seed " << each.call.seed;
        if (ran && rank == 0) ++num_run[chain];
      }
      meet(comm);
    }
  });
  for (int chain = first_chain; chain < kNumChains; ++chain)
    if (kChains[chain].variant != kSplit || splits) {
      EXPECT_GT(num_run[chain], 0) << kChains[chain].variant;
    }
}

class BoundaryMatrix : public ::testing::TestWithParam<int> {};

TEST_P(BoundaryMatrix, EveryStageMatchesTheOracle) {
  for (Target target : test::usable_targets()) judge_chains(GetParam(), target, "auto", 0);
}

// Over a library that gathers on the host: the fake one.
TEST_P(BoundaryMatrix, TheGenericStageMatchesTheOracleOverCcl) {
  for (Target target : test::host_targets()) judge_chains(GetParam(), target, "ccl", kGenericChain);
}

INSTANTIATE_TEST_SUITE_P(Teams, BoundaryMatrix, ::testing::Range(1, 9));

}  // namespace
}  // namespace tenon
