// All-reduce and all-gather over peer memory, on a channel: what stage 2 of a boundary calls. Their
// ops, with plans of one's own, are in the folders beside. An
// all-reduce may share its mailbox with other kernels of comm/device/exchange.cuh, such as the
// fused op's; an all-gather has one of its own. Calls on a mailbox run on one stream at a time. Not
// here: the generic all-reduce, which needs no peer pointers (Communicator::all_reduce, and
// ranked_sum).
#pragma once

#include <cstddef>

#include "tenon/comm/channel.h"
#include "tenon/comm/collectives/dealt_rows.h"
#include "tenon/comm/device/channel_view.h"
#include "tenon/comm/partial_rows.h"
#include "tenon/core/status.h"
#include "tenon/core/tensor.h"
#include "tenon/device/runtime.h"

namespace tenon::collectives {

// Bytes of a mailbox through which `chunk_bytes` of every rank travel at a time. Larger calls go
// through in chunks, so any mailbox that holds 16 bytes per slot serves any size.
std::size_t all_reduce_mailbox_bytes(int team_size, std::size_t chunk_bytes);
std::size_t all_gather_mailbox_bytes(int team_size, std::size_t chunk_bytes);

// out = sum over ranks of `in`, in rank order in fp32, rounded once: the bits of
// Communicator::all_reduce. bf16 or f16, contiguous; out may be the addend itself, but not lie
// across it. Tensors that do not fit, and a stream or tensors of another device than the channel's,
// are refused. Launches only, capturable; a fault shows up in Communicator::health(). Collective.
Status all_reduce(const Channel& channel, const PartialRows& in, const TensorView& out,
                  Stream& stream);

// out[r] = rank r's `in`: out is [size, …in]. Any dtype, contiguous, not overlapping. As above.
Status all_gather(const Channel& channel, const TensorView& in, const TensorView& out,
                  Stream& stream);

// Rows of the first dimension are dealt to the ranks as dealt_rows() says (dealt_rows.h).
//   deal_rows:    out[r] = of rank r's `in` [rows, …] the rows dealt to this rank: out is
//                 [size, rows dealt, …].
//   collect_rows: a rank brings the rows of `rows` [rows, …] that are dealt to it, and gets the
//                 others of their ranks.
// Otherwise as all_gather, on the same kind of channel. Collective: all ranks with as many rows.
Status deal_rows(const Channel& channel, const TensorView& in, const TensorView& out,
                 Stream& stream);
Status collect_rows(const Channel& channel, const TensorView& rows, Stream& stream);

}  // namespace tenon::collectives
