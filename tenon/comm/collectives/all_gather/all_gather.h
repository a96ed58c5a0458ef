// Bytes of any pattern over peer memory: all of every rank's go to all, or rows are dealt, or dealt
// rows are collected. Called by comm/collectives/collectives.h, which most callers want: it brings
// the channel. Collective: every rank with the same shapes and plan.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tenon/comm/collectives/dealt_rows.h"
#include "tenon/comm/device/channel_view.h"
#include "tenon/core/status.h"
#include "tenon/core/tensor.h"
#include "tenon/device/plan.h"
#include "tenon/device/runtime.h"

namespace tenon::all_gather {

extern const Op kOp;

// How a mailbox is laid out: flag words, then slots of every generation and peer. A rank sends the
// chunk of a step while it still waits for that of the step before. Four generations do here: who
// sends step s has seen the peers' flags of step s − 2, which they set when they had read step
// s − 4.
inline constexpr std::uint32_t kGatherGenerations = 4;
inline constexpr int kMaxFlags = 128;  // blocks, of which each has a flag
inline constexpr std::size_t kFlagBytes =
    sizeof(std::uint32_t) * kGatherGenerations * kMaxRanks * kMaxFlags;

enum class Form : std::uint8_t {
  kGather,   // out[r] = rank r's `in`
  kDeal,     // out[r] = of rank r's `in` the rows that are dealt to this rank
  kCollect,  // `in` and `out` are one: a rank brings the rows dealt to it and gets all others'
};

// Rows are those of the first dimension, dealt as dealt_rows() says.
struct Args {
  TensorView in;   // any type, contiguous; kGather: any shape; kDeal, kCollect: [rows, …]
  TensorView out;  // contiguous; kGather: [size, …in], kDeal: [size, rows dealt to `rank`, …],
                   // apart from `in`; kCollect: `in`
  Form form = Form::kGather;
  int rank = 0;  // this one; kGather does not look at it
};

// As of all_reduce. The mailbox is used by nothing else.
std::size_t mailbox_bytes(int team_size, std::size_t chunk_bytes);

// What one rank sends to another at most: the same on all ranks.
std::size_t most_bytes(const Args& args, int team_size);

Status check(const Args& args, int team_size);
// That `device` and its stream reach what the call reads and writes, and that these lie apart.
Status check_place(const Args& args, int team_size, Device device, const Stream& stream);
Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced = {});
Status run(const Plan& plan, const Args& args, const ChannelView& team, Stream& stream);
Traffic traffic(const Args& args, int team_size);

}  // namespace tenon::all_gather
