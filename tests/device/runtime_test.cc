// The host side: streams, launches and the pool behind them, memory, graphs, events.
#include "tests/device/runtime_test.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <thread>
#include <vector>

#define TENON_TEST_SPACE runtime_test
#include "tests/support/kernels.inc"
#include "tests/support/operator_new.h"

namespace tenon {
namespace {

using runtime_test::AddArgs;
using runtime_test::Args;
using runtime_test::kernels;
using runtime_test::SharedArgs;
using runtime_test::WhereArgs;

LaunchShape shape_of(Target target, int blocks, bool cooperative = false) {
  LaunchShape shape;
  shape.blocks = blocks;
  shape.threads = test::wave_of(target);
  shape.cooperative = cooperative;
  return shape;
}

Stream stream_on(Target target) {
  auto stream = Stream::create({target, 0});
  EXPECT_TRUE(stream) << stream.status().to_string();
  return *std::move(stream);
}

TEST(Backend, BuiltTargetsAreThereAndOthersSayWhyNot) {
  const std::vector<Target> built = built_targets();
  for (int i = 0; i < kNumTargets; ++i) {
    const auto target = static_cast<Target>(i);
    const bool is_built = std::find(built.begin(), built.end(), target) != built.end();
    const auto found = backend(target);
    EXPECT_EQ(static_cast<bool>(found), is_built) << name(target);
    if (is_built) continue;
    EXPECT_EQ(found.status().code(), Code::kUnsupported);
    EXPECT_EQ(found.status().message(),
              "target " + std::string(name(target)) + " is not part of this build");
  }
}

TEST(Backend, DevicesOutOfRangeAreNamed) {
  for (Target target : test::host_targets()) {
    EXPECT_TRUE(properties({target, 7}));
    const Status status = Stream::create({target, 8}).status();
    EXPECT_EQ(status.code(), Code::kInvalidArgument);
    EXPECT_NE(status.message().find(test::to_string(target) + ":8"), std::string::npos);
    EXPECT_FALSE(properties({target, -1}));
  }
}

TEST(Backend, PropertiesFitTheTarget) {
  for (Target target : test::host_targets()) {
    const auto found = properties({target, 0});
    ASSERT_TRUE(found);
    EXPECT_GE(found->num_units, 1);
    EXPECT_EQ(found->max_threads_per_block, target == Target::kCpu ? 1 : 1024);
    EXPECT_GE(found->max_cooperative_blocks, 1);
    EXPECT_GE(found->max_shared_bytes, 64u * 1024u);
    EXPECT_GT(found->total_bytes, 1u << 28);
  }
}

TEST(Launch, EveryBlockRunsOnceWithAnyNumberOfThreads) {
  for (Target target : test::host_targets()) {
    for (int threads : {1, 2, 3, 7}) {
      set_cpu_threads(threads);
      Stream stream = stream_on(target);
      for (int blocks : {0, 1, 2, 3, 5, 16, 100}) {
        for (std::uint64_t spin_ns : {0u, 2000u}) {
          SCOPED_TRACE(test::to_string(target) + " blocks " + std::to_string(blocks));
          std::vector<std::uint32_t> runs(101), seen(101);
          for (std::uint32_t repeat = 1; repeat <= 3; ++repeat) {
            const Status status = launch(stream, shape_of(target, blocks), kernels(target).count,
                                         Args{runs.data(), seen.data(), spin_ns});
            ASSERT_TRUE(status) << status.to_string();
            for (std::size_t i = 0; i < runs.size(); ++i) {
              const bool in_grid = i < static_cast<std::size_t>(blocks);
              ASSERT_EQ(runs[i], in_grid ? repeat : 0u) << i;
              ASSERT_EQ(seen[i], in_grid ? static_cast<std::uint32_t>(blocks) : 0u) << i;
            }
          }
        }
      }
    }
  }
  set_cpu_threads(0);
}

// Which OS threads ran the blocks of a launch, told by where their stacks are.
std::size_t num_stacks(Stream& stream, const LaunchShape& shape) {
  static constexpr std::uintptr_t kApart = 256 * 1024;
  std::vector<std::uintptr_t> stacks(static_cast<std::size_t>(shape.blocks));
  EXPECT_TRUE(
      launch(stream, shape, kernels(Target::kCpu).where, WhereArgs{stacks.data(), 200'000}));
  std::sort(stacks.begin(), stacks.end());
  std::size_t found = 1;
  for (std::size_t i = 1; i < stacks.size(); ++i) found += stacks[i] - stacks[i - 1] > kApart;
  return found;
}

TEST(Launch, PlainBlocksAreSharedAndCooperativeOnesAreNot) {
  const std::vector<Target> targets = test::host_targets();
  if (std::find(targets.begin(), targets.end(), Target::kCpu) == targets.end())
    GTEST_SKIP() << "the cpu target is not built, or not wanted";
  set_cpu_threads(2);
  Stream two = stream_on(Target::kCpu);
  std::size_t most = 1;  // a busy machine may be late with the second thread: not every time
  for (int repeat = 0; repeat < 500 && most < 2; ++repeat)
    most = num_stacks(two, shape_of(Target::kCpu, 8));
  EXPECT_EQ(most, 2u);
  EXPECT_EQ(num_stacks(two, shape_of(Target::kCpu, 8, true)), 1u);
  set_cpu_threads(1);
  Stream one = stream_on(Target::kCpu);
  EXPECT_EQ(num_stacks(one, shape_of(Target::kCpu, 8)), 1u);
  set_cpu_threads(0);
}

TEST(Launch, StreamsOfOneThreadMayBeUsedByTwo) {
  for (Target target : test::host_targets()) {
    set_cpu_threads(2);
    Stream first = stream_on(target), second = stream_on(target);
    const auto work = [&](Stream& stream) {
      std::vector<std::uint32_t> values(1000, 1);
      for (int i = 0; i < 50; ++i)
        ASSERT_TRUE(launch(stream, shape_of(target, 8), kernels(target).affine,
                           AddArgs{values.data(), 1000, 1, 1}));
      for (std::uint32_t each : values) ASSERT_EQ(each, 51u);
    };
    std::thread other([&] { work(second); });
    work(first);
    other.join();
  }
  set_cpu_threads(0);
}

TEST(Launch, DynamicSharedMemoryBelongsToTheBlock) {
  for (Target target : test::host_targets()) {
    set_cpu_threads(2);
    Stream stream = stream_on(target);
    for (int words : {1, 64, 4096}) {
      LaunchShape shape = shape_of(target, 6);
      shape.shared_bytes = static_cast<std::size_t>(words) * 4;
      std::vector<std::uint32_t> out(6);
      ASSERT_TRUE(launch(stream, shape, kernels(target).shared, SharedArgs{out.data(), words}));
      for (std::size_t i = 0; i < 6; ++i)
        ASSERT_EQ(out[i], static_cast<std::uint32_t>(words) * (static_cast<std::uint32_t>(i) + 1));
    }
  }
  set_cpu_threads(0);
}

// The vendors keep what a kernel may ask for as one number per device.
TEST(Launch, ThreadsMayAskForDifferentSharedMemoryOfOneKernel) {
  for (Target target : test::usable_targets()) {
    const auto work = [target](int words) {
      Stream stream = stream_on(target);
      auto out = Buffer::allocate(stream.device(), 4);
      ASSERT_TRUE(out) << out.status().to_string();
      LaunchShape shape = shape_of(target, 1);
      shape.shared_bytes = static_cast<std::size_t>(words) * 4;
      for (int i = 0; i < 200; ++i) {
        const Status done = launch(stream, shape, kernels(target).shared,
                                   SharedArgs{static_cast<std::uint32_t*>(out->data()), words});
        ASSERT_TRUE(done) << name(target) << ", launch " << i << ": " << done.to_string();
      }
      std::uint32_t sum = 0;
      ASSERT_TRUE(stream.copy(&sum, out->data(), 4));
      ASSERT_TRUE(stream.synchronize());
      EXPECT_EQ(sum, static_cast<std::uint32_t>(words));
    };
    std::thread other([&] { work(13 * 1024); });
    work(15 * 1024);
    other.join();
  }
}

TEST(Launch, AllocatesNothingOnceWarm) {
  for (Target target : test::host_targets()) {
    for (int threads : {1, 2}) {
      set_cpu_threads(threads);
      Stream stream = stream_on(target);
      std::vector<std::uint32_t> values(1000, 1), out(6);
      LaunchShape with_shared = shape_of(target, 6);
      with_shared.shared_bytes = 4096;
      const auto step = [&] {
        Status status = launch(stream, shape_of(target, 6), kernels(target).affine,
                               AddArgs{values.data(), 1000, 1, 1});
        if (status)
          status = launch(stream, with_shared, kernels(target).shared, SharedArgs{out.data(), 64});
        if (status) status = stream.fill(values.data(), 0, 400);
        if (status) status = stream.copy(values.data(), values.data() + 100, 400);
        return static_cast<bool>(status);
      };
      // A worker may sleep through the first launches and warm up later: let both take part.
      for (int i = 0; i < 200; ++i) ASSERT_TRUE(step());
      const long before = test::num_allocations;
      bool ok = true;
      for (int i = 0; i < 20; ++i) ok &= step();
      const long made = test::num_allocations - before;
      ASSERT_TRUE(ok);
      EXPECT_LE(made, threads == 1 ? 0 : 1) << test::to_string(target);
    }
  }
  set_cpu_threads(0);
}

TEST(Buffer, IsAlignedMovesAndRefusesTheImpossible) {
  for (Target target : test::host_targets()) {
    auto buffer = Buffer::allocate({target, 0}, 1000);
    ASSERT_TRUE(buffer);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer->data()) % 256, 0u);
    EXPECT_EQ(buffer->bytes(), 1000u);
    void* data = buffer->data();
    Buffer moved = *std::move(buffer);
    EXPECT_EQ(moved.data(), data);
    Buffer other;
    other = std::move(moved);
    EXPECT_EQ(other.data(), data);
    const auto empty = Buffer::allocate({target, 0}, 0);
    ASSERT_TRUE(empty);
    EXPECT_EQ(empty->data(), nullptr);
    const Status refused = Buffer::allocate({target, 0}, ~std::size_t{0} - 10).status();
    EXPECT_EQ(refused.code(), Code::kOutOfMemory);
  }
}

TEST(Stream, CopiesFillsAndCallsTheHostInOrder) {
  for (Target target : test::host_targets()) {
    Stream stream = stream_on(target);
    std::vector<std::uint32_t> values(100), copied(100);
    ASSERT_TRUE(stream.fill(values.data(), 1, 400));
    ASSERT_TRUE(launch(stream, shape_of(target, 2), kernels(target).affine,
                       AddArgs{values.data(), 100, 5, 1}));
    ASSERT_TRUE(stream.copy(copied.data(), values.data(), 400));
    ASSERT_TRUE(stream.host_call(
        [](void* data) { static_cast<std::vector<std::uint32_t>*>(data)->at(0) += 1; }, &copied));
    ASSERT_TRUE(stream.synchronize());
    EXPECT_EQ(copied[0], 0x01010107u);
    EXPECT_EQ(copied[99], 0x01010106u);
    ASSERT_TRUE(stream.copy(nullptr, nullptr, 0));
  }
}

TEST(Graph, RecordsAndReplays) {
  for (Target target : test::host_targets()) {
    Stream stream = stream_on(target);
    std::vector<std::uint32_t> values(64, 1);
    int host_calls = 0;
    ASSERT_TRUE(Graph::begin(stream));
    EXPECT_TRUE(stream.capturing());
    {
      AddArgs args{values.data(), 64, 3, 2};  // copied by the graph
      ASSERT_TRUE(launch(stream, shape_of(target, 2), kernels(target).affine, args));
      args.add = 1000;
    }
    ASSERT_TRUE(launch(stream, shape_of(target, 1, true), kernels(target).affine,
                       AddArgs{values.data(), 64, 1, 1}));
    ASSERT_TRUE(stream.host_call([](void* calls) { ++*static_cast<int*>(calls); }, &host_calls));
    EXPECT_EQ(values[0], 1u) << "nothing runs while it is recorded";
    auto graph = Graph::end(stream);
    ASSERT_TRUE(graph);
    EXPECT_FALSE(stream.capturing());
    EXPECT_EQ(host_calls, 0);
    Graph moved = *std::move(graph);
    std::uint32_t expected = 1;
    for (int i = 1; i <= 5; ++i) {
      ASSERT_TRUE(moved.replay(stream));
      ASSERT_TRUE(stream.synchronize());
      expected = expected * 2 + 4;
      for (std::uint32_t each : values) ASSERT_EQ(each, expected);
      EXPECT_EQ(host_calls, i);
    }
  }
}

TEST(Graph, MisuseIsAnErrorAndHarmless) {
  for (Target target : test::host_targets()) {
    Stream stream = stream_on(target);
    EXPECT_EQ(Graph::end(stream).status().code(), Code::kInvalidArgument);
    ASSERT_TRUE(Graph::begin(stream));
    EXPECT_EQ(Graph::begin(stream).code(), Code::kInvalidArgument);
    EXPECT_EQ(stream.synchronize().code(), Code::kInvalidArgument);
    auto graph = Graph::end(stream);
    ASSERT_TRUE(graph);
    EXPECT_TRUE(graph->replay(stream));
    ASSERT_TRUE(Graph::begin(stream));
    EXPECT_EQ(graph->replay(stream).code(), Code::kInvalidArgument);
    EXPECT_TRUE(Graph::end(stream));
  }
}

TEST(Graph, ReplayReportsWhatFailed) {
  for (Target target : test::host_targets()) {
    if (target == Target::kCpu) continue;  // takes every shape
    Stream stream = stream_on(target);
    std::vector<std::uint32_t> values(64, 1);
    ASSERT_TRUE(Graph::begin(stream));
    LaunchShape bad = shape_of(target, 1);
    bad.threads = 7;
    ASSERT_TRUE(launch(stream, bad, kernels(target).affine, AddArgs{values.data(), 64, 3, 2}));
    auto graph = Graph::end(stream);
    ASSERT_TRUE(graph);
    EXPECT_EQ(graph->replay(stream).code(), Code::kInvalidArgument);
  }
}

TEST(Event, MeasuresTheWorkBetween) {
  for (Target target : test::host_targets()) {
    Stream stream = stream_on(target);
    auto begin = Event::create({target, 0}), end = Event::create({target, 0});
    ASSERT_TRUE(begin && end);
    std::vector<std::uint32_t> runs(1), seen(1);
    const auto enqueue = [&] {
      return begin->record(stream) &&
             launch(stream, shape_of(target, 1), kernels(target).count,
                    Args{runs.data(), seen.data(), 2'000'000}) &&
             end->record(stream);
    };
    ASSERT_TRUE(enqueue());
    const auto passed = end->us_since(*begin);
    ASSERT_TRUE(passed);
    EXPECT_GE(*passed, 2000.0);
    EXPECT_LT(*passed, 5e6);
    ASSERT_TRUE(Graph::begin(stream));
    ASSERT_TRUE(enqueue());
    auto graph = Graph::end(stream);
    ASSERT_TRUE(graph);
    ASSERT_TRUE(graph->replay(stream));
    const auto replayed = end->us_since(*begin);
    ASSERT_TRUE(replayed);
    EXPECT_GE(*replayed, 2000.0);
  }
}

TEST(HostBuffer, IsMemoryThatStreamsCopyFromAndTo) {
  for (Target target : test::usable_targets()) {
    SCOPED_TRACE(test::to_string(target));
    Stream stream = stream_on(target);
    constexpr std::size_t kBytes = 5000;  // no whole page
    auto sent = HostBuffer::allocate(stream.device(), kBytes);
    auto got = HostBuffer::allocate(stream.device(), kBytes);
    auto between = Buffer::allocate(stream.device(), kBytes);
    ASSERT_TRUE(sent && got && between) << sent.status().to_string();
    ASSERT_EQ(sent->bytes().size(), kBytes);
    for (const std::byte each : sent->bytes()) ASSERT_EQ(each, std::byte{0});
    for (std::size_t i = 0; i < kBytes; ++i) sent->bytes()[i] = static_cast<std::byte>(i % 251);
    ASSERT_TRUE(stream.copy(between->data(), sent->bytes().data(), kBytes));
    const HostBuffer moved = std::move(*got);
    ASSERT_TRUE(stream.copy(moved.bytes().data(), between->data(), kBytes));
    ASSERT_TRUE(stream.synchronize());
    EXPECT_TRUE(std::equal(moved.bytes().begin(), moved.bytes().end(), sent->bytes().begin()));
  }
  EXPECT_TRUE(HostBuffer::allocate(Device{}, 0)->bytes().empty());
}

}  // namespace
}  // namespace tenon
