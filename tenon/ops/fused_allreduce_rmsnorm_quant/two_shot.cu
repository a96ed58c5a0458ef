// two_shot: rows travel as they are. An object compiles the kernels for bf16, two_shot_f16.cu
// those for f16.
#include "tenon/ops/fused_allreduce_rmsnorm_quant/launch.cuh"

namespace tenon::TENON_TARGET::fused_allreduce_rmsnorm_quant {

Status launch_two_shot_f16(const LaunchShape& shape, const Args& args, const ChannelView* team,
                           Stream& stream);

static Status supports(const Args& args, const PlanContext& where, Recipe* recipe) {
  return supports_shots<Shots::kTwo, false>(args, where, recipe);
}

static Status launch(const Recipe& recipe, const Args& args, const ChannelView* team,
                     Stream& stream) {
  const LaunchShape shape = shape_of_call(recipe, args, *team, Shots::kTwo, false);
  if (args.residual.dtype == DType::kF16) return launch_two_shot_f16(shape, args, team, stream);
  return launch_two_shot<bf16, Plain, SoundProtocol>(shape, args, team, stream);
}

TENON_DEFINE_VARIANT(two_shot, Args, supports, launch);

}  // namespace tenon::TENON_TARGET::fused_allreduce_rmsnorm_quant
