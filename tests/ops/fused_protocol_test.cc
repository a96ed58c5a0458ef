// The centre piece over many calls: soaks with late ranks, replayed graphs between eager calls, and
// what happens when a rank is missing or comes with fewer rows.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <random>

#include "tenon/ops/fused_allreduce_rmsnorm_quant/fused_allreduce_rmsnorm_quant.h"
#include "tenon/reference/inputs.h"
#include "tests/support/fused_run.h"
#include "tests/support/hand_made_team.h"
#include "tests/support/patience.h"
#include "tests/support/ranks.h"
#include "tests/support/sizes.h"
#include "tests/support/targets.h"

namespace tenon {
namespace {

namespace fused = fused_allreduce_rmsnorm_quant;
using test::BoundaryTensors;
using test::FusedCase;
using test::meet;
using test::RankOptions;
using test::run_ranks;

struct Prepared {
  FusedCase call;
  std::string_view variant;
  reference::BoundaryInputs inputs;
  reference::BoundaryOutputs expected;
};

// Calls of different rows, widths, types and outputs, all in one mailbox.
std::vector<Prepared> prepare(Target target, int team, int count, int max_rows, int max_hidden) {
  constexpr ScaleLayout kLayouts[] = {ScaleLayout::kRow, ScaleLayout::kMnMajor,
                                      ScaleLayout::kUe8m0Packed};
  std::vector<Prepared> calls(static_cast<std::size_t>(count));
  // How many devices have depends on who shares them.
  const int max_blocks =
      is_host(target) ? properties(Device{target, 0})->max_cooperative_blocks : 0;
  for (int i = 0; i < count; ++i) {
    Prepared& each = calls[static_cast<std::size_t>(i)];
    reference::BoundaryCase& shape = each.call.shape;
    shape.team = team;
    shape.rows = 1 + i * 5 % max_rows;
    shape.hidden = i % 3 == 0 ? max_hidden : 64 * (1 + i % 2);
    shape.group = 32 << (i % 2);
    shape.layout = kLayouts[i % 3];
    shape.want_bf16 = i % 4 != 1;
    shape.want_fp8 = i % 4 != 2;
    shape.fp8 = i % 5 == 0 ? DType::kE4M3Fnuz : DType::kE4M3;
    each.call.spread_residual = i % 6 == 5;
    const auto able = test::variants_of(shape, target, max_blocks);
    each.variant = able[static_cast<std::size_t>(i * 7 % 10) % able.size()];
    each.inputs = reference::make_inputs(shape, static_cast<std::uint64_t>(i));
    each.expected = reference::boundary(shape, each.inputs);
  }
  return calls;
}

// The prepared calls of one rank: tensors and plans, made once.
class Runner {
 public:
  Runner(const std::vector<Prepared>& prepared, int rank, Communicator& comm)
      : prepared_(prepared), rank_(rank) {
    auto stream = Stream::create(comm.device());
    EXPECT_TRUE(stream);
    stream_.emplace(*std::move(stream));
    std::size_t bytes = 0;
    for (const Prepared& each : prepared) {
      const reference::BoundaryCase& shape = each.call.shape;
      bytes = std::max(bytes, fused::mailbox_bytes({2, shape.hidden, comm.size()}));
      tensors_.push_back(
          std::make_unique<BoundaryTensors>(shape, each.inputs, rank, comm.device(), *stream_));
      auto plan = test::plan_of(test::fused_args(each.call, *tensors_.back()), comm, each.variant);
      EXPECT_TRUE(plan);
      plans_.push_back(*plan);
    }
    auto mailbox = comm.make_channel(bytes, "boundary");
    EXPECT_TRUE(mailbox) << mailbox.status().to_string();
    mailbox_ = *std::move(mailbox);
    meet(comm);
  }

  Stream& stream() { return *stream_; }
  void reset(std::size_t i) { tensors_[i]->reset(*stream_); }
  Status enqueue(std::size_t i) {
    return fused::run(plans_[i], test::fused_args(prepared_[i].call, *tensors_[i]), mailbox_.view(),
                      *stream_);
  }
  std::string compare(std::size_t i) {
    return test::compare_fused(prepared_[i].call, *tensors_[i], prepared_[i].expected,
                               prepared_[i].variant, rank_, *stream_);
  }
  std::string run(std::size_t i) {
    reset(i);
    if (Status ran = enqueue(i); !ran) return ran.to_string();
    // Copies of ranks that share a device go through one engine: one that waits there for a kernel
    // would hold up those of the rank that the kernel waits for.
    if (Status done = stream_->synchronize(); !done) return done.to_string();
    return compare(i);
  }

 private:
  const std::vector<Prepared>& prepared_;
  const int rank_;
  std::optional<Stream> stream_;
  std::vector<std::unique_ptr<BoundaryTensors>> tensors_;
  std::vector<Plan> plans_;
  Channel mailbox_;
};

// Yields for a random while: a rank that is late without asking the clock.
void dawdle(std::mt19937& random) {
  for (std::uint32_t n = random() % 64; n > 0; --n) std::this_thread::yield();
}

void soak(Target target, int team, int calls, int max_rows, int max_hidden) {
  const std::vector<Prepared> prepared = prepare(target, team, 20, max_rows, max_hidden);
  RankOptions options;
  options.target = target;
  run_ranks(team, options, [&](int rank, Communicator& comm) {
    Runner runner(prepared, rank, comm);
    std::mt19937 order(7), own(static_cast<std::uint32_t>(rank));
    for (int n = 0; n < calls; ++n) {
      const std::size_t i = order() % prepared.size();  // the same on every rank
      if (order() % 4 == 0 && static_cast<int>(order() % static_cast<unsigned>(team)) == rank)
        dawdle(own);
      ASSERT_EQ(runner.run(i), "") << "call " << n << ", " << prepared[i].variant << " "
                                   << reference::describe(prepared[i].call.shape);
    }
    meet(comm);
  });
}

TEST(FusedProtocol, SoakOnCpuAndGpus) {
  const int calls = std::getenv("TEST_FULL") != nullptr ? 20'000 : test::size(1200, 40);
  for (Target target : test::usable_targets())
    if (!is_host(target) || target == Target::kCpu)
      for (int team : {2, 3, 4, 8}) soak(target, team, calls * 2 / team, 9, 512);
}

TEST(FusedProtocol, SoakOnEmulatedWaves) {
  for (Target target : test::host_targets())
    if (target != Target::kCpu)
      for (int team : {2, 3}) soak(target, team, 40, 7, 512);
}

// A graph of several calls, replayed between eager ones: counters live in device memory.
TEST(FusedProtocol, GraphsReplayBetweenEagerCalls) {
  for (Target target : test::usable_targets()) {
    const bool emulated = is_host(target) && target != Target::kCpu;
    const int team = 3, rounds = emulated ? 6 : test::size(60, 6);
    const std::vector<Prepared> prepared = prepare(target, team, 8, 5, 128);
    RankOptions options;
    options.target = target;
    run_ranks(team, options, [&](int rank, Communicator& comm) {
      Runner runner(prepared, rank, comm);
      ASSERT_TRUE(Graph::begin(runner.stream()));
      for (std::size_t i : {0u, 1u, 2u, 3u, 4u}) ASSERT_TRUE(runner.enqueue(i));
      auto graph = Graph::end(runner.stream());
      ASSERT_TRUE(graph);
      for (int round = 0; round < rounds; ++round) {
        for (std::size_t i : {0u, 1u, 2u, 3u, 4u}) runner.reset(i);
        ASSERT_TRUE(graph->replay(runner.stream()));
        ASSERT_TRUE(runner.stream().synchronize());
        for (std::size_t i : {0u, 1u, 2u, 3u, 4u}) ASSERT_EQ(runner.compare(i), "") << round;
        for (int eager = 0; eager < round % 3; ++eager) ASSERT_EQ(runner.run(5), "") << round;
      }
      meet(comm);
    });
  }
}

// A busy machine may take this long beyond the deadline; a wait without one would never end.
const std::chrono::milliseconds kSlack(3000 * test::kSlowdown);

bool is_named(Communicator& comm, int missing) {
  return comm.health().message().find("rank " + std::to_string(missing)) != std::string_view::npos;
}

// Every rank but one calls; each of them ends within the deadline and names the missing one, also
// where it waited for another that waited for the missing one itself.
TEST(FusedProtocol, MissingRankIsNamed) {
  struct Way {
    Target target;
    const char* variant;
    int hidden;
  };
  std::vector<Way> ways;
  for (const char* variant : {"one_shot", "one_shot_packed", "two_shot", "two_shot_packed"})
    ways.push_back({Target::kCpu, variant, 128});
  if (backend(Target::kEmu32)) ways.push_back({Target::kEmu32, "one_shot_split", 512});
  for (const auto& [target, variant, hidden] : ways) {
    for (int team : {2, 4}) {
      std::vector<Prepared> prepared = prepare(target, team, 1, 1, hidden);
      prepared[0].variant = variant;
      RankOptions options;
      options.target = target;
      options.deadline = std::chrono::milliseconds(700);
      options.expect_healthy = false;
      std::atomic<int> done = 0, named = 0;
      run_ranks(team, options, [&](int rank, Communicator& comm) {
        Runner runner(prepared, rank, comm);
        const int missing = team - 1;
        test::meet(comm);  // who begins much later than others is waited for too
        if (rank != missing) {
          const auto begin = std::chrono::steady_clock::now();
          runner.run(0);
          const auto first = std::chrono::steady_clock::now();
          EXPECT_LT(first - begin, options.deadline + kSlack);
          EXPECT_FALSE(comm.health());
          named += is_named(comm, missing);
          EXPECT_TRUE(is_named(comm, missing)) << comm.health().to_string();
          const auto again = std::chrono::steady_clock::now();
          runner.run(0);  // later calls wait for nothing; a busy machine gets most of a deadline
          EXPECT_LT(std::chrono::steady_clock::now() - again,
                    std::chrono::milliseconds(600 * test::kSlowdown));
          ++done;
        }
        while (done < team - 1) std::this_thread::yield();  // keeps its memory until all are done
      });
      EXPECT_EQ(named, team - 1) << variant << " " << team;
    }
  }
}

// A rank with one row fewer: the others find that row missing, and whose.
// One rank comes with other rows, in whatever variant these take: no rank ends healthy, and those
// that met it say so. Words of such a call may lie where this one's are awaited.
TEST(FusedProtocol, RankWithOtherRowsIsNamed) {
  const int team = 3;
  struct Choice {
    std::string_view variant;
    int rows;
  };
  const auto of = [&](const Choice& choice) {
    std::vector<Prepared> made = prepare(Target::kCpu, team, 1, 1, 128);
    made[0].variant = choice.variant;
    made[0].call.shape.rows = choice.rows;
    made[0].inputs = reference::make_inputs(made[0].call.shape, 0);
    made[0].expected = reference::boundary(made[0].call.shape, made[0].inputs);
    return made;
  };
  constexpr Choice kChoices[] = {{"one_shot", 3},        {"one_shot", 5}, {"one_shot_packed", 3},
                                 {"one_shot_packed", 4}, {"two_shot", 3}, {"two_shot", 40},
                                 {"two_shot_packed", 5}, {"two_shot", 2}};
  for (const Choice& usual : kChoices) {
    for (const Choice& odd : kChoices) {
      if (usual.variant == odd.variant && usual.rows == odd.rows) continue;
      const std::vector<Prepared> whole = of(usual), other = of(odd);
      RankOptions options;
      options.deadline = std::chrono::milliseconds(200);
      options.expect_healthy = false;
      std::atomic<int> done = 0;
      run_ranks(team, options, [&](int rank, Communicator& comm) {
        Runner runner(rank == 1 ? other : whole, rank, comm);
        const auto begin = std::chrono::steady_clock::now();
        runner.run(0);
        EXPECT_LT(std::chrono::steady_clock::now() - begin, options.deadline + kSlack);
        ++done;
        while (done < team) std::this_thread::yield();
        EXPECT_FALSE(comm.health()) << usual.variant << " " << usual.rows << ", rank 1 "
                                    << odd.variant << " " << odd.rows << ", rank " << rank;
        EXPECT_TRUE(is_named(comm, rank == 1 ? 0 : 1) || is_named(comm, rank == 1 ? 2 : 1))
            << comm.health().to_string();
      });
    }
  }
}

// Where the first words are in place, nobody waits for the deadline.
TEST(FusedProtocol, OtherRowsAreFoundOutAtOnce) {
  std::vector<Prepared> few = prepare(Target::kCpu, 2, 1, 1, 128);
  few[0].variant = "one_shot";
  few[0].call.shape.rows = 3;
  std::vector<Prepared> many = few;
  many[0].call.shape.rows = 7;
  for (std::vector<Prepared>* each : {&few, &many}) {
    (*each)[0].inputs = reference::make_inputs((*each)[0].call.shape, 0);
    (*each)[0].expected = reference::boundary((*each)[0].call.shape, (*each)[0].inputs);
  }
  RankOptions options;
  options.deadline = std::chrono::milliseconds(60'000);
  options.expect_healthy = false;
  std::atomic<int> done = 0;
  run_ranks(2, options, [&](int rank, Communicator& comm) {
    Runner runner(rank == 1 ? many : few, rank, comm);
    const auto begin = std::chrono::steady_clock::now();
    runner.run(0);
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(20'000));
    if (rank == 0) {
      EXPECT_EQ(comm.health().code(), Code::kInvalidArgument) << comm.health().to_string();
      EXPECT_NE(comm.health().message().find("rank 1 came with a call of 7 rows"),
                std::string_view::npos)
          << comm.health().to_string();
    } else {
      EXPECT_FALSE(comm.health());
    }
    ++done;
    while (done < 2) std::this_thread::yield();
  });
}

using Bytes = std::vector<std::byte>;

// What rank `rank` of two leaves in its peer's mailbox when it calls alone and its own mailbox
// holds only `arrived`, which its peer left in the same way. The wait for the rest ends in `fault`.
Bytes sent_alone(Target target, const Prepared& call, int rank, const Bytes& arrived,
                 FaultRecord& fault) {
  const reference::BoundaryCase& shape = call.call.shape;
  const Device device{target, 0};
  const test::HandMadeTeam team(2, fused::mailbox_bytes({shape.rows, shape.hidden, 2}), 50'000'000);
  const ChannelView& view = team.view(rank);
  EXPECT_LE(arrived.size(), view.bytes);
  std::copy(arrived.begin(), arrived.end(), view.base[rank]);
  auto stream = Stream::create(device);
  auto where = plan_context(device);
  EXPECT_TRUE(stream && where);
  where->team_size = 2;
  where->peer_pointers = true;
  where->properties.max_cooperative_blocks = view.max_blocks;
  const BoundaryTensors tensors(shape, call.inputs, rank, device, *stream);
  const fused::Args args = test::fused_args(call.call, tensors);
  const auto plan = fused::plan(args, *where, call.variant);
  EXPECT_TRUE(plan) << plan.status().to_string();
  const Status ran = fused::run(*plan, args, view, *stream);
  EXPECT_TRUE(ran) << ran.to_string();
  EXPECT_TRUE(stream->synchronize());
  fault = team.fault(rank);
  return {view.base[1 - rank], view.base[1 - rank] + view.bytes};
}

// Takes the last word of a part back: the last in the slots, behind which the notes lie.
void take_back_last_word(Bytes& mailbox) {
  for (std::size_t at = kNumSlots * slot_bytes(mailbox.size()); at >= 4; at -= 4) {
    std::uint32_t word = 0;
    std::memcpy(&word, &mailbox[at - 4], 4);
    if (word == kNotArrived) continue;
    std::memset(&mailbox[at - 4], 0xff, 4);
    return;
  }
  ADD_FAILURE() << "nothing has been sent";
}

// One thread of the owner's block misses a word of a row; those that send the codes miss nothing.
// They must send nothing either: else the peer would take a wrong row and stay healthy.
TEST(FusedProtocol, ResultOfARowThatOneThreadLostIsNotSent) {
  for (Target target : test::host_targets()) {
    for (const char* variant : {"two_shot", "two_shot_packed"}) {
      SCOPED_TRACE(test::to_string(target) + ", " + variant);
      Prepared call{};
      reference::BoundaryCase& shape = call.call.shape;
      shape.rows = 2;
      shape.hidden = 1024;  // two waves or more; codes and scales are 66 vectors, of 128 threads
      shape.want_bf16 = false;
      call.variant = variant;
      call.inputs = reference::make_inputs(shape, 1, true);
      FaultRecord fault{};
      Bytes arrived = sent_alone(target, call, 1, {}, fault);
      const Bytes parts = sent_alone(target, call, 0, {}, fault);
      EXPECT_FALSE(sent_alone(target, call, 0, arrived, fault) == parts)
          << "the result is not seen";
      EXPECT_EQ(fault.phase, static_cast<std::uint32_t>(Phase::kGather));
      take_back_last_word(arrived);
      EXPECT_TRUE(sent_alone(target, call, 0, arrived, fault) == parts) << "a result was sent";
      EXPECT_EQ(fault.phase, static_cast<std::uint32_t>(Phase::kScatter));
      EXPECT_EQ(fault.reason, static_cast<std::uint32_t>(FaultReason::kDeadline));
    }
  }
}

}  // namespace
}  // namespace tenon
