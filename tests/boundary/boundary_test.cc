// The staged chain: all stages and variants give the same bytes; what is forced runs; stages that
// cannot run are errors on every rank. Not here: specs that differ (agreement_test.cc),
// and what a caller may pass (contract_test.cc).
#include "tenon/boundary/boundary.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "tenon/core/fp8.h"
#include "tests/support/ranks.h"
#include "tests/support/targets.h"

namespace tenon {
namespace {

using test::RankOptions;
using test::run_ranks;

// Bytes of one boundary's outputs on one rank.
struct Outputs {
  std::vector<std::uint16_t> residual, normed;
  std::vector<std::uint8_t> codes;
  std::vector<float> scales;
  friend bool operator==(const Outputs&, const Outputs&) = default;
};

std::vector<std::uint16_t> random_bf16(std::size_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<std::uint16_t> values(count);
  for (auto& each : values) each = to_bf16(normal(generator)).bits;
  return values;
}

// One rank's tensors around one boundary. Host targets: plain vectors are device memory.
struct Site {
  int rows, hidden;
  Device device;
  std::vector<std::uint16_t> addend, weight;
  Outputs out;

  Site(int rows_, int hidden_, int rank, Device device_)
      : rows(rows_), hidden(hidden_), device(device_) {
    const auto count = static_cast<std::size_t>(rows) * static_cast<std::size_t>(hidden);
    addend = random_bf16(count, 100u + static_cast<unsigned>(rank));
    weight = random_bf16(static_cast<std::size_t>(hidden), 5);
    out.residual = random_bf16(count, 6);
    out.normed.assign(count, 0xdead);
    out.codes.assign(count, 0xcd);
    out.scales.assign(count / 128, -1.0f);
  }
  TensorView wide(std::vector<std::uint16_t>& values) {
    return view(values.data(), DType::kBF16, device, {rows, hidden});
  }
  Status run(Boundary& boundary, Stream& stream) {
    NormedRows normed;
    if (boundary.spec().want_bf16) normed.bf16 = wide(out.normed);
    if (boundary.spec().want_fp8)
      normed.fp8 = QuantView{view(out.codes.data(), DType::kE4M3, device, {rows, hidden}),
                             view(out.scales.data(), DType::kF32, device, {rows, hidden / 128}),
                             128, ScaleLayout::kRow};
    return boundary.run(PartialRows{wide(addend)}, wide(out.residual),
                        view(weight.data(), DType::kBF16, device, {hidden}), normed, stream);
  }
};

BoundarySpec spec_of(int hidden, int max_rows) {
  BoundarySpec spec;
  spec.site = "test";
  spec.hidden = hidden;
  spec.max_rows = max_rows;
  return spec;
}

BoundaryChannel::Spec channel_of(int hidden, int max_rows, bool sharded) {
  BoundaryChannel::Spec spec;
  spec.hidden = hidden;
  spec.max_rows = max_rows;
  spec.sharded_residual = sharded;
  return spec;
}

std::shared_ptr<BoundaryChannel> make_channel(Communicator& comm,
                                              const BoundaryChannel::Spec& spec) {
  auto made = BoundaryChannel::make(spec, comm);
  EXPECT_TRUE(made) << made.status().to_string();
  TENON_CHECK(static_cast<bool>(made));
  return *std::move(made);
}

// No boundary is made of this, and the reason says `text`.
void expect_refused(const BoundarySpec& spec, const std::shared_ptr<BoundaryChannel>& channel,
                    std::string_view text) {
  const auto refused = Boundary::make(spec, channel);
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.status().message().find(text), std::string_view::npos)
      << refused.status().message();
}

struct Chain {
  int stage;
  std::string variant;
};
const Chain kChains[] = {
    {1, "one_shot"}, {1, "two_shot"}, {1, "two_shot_packed"}, {2, ""}, {3, ""}};

// Outputs of rank 0 under one chain; checks that the chain is the one that ran and that all ranks
// hold the same bytes.
Outputs run_chain(const Chain& chain, Target target, int ranks, int rows, int hidden) {
  std::vector<Outputs> outputs(static_cast<std::size_t>(ranks));
  RankOptions options;
  options.target = target;
  run_ranks(ranks, options, [&](int rank, Communicator& comm) {
    auto stream = Stream::create(comm.device());
    ASSERT_TRUE(stream);
    const auto channel = make_channel(comm, channel_of(hidden, rows, false));
    BoundarySpec spec = spec_of(hidden, rows);
    spec.force_stage = static_cast<StagePolicy>(chain.stage);
    spec.force_variant = chain.variant;
    auto boundary = Boundary::make(spec, channel);
    ASSERT_TRUE(boundary) << boundary.status().to_string();
    EXPECT_EQ(static_cast<int>(boundary->stage(rows)), chain.stage);
    if (!chain.variant.empty()) {
      EXPECT_EQ(boundary->variant(rows), chain.variant);
    }
    Site site(rows, hidden, rank, comm.device());
    const Status ran = site.run(*boundary, *stream);
    ASSERT_TRUE(ran) << ran.to_string();
    std::uint64_t calls = 0;
    for (const BoundaryUse& use : boundary->uses()) calls += use.count;
    EXPECT_EQ(calls, 1u);
    outputs[static_cast<std::size_t>(rank)] = site.out;
  });
  for (const Outputs& each : outputs) EXPECT_EQ(each, outputs[0]) << "ranks differ";
  return outputs[0];
}

TEST(Boundary, StagesAgreeBitForBitOnRanksAndTargets) {
  for (const int ranks : {1, 2, 3, 8})
    for (const auto& [rows, hidden] : {std::pair{1, 128}, {3, 256}, {7, 640}}) {
      const Outputs want = run_chain(kChains[0], Target::kCpu, ranks, rows, hidden);
      for (const Target target : test::host_targets())
        for (const Chain& chain : kChains) {
          if (target != Target::kCpu && ranks == 8 && hidden > 256) continue;  // slow, no news
          if (target != Target::kCpu && chain.variant.ends_with("_packed")) continue;  // too narrow
          SCOPED_TRACE(std::string(name(target)) + " stage " + std::to_string(chain.stage) + " " +
                       chain.variant + " ranks " + std::to_string(ranks) + " rows " +
                       std::to_string(rows) + " hidden " + std::to_string(hidden));
          EXPECT_EQ(run_chain(chain, target, ranks, rows, hidden), want);
        }
    }
}

TEST(Boundary, MaxStageExcludesMoreFusedStagesWithAReason) {
  run_ranks(2, [](int, Communicator& comm) {
    const auto channel = make_channel(comm, channel_of(256, 4, true));
    BoundarySpec spec = spec_of(256, 4);
    spec.max_stage = 2;
    auto boundary = Boundary::make(spec, channel);
    ASSERT_TRUE(boundary) << boundary.status().to_string();
    EXPECT_EQ(boundary->stage(3), Stage::kTwoKernels);
    EXPECT_NE(boundary->why(3).find("max-stage 2 excludes it"), std::string_view::npos)
        << boundary->why(3);
  });
}

TEST(Boundary, AForcedStageDoesNotOverrideTheOperatorsLimit) {
  run_ranks(2, [](int, Communicator& comm) {
    const auto channel = make_channel(comm, channel_of(256, 4, true));
    BoundarySpec spec = spec_of(256, 4);
    spec.max_stage = 2;
    spec.force_stage = StagePolicy::kOneKernel;
    expect_refused(spec, channel, "stage 1 is forced, but max-stage 2 excludes it");
    spec.max_stage = 0;
    spec.force_stage = StagePolicy::kFree;
    expect_refused(spec, channel, "max_stage 0");
  });
}

TEST(Boundary, AForcedVariantThatCannotRunIsAnErrorNotAnotherStage) {
  run_ranks(2, [](int, Communicator& comm) {
    const auto channel = make_channel(comm, channel_of(256, 4, true));
    BoundarySpec spec = spec_of(256, 4);
    spec.force_variant = "three_shot";
    expect_refused(spec, channel, "\"three_shot\"");
  });
}

TEST(Boundary, TensorsThatDoNotFitTheSpecAreRefused) {
  run_ranks(2, [](int rank, Communicator& comm) {
    auto stream = Stream::create(comm.device());
    const auto channel = make_channel(comm, channel_of(256, 4, true));
    auto boundary = Boundary::make(spec_of(256, 4), channel);
    ASSERT_TRUE(boundary);
    Site narrow(2, 128, rank, comm.device());
    const Status refused = narrow.run(*boundary, *stream);
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.message().find("the addend is bf16 [2, 128]"), std::string_view::npos)
        << refused.message();
    Site site(2, 256, rank, comm.device());
    const Status no_outputs =
        boundary->run({site.wide(site.addend)}, site.wide(site.out.residual),
                      view(site.weight.data(), DType::kBF16, comm.device(), {256}), {}, *stream);
    ASSERT_FALSE(no_outputs);
    EXPECT_NE(no_outputs.message().find("outputs"), std::string_view::npos);
  });
}

TEST(Boundary, RefusesWhatItsChannelWasNotMadeFor) {
  run_ranks(2, [](int, Communicator& comm) {
    const auto channel = make_channel(comm, channel_of(256, 4, true));
    expect_refused(spec_of(512, 4), channel, "its channel was made for 4 rows of 256");
    BoundarySpec spec = spec_of(256, 4);
    spec.force_variant = "no_such";
    spec.force_stage = StagePolicy::kOneKernel;
    expect_refused(spec, channel, "no variant is called \"no_such\"");
  });
}

TEST(Boundary, ShardedResidualRefusesABoundaryThatRunsUnlikeTheOthers) {
  run_ranks(2, [](int, Communicator& comm) {
    const auto channel = make_channel(comm, channel_of(256, 4, true));
    BoundarySpec spec = spec_of(256, 4);
    spec.force_stage = StagePolicy::kOneKernel;
    ASSERT_TRUE(Boundary::make(spec, channel));
    spec.force_stage = StagePolicy::kGeneric;
    expect_refused(spec, channel, "must be alike");
  });
}

TEST(Boundary, TooManyRowsAreRefusedAndNoRowsDoNothing) {
  run_ranks(2, [](int rank, Communicator& comm) {
    auto stream = Stream::create(comm.device());
    const auto channel = make_channel(comm, channel_of(256, 4, true));
    auto boundary = Boundary::make(spec_of(256, 4), channel);
    ASSERT_TRUE(boundary);
    Site many(5, 256, rank, comm.device());
    const Status refused = many.run(*boundary, *stream);
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.message().find("5 rows were passed; it was made for at most 4"),
              std::string_view::npos)
        << refused.message();
    Site none(0, 256, rank, comm.device());
    EXPECT_TRUE(none.run(*boundary, *stream));
  });
}

TEST(Boundary, ReplaysFromAGraph) {
  for (const Chain& chain : kChains) {
    SCOPED_TRACE("stage " + std::to_string(chain.stage) + " " + chain.variant);
    const Outputs want = run_chain(chain, Target::kCpu, 2, 5, 256);
    run_ranks(2, [&](int rank, Communicator& comm) {
      auto stream = Stream::create(comm.device());
      const auto channel = make_channel(comm, channel_of(256, 5, false));
      BoundarySpec spec = spec_of(256, 5);
      spec.force_stage = static_cast<StagePolicy>(chain.stage);
      spec.force_variant = chain.variant;
      auto boundary = Boundary::make(spec, channel);
      ASSERT_TRUE(boundary);
      Site site(5, 256, rank, comm.device());
      const std::vector<std::uint16_t> residual = site.out.residual;
      ASSERT_TRUE(Graph::begin(*stream));
      ASSERT_TRUE(site.run(*boundary, *stream));
      auto graph = Graph::end(*stream);
      ASSERT_TRUE(graph);
      for (int replay = 0; replay < 10; ++replay) {
        std::copy(residual.begin(), residual.end(), site.out.residual.begin());
        ASSERT_TRUE(graph->replay(*stream));
        ASSERT_TRUE(comm.health());
        EXPECT_EQ(site.out, want) << "replay " << replay;
      }
    });
  }
}

// Its mailboxes go and come back: the same bytes before and after, a refusal in between.
TEST(Boundary, WorksAgainAfterSuspendAndResume) {
  for (const char* transport : {"threads", "shm"})
    for (const Chain& chain : kChains) {
      SCOPED_TRACE(std::string(transport) + ", stage " + std::to_string(chain.stage) + " " +
                   chain.variant);
      const Outputs want = run_chain(chain, Target::kCpu, 2, 5, 256);
      run_ranks(2, {.transport = transport}, [&](int rank, Communicator& comm) {
        auto stream = Stream::create(comm.device());
        const auto channel = make_channel(comm, channel_of(256, 5, false));
        ASSERT_TRUE(stream);
        BoundarySpec spec = spec_of(256, 5);
        spec.force_stage = static_cast<StagePolicy>(chain.stage);
        spec.force_variant = chain.variant;
        auto boundary = Boundary::make(spec, channel);
        ASSERT_TRUE(boundary);
        Site site(5, 256, rank, comm.device());
        const std::vector<std::uint16_t> residual = site.out.residual;
        for (int sleep = 0; sleep < 3; ++sleep) {
          for (int call = 0; call < 4; ++call) {
            site.out.residual = residual;
            ASSERT_TRUE(site.run(*boundary, *stream));
            ASSERT_TRUE(comm.health());
            EXPECT_EQ(site.out, want) << "call " << call;
          }
          ASSERT_TRUE(comm.suspend());
          const Status refused = site.run(*boundary, *stream);
          EXPECT_NE(refused.message().find("the communicator is suspended"), std::string_view::npos)
              << refused.to_string();
          ASSERT_TRUE(comm.resume());
        }
      });
    }
}

// Boundaries of different stages share a channel and a residual, call after call.
TEST(Boundary, MixedStagesKeepOneResidual) {
  constexpr int kRows = 6, kHidden = 256, kCalls = 40;
  const auto run_sequence = [&](bool mixed) {
    Outputs last;
    run_ranks(3, [&](int rank, Communicator& comm) {
      auto stream = Stream::create(comm.device());
      const auto channel = make_channel(comm, channel_of(kHidden, kRows, false));
      std::vector<Boundary> boundaries;
      for (const Chain& chain : kChains) {
        BoundarySpec spec = spec_of(kHidden, kRows);
        spec.force_stage = static_cast<StagePolicy>(mixed ? chain.stage : 1);
        spec.force_variant = mixed ? chain.variant : "one_shot";
        auto made = Boundary::make(spec, channel);
        ASSERT_TRUE(made) << made.status().to_string();
        boundaries.push_back(*std::move(made));
      }
      Site site(kRows, kHidden, rank, comm.device());
      for (int call = 0; call < kCalls; ++call) {
        site.rows = 1 + call % kRows;
        ASSERT_TRUE(
            site.run(boundaries[static_cast<std::size_t>(call) % boundaries.size()], *stream));
      }
      ASSERT_TRUE(comm.health());
      if (rank == 0) last = site.out;
    });
    return last;
  };
  const Outputs want = run_sequence(false);
  EXPECT_EQ(run_sequence(true), want);
}

}  // namespace
}  // namespace tenon
