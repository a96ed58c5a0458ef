// two_shot_packed: rows of bf16 travel in 12 bits an element.
#include "tenon/ops/fused_allreduce_rmsnorm_quant/launch.cuh"

namespace tenon::TENON_TARGET::fused_allreduce_rmsnorm_quant {

static Status supports(const Args& args, const PlanContext& where, Recipe* recipe) {
  return supports_shots<Shots::kTwo, true>(args, where, recipe);
}

static Status launch(const Recipe& recipe, const Args& args, const ChannelView* team,
                     Stream& stream) {
  const LaunchShape shape = shape_of_call(recipe, args, *team, Shots::kTwo, true);
  return launch_two_shot<bf16, Packed, SoundProtocol>(shape, args, team, stream);
}

TENON_DEFINE_VARIANT(two_shot_packed, Args, supports, launch);

}  // namespace tenon::TENON_TARGET::fused_allreduce_rmsnorm_quant
