#include "tenon/device/reduce.cuh"

#if defined(TENON_HAS_CLUSTERS)
#include "tenon/device/cluster_sum.cuh"
#endif
#include "tests/device/reduce_test.h"

namespace tenon::TENON_TARGET::reduce_test {

using tenon::reduce_test::Args;

TENON_KERNEL reduce_kernel(Args args) {
  const int i = thread_id();
  constexpr int kLanes = kWave < 8 ? kWave : 8;
  args.sum[i] = block_sum(args.in[i]);
  args.second[i] = block_sum(2.0f * args.in[i]);
  args.max[i] = block_max(args.in[i]);
  args.lanes_sum[i] = lanes_sum<kLanes>(args.in[i]);
  args.most[i] = max_lane(float_bits(args.in[i]));
  args.lane[i] = lane_id() + 1000 * wave_id();
}

#if defined(TENON_HAS_CLUSTERS)
TENON_KERNEL cluster_kernel(Args args) {
  TENON_SHARED(ClusterSum, sum, 1);
  const ClusterPlace place{args.blocks_of_cluster, block_id() % args.blocks_of_cluster};
  const int i = block_id() * block_threads() + thread_id();
  begin_cluster_sum(*sum, place);
  sync_block();
  await_cluster();
  args.sum[i] = cluster_sum(*sum, place, args.in[i]);
}
inline constexpr auto* kClusterKernel = &cluster_kernel;
#else
inline constexpr void (*kClusterKernel)(Args) = nullptr;
#endif

extern const tenon::reduce_test::Kernels kernels;
const tenon::reduce_test::Kernels kernels = {&reduce_kernel, kClusterKernel, kWave};

}  // namespace tenon::TENON_TARGET::reduce_test
