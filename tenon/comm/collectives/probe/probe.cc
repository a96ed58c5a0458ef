// The host side of the kernels in probe.cu: who meets whom when, and what the findings mean.
#include "tenon/comm/collectives/probe/probe.h"

#include <cstdio>
#include <string>

#include "tenon/comm/plan_context.h"

namespace tenon::probe {
namespace {

constexpr int kPushTimes = 8;

std::string hex(std::uint32_t word) {
  char text[11];
  std::snprintf(text, sizeof text, "0x%08x", word);
  return text;
}

Status check_data(const Findings& found, int rank) {
  if (found.num_wrong == 0) return Status::ok();
  return Status::error(Code::kDevice, "what rank " + std::to_string(found.from) +
                                          " sends to rank " + std::to_string(rank) +
                                          " arrives wrong: word " + std::to_string(found.word) +
                                          " as " + hex(found.got) + " instead of " +
                                          hex(found.want) + ", and " +
                                          std::to_string(found.num_wrong - 1) + " others");
}

}  // namespace

std::size_t mailbox_bytes(bool measure) { return kPushBegin + (measure ? kPushBytes : 0); }

int num_rounds(int size) { return size % 2 == 0 ? size - 1 : size; }

// The circle method: one rank stays, or nobody where their number is odd, and the others move on by
// one place a round.
int partner(int rank, int size, int round) {
  const int places = num_rounds(size);
  if (size % 2 == 0) {
    const int alone = round * (size / 2) % places;  // 2 * alone = round modulo places
    if (rank == size - 1) return alone;
    if (rank == alone) return size - 1;
  }
  return ((round - rank) % places + places) % places;
}

Result<LinkProbe> LinkProbe::prepare(const Channel& channel, Device device, bool measure) {
  if (variants(kOp, device.target).empty())
    return Status::error(Code::kUnsupported, "target " + std::string(name(device.target)) +
                                                 " is not part of this build");
  TENON_ASSIGN(Buffer found, Buffer::allocate(device, sizeof(Findings)));
  TENON_ASSIGN(Stream stream, Stream::create(device));
  TENON_TRY(stream.fill(found.data(), 0, found.bytes()));
  TENON_TRY(stream.synchronize());
  LinkProbe run(channel, measure, std::move(found), std::move(stream));
  for (int event = 0; measure && event < 2 * channel.view().size; ++event) {
    TENON_ASSIGN(Event made, Event::create(device));
    run.events_.push_back(std::move(made));
  }
  return run;
}

Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced) {
  return choose(kOp, &args, where, forced);
}

Status run(const Plan& plan, const Args& args, const ChannelView& team, Stream& stream) {
  return launch(plan, &args, &team, stream);
}

Status LinkProbe::enqueue(const Args& step) {
  TENON_ASSIGN(const Plan made, plan(step, plan_context(channel_)));
  return probe::run(made, step, channel_.view(), stream_);
}

// The ping of a round is also what starts the pushes of a pair together.
Status LinkProbe::measure(int peer) {
  const std::size_t event = 2 * static_cast<std::size_t>(peer);
  const Args first{.step = Step::kPush, .peer = peer, .times = 1};
  const Args ping{.step = Step::kPing, .found = found_.as<Findings>(), .peer = peer};
  const Args pushes{.step = Step::kPush, .peer = peer, .times = kPushTimes};
  TENON_TRY(enqueue(first));  // first use of the addresses
  TENON_TRY(enqueue(ping));
  TENON_TRY(events_[event].record(stream_));
  TENON_TRY(enqueue(pushes));
  return events_[event + 1].record(stream_);
}

Status LinkProbe::enqueue(std::uint32_t seed) {
  const ChannelView& team = channel_.view();
  TENON_TRY(enqueue({.step = Step::kExchange, .found = found_.as<Findings>(), .seed = seed}));
  for (int round = 0; measure_ && round < num_rounds(team.size); ++round) {
    const int peer = partner(team.rank, team.size, round);
    if (peer != team.rank) TENON_TRY(measure(peer));
  }
  return Status::ok();
}

Result<std::vector<Link>> LinkProbe::run(std::uint32_t seed) {
  const ChannelView& team = channel_.view();
  TENON_TRY(enqueue(seed));
  Findings found{};
  TENON_TRY(stream_.copy(&found, found_.data(), sizeof found));
  TENON_TRY(stream_.synchronize());
  TENON_TRY(check_data(found, team.rank));
  std::vector<Link> links(static_cast<std::size_t>(team.size));
  for (int peer = 0; measure_ && peer < team.size; ++peer) {
    if (peer == team.rank || found.trips[peer] == 0) continue;  // the latter: a wait has failed
    const auto at = static_cast<std::size_t>(peer);
    links[at].latency_us =
        static_cast<double>(found.trips_ns[peer]) / (2e3 * static_cast<double>(found.trips[peer]));
    TENON_ASSIGN(const double push_us, events_[2 * at + 1].us_since(events_[2 * at]));
    if (push_us > 0)
      links[at].gbytes_per_s = static_cast<double>(kPushBytes * kPushTimes) / (push_us * 1e3);
  }
  return links;
}

}  // namespace tenon::probe

#define TENON_OP_NAME probe
#define TENON_OP_VARIANTS "tenon/comm/collectives/probe/built_variants.def"
#include "tenon/device/op_table.inc"
