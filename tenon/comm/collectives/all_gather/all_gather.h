// out[r] = rank r's `in`, bytes of any pattern, over peer memory. Called by
// comm/collectives/collectives.h, which most callers want: it brings the channel. Collective: every
// rank with the same shapes and plan.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tenon/comm/device/channel_view.h"
#include "tenon/core/status.h"
#include "tenon/core/tensor.h"
#include "tenon/device/plan.h"
#include "tenon/device/runtime.h"

namespace tenon::all_gather {

extern const Op kOp;

// How a mailbox is laid out: flag words, then slots of every generation and peer. Two generations
// do here, because the flag of one step says that the slot of the step before has been read.
inline constexpr std::uint32_t kGatherGenerations = 2;
inline constexpr int kMaxFlags = 64;  // blocks, of which each has a flag
inline constexpr std::size_t kFlagBytes =
    sizeof(std::uint32_t) * kGatherGenerations * kMaxRanks * kMaxFlags;

struct Args {
  TensorView in;   // any shape and type, contiguous
  TensorView out;  // [size, …in], contiguous, apart from `in`
};

// As of all_reduce. The mailbox is used by nothing else.
std::size_t mailbox_bytes(int team_size, std::size_t chunk_bytes);

Status check(const Args& args, int team_size);
Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced = {});
Status run(const Plan& plan, const Args& args, const ChannelView& team, Stream& stream);
Traffic traffic(const Args& args, int team_size);

}  // namespace tenon::all_gather
