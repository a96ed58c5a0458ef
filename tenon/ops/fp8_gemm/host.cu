// The variants of the cpu target, one for each instruction set: refused where the processor lacks
// it.
#include "tenon/device/variant.h"
#include "tenon/ops/fp8_gemm/call.cuh"
#include "tenon/ops/fp8_gemm/host.cuh"

namespace tenon::TENON_TARGET::fp8_gemm {
namespace {

template <Status (*kHas)(), const char* kName>
Status supports(const Args& args, const PlanContext&, Recipe* recipe) {
  LaunchShape shape;
  shape.blocks = num_host_blocks(call_of(args).gemm);
  shape.threads = 1;
  shape.shared_bytes = sizeof(HostScratch);
  recipe->launch(kName, shape);
  TENON_TRY(plain_only(args));
  return kHas();
}
template <void (*kKernel)(Fp8Call)>
Status launch(const Recipe& recipe, const Args& args, const ChannelView*, Stream& stream) {
  return tenon::launch(stream, recipe.launches.front().shape, kKernel, call_of(args));
}

}  // namespace

#if defined(__x86_64__)
static constexpr char kAvx512[] = "avx512_kernel", kAvx2[] = "avx2_kernel";
TENON_DEFINE_VARIANT(avx512, Args, (supports<has_avx512, kAvx512>), launch<avx512_kernel>);
TENON_DEFINE_VARIANT(avx2, Args, (supports<has_avx2, kAvx2>), launch<avx2_kernel>);
#endif
static constexpr char kLanesName[] = "lanes_kernel";
TENON_DEFINE_VARIANT(lanes, Args, (supports<has_any, kLanesName>), launch<lanes_kernel>);

}  // namespace tenon::TENON_TARGET::fp8_gemm
