// Recorded steps: what is recorded when, and that a model's tokens, logits and counts are the same
// from a recording as without one.
#include "tenon/runtime/graph_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "tenon/runtime/engine.h"
#include "tests/support/operator_new.h"
#include "tests/support/small_model.h"
#include "tests/support/targets.h"

namespace tenon {
namespace {

using test::OnDisk;
using test::prompt;
using Tokens = std::vector<std::int32_t>;

constexpr StepShape kDecode{4, 4, 4, true}, kOther{2, 2, 2, true}, kPrefill{9, 2, 2, false};

// Work that counts how often it was enqueued and how often it ran.
struct CountedWork {
  explicit CountedWork(Target target) : stream(*Stream::create({target, 0})) {}
  Status enqueue() {
    ++enqueued;
    return stream.host_call([](void* count) { ++*static_cast<int*>(count); }, &ran);
  }
  void run(GraphCache& graphs, const StepShape& shape) {
    const Status status = graphs.run(shape, stream, [this] { return enqueue(); });
    EXPECT_TRUE(status) << status.to_string();
  }
  Stream stream;
  int enqueued = 0, ran = 0;
};

TEST(GraphCache, RecordsAShapeWhenItComesAgain) {
  for (const Target target : test::host_targets()) {
    CountedWork work(target);
    GraphCache graphs(true);
    for (int step = 1; step <= 6; ++step) {
      work.run(graphs, kDecode);
      EXPECT_EQ(work.ran, step);
      EXPECT_EQ(work.enqueued, std::min(step, 2));
    }
    EXPECT_EQ(graphs.num_replays(), 5);
    work.run(graphs, kOther);  // a shape of its own
    EXPECT_EQ(work.enqueued, 3);
    EXPECT_EQ(graphs.num_replays(), 5);
  }
}

TEST(GraphCache, PromptsRunAsTheyAre) {
  CountedWork work(Target::kCpu);
  GraphCache graphs(true), off(false);
  for (int step = 0; step < 3; ++step) work.run(graphs, kPrefill);
  for (int step = 0; step < 3; ++step) work.run(off, kDecode);
  EXPECT_EQ(work.enqueued, 6);
  EXPECT_EQ(work.ran, 6);
  EXPECT_EQ(graphs.num_replays() + off.num_replays(), 0);
}

// A failure while recording ends the recording; the stream works on.
TEST(GraphCache, AFailureEndsTheRecording) {
  CountedWork work(Target::kCpu);
  GraphCache graphs(true);
  work.run(graphs, kDecode);
  const auto fail = [&]() -> Status {
    TENON_TRY(work.enqueue());
    return Status::error(Code::kInternal, "no more");
  };
  EXPECT_EQ(graphs.run(kDecode, work.stream, fail).message(), "no more");
  const auto throws = [&]() -> Status { throw std::bad_alloc(); };
  EXPECT_EQ(graphs.run(kDecode, work.stream, throws).code(), Code::kOutOfMemory);
  EXPECT_FALSE(work.stream.capturing());
  EXPECT_EQ(work.ran, 1);
  work.run(graphs, kDecode);
  EXPECT_EQ(work.ran, 2);
}

// Where nothing can be recorded, here because somebody else records already, steps run as they are.
TEST(GraphCache, GivesUpWhereRecordingIsRefused) {
  CountedWork work(Target::kCpu);
  GraphCache graphs(true);
  ASSERT_TRUE(Graph::begin(work.stream));
  for (int step = 0; step < 2; ++step) work.run(graphs, kDecode);
  auto whole = Graph::end(work.stream);
  ASSERT_TRUE(whole);
  EXPECT_EQ(work.ran, 0);
  ASSERT_TRUE(whole->replay(work.stream));
  EXPECT_EQ(work.ran, 2);
  work.run(graphs, kDecode);
  EXPECT_EQ(work.enqueued, 3);
  EXPECT_EQ(graphs.num_replays(), 0);
}

// --- engines --------------------------------------------------------------------------------

// Everything that can be seen of a run of several requests, some of which end early.
struct Seen {
  std::map<std::uint64_t, Tokens> tokens;
  std::vector<std::uint64_t> fingerprints;  // of every step
  std::map<std::string, std::uint64_t> boundaries;
  std::int64_t steps = 0, replayed = 0;
};

Seen run_requests(const EngineOptions& options, int requests) {
  Seen seen;
  auto engine = Engine::open(options);
  EXPECT_TRUE(engine) << engine.status().to_string();
  if (!engine) return seen;
  for (int i = 0; i < requests; ++i) {
    SamplingParams sampling;
    sampling.max_tokens = 4 + 3 * i;
    sampling.ignore_eos = true;
    sampling.temperature = i % 2 == 0 ? 0.0f : 0.8f;
    sampling.seed = static_cast<std::uint64_t>(i);
    EXPECT_TRUE((*engine)->submit(prompt(1 + 5 * i, i), sampling));
  }
  while (!(*engine)->idle()) {
    const auto events = (*engine)->step();
    EXPECT_TRUE(events) << events.status().to_string();
    if (!events) return seen;
    for (const TokenEvent& event : *events)
      seen.tokens[static_cast<std::uint64_t>(event.id)].push_back(event.token);
    seen.fingerprints.push_back((*engine)->stats().logits_fingerprint);
  }
  const EngineStats stats = (*engine)->stats();
  for (const BoundaryUse& use : stats.boundaries)
    seen.boundaries[use.site + " of " + std::to_string(use.max_rows)] += use.count;
  seen.steps = stats.steps;
  seen.replayed = stats.replayed_steps;
  return seen;
}

EngineOptions small_engine(const OnDisk& files, Target target, int tp) {
  EngineOptions options;
  options.model = files.where();
  options.tp = tp;
  options.target = target;
  options.max_batch = 5;  // padded decode steps have 1 to 5 sequences: all are exact
  options.max_context = 64;
  options.max_tokens_per_step = 80;
  options.run_ahead = RunAhead::kNever;  // the logits of every step are looked at
  return options;
}

// Targets alone; teams on the cpu target, and where each rank has a GPU of its own.
std::vector<std::pair<Target, int>> places() {
  std::vector<std::pair<Target, int>> found;
  for (const Target target : test::usable_targets()) {
    if (target == Target::kEmu64) continue;  // emu32 tells as much, and emulation is slow
    found.emplace_back(target, 1);
    const int devices = is_host(target) ? 0 : *(*backend(target))->num_devices();
    if (target == Target::kCpu || devices >= 2) found.emplace_back(target, 2);
  }
  return found;
}

TEST(GraphCache, ReplaysChangeNothing) {
  const OnDisk moe(test::moe_shape());
  for (const auto& [target, tp] : places()) {
    SCOPED_TRACE(std::string(name(target)) + ", " + std::to_string(tp) + " ranks");
    EngineOptions options = small_engine(moe, target, tp);
    const int requests = target == Target::kEmu32 ? 3 : 6;
    const Seen replayed = run_requests(options, requests);
    EXPECT_NE(replayed.fingerprints.back(), 0u);
    options.graphs = false;
    const Seen eager = run_requests(options, requests);
    EXPECT_GT(replayed.replayed, replayed.steps / 3);
    EXPECT_EQ(eager.replayed, 0);
    EXPECT_EQ(replayed.steps, eager.steps);
    EXPECT_EQ(replayed.tokens, eager.tokens);
    EXPECT_EQ(replayed.fingerprints, eager.fingerprints);
    EXPECT_EQ(replayed.boundaries, eager.boundaries);
    std::uint64_t boundaries = 0;
    for (const auto& [site, count] : eager.boundaries) boundaries += count;
    EXPECT_EQ(boundaries, static_cast<std::uint64_t>(eager.steps) * (2 * 4 + 1));
    EXPECT_EQ(eager.tokens.size(), static_cast<std::size_t>(requests));
    EXPECT_EQ(eager.tokens.at(3).size(), 10u);
  }
}

// With more than eight sequences decode steps have padding; alone, none.
TEST(GraphCache, PaddingChangesNoToken) {
  const OnDisk dense(test::dense_shape());
  EngineOptions options = small_engine(dense, Target::kCpu, 2);
  options.max_batch = 16;
  auto engine = Engine::open(options);
  ASSERT_TRUE(engine) << engine.status().to_string();
  SamplingParams sampling;
  sampling.max_tokens = 8;
  sampling.ignore_eos = true;
  const auto answers = [&](const std::vector<Tokens>& prompts) {
    std::map<std::uint64_t, Tokens> by_id;
    std::vector<Tokens> made;
    for (const Tokens& ids : prompts)
      by_id[static_cast<std::uint64_t>(*(*engine)->submit(ids, sampling))];
    while (!(*engine)->idle()) {
      const auto events = (*engine)->step();
      EXPECT_TRUE(events) << events.status().to_string();
      if (!events) break;
      for (const TokenEvent& event : *events)
        by_id[static_cast<std::uint64_t>(event.id)].push_back(event.token);
    }
    for (const auto& [id, tokens] : by_id) made.push_back(tokens);
    return made;
  };
  std::vector<Tokens> prompts;
  for (int i = 0; i < 9; ++i) prompts.push_back(prompt(3 + i, i));
  const std::vector<Tokens> together = answers(prompts);
  for (std::size_t i = 0; i < prompts.size(); ++i)
    EXPECT_EQ(answers({prompts[i]}).at(0), together.at(i)) << "sequence " << i;
}

// A replayed step allocates what the engine's events need, and nothing else.
TEST(GraphCache, AReplayedStepAllocatesOnlyItsEvents) {
  const OnDisk dense(test::dense_shape());
  auto engine = Engine::open(small_engine(dense, Target::kCpu, 2));
  ASSERT_TRUE(engine) << engine.status().to_string();
  SamplingParams sampling;
  sampling.max_tokens = 40;
  sampling.ignore_eos = true;
  ASSERT_TRUE((*engine)->submit(prompt(4, 1), sampling));
  for (int step = 0; step < 5; ++step) ASSERT_TRUE((*engine)->step());
  const std::int64_t before = test::num_allocations.load();
  constexpr int kSteps = 20;
  for (int step = 0; step < kSteps; ++step) ASSERT_TRUE((*engine)->step());
  EXPECT_EQ(test::num_allocations.load() - before, kSteps);
  EXPECT_GT((*engine)->stats().replayed_steps, kSteps);
}

}  // namespace
}  // namespace tenon
