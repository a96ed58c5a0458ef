// The centre piece against the oracle: zero units in the last place on every built target, for
// every variant, team size and rank, in one mailbox that all shapes share. TEST_FULL in the
// environment runs the whole matrix; otherwise a fixed part of it.
#include "tenon/ops/fused_allreduce_rmsnorm_quant/fused_allreduce_rmsnorm_quant.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>

#include "tests/support/boundary_oracle.h"
#include "tests/support/fused_run.h"
#include "tests/support/ranks.h"
#include "tests/support/targets.h"

namespace tenon {
namespace {

namespace fused = fused_allreduce_rmsnorm_quant;
using testing::BoundaryCase;
using testing::BoundaryInputs;
using testing::BoundaryTensors;
using testing::FusedCase;

bool full() { return std::getenv("TEST_FULL") != nullptr; }

constexpr int kHiddens[] = {128, 256, 640, 2048, 2560, 2880, 4096, 5120, 8192, 16384};
constexpr int kRows[] = {0, 1, 2, 3, 7, 16, 17, 64, 65, 300};
constexpr ScaleLayout kLayouts[] = {ScaleLayout::kRow, ScaleLayout::kMnMajor,
                                    ScaleLayout::kUe8m0Packed};

// Types, layouts, groups and flags by the digits of `mix`: neighbours differ in most of them.
FusedCase mixed_case(int team, int rows, int hidden, int mix) {
  FusedCase fused_case;
  BoundaryCase& shape = fused_case.shape;
  shape.team = team;
  shape.rows = rows;
  shape.hidden = hidden;
  const int outputs = mix % 3;
  shape.want_bf16 = outputs != 1;
  shape.want_fp8 = outputs != 0;
  shape.layout = kLayouts[(mix / 3) % 3];
  shape.fp8 = (mix / 2) % 2 == 0 ? DType::kE4M3 : DType::kE4M3Fnuz;
  shape.dtype = (mix / 5) % 3 == 2 ? DType::kF16 : DType::kBF16;
  shape.weight_dtype = (mix / 7) % 2 == 0 ? shape.dtype : DType::kF32;
  shape.offset = (mix / 4) % 2 == 0 ? 1.0f : 0.0f;
  shape.fresh_residual = mix % 11 == 10;
  constexpr int kGroups[] = {128, 32, 256, 64};
  shape.group = kGroups[(mix / 6) % 4];
  while (hidden % shape.group != 0) shape.group /= 2;
  fused_case.spread_residual = mix % 13 > 8;
  fused_case.seed = static_cast<std::uint64_t>(mix);
  return fused_case;
}

// Every case in both variants on `target`, one after the other in one mailbox of `mailbox_bytes`.
void run_cases(Target target, int team, const std::vector<FusedCase>& cases,
               std::size_t mailbox_bytes) {
  std::vector<BoundaryInputs> inputs;
  std::vector<testing::BoundaryOutputs> expected;
  for (const FusedCase& each : cases) {
    inputs.push_back(testing::make_inputs(each.shape, each.seed));
    expected.push_back(testing::boundary_oracle(each.shape, inputs.back()));
  }
  RankOptions options;
  options.target = target;
  run_ranks(team, options, [&](int rank, Communicator& comm) {
    auto mailbox = comm.mailbox(mailbox_bytes, "boundary");
    ASSERT_TRUE(mailbox) << mailbox.status().to_string();
    auto stream = Stream::create(comm.device());
    ASSERT_TRUE(stream) << stream.status().to_string();
    std::vector<std::unique_ptr<BoundaryTensors>> tensors;
    for (std::size_t i = 0; i < cases.size(); ++i)
      tensors.push_back(std::make_unique<BoundaryTensors>(cases[i].shape, inputs[i], rank,
                                                          comm.device(), *stream, cases[i].gap));
    meet(comm);
    for (std::size_t i = 0; i < cases.size(); ++i) {
      for (const char* variant : {"one_shot", "two_shot"}) {
        tensors[i]->reset(*stream);
        ASSERT_EQ(testing::run_fused(cases[i], *tensors[i], expected[i], variant, comm,
                                     mailbox->team(), *stream),
                  "")
            << variant << ": " << testing::describe(cases[i].shape) << ", seed " << cases[i].seed;
      }
    }
    meet(comm);
  });
}

// Bytes for which long cases need several chunks, and the widest still has its one stripe.
std::size_t small_mailbox(int team) { return fused::mailbox_bytes(8, 16384, DType::kBF16, team); }

class FusedBoundary : public ::testing::TestWithParam<int> {
 protected:
  int team() const { return GetParam(); }
};

TEST_P(FusedBoundary, MatchesOracleOnCpuAndGpus) {
  for (Target target : test::usable_targets()) {
    if (is_host(target) && target != Target::kCpu) continue;
    std::vector<FusedCase> cases;
    int mix = team() * 31;
    for (int hidden : kHiddens) {
      for (int rows : kRows) {
        ++mix;
        const int elements = hidden * rows;
        // A thinned run takes each hidden size and each row count several times, small ones often.
        const bool keep = elements <= 2048 || (elements <= 20'000 && mix % 3 == 0) ||
                          (elements <= 100'000 && mix % 13 == 0);
        if (full() || keep) cases.push_back(mixed_case(team(), rows, hidden, mix));
      }
    }
    run_cases(target, team(), cases, small_mailbox(team()));
  }
}

TEST_P(FusedBoundary, MatchesOracleOnEmulatedWaves) {
  for (Target target : {Target::kEmu32, Target::kEmu64}) {
    if (!properties({target, 0})) continue;  // not in this build
    std::vector<FusedCase> cases;
    int mix = team() * 17 + static_cast<int>(target);
    for (int hidden : kHiddens) {
      for (int rows : kRows) {
        ++mix;
        const int elements = hidden * rows;
        const bool keep = hidden <= 256 && rows <= 3 ? mix % 2 == 0
                                                     : (elements <= 6000 && mix % 5 == 0) ||
                                                           (rows == 1 && mix % 8 == team() % 8);
        if ((full() && elements <= 700'000) || keep)
          cases.push_back(mixed_case(team(), rows, hidden, mix));
      }
    }
    run_cases(target, team(), cases, small_mailbox(team()));
  }
}

// Outputs × layouts × fp8 kinds × element types, all of them, on a width with odd groups.
TEST_P(FusedBoundary, EveryCombinationOfOutputs) {
  std::vector<FusedCase> cases;
  for (int outputs = 0; outputs < 3; ++outputs) {
    for (ScaleLayout layout : kLayouts) {
      for (DType fp8 : {DType::kE4M3, DType::kE4M3Fnuz}) {
        for (DType dtype : {DType::kBF16, DType::kF16}) {
          const int n = static_cast<int>(cases.size());
          FusedCase one = mixed_case(team(), 2 * team() + 1, 640, n + team());
          one.shape.want_bf16 = outputs != 1;
          one.shape.want_fp8 = outputs != 0;
          one.shape.layout = layout;
          one.shape.fp8 = fp8;
          one.shape.dtype = dtype;
          if (one.shape.weight_dtype != DType::kF32) one.shape.weight_dtype = dtype;
          one.shape.group = n % 2 == 0 ? 128 : 32;
          one.gap = n % 4 == 1 ? 32 : 0;
          cases.push_back(one);
        }
      }
    }
  }
  run_cases(Target::kCpu, team(), cases, small_mailbox(team()));
}

// Many chunks in a call: a mailbox of the least size, on which the slots go round several times.
TEST_P(FusedBoundary, LongCallsGoInChunks) {
  for (Target target : test::usable_targets()) {
    std::vector<FusedCase> cases;
    for (int mix = 0; mix < 4; ++mix)
      cases.push_back(mixed_case(team(), 9 * team() + mix, 256, mix * 5 + team()));
    run_cases(target, team(), cases, fused::mailbox_bytes(2, 256, DType::kBF16, team()));
  }
}

INSTANTIATE_TEST_SUITE_P(Teams, FusedBoundary, ::testing::Range(1, 9));

// 8192 rows once, with the mailbox a model would have.
TEST(FusedBoundaryLimits, MostRows) {
  const int hidden = full() ? 1024 : 128;
  run_cases(Target::kCpu, 2, {mixed_case(2, 8192, hidden, 4)},
            fused::mailbox_bytes(8192, hidden, DType::kBF16, 2));
}

TEST(FusedBoundaryLimits, MailboxStaysBelow48Megabytes) {
  for (int team = 1; team <= 8; ++team) {
    for (int hidden : {128, 2880, 5120, 8192}) {
      std::size_t before = 0;
      for (int rows : {0, 1, 16, 300, 8192}) {
        const std::size_t bytes = fused::mailbox_bytes(rows, hidden, DType::kBF16, team);
        EXPECT_LE(bytes, 48'000'000u) << team << " ranks, " << rows << " x " << hidden;
        EXPECT_GE(bytes, before);
        before = bytes;
      }
    }
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
    inputs_ = testing::make_inputs(shape_, 0);
    tensors_.emplace(shape_, inputs_, 0, device_, *stream_);
    args_ = testing::fused_args({shape_}, *tensors_);
    auto where = situation(device_);
    ASSERT_TRUE(where);
    where_ = *where;
    where_.team_size = 2;
    where_.peer_pointers = true;
  }
  static bool has(std::string_view text, std::string_view part) {
    return text.find(part) != std::string_view::npos;
  }

  const Device device_{Target::kCpu, 0};
  BoundaryCase shape_;
  BoundaryInputs inputs_;
  std::optional<Stream> stream_;
  std::optional<BoundaryTensors> tensors_;
  fused::Args args_;
  Situation where_;
};

TEST_F(FusedContract, CheckNamesWhatIsWrong) {
  ASSERT_TRUE(fused::check(args_)) << fused::check(args_).to_string();
  fused::Args args = args_;
  args.partial.addend.shape[0] = 2;
  EXPECT_TRUE(has(fused::check(args).message(), "residual is bf16 [3, 256]"));
  args = args_;
  args.weight.dtype = DType::kF16;
  EXPECT_TRUE(has(fused::check(args).message(), "must be of type bf16 or f32"));
  args = args_;
  args.out.fp8->data.dtype = DType::kE5M2;
  EXPECT_TRUE(has(fused::check(args).message(), "must be of type e4m3fn or e4m3fnuz"));
  args = args_;
  args.out.fp8->scale.stride[0] = 7;
  EXPECT_TRUE(has(fused::check(args).message(), "contiguous"));
}

TEST_F(FusedContract, PlanIsPureAndExplainsRefusals) {
  auto first = fused::plan(args_, where_);
  auto again = fused::plan(args_, where_);
  ASSERT_TRUE(first && again);
  EXPECT_EQ(first->variant_name, "one_shot");
  EXPECT_EQ(first->variant, again->variant);
  EXPECT_EQ(first->shape.blocks, again->shape.blocks);
  EXPECT_TRUE(first->shape.cooperative);

  fused::Args wide = args_;
  wide.residual.shape = wide.partial.addend.shape = {8192, 16384, 0, 0};
  auto long_call = fused::plan(wide, where_);
  ASSERT_TRUE(long_call);
  EXPECT_EQ(long_call->variant_name, "two_shot");
  ASSERT_EQ(long_call->refusals.size(), 1u);
  EXPECT_TRUE(has(long_call->refusals[0], "one_shot: 8192 rows of 16384"))
      << long_call->refusals[0];

  Situation apart = where_;
  apart.peer_pointers = false;
  const auto refused = fused::plan(args_, apart);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.status().code(), Code::kUnsupported);
  EXPECT_TRUE(has(refused.status().message(), "cannot address each other's mailboxes"));
}

TEST_F(FusedContract, ForcedVariantIsTheOneThatRuns) {
  auto forced = fused::plan(args_, where_, "two_shot");
  ASSERT_TRUE(forced);
  EXPECT_EQ(forced->variant_name, "two_shot");
  EXPECT_EQ(fused::plan(args_, where_, "three_shot").status().code(), Code::kInvalidArgument);
}

TEST_F(FusedContract, TooSmallMailboxIsRefusedBeforeLaunch) {
  auto plan = fused::plan(args_, where_);
  ASSERT_TRUE(plan);
  TeamView team;
  team.size = 2;
  team.bytes = 1024;
  const Status refused = fused::run(*plan, args_, team, *stream_);
  EXPECT_EQ(refused.code(), Code::kInvalidArgument);
  EXPECT_TRUE(has(refused.message(), "the mailbox has 1024 bytes")) << refused.message();
}

TEST_F(FusedContract, OwnersAreDealtInTurn) {
  EXPECT_EQ(fused::residual_owner("one_shot", 5, 8, 4), -1);
  for (int row = 0; row < 9; ++row)
    EXPECT_EQ(fused::residual_owner("two_shot", row, 9, 4), row % 4);
}

TEST_F(FusedContract, TrafficCountsTheLinks) {
  const double elements = 3 * 256;
  const Traffic both = fused::traffic(args_, 2);  // 16-bit rows travel where both are wanted
  EXPECT_EQ(both.link_bytes, elements * (2 + 2) / 2);
  fused::Args codes_only = args_;
  codes_only.out.bf16.reset();
  EXPECT_EQ(fused::traffic(codes_only, 2).link_bytes, 3 * (256 * 2 + 256 + 16) / 2.0);
}

}  // namespace
}  // namespace tenon
