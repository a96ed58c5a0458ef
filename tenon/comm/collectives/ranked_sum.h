// The sum of gathered addends as a kernel: what Communicator::all_reduce runs behind a gather where
// the transport brings collectives of its own and no peer pointers.
#pragma once

#include <cstdint>

#include "tenon/core/dtype.h"
#include "tenon/core/status.h"
#include "tenon/device/runtime.h"

namespace tenon::ranked_sum {

// out = sum over ranks of their parts, in rank order in fp32, rounded once (docs/boundary.md steps
// 1 and 2). Rank r's part begins at parts + r · bytes, as a gather of `bytes` of every rank leaves
// it. Any alignment that the elements have; `out` lies outside the parts.
struct Args {
  const std::uint8_t* parts = nullptr;
  std::uint8_t* out = nullptr;
  std::uint64_t bytes = 0;
  int size = 1;  // ranks
};

// What ranked_sum.cu provides for each target of this build. bf16 or f16; launches only.
struct Table {
  Status (*run)(const Args& args, DType dtype, Stream& stream);
  [[no_unique_address]] HostOnly host_only = {};
};
// Null when the target is not in this build.
const Table* table(Target target);

}  // namespace tenon::ranked_sum
