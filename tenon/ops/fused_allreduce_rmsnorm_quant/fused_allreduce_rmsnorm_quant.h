// The centre piece: what stands between a row-parallel GEMM and the next column-parallel one.
//   y = rne(sum over ranks of partial);  residual = rne(y + residual);
//   n = rne(residual · rstd · (offset + weight));  out.bf16 = n;  out.fp8 = quantise(n)
// Exactly as docs/boundary.md says, on every rank, target and variant. Called by tenon/boundary;
// collective: every rank of the team calls it with the same shapes and the same plan.
#pragma once

#include "tenon/comm/device/channel_view.h"
#include "tenon/comm/partial_rows.h"
#include "tenon/core/tensor.h"
#include "tenon/device/plan.h"
#include "tenon/device/runtime.h"

namespace tenon::fused_allreduce_rmsnorm_quant {

extern const Op kOp;

struct Args {
  PartialRows partial;  // [rows, hidden] bf16 or f16; rows 0 … 8192, hidden <= 16384
  TensorView residual;  // [rows, hidden], same type; read (unless fresh) and overwritten
  TensorView weight;    // [hidden], same type or f32
  float eps = 1e-6f;
  float offset = 1.0f;          // 1 for zero-centred norms (Qwen3.5), 0 otherwise
  bool fresh_residual = false;  // residual = y: the boundary after the embedding
  // two_shot leaves a row's new residual on its owner only (residual_owner()); with this, every
  // rank gets it, at the price of sending it.
  bool spread_residual = false;
  NormedRows out;  // either or both; group 32, 64, 128 or 256 dividing hidden
};

// Named dimensions, types, strides, one device, and alignment (rows start at multiples of 16
// bytes). Touches no device and, where all is well, allocates nothing.
Status check(const Args& args);

// What decides how large a mailbox should be. The same on all ranks.
struct MailboxNeeds {
  int max_rows = 1, hidden = 0, team_size = 1;
  int max_blocks = 1;           // Communicator::max_blocks() on devices; 1 does for host targets
  bool spread_residual = true;  // whether calls may have Args::spread_residual
};
// Bytes for Communicator::make_channel with which calls of up to max_rows rows, of any type and
// variant, keep the device at work. Longer calls go through in chunks of 14 MiB or, where that is
// more, of what its blocks work on at a time: 42 MiB in all for two ranks; for four ranks and eight
// 46 and 108 MiB on 132 multiprocessors where the residual is not spread and hidden is 4096 or
// less, twice that for 8192. run() takes any mailbox that holds two rows per rank, with fewer
// blocks, and may share one mailbox with calls of other shapes.
std::size_t mailbox_bytes(const MailboxNeeds& needs);

// Which rank holds the current residual of `row` after a run of `variant`: every rank after
// one_shot (returns -1); the row's owner after two_shot.
int residual_owner(std::string_view variant, int row, int rows, int team_size);

// Pure function of its arguments, all of which the ranks share. No launch, no allocation.
Result<Plan> plan(const Args& args, const PlanContext& where, std::string_view forced = {});

// Launches one kernel, or none where there are no rows. Collective on the team. Capturable. Waits
// end by arrival, deadline or abort; a fault shows up in Communicator::health(). Before that it
// does check(), and refuses what is written over another tensor, a plan that was made for fewer
// rows, for others than these or for another team, a team without memory, and a stream of another
// device. A rank that is refused alone has not come to the collective: its peers wait for it until
// their deadline.
Status run(const Plan& plan, const Args& args, const ChannelView& team, Stream& stream);

Traffic traffic(const Args& args, int team_size);

}  // namespace tenon::fused_allreduce_rmsnorm_quant
