#include "apps/bench/rates.h"

#include <algorithm>

namespace tenon::apps {
namespace {

constexpr int kRepeats = 5;

// The best of a few repeats of some work that all ranks do at once; per call, the slowest rank's.
Result<double> best_us(std::function<Status(int call)> work, int count, bool graph,
                       Communicator& comm, Gate& gate, Stream& stream) {
  auto calls = Calls::make(std::move(work), count, graph, gate, stream);
  TENON_TRY(comm.agree(calls.status(), "bench rates"));
  double best = 0;
  for (int repeat = 0; repeat <= kRepeats; ++repeat) {
    TENON_TRY(gate.slowest(0));
    TENON_ASSIGN(const double mine, calls->run());
    TENON_ASSIGN(const double us, gate.slowest(mine));
    if (repeat == 1 || (repeat > 1 && us < best)) best = us;  // the first one warms up
  }
  return best;
}

}  // namespace

Result<Rates> measure_rates(const Rates& told, Communicator& comm, Gate& gate, Stream& stream) {
  Rates rates{told.link_gbs, told.memory_gbs, 0};
  const bool host = is_host(comm.device().target);
  const std::size_t bytes = std::size_t{host ? 4u : 128u} << 20;
  auto source = Buffer::allocate(comm.device(), bytes);
  auto sink = Buffer::allocate(comm.device(), bytes);
  TENON_TRY(comm.agree(source ? sink.status() : source.status(), "bench rates"));
  const int count = 8;
  TENON_ASSIGN(rates.latency_us, best_us([&](int) { return gate.align(stream); }, host ? 8 : 64,
                                         !host, comm, gate, stream));
  if (rates.memory_gbs == 0) {
    const auto copy = [&](int) { return stream.copy(sink->data(), source->data(), bytes); };
    TENON_ASSIGN(const double us, best_us(copy, count, false, comm, gate, stream));
    rates.memory_gbs = 2 * static_cast<double>(bytes) / us * 1e-3;
  }
  if (rates.link_gbs == 0 && comm.size() > 1 && comm.can().peer_pointers) {
    // A mailbox that nothing else uses: what lies in it is of no account.
    const std::size_t half = bytes / 2;
    TENON_ASSIGN(const Channel links, comm.make_channel(half, "bench links"));
    std::byte* const there = links.view().base[(comm.rank() + 1) % comm.size()];
    const auto push = [&](int) { return stream.copy(there, source->data(), half); };
    TENON_ASSIGN(const double us, best_us(push, count, false, comm, gate, stream));
    rates.link_gbs = static_cast<double>(half) / us * 1e-3;
    TENON_TRY(comm.agree(stream.synchronize(), "bench rates"));
  }
  return rates;
}

double floor_us(const Traffic& traffic, const Rates& rates) {
  const double links = rates.link_gbs > 0 ? traffic.link_bytes / rates.link_gbs * 1e-3 : 0;
  const double memory = rates.memory_gbs > 0 ? traffic.memory_bytes / rates.memory_gbs * 1e-3 : 0;
  return rates.latency_us + std::max(links, memory);
}

}  // namespace tenon::apps
