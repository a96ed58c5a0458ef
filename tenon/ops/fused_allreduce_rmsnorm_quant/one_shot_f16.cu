// one_shot for rows of f16, which one_shot.cu calls.
#include "tenon/ops/fused_allreduce_rmsnorm_quant/launch.cuh"

namespace tenon::TENON_TARGET::fused_allreduce_rmsnorm_quant {

Status launch_one_shot_f16(const LaunchShape& shape, const Args& args, const ChannelView* team,
                           Stream& stream);
Status launch_one_shot_f16(const LaunchShape& shape, const Args& args, const ChannelView* team,
                           Stream& stream) {
  return launch_one_shot<f16, Plain, SoundProtocol>(shape, args, team, stream);
}

}  // namespace tenon::TENON_TARGET::fused_allreduce_rmsnorm_quant
