// Rows that the blocks of a cluster share: how many blocks, for which rows, and why not.
#include <gtest/gtest.h>

#include <tuple>
#include <utility>

#include "tenon/comm/plan_context.h"
#include "tenon/ops/fused_allreduce_rmsnorm_quant/fused_allreduce_rmsnorm_quant.h"
#include "tenon/ops/fused_allreduce_rmsnorm_quant/mailbox_layout.h"
#include "tenon/reference/inputs.h"
#include "tests/support/fused_run.h"
#include "tests/support/ranks.h"
#include "tests/support/says.h"
#include "tests/support/targets.h"

namespace tenon {
namespace {

namespace fused = fused_allreduce_rmsnorm_quant;
using reference::BoundaryCase;
using reference::BoundaryInputs;
using test::BoundaryTensors;
using test::meet;
using test::RankOptions;
using test::run_ranks;
using test::says;

// On targets with clusters: where there are blocks enough and whole waves of vectors.
TEST(FusedSplit, SaysWhyRowsAreNotSplit) {
  const auto refusal = [](fused::Args args, const PlanContext& where) {
    const auto plan = fused::plan(args, where, "one_shot_split");
    return std::string(plan.status().message());
  };
  if (!backend(Target::kEmu32)) GTEST_SKIP() << "this build has no emulated waves";
  reference::BoundaryCase shape;
  shape.rows = 2;
  shape.hidden = 512;
  const Device device{Target::kEmu32, 0};
  auto stream = Stream::create(device);
  ASSERT_TRUE(stream);
  const BoundaryTensors tensors(shape, reference::make_inputs(shape, 0), 0, device, *stream);
  auto where = plan_context(device);
  ASSERT_TRUE(where);
  where->team_size = 2;
  where->peer_pointers = true;
  where->properties.max_cooperative_blocks = 6;
  fused::Args args = test::fused_args({shape}, tensors);
  EXPECT_EQ(refusal(args, *where), "");
  PlanContext there = *where;
  there.properties.max_cooperative_blocks = 5;
  EXPECT_TRUE(says(refusal(args, there),
                   "2 rows of 512 want 6 blocks that run together, and there "
                   "are 5"))
      << refusal(args, there);
  there = *where;
  there.team_size = 1;
  EXPECT_TRUE(says(refusal(args, there), "one rank sends nothing")) << refusal(args, there);
  // What cannot be split, though its caller prefers that, goes whole.
  where->preferred = "one_shot_split";
  const auto split = fused::plan(args, *where);
  ASSERT_TRUE(split);
  EXPECT_EQ(split->variant_name, "one_shot_split");
  where->properties.max_cooperative_blocks = 5;
  const auto whole = fused::plan(args, *where);
  ASSERT_TRUE(whole) << whole.status().to_string();
  EXPECT_EQ(whole->variant_name, "one_shot");
}

TEST(FusedSplit, WidthsAreSplitAsEvenlyAsWavesAllow) {
  const std::pair<int, int> on_devices[] = {{256, 0},  {512, 2},  {1024, 2}, {1536, 2}, {2048, 2},
                                            {2560, 2}, {2880, 0}, {3072, 4}, {4096, 4}, {5120, 4},
                                            {6144, 8}, {7168, 4}, {8192, 8}, {16384, 0}};
  for (const auto& [hidden, blocks] : on_devices)
    EXPECT_EQ(fused::most_blocks_of_split(hidden, false), blocks) << hidden;
  EXPECT_EQ(fused::most_blocks_of_split(1024, true), 2);
  EXPECT_EQ(fused::most_blocks_of_split(2048, true), 4);
}

// More rows than many blocks each have room for take fewer and larger ones.
TEST(FusedSplit, MoreRowsTakeFewerBlocksEach) {
  constexpr int kUnits = 132;  // multiprocessors
  const std::pair<int, int> of_rows[] = {{1, 4}, {32, 4}, {33, 2}, {64, 2}, {65, 2}, {66, 0}};
  for (const auto& [rows, blocks] : of_rows) {
    EXPECT_EQ(fused::split_of(4096, rows, kUnits, false), blocks) << rows;
    EXPECT_LE(fused::blocks_of_split(rows, blocks), kUnits) << rows;
  }
  EXPECT_EQ(fused::split_of(8192, 15, kUnits, false), 8);
  EXPECT_EQ(fused::split_of(8192, 16, kUnits, false), 4);
  EXPECT_EQ(fused::split_of(8192, 33, kUnits, false), 2);
  EXPECT_EQ(fused::split_of(2880, 1, kUnits, false), 0);
}

// A plan for more rows than come, and a mailbox that holds fewer than come.
TEST(FusedSplit, TakesFewerRowsThanPlannedAndAnyMailbox) {
  for (Target target : test::usable_targets()) {
    if (!test::has_clusters(target)) continue;
    reference::BoundaryCase shape;
    shape.team = 3;
    shape.hidden = 512;
    shape.rows = 3;
    const BoundaryInputs inputs = reference::make_inputs(shape, 5);
    const auto expected = reference::boundary(shape, inputs);
    BoundaryCase one = shape;
    one.rows = 1;
    const BoundaryInputs first = reference::make_inputs(one, 6);
    const auto expected_first = reference::boundary(one, first);
    RankOptions options;
    options.target = target;
    run_ranks(shape.team, options, [&](int rank, Communicator& comm) {
      if (comm.max_blocks() < 8) return;  // ranks that share a device
      auto stream = Stream::create(comm.device());
      ASSERT_TRUE(stream);
      const std::size_t tight = mailbox_with_slots_of(std::size_t{2} * 512 * 2 * 2);
      auto mailbox = comm.make_channel(tight, "two rows");
      auto wide = comm.make_channel(fused::mailbox_bytes({3, 512, 3}), "three rows");
      ASSERT_TRUE(mailbox && wide);
      const BoundaryTensors tensors(shape, inputs, rank, comm.device(), *stream);
      const BoundaryTensors few(one, first, rank, comm.device(), *stream);
      meet(comm);
      auto plan = test::plan_of(test::fused_args({shape}, tensors), comm, "one_shot_split");
      ASSERT_TRUE(plan) << plan.status().to_string();
      for (const Channel* channel : {&*mailbox, &*wide, &*mailbox}) {
        tensors.reset(*stream);
        few.reset(*stream);
        for (const auto& [call, held, wanted] :
             {std::tuple(&one, &few, &expected_first), std::tuple(&shape, &tensors, &expected)}) {
          const fused::Args args = test::fused_args({*call}, *held);
          const Status ran = fused::run(*plan, args, channel->view(), *stream);
          ASSERT_TRUE(ran) << ran.to_string();
          ASSERT_TRUE(stream->synchronize());
          ASSERT_EQ(test::compare_fused({*call}, *held, *wanted, "one_shot_split", rank, *stream),
                    "");
        }
      }
      meet(comm);
    });
  }
}

}  // namespace
}  // namespace tenon
