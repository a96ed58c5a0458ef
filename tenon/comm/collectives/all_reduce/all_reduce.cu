// all_reduce over peer memory.
#include "tenon/comm/collectives/all_reduce/all_reduce.cuh"

namespace tenon::TENON_TARGET::all_reduce {
namespace {

using Args = tenon::all_reduce::Args;

Status supports(const Args& args, const PlanContext& where, Recipe* recipe) {
  LaunchShape shape;
  const std::uint64_t slot =
      where.team_size < 2 ? 0 : slot_in(where.mailbox_bytes, where.team_size);
  TENON_TRY(shape_for(args.in.bytes(), where, slot,
                      tenon::all_reduce::mailbox_bytes(where.team_size, 1), &shape));
  recipe->launch("all_reduce_kernel", shape);
  recipe->set("chunks", static_cast<std::int64_t>((args.in.bytes() + slot - 1) / slot));
  return Status::ok();
}

Status launch(const Recipe& recipe, const Args& args, const ChannelView* team, Stream& stream) {
  return launch_all_reduce<SoundProtocol>(recipe.launches.front().shape, args, *team, stream);
}

}  // namespace

TENON_DEFINE_VARIANT(exchange, Args, supports, launch);

}  // namespace tenon::TENON_TARGET::all_reduce
