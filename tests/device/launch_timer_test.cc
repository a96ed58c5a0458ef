// Each launch of a stream is timed by itself, run at once or from a recording.
#include "tenon/device/launch_timer.h"

#include <gtest/gtest.h>

#include "tests/support/targets.h"

namespace tenon {
namespace {

struct Bench {
  explicit Bench(Target target) {
    auto made = Stream::create({target, 0});
    EXPECT_TRUE(made) << made.status().to_string();
    stream.emplace(*std::move(made));
    auto memory = Buffer::allocate(stream->device(), kBytes);
    EXPECT_TRUE(memory) << memory.status().to_string();
    buffer = *std::move(memory);
  }
  Status work() {
    LaunchTimer::name_section("first");
    TENON_TRY(stream->fill(buffer.data(), 1, kBytes));
    LaunchTimer::name_section("second");
    TENON_TRY(stream->copy(buffer.data(), buffer.as<std::byte>() + kBytes / 2, kBytes / 2));
    return stream->fill(buffer.data(), 2, 16);
  }
  static constexpr std::size_t kBytes = std::size_t{1} << 24;
  std::optional<Stream> stream;
  Buffer buffer;
};

void expect_three(LaunchTimer& timer) {
  const auto found = timer.read();
  ASSERT_TRUE(found) << found.status().to_string();
  ASSERT_EQ(found->size(), 3u);
  EXPECT_EQ((*found)[0].section, "first");
  EXPECT_EQ((*found)[1].section, "second");
  EXPECT_EQ((*found)[0].what, "fill");
  EXPECT_EQ((*found)[1].what, "copy");
  EXPECT_GT((*found)[0].us, 0);
  EXPECT_LT((*found)[2].us, (*found)[0].us) << "16 bytes against 16 MiB";
}

TEST(LaunchTimer, TimesEachLaunchOfItsStreamBetweenStartAndStop) {
  for (const Target target : test::usable_targets()) {
    Bench bench(target), other(target);
    auto timer = LaunchTimer::make(*bench.stream, 8);
    ASSERT_TRUE(timer) << timer.status().to_string();
    for (int pass = 0; pass < 2; ++pass) {
      ASSERT_TRUE(bench.work());  // nobody listens
      timer->start();
      ASSERT_TRUE(bench.work());
      ASSERT_TRUE(other.work());  // another stream
      timer->stop();
      ASSERT_TRUE(bench.work());
      expect_three(*timer);
    }
  }
}

TEST(LaunchTimer, ARecordingIsTimedAtEachReplay) {
  for (const Target target : test::usable_targets()) {
    Bench bench(target);
    auto timer = LaunchTimer::make(*bench.stream, 8);
    ASSERT_TRUE(timer) << timer.status().to_string();
    ASSERT_TRUE(bench.work());
    ASSERT_TRUE(Graph::begin(*bench.stream));
    timer->start();
    const Status worked = bench.work();
    timer->stop();
    auto graph = Graph::end(*bench.stream);
    ASSERT_TRUE(worked && graph) << graph.status().to_string();
    for (int pass = 0; pass < 2; ++pass) {
      const Status replayed = graph->replay(*bench.stream);
      ASSERT_TRUE(replayed) << replayed.to_string();
      expect_three(*timer);
    }
  }
}

TEST(LaunchTimer, MoreLaunchesThanItHasRoomForAreAnError) {
  Bench bench(Target::kCpu);
  auto timer = LaunchTimer::make(*bench.stream, 2);
  ASSERT_TRUE(timer);
  timer->start();
  const Status worked = bench.work();
  timer->stop();
  EXPECT_TRUE(worked) << "the work goes on";
  const auto found = timer->read();
  ASSERT_FALSE(found);
  EXPECT_EQ(found.status().message(), "the timer has room for 2 launches and met 3");
}

}  // namespace
}  // namespace tenon
