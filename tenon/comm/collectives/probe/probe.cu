// Kernels that try the links between ranks: probe.h.
#include "tenon/comm/collectives/probe/probe.h"

#include <algorithm>

#include "tenon/comm/device/wait.cuh"
#include "tenon/device/variant.h"

namespace tenon::TENON_TARGET::probe {
namespace {

using tenon::probe::Args;
using tenon::probe::Findings;
using tenon::probe::kPatternBegin;
using tenon::probe::kPatternBytes;
using tenon::probe::kPingBytes;
using tenon::probe::kPushBegin;
using tenon::probe::kPushBytes;
using tenon::probe::Step;

constexpr std::size_t kVectorBytes = 16;
constexpr std::uint32_t kMaxTrips = 256;
constexpr std::uint32_t kWarmTrips = 1;  // until both ranks are there
constexpr std::uint64_t kPingNs = 1'000'000;
constexpr std::uint32_t kLast = 1u << 31;  // in a ping: there is no other after it

struct ExchangeArgs {
  ChannelView team;
  Findings* found;
  std::uint32_t seed;
};
struct PingArgs {
  ChannelView team;
  Findings* found;
  int peer;
};
struct PushArgs {
  ChannelView team;
  int peer, times;
};

// Another word for every seed, pair and place; never kNotArrived.
TENON_DEVICE std::uint32_t pattern(std::uint32_t seed, int from, int to, std::uint32_t word) {
  std::uint32_t mixed =
      seed + word * 0x9e3779b9u + static_cast<std::uint32_t>(from * kMaxRanks + to);
  mixed = (mixed ^ mixed >> 16) * 0x85ebca6bu;
  mixed = (mixed ^ mixed >> 13) * 0xc2b2ae35u;
  return (mixed ^ mixed >> 16) & 0x7fffffffu;
}
TENON_DEVICE Word4 pattern4(std::uint32_t seed, int from, int to, std::uint32_t word) {
  return {pattern(seed, from, to, word), pattern(seed, from, to, word + 1),
          pattern(seed, from, to, word + 2), pattern(seed, from, to, word + 3)};
}

TENON_DEVICE std::byte* pattern_place(const ChannelView& team, int owner, int sender,
                                      std::uint32_t vector) {
  return team.base[owner] + kPatternBegin + static_cast<std::size_t>(sender) * kPatternBytes +
         std::size_t{vector} * kVectorBytes;
}

TENON_DEVICE void compare(Findings& found, int from, std::uint32_t word, std::uint32_t got,
                          std::uint32_t want) {
  if (got == want || atomic_add(&found.num_wrong, 1u) != 0) return;
  found.from = static_cast<std::uint32_t>(from);
  found.word = word;
  found.got = got;
  found.want = want;
}

TENON_KERNEL_MAX(256) exchange_kernel(ExchangeArgs args) {
  const ChannelView& team = args.team;
  constexpr std::uint32_t kVectors = kPatternBytes / kVectorBytes;
  const auto first = static_cast<std::uint32_t>(block_id() * block_threads() + thread_id());
  const auto stride = static_cast<std::uint32_t>(grid_blocks() * block_threads());
  for (std::uint32_t v = first; v < kVectors; v += stride)
    for (int hop = 1; hop < team.size; ++hop) {
      const int peer = (team.rank + hop) % team.size;
      store16_relaxed(pattern_place(team, peer, team.rank, v),
                      pattern4(args.seed, team.rank, peer, v * 4));
    }
  for (std::uint32_t v = first; v < kVectors; v += stride)
    for (int sender = 0; sender < team.size; ++sender) {
      if (sender == team.rank) continue;
      Word4 got{};
      const bool arrived = team_wait(team, Phase::kScatter, sender, 0, kNoRow, [&] {
        got = load16_relaxed(pattern_place(team, team.rank, sender, v));
        return (got.x != kNotArrived) & (got.y != kNotArrived) & (got.z != kNotArrived) &
               (got.w != kNotArrived);
      });
      if (!arrived) return;
      const Word4 want = pattern4(args.seed, sender, team.rank, v * 4);
      compare(*args.found, sender, v * 4, got.x, want.x);
      compare(*args.found, sender, v * 4 + 1, got.y, want.y);
      compare(*args.found, sender, v * 4 + 2, got.z, want.z);
      compare(*args.found, sender, v * 4 + 3, got.w, want.w);
    }
}

// The lower rank begins and decides when it is enough: where ranks take turns on a device, one trip
// takes as long as a turn. It looks at the clock ever more rarely, which would slow the trips.
TENON_KERNEL ping_kernel(PingArgs args) {
  if (thread_id() != 0) return;
  const ChannelView& team = args.team;
  const int peer = args.peer;
  std::byte* const out = team.base[peer] + static_cast<std::size_t>(team.rank) * kPingBytes;
  std::byte* const in = team.base[team.rank] + static_cast<std::size_t>(peer) * kPingBytes;
  const bool begins = team.rank < peer;
  std::uint64_t begin = 0;
  std::uint32_t trip = 1, came = 0;
  for (bool last = false; !last; ++trip) {
    if (begins) {
      if (trip == kWarmTrips + 1) begin = ticks();
      const bool looks = trip > kWarmTrips + 1 && (trip & (trip - 1)) == 0;
      last = looks && (trip >= kMaxTrips || ticks() - begin > kPingNs);
      store16_relaxed(out, {trip | (last ? kLast : 0u), 0, 0, 0});
    }
    const auto arrived = [&] {
      came = load16_relaxed(in).x;
      return (came & ~kLast) == trip;
    };
    if (!team_wait(team, Phase::kBarrier, peer, trip, kNoRow, arrived)) return;
    if (begins) continue;
    last = (came & kLast) != 0;
    if (trip == kWarmTrips + 1) begin = ticks();
    store16_relaxed(out, {came, 0, 0, 0});
  }
  args.found->trips_ns[peer] = ticks() - begin;
  // `trip` is one past the last; whoever answers began to count one trip later.
  args.found->trips[peer] = trip - 1 - kWarmTrips - (begins ? 0u : 1u);
}

TENON_KERNEL_MAX(512) push_kernel(PushArgs args) {
  constexpr std::uint32_t kVectors = kPushBytes / kVectorBytes;
  std::byte* const place = args.team.base[args.peer] + kPushBegin;
  const auto first = static_cast<std::uint32_t>(block_id() * block_threads() + thread_id());
  const auto stride = static_cast<std::uint32_t>(grid_blocks() * block_threads());
  for (int time = 0; time < args.times; ++time)
    for (std::uint32_t v = first; v < kVectors; v += stride)
      store16_relaxed(place + std::size_t{v} * kVectorBytes,
                      {v, static_cast<std::uint32_t>(time), 0, 0});
}

LaunchShape shape_of(const PlanContext& where, int most_blocks, int threads) {
  LaunchShape shape;
  shape.cooperative = true;
  shape.blocks = std::min(where.properties.max_cooperative_blocks, most_blocks);
  shape.threads = kWave == 1 ? 1 : threads;
  return shape;
}

Status supports(const Args& args, const PlanContext& where, Recipe* recipe) {
  switch (args.step) {
    case Step::kExchange: recipe->launch("exchange_kernel", shape_of(where, 4, 256)); break;
    case Step::kPing: recipe->launch("ping_kernel", shape_of(where, 1, kWave)); break;
    case Step::kPush: recipe->launch("push_kernel", shape_of(where, 64, 512)); break;
  }
  return Status::ok();
}

Status launch(const Recipe& recipe, const Args& args, const ChannelView* team, Stream& stream) {
  const LaunchShape& shape = recipe.launches.front().shape;
  switch (args.step) {
    case Step::kExchange:
      return tenon::launch(stream, shape, exchange_kernel,
                           ExchangeArgs{*team, args.found, args.seed});
    case Step::kPing:
      return tenon::launch(stream, shape, ping_kernel, PingArgs{*team, args.found, args.peer});
    case Step::kPush: break;
  }
  return tenon::launch(stream, shape, push_kernel, PushArgs{*team, args.peer, args.times});
}

}  // namespace

TENON_DEFINE_VARIANT(pairs, Args, supports, launch);

}  // namespace tenon::TENON_TARGET::probe
