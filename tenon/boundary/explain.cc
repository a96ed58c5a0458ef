#include "tenon/boundary/explain.h"

namespace tenon {
namespace {

struct Site {
  const char* outputs;
  bool fp8, bf16;
};
constexpr Site kSites[] = {{"fp8", true, false}, {"fp8+bf16", true, true}, {"bf16", false, true}};

}  // namespace

Result<Explanation> explain_boundary(int hidden, int max_rows, Communicator& comm) {
  Explanation found;
  found.transport = comm.transport();
  for (const Site& site : kSites) {
    BoundaryChannel::Spec channel_spec;
    channel_spec.hidden = hidden;
    channel_spec.max_rows = max_rows;
    TENON_ASSIGN(auto channel, BoundaryChannel::make(channel_spec, comm));
    BoundarySpec spec;
    spec.site = site.outputs;
    spec.hidden = hidden;
    spec.max_rows = max_rows;
    spec.want_fp8 = site.fp8;
    spec.want_bf16 = site.bf16;
    TENON_ASSIGN(const Boundary boundary, Boundary::make(spec, channel));
    for (BoundaryUse& use : boundary.uses()) found.uses.push_back(std::move(use));
  }
  return found;
}

}  // namespace tenon
