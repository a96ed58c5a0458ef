// What a transport is asked before anybody relies on it: does the data of every pair of ranks
// arrive as it was sent, and how fast. Kernels over a mailbox, like the collectives themselves.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "tenon/comm/channel.h"
#include "tenon/comm/communicator.h"
#include "tenon/comm/device/channel_view.h"
#include "tenon/core/status.h"
#include "tenon/device/plan.h"
#include "tenon/device/runtime.h"

namespace tenon::probe {

// How the mailbox is laid out: a word for the ping of each rank, each rank's pattern, and the place
// that everybody pushes to.
inline constexpr std::size_t kPingBytes = 64;  // a cache line for each
inline constexpr std::size_t kPatternBytes = 16 * 1024;
inline constexpr std::size_t kPushBytes = std::size_t{4} << 20;
inline constexpr std::size_t kPatternBegin = kPingBytes * kMaxRanks;
inline constexpr std::size_t kPushBegin = kPatternBegin + kPatternBytes * kMaxRanks;
std::size_t mailbox_bytes(
    bool measure);  // of a fresh mailbox; nothing is pushed to measure = false

// What the kernels find out, in device memory: zero at first.
struct Findings {
  std::uint32_t num_wrong;              // words of patterns
  std::uint32_t from, word, got, want;  // one of those
  std::uint32_t trips[kMaxRanks];       // round trips with each rank, and how long they took
  std::uint64_t trips_ns[kMaxRanks];
};

extern const Op kOp;

// One step of a probe.
enum class Step : std::uint8_t {
  kExchange,  // sends `seed`'s pattern to every rank and compares what they sent
  kPing,      // round trips with `peer`, which does the same
  kPush,      // writes kPushBytes to `peer`, `times` times
};
struct Args {
  Step step = Step::kExchange;
  Findings* found = nullptr;  // of an exchange and a ping
  std::uint32_t seed = 0;
  int peer = 0, times = 0;
};

// Collective, but for kPush.
Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced = {});
Status run(const Plan& plan, const Args& args, const ChannelView& team, Stream& stream);

// One rank's part. All ranks must have prepared before one runs: ranks may share a device, which
// allocates nothing while a kernel waits on it.
class LinkProbe {
 public:
  static Result<LinkProbe> prepare(const Channel& channel, Device device, bool measure);
  // Collective. A link per rank, the own one zero; kDevice, on the receiving rank, where data came
  // wrong. What waits is bounded by the team's deadline and recorded as a fault of the team.
  Result<std::vector<Link>> run(std::uint32_t seed);

 private:
  LinkProbe(Channel channel, bool measure, Buffer found, Stream stream)
      : channel_(std::move(channel)),
        measure_(measure),
        found_(std::move(found)),
        stream_(std::move(stream)) {}
  Status measure(int peer);
  Status enqueue(std::uint32_t seed);
  Status enqueue(const Args& step);

  Channel channel_;
  bool measure_;
  Buffer found_;
  Stream stream_;
  std::vector<Event> events_;  // two for each rank
};

// Whom `rank` meets in one of `num_rounds(size)` rounds in which everybody meets everybody once:
// its own number where it has nobody.
int num_rounds(int size);
int partner(int rank, int size, int round);

}  // namespace tenon::probe
