// One boundary between two ranks, which are threads here: rank 0 brings ones, rank 1 twos, so that
// every element of the sum is three; normalised with a weight of one it is one.
#include <cstdio>
#include <thread>

#include "tenon/boundary/boundary.h"
#include "tenon/comm/bootstrap/bootstrap.h"

// [boundary]
using namespace tenon;

Status run_rank(int rank, std::shared_ptr<Bootstrap> team) {
  const Device cpu{Target::kCpu, 0};
  const auto rows = [&](auto& of) { return view(of.data(), DType::kBF16, cpu, {1, 256}); };
  TENON_ASSIGN(auto comm, Communicator::create({.rank = rank, .size = 2, .bootstrap = team}, cpu));
  TENON_ASSIGN(auto channel, BoundaryChannel::make({.hidden = 256, .max_rows = 1}, *comm));
  const BoundarySpec spec{.site = "example", .hidden = 256, .max_rows = 1, .want_fp8 = false};
  TENON_ASSIGN(Boundary boundary, Boundary::make(spec, channel));
  TENON_ASSIGN(Stream stream, Stream::create(cpu));

  constexpr std::uint16_t kOne = 0x3f80, kTwo = 0x4000, kThree = 0x4040;  // bf16
  std::vector<std::uint16_t> addend(256, rank == 0 ? kOne : kTwo), residual(256), weight(256),
      normed(256);
  TENON_TRY(boundary.run({rows(addend)}, rows(residual),
                         view(weight.data(), DType::kBF16, cpu, {256}), {.bf16 = rows(normed)},
                         stream));
  TENON_TRY(stream.synchronize());
  TENON_TRY(comm->health());
  if (residual != std::vector(256, kThree) || normed != std::vector(256, kOne))
    return Status::error(Code::kInternal, "these are not the rows that were asked for");
  return Status::ok();
}
// [/boundary]

int main() {
  auto team = local_bootstrap(2);
  Status status[2];
  std::thread other([&, handle = std::move(team[1])] { status[1] = run_rank(1, handle); });
  status[0] = run_rank(0, std::move(team[0]));
  other.join();
  for (const Status& each : status) std::puts(each ? "ok" : each.to_string().c_str());
  return status[0] && status[1] ? 0 : 1;
}
