// The least program that uses the boundary: two ranks as threads sum, normalise and quantise a row.
// tests/boundary/alone_test.py runs it and looks at what it links.
#include <cstdio>
#include <vector>

#include "tenon/boundary/boundary.h"
#include "tenon/comm/bootstrap/bootstrap.h"
#include "tenon/core/fp8.h"
#include "tenon/core/thread.h"

namespace {

constexpr int kHidden = 256;

tenon::Status run_rank(int rank, const std::shared_ptr<tenon::Bootstrap>& bootstrap) {
  using namespace tenon;
  CommOptions options;
  options.rank = rank;
  options.size = 2;
  options.bootstrap = bootstrap;
  const Device device{Target::kCpu, 0};
  TENON_ASSIGN(auto comm, Communicator::create(options, device));
  TENON_ASSIGN(auto channel, BoundaryChannel::make({.hidden = kHidden, .max_rows = 1}, *comm));
  BoundarySpec spec;
  spec.site = "alone";
  spec.hidden = kHidden;
  spec.max_rows = 1;
  spec.want_fp8 = false;
  TENON_ASSIGN(Boundary boundary, Boundary::make(spec, channel));
  TENON_ASSIGN(Stream stream, Stream::create(device));
  TENON_ASSIGN(const Buffer memory, Buffer::allocate(device, 4 * kHidden * sizeof(bf16)));
  TENON_TRY(stream.fill(memory.data(), 0, memory.bytes()));
  const auto row = [&](int index) {
    return view(memory.as<bf16>() + index * kHidden, DType::kBF16, device, {1, kHidden});
  };
  TensorView weight = row(2);
  weight = view(weight.data, DType::kBF16, device, {kHidden});
  TENON_TRY(boundary.run({row(0)}, row(1), weight, {.bf16 = row(3), .fp8 = {}}, stream));
  TENON_TRY(stream.synchronize());
  return comm->health();
}

}  // namespace

int main() {
  const auto bootstraps = tenon::local_bootstrap(2);
  tenon::Status found[2];
  {
    auto other = tenon::start_thread("rank 1", [&] { found[1] = run_rank(1, bootstraps[1]); });
    if (!other) found[1] = other.status();
    found[0] = run_rank(0, bootstraps[0]);
  }  // joined
  for (const tenon::Status& each : found)
    std::printf("%s\n", each ? "ran" : each.to_string().c_str());
  return found[0] && found[1] ? 0 : 1;
}
