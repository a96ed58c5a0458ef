// out = sum over ranks of `in`, in rank order in fp32, rounded once: steps 1 and 2 of
// docs/boundary.md, over peer memory. Called by comm/collectives/collectives.h, which most callers
// want: it brings the channel. Collective: every rank with the same shapes and plan.
#pragma once

#include <cstddef>

#include "tenon/comm/device/channel_view.h"
#include "tenon/core/status.h"
#include "tenon/core/tensor.h"
#include "tenon/device/plan.h"
#include "tenon/device/runtime.h"

namespace tenon::all_reduce {

extern const Op kOp;

struct Args {
  TensorView in;   // any shape, bf16 or f16, contiguous: this rank's addend
  TensorView out;  // as many elements of the same type, contiguous; may be `in` itself
};

// Bytes of a mailbox through which `chunk_bytes` of every rank travel at a time. Larger calls go
// through in chunks, so any mailbox that holds 16 bytes per slot serves any size.
std::size_t mailbox_bytes(int team_size, std::size_t chunk_bytes);

// Types, extents and strides; that tensors may be of this device and do not lie across each other
// is checked by run().
Status check(const Args& args);
// For teams of two ranks and more with peer pointers; `where` has the bytes of the mailbox.
Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced = {});
// Launches one kernel. Capturable; a fault shows up in Communicator::health().
Status run(const Plan& plan, const Args& args, const ChannelView& team, Stream& stream);
Traffic traffic(const Args& args, int team_size);

}  // namespace tenon::all_reduce
