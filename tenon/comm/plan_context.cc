#include "tenon/comm/plan_context.h"

namespace tenon {

Result<PlanContext> plan_context(const Communicator& comm) {
  TENON_ASSIGN(PlanContext where, plan_context(comm.device()));
  where.team_size = comm.size();
  where.peer_pointers = comm.can().peer_pointers;
  where.properties.max_cooperative_blocks = comm.max_blocks();
  where.may_start_early = comm.may_start_early();
  return where;
}

PlanContext plan_context(const Channel& channel) {
  const ChannelView& team = channel.view();
  PlanContext where;
  where.device = channel.device();
  where.team_size = team.size;
  where.peer_pointers = true;
  where.properties.max_cooperative_blocks = team.max_blocks;
  where.may_start_early = team.may_start_early;
  where.mailbox_bytes = team.bytes;
  return where;
}

}  // namespace tenon
