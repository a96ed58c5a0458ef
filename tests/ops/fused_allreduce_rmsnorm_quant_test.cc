// The centre piece against the oracle: zero units in the last place on every built target, for
// every variant, team size and rank, in one mailbox that all shapes share. TEST_FULL in the
// environment runs the whole matrix; otherwise a fixed part of it.
#include "tenon/ops/fused_allreduce_rmsnorm_quant/fused_allreduce_rmsnorm_quant.h"
#include "tenon/reference/inputs.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <memory>

#include "tenon/ops/fused_allreduce_rmsnorm_quant/mailbox_layout.h"
#include "tests/support/boundary_matrix.h"
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
using test::FusedCase;
using test::meet;
using test::RankOptions;
using test::run_ranks;
using test::says;

// Every case in every variant on `target`, one after the other in one mailbox of `mailbox_bytes`.
void run_cases(Target target, int team, const std::vector<FusedCase>& cases,
               std::size_t mailbox_bytes) {
  const std::vector<test::Judged> judged = test::judge(cases);
  RankOptions options;
  options.target = target;
  run_ranks(team, options, [&](int rank, Communicator& comm) {
    auto mailbox = comm.make_channel(mailbox_bytes, "boundary");
    ASSERT_TRUE(mailbox) << mailbox.status().to_string();
    auto stream = Stream::create(comm.device());
    ASSERT_TRUE(stream) << stream.status().to_string();
    std::vector<std::unique_ptr<BoundaryTensors>> tensors;
    for (const test::Judged& each : judged)
      tensors.push_back(std::make_unique<BoundaryTensors>(each.call.shape, each.inputs, rank,
                                                          comm.device(), *stream, each.call.gap));
    meet(comm);
    for (std::size_t i = 0; i < judged.size(); ++i) {
      const auto& [call, inputs, expected] = judged[i];
      for (const std::string_view variant :
           test::variants_of(call.shape, target, comm.max_blocks())) {
        for (const auto how : {test::Launch::kEager, test::Launch::kGraph}) {
          if (how == test::Launch::kGraph && i % 3 != 0) continue;
          tensors[i]->reset(*stream);
          ASSERT_EQ(test::run_fused(call, *tensors[i], expected, variant, how, comm,
                                    mailbox->view(), *stream),
                    "")
              << variant << (how == test::Launch::kGraph ? ", graph: " : ": ")
              << reference::describe(call.shape) << ", seed " << call.seed;
        }
      }
    }
    meet(comm);
  });
}

// Bytes for which long cases need several chunks, and the widest still has its one stripe.
std::size_t small_mailbox(int team) { return fused::mailbox_bytes({8, 16384, team}); }

class FusedBoundary : public ::testing::TestWithParam<int> {
 protected:
  int team() const { return GetParam(); }
};

TEST_P(FusedBoundary, MatchesOracleOnCpuAndGpus) {
  for (Target target : test::usable_targets())
    if (test::pace_of(target) == test::Pace::kFast)
      run_cases(target, team(), test::boundary_matrix(team(), test::Pace::kFast),
                small_mailbox(team()));
}

TEST_P(FusedBoundary, MatchesOracleOnEmulatedWaves) {
  for (Target target : test::usable_targets())
    if (test::pace_of(target) == test::Pace::kEmulated)
      run_cases(target, team(), test::boundary_matrix(team(), test::Pace::kEmulated),
                small_mailbox(team()));
}

TEST_P(FusedBoundary, EveryCombinationOfOutputs) {
  for (Target target : test::usable_targets()) {
    const bool is_fast = test::pace_of(target) == test::Pace::kFast;
    // Odd groups and more rows than ranks; emulated: one row, a width of one wave and a bit.
    const auto cases = is_fast ? test::every_output(team(), 2 * team() + 1, 640)
                               : test::every_output(team(), 1, 384);
    run_cases(target, team(), cases, small_mailbox(team()));
  }
}

// Many chunks in a call: a mailbox of the least size, on which the slots go round several times.
TEST_P(FusedBoundary, LongCallsGoInChunks) {
  for (Target target : test::usable_targets()) {
    std::vector<FusedCase> cases;
    for (int mix = 0; mix < 4; ++mix)
      cases.push_back(test::mixed_case(team(), 9 * team() + mix, 256, mix * 5 + team()));
    run_cases(target, team(), cases, fused::mailbox_bytes({2, 256, team()}));
  }
}

INSTANTIATE_TEST_SUITE_P(Teams, FusedBoundary, ::testing::Range(1, 9));

// 8192 rows once, with the mailbox a model would have.
TEST(FusedBoundaryLimits, MostRows) {
  const int hidden = test::whole_matrix() ? 1024 : 128;
  run_cases(Target::kCpu, 2, {test::mixed_case(2, 8192, hidden, 4)},
            fused::mailbox_bytes({8192, hidden, 2}));
}

TEST(FusedBoundaryLimits, MailboxesStayAsSmallAsTheHeaderSays) {
  constexpr double kMiB = 1 << 20;
  for (int team = 1; team <= 8; ++team) {
    const double on_devices = team <= 2 ? 42.01 : team <= 4 ? 93.1 : 217;
    for (int hidden : {128, 2880, 5120, 8192}) {
      std::size_t before = 0;
      for (int rows : {0, 1, 16, 300, 8192}) {
        const std::size_t bytes = fused::mailbox_bytes({rows, hidden, team});
        EXPECT_LE(static_cast<double>(bytes) / kMiB, 42.01)
            << team << ": " << rows << "x" << hidden;
        EXPECT_GE(bytes, before);
        before = bytes;
        const std::size_t wide = fused::mailbox_bytes({rows, hidden, team, 132, false});
        EXPECT_LE(static_cast<double>(wide) / kMiB, on_devices)
            << team << " ranks, " << rows << " x " << hidden;
      }
    }
  }
}

// A device with 132 multiprocessors: what its plans say of blocks.
class FusedPlans : public ::testing::Test {
 protected:
  // The plan of a two_shot call of `rows` rows through the mailbox of a boundary for 8192.
  static Plan plan_for(int team, int rows, int hidden, int concurrent, Target target) {
    const Device device{target, 0};
    PlanContext where;
    where.device = device;
    where.properties.max_threads_per_block = 1024;
    where.properties.max_cooperative_blocks = 132 / concurrent;
    where.team_size = team;
    where.peer_pointers = true;
    where.may_start_early = concurrent == 1;
    where.mailbox_bytes =
        fused::mailbox_bytes({8192, hidden, team, is_host(target) ? 1 : 132 / concurrent, false});
    alignas(16) static std::byte somewhere[16];
    fused::Args args;
    args.partial.addend = view(somewhere, DType::kBF16, device, {rows, hidden});
    args.residual = args.partial.addend;
    args.weight = view(somewhere, DType::kBF16, device, {hidden});
    args.out.bf16 = args.residual;
    auto plan = fused::plan(args, where, "two_shot");
    EXPECT_TRUE(plan) << plan.status().to_string();
    return plan ? *plan : Plan{};
  }
};

// Blocks without work would make a long call last longer: in teams of any size, all that a plan
// asks for have some in every generation.
TEST_F(FusedPlans, LongCallsKeepAllBlocksAtWork) {
  namespace layout = fused_allreduce_rmsnorm_quant;
  for (int team = 2; team <= 8; ++team) {
    for (int hidden : {1024, 2048, 3072, 4096, 5120, 8192}) {
      const std::size_t bytes = fused::mailbox_bytes({8192, hidden, team, 132, false});
      const std::int64_t most = 132 * layout::resident_blocks(hidden);
      const auto units = layout::stripe_units(hidden, true, false, 0, false, team);
      const std::int64_t fit = layout::slot_units(bytes) / units.all();
      for (int rows : {64, 512, 817, 1024, 2048, 4096, 8192}) {
        const std::int64_t stripes = (rows + team - 1) / team;
        if (layout::rows_each(rows, most - 1) <= layout::most_rows_each(team)) {
          EXPECT_LE(stripes, fit) << rows << " rows go in one generation";
          continue;
        }
        const std::int64_t blocks =
            stripes <= most
                ? stripes
                : 132 * layout::blocks_of_long_calls(layout::resident_blocks(hidden), team);
        EXPECT_EQ(layout::working_blocks(blocks, stripes, fit), blocks)
            << team << " ranks, " << rows << " x " << hidden;
      }
    }
  }
}

// What a plan says is what works: a mailbox that is too small for all blocks shows in it.
TEST_F(FusedPlans, PlansCountTheBlocksThatWork) {
  const Target target = Target::kEmu32;
  if (!backend(target)) GTEST_SKIP() << "emu32 is not part of this build";
  EXPECT_EQ(plan_for(4, 4096, 4096, 1, target).launches.front().shape.blocks, 2);
  EXPECT_EQ(plan_for(8, 8192, 16384, 1, target).launches.front().shape.blocks, 2);
}

// Two multiprocessors of an emulated device have data: a row each, a few rows each, stripes, then
// many stripes.
TEST_F(FusedPlans, ShortAndLongCallsHaveKernelsOfTheirOwn) {
  const Target target = Target::kEmu32;
  if (!backend(target)) GTEST_SKIP() << "emu32 is not part of this build";
  const auto kernel = [&](int team, int rows, int hidden) {
    return plan_for(team, rows, hidden, 1, target).launches.front().kernel;
  };
  for (int team = 2; team <= 8; ++team) {
    const bool has_long = team == 3 || team == 4;
    EXPECT_EQ(kernel(team, 2, 4096), "two_shot_row_kernel") << team;
    const bool has_rows = team > 4;
    EXPECT_EQ(kernel(team, 3, 4096), has_rows ? "two_shot_rows_kernel" : "two_shot_kernel") << team;
    EXPECT_EQ(kernel(team, 8, 4096), has_rows ? "two_shot_rows_kernel" : "two_shot_kernel") << team;
    EXPECT_EQ(kernel(team, 9, 4096), "two_shot_kernel") << team;
    EXPECT_EQ(kernel(team, 4 * team, 4096), "two_shot_kernel") << team;
    EXPECT_EQ(kernel(team, 4 * team + 1, 4096),
              has_long ? "two_shot_long_kernel" : "two_shot_kernel")
        << team;
    EXPECT_EQ(kernel(team, 8192, 8192), "two_shot_kernel")
        << team;  // more than one vector a thread
  }
}

// What a caller may rely on before anything runs.
class FusedContract : public ::testing::Test {
 protected:
  void SetUp() override {
    auto made = Stream::create(device_);
    ASSERT_TRUE(made);
    stream_.emplace(*std::move(made));
    shape_.rows = 3;
    shape_.team = 1;
    inputs_ = reference::make_inputs(shape_, 0);
    tensors_.emplace(shape_, inputs_, 0, device_, *stream_);
    args_ = test::fused_args({shape_}, *tensors_);
    auto where = plan_context(device_);
    ASSERT_TRUE(where);
    where_ = *where;
    where_.team_size = 2;
    where_.peer_pointers = true;
  }

  const Device device_{Target::kCpu, 0};
  reference::BoundaryCase shape_;
  reference::BoundaryInputs inputs_;
  std::optional<Stream> stream_;
  std::optional<BoundaryTensors> tensors_;
  fused::Args args_;
  PlanContext where_;
};

TEST_F(FusedContract, CheckNamesWhatIsWrong) {
  ASSERT_TRUE(fused::check(args_)) << fused::check(args_).to_string();
  fused::Args args = args_;
  args.partial.addend.shape[0] = 2;
  EXPECT_TRUE(says(fused::check(args).message(), "residual is bf16 [3, 256]"));
  args = args_;
  args.weight.dtype = DType::kF16;
  EXPECT_TRUE(says(fused::check(args).message(), "must be of type bf16 or f32"));
  args = args_;
  args.out.fp8->data.dtype = DType::kE5M2;
  EXPECT_TRUE(says(fused::check(args).message(), "must be of type e4m3fn or e4m3fnuz"));
  args = args_;
  args.out.fp8->scale.stride[0] = 7;
  EXPECT_TRUE(says(fused::check(args).message(), "contiguous"));
}

// What its caller knows to be fastest is taken, where it can be, and others say why they are not.
TEST_F(FusedContract, TheCallersPreferenceIsTaken) {
  for (const char* variant : {"one_shot", "one_shot_packed", "two_shot", "two_shot_packed"}) {
    PlanContext there = where_;
    there.preferred = variant;
    there.why_preferred = "was tried";
    const auto found = fused::plan(args_, there);
    ASSERT_TRUE(found) << found.status().to_string();
    EXPECT_EQ(found->variant_name, variant);
    for (const std::string& refusal : found->refusals)
      EXPECT_TRUE(says(refusal, std::string(variant) + " was tried")) << refusal;
  }
  PlanContext there = where_;
  there.preferred = "something else";
  there.why_preferred = "was tried";
  EXPECT_TRUE(says(fused::plan(args_, there).status().message(), "something else was tried"));
  EXPECT_TRUE(fused::plan(args_, there, "two_shot"));  // by name, whatever is faster
}

// A plan says what will be launched, and which of the kernel's instances.
TEST_F(FusedContract, PlansSayWhatTheyLaunch) {
  for (const char* variant : {"one_shot", "two_shot"}) {
    const auto plan = fused::plan(args_, where_, variant);
    ASSERT_TRUE(plan);
    ASSERT_EQ(plan->launches.size(), 1u);
    const std::string_view kernel = plan->launches.front().kernel;
    EXPECT_TRUE(kernel.starts_with(variant)) << kernel;
    EXPECT_EQ(plan->promise.bits, Bits::kReference);
    EXPECT_EQ(plan->workspace_bytes, 0u);
    const std::string text = describe(*plan);
    for (const std::string_view part :
         {std::string_view("fused_allreduce_rmsnorm_quant on "), std::string_view(variant),
          std::string_view("reference bits"), kernel, std::string_view("cooperative"),
          std::string_view("ranks, at most")})
      EXPECT_TRUE(says(text, part)) << part << " is not in: " << text;
  }
}

TEST_F(FusedContract, PlanIsPureAndExplainsRefusals) {
  auto first = fused::plan(args_, where_);
  auto again = fused::plan(args_, where_);
  ASSERT_TRUE(first && again);
  EXPECT_EQ(first->variant_name, "one_shot");
  EXPECT_EQ(first->code, again->code);
  EXPECT_EQ(first->launches.front().shape.blocks, again->launches.front().shape.blocks);
  EXPECT_TRUE(first->launches.front().shape.cooperative);

  fused::Args wide = args_;
  wide.residual = wide.partial.addend =
      view(args_.residual.data, args_.residual.dtype, device_, {8192, 16384});  // nothing runs
  wide.weight = view(args_.weight.data, args_.weight.dtype, device_, {16384});
  wide.out = {.bf16 = wide.residual, .fp8 = {}};
  auto long_call = fused::plan(wide, where_);
  ASSERT_TRUE(long_call);
  EXPECT_EQ(long_call->variant_name, "two_shot");
  ASSERT_EQ(long_call->refusals.size(), 2u);
  EXPECT_TRUE(says(long_call->refusals[0], "one_shot: 8192 rows of 16384"))
      << long_call->refusals[0];

  PlanContext apart = where_;
  apart.peer_pointers = false;
  const auto refused = fused::plan(args_, apart);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.status().code(), Code::kUnsupported);
  EXPECT_TRUE(says(refused.status().message(), "cannot address each other's mailboxes"));
}

TEST_F(FusedContract, ForcedVariantIsTheOneThatRuns) {
  auto forced = fused::plan(args_, where_, "two_shot");
  ASSERT_TRUE(forced);
  EXPECT_EQ(forced->variant_name, "two_shot");
  EXPECT_EQ(fused::plan(args_, where_, "three_shot").status().code(), Code::kInvalidArgument);
}

TEST_F(FusedContract, OnlyRowsThatPackTravelPacked) {
  for (const char* variant : {"one_shot_packed", "two_shot_packed"}) {
    auto packed = fused::plan(args_, where_, variant);
    ASSERT_TRUE(packed) << packed.status().to_string();
    EXPECT_EQ(packed->variant_name, variant);
    fused::Args halves = args_;
    for (TensorView* each :
         {&halves.partial.addend, &halves.residual, &halves.weight, &*halves.out.bf16})
      each->dtype = DType::kF16;
    const auto refused = fused::plan(halves, where_, variant);
    ASSERT_FALSE(refused);
    EXPECT_TRUE(says(refused.status().message(), "only bf16 can be packed"))
        << refused.status().message();
  }
}

// A wave packs together, so every lane must have a vector.
TEST(FusedPacked, WidthsThatLeaveLanesWithoutAVectorAreRefused) {
  for (Target target : test::host_targets()) {
    if (target == Target::kCpu) continue;
    for (int hidden : {256, 512, 640, 1024, 8192}) {
      reference::BoundaryCase shape;
      shape.hidden = hidden;
      RankOptions options;
      options.target = target;
      run_ranks(2, options, [&](int rank, Communicator& comm) {
        auto stream = Stream::create(comm.device());
        ASSERT_TRUE(stream);
        const BoundaryTensors tensors(shape, reference::make_inputs(shape, 0), rank, comm.device(),
                                      *stream);
        const auto plan =
            test::plan_of(test::fused_args({shape}, tensors), comm, "one_shot_packed");
        const bool packs = test::variants_of(shape, target, 0).size() == 4;
        EXPECT_EQ(static_cast<bool>(plan), packs) << hidden;
        if (!packs) {
          EXPECT_NE(plan.status().message().find("not one vector for every lane"),
                    std::string_view::npos)
              << plan.status().message();
        }
      });
    }
  }
}

// Whatever the plan was made for: rows that are not there are not read.
TEST(FusedRows, CallsWithoutRowsTouchNothing) {
  void* const guarded = mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(guarded, MAP_FAILED);
  for (Target target : test::host_targets()) {
    BoundaryCase shape;
    shape.team = 2;
    shape.hidden = 512;
    shape.rows = 3;
    const BoundaryInputs inputs = reference::make_inputs(shape, 5);
    RankOptions options;
    options.target = target;
    run_ranks(shape.team, options, [&](int rank, Communicator& comm) {
      auto stream = Stream::create(comm.device());
      auto mailbox = comm.make_channel(fused::mailbox_bytes({3, 512, 2}), "boundary");
      ASSERT_TRUE(stream && mailbox);
      const BoundaryTensors tensors(shape, inputs, rank, comm.device(), *stream);
      const fused::Args whole = test::fused_args({shape}, tensors);
      fused::Args none = whole;
      for (TensorView* each : {&none.partial.addend, &none.residual, &*none.out.bf16,
                               &none.out.fp8->data, &none.out.fp8->scale}) {
        each->data = guarded;
        each->shape[0] = 0;
      }
      meet(comm);
      for (const std::string_view variant : test::variants_of(shape, target, comm.max_blocks())) {
        auto plan = test::plan_of(whole, comm, variant);
        ASSERT_TRUE(plan) << plan.status().to_string();
        const Status ran = fused::run(*plan, none, mailbox->view(), *stream);
        EXPECT_TRUE(ran) << variant << ": " << ran.to_string();
        EXPECT_TRUE(stream->synchronize());
      }
      meet(comm);
    });
  }
  munmap(guarded, 4096);
}

// Blocks are those of the call's rows, not of the plan's: ranks whose plans are for different
// numbers of rows would tell each other of different grids. Rank r's is for 2r rows more.
TEST(FusedRows, CallsRunAlikeWhateverRowsThePlanWasFor) {
  struct Call {
    int team, rows, hidden;
  };
  for (Target target : test::usable_targets()) {
    RankOptions options;
    options.target = target;
    // With 2048 emulated blocks split one row four times, and three rows twice.
    for (const Call& each : {Call{2, 1, 2048}, Call{3, 1, 512}, Call{3, 4, 512}, Call{5, 3, 512}}) {
      BoundaryCase shape;
      shape.team = each.team;
      shape.hidden = each.hidden;
      shape.rows = each.rows;
      const BoundaryInputs inputs = reference::make_inputs(shape, 5);
      const auto expected = reference::boundary(shape, inputs);
      run_ranks(shape.team, options, [&](int rank, Communicator& comm) {
        auto stream = Stream::create(comm.device());
        auto mailbox =
            comm.make_channel(fused::mailbox_bytes({40, each.hidden, each.team}), "boundary");
        ASSERT_TRUE(stream && mailbox);
        const BoundaryTensors tensors(shape, inputs, rank, comm.device(), *stream);
        const fused::Args args = test::fused_args({shape}, tensors);
        fused::Args more = args;
        const int planned = each.rows + 2 * rank;
        more.partial.addend.shape[0] = more.residual.shape[0] = planned;
        more.out.bf16->shape[0] = planned;
        more.out.fp8->data.shape[0] = more.out.fp8->scale.shape[0] = planned;
        BoundaryCase largest = shape;
        largest.rows = each.rows + 2 * (each.team - 1);
        for (const std::string_view variant :
             test::variants_of(largest, target, comm.max_blocks())) {
          meet(comm);
          tensors.reset(*stream);
          meet(comm);
          const auto plan = test::plan_of(more, comm, variant);
          ASSERT_TRUE(plan) << plan.status().to_string();
          const Status ran = fused::run(*plan, args, mailbox->view(), *stream);
          ASSERT_TRUE(ran) << variant << ": " << ran.to_string();
          ASSERT_TRUE(stream->synchronize());
          EXPECT_EQ(test::compare_fused({shape}, tensors, expected, variant, rank, *stream), "");
        }
        meet(comm);
      });
    }
  }
}

// Two shots with a few rows for each block: what emulated waves have two blocks for.
TEST(FusedRows, AFewRowsForEachBlockMatchTheOracle) {
  for (Target target : test::usable_targets())
    for (int team : {5, 8}) {
      std::vector<FusedCase> cases;
      for (const int rows : {3, 7, 8})
        for (const ScaleLayout layout :
             {ScaleLayout::kRow, ScaleLayout::kMnMajor, ScaleLayout::kUe8m0Packed})
          for (const bool spreads : {false, true}) {
            FusedCase each;
            each.shape.team = team;
            each.shape.hidden = 512;
            each.shape.rows = rows;
            each.shape.layout = layout;
            each.shape.want_bf16 = layout != ScaleLayout::kMnMajor;
            each.spread_residual = spreads;
            each.seed = cases.size();
            cases.push_back(each);
          }
      run_cases(target, team, cases, fused::mailbox_bytes({40, 512, team, 1, true}));
    }
}

// Rows of the sizes that pack, with the few elements that do not, on every target.
TEST(FusedPacked, RowsThatPackMatchTheOracle) {
  for (Target target : test::usable_targets()) {
    const bool is_fast = test::pace_of(target) == test::Pace::kFast;
    for (int team : {2, 3, 8}) {
      if (!is_fast && team == 8) continue;
      std::vector<FusedCase> cases;
      for (int hidden : {512, 1024, 4096}) {
        if (!is_fast && hidden > 1024) continue;
        for (int mix = 0; mix < 3; ++mix) {
          FusedCase each = test::mixed_case(team, is_fast ? 2 * team + 1 : 2, hidden, mix);
          each.seed = static_cast<std::uint64_t>(reference::RowKind::kNear);  // row 0 is of it
          each.shape.fresh_residual = false;
          cases.push_back(each);
        }
      }
      run_cases(target, team, cases, small_mailbox(team));
    }
  }
}

// On the cpu a row of any width packs, also where its bytes are no multiple of 16.
TEST(FusedPacked, OddWidthsMatchTheOracleOnTheCpu) {
  for (int team : {2, 3}) {
    std::vector<FusedCase> cases;
    for (int hidden : {8, 24, 40, 136, 1000}) {
      FusedCase each = test::mixed_case(team, 2 * team + 1, 256, 0);
      each.seed = static_cast<std::uint64_t>(reference::RowKind::kNear);
      each.shape.hidden = hidden;
      each.shape.want_fp8 = false;
      each.shape.want_bf16 = true;
      cases.push_back(each);
    }
    run_cases(Target::kCpu, team, cases, small_mailbox(team));
  }
}

TEST_F(FusedContract, TooSmallMailboxIsRefusedBeforeLaunch) {
  auto plan = fused::plan(args_, where_);
  ASSERT_TRUE(plan);
  std::byte region[1024];
  ChannelView team;
  team.size = 2;
  team.bytes = sizeof region;
  team.base[0] = team.base[1] = region;
  const Status refused = fused::run(*plan, args_, team, *stream_);
  EXPECT_EQ(refused.code(), Code::kInvalidArgument);
  EXPECT_TRUE(says(refused.message(), "the mailbox has 1024 bytes")) << refused.message();
}

TEST_F(FusedContract, RunRefusesWhatItsPlanWasNotMadeFor) {
  const auto plan = fused::plan(args_, where_);
  ASSERT_TRUE(plan);
  std::vector<std::byte> region(
      fused::mailbox_bytes({.max_rows = 8, .hidden = 256, .team_size = 2}));
  ChannelView team;
  team.size = 2;
  team.bytes = region.size();
  team.base[0] = team.base[1] = region.data();
  const auto expect_refused = [&](const Plan& with, const fused::Args& args, const ChannelView& of,
                                  std::string_view text) {
    const Status refused = fused::run(with, args, of, *stream_);
    EXPECT_EQ(refused.code(), Code::kInvalidArgument);
    EXPECT_TRUE(says(refused.message(), text)) << refused.to_string();
  };
  expect_refused(Plan{}, args_, team, "the plan is empty");
  ChannelView of_three = team;
  of_three.size = 3;
  expect_refused(*plan, args_, of_three, "on 3 ranks, but its plan was made for up to 3 rows");
  ChannelView asleep = team;  // its communicator is suspended
  asleep.base[1] = nullptr;
  expect_refused(*plan, args_, asleep, "the mailbox has no memory of rank 1");
  for (const auto& change : std::vector<std::function<void(Plan&)>>{
           [](Plan& made) { made.rows = 2; }, [](Plan& made) { made.hidden = 512; },
           [](Plan& made) { made.dtype = DType::kF16; }, [](Plan& made) { made.team_size = 1; }}) {
    Plan other = *plan;
    change(other);
    expect_refused(other, args_, team, "but its plan was made for");
  }
  fused::Args args = args_;
  args.residual.data = args_.out.bf16->data;
  expect_refused(*plan, args, team, "residual and out.bf16 overlap");
  args = args_;
  args.out.fp8->scale.shape[0] = 1;
  expect_refused(*plan, args, team, "out.fp8.scale is f32 [1, 2]");
}

TEST_F(FusedContract, PlansSayWhetherKernelsStartEarly) {
  for (const char* variant : {"one_shot", "one_shot_packed", "two_shot", "two_shot_packed"})
    for (const bool early : {true, false}) {
      where_.may_start_early = early;
      const auto plan = fused::plan(args_, where_, variant);
      ASSERT_TRUE(plan);
      EXPECT_EQ(plan->launches.front().shape.early, early) << variant;
    }
}

TEST_F(FusedContract, OwnersAreDealtInTurn) {
  EXPECT_EQ(fused::residual_owner("one_shot", 5, 8, 4), -1);
  EXPECT_EQ(fused::residual_owner("one_shot_packed", 5, 8, 4), -1);
  for (const char* variant : {"two_shot", "two_shot_packed"})
    for (int row = 0; row < 9; ++row) EXPECT_EQ(fused::residual_owner(variant, row, 9, 4), row % 4);
}

TEST_F(FusedContract, TrafficCountsTheLinks) {
  const double elements = 3 * 256;
  const Traffic both = fused::traffic(args_, 2);  // rows travel where both are wanted, in 12 bits
  EXPECT_EQ(both.link_bytes, elements * (1.5 + 1.5) / 2);
  fused::Args codes_only = args_;
  codes_only.out.bf16.reset();
  EXPECT_EQ(fused::traffic(codes_only, 2).link_bytes, 3 * (256 * 1.5 + 256 + 2 * 4) / 2);
}

}  // namespace
}  // namespace tenon
