// The variants of bf16_gemm and their launches.
#include "tenon/ops/bf16_gemm/bf16_gemm.h"

#include "tenon/ops/bf16_gemm/simt.cuh"
#include "tenon/ops/registry.h"
#if TENON_WAVE == 1
#include "tenon/ops/bf16_gemm/host.cuh"
#endif

namespace tenon::TENON_TARGET::bf16_gemm {
namespace {

using Args = tenon::bf16_gemm::Args;

GemmCall call_of(const Args& args) {
  const auto& map = args.row_of ? args.row_of : args.row_index;
  return gemm_call(args.x, args.weight, args.out, map ? &*map : nullptr,
                   args.offsets ? &*args.offsets : nullptr);
}

Status supports_simt(const Args& args, const PlanContext&, LaunchShape* shape) {
  shape->blocks = num_tile_blocks(call_of(args));
  shape->threads = kGemmThreads;
  return Status::ok();
}

Status launch_simt(const LaunchShape& shape, const Args& args, const ChannelView*, Stream& stream) {
  return tenon::launch(stream, shape, simt_kernel, call_of(args));
}

#if TENON_WAVE == 1
// The variants of an instruction set: refused where the processor lacks it.
template <Status (*kHas)()>
Status supports_host(const Args& args, const PlanContext&, LaunchShape* shape) {
  shape->blocks = num_host_blocks(call_of(args));
  shape->threads = 1;
  shape->shared_bytes = sizeof(HostScratch);
  return kHas();
}
template <void (*kKernel)(GemmCall)>
Status launch_host(const LaunchShape& shape, const Args& args, const ChannelView*, Stream& stream) {
  return tenon::launch(stream, shape, kKernel, call_of(args));
}
#endif

constexpr Variant kVariants[] = {
#if TENON_WAVE == 1
#if defined(__x86_64__)
    variant<Args, supports_host<has_avx512>, launch_host<avx512_kernel>>("avx512"),
    variant<Args, supports_host<has_avx2>, launch_host<avx2_kernel>>("avx2"),
#endif
    variant<Args, supports_host<has_any>, launch_host<lanes_kernel>>("lanes"),
#endif
    variant<Args, supports_simt, launch_simt>("simt"),
};

}  // namespace

extern const VariantTable table;
const VariantTable table{kVariants};

}  // namespace tenon::TENON_TARGET::bf16_gemm
