// The variants of fp8_gemm and their launches.
#include "tenon/ops/fp8_gemm/fp8_gemm.h"

#include "tenon/ops/fp8_gemm/simt.cuh"
#include "tenon/ops/registry.h"
#if TENON_WAVE == 1
#include "tenon/ops/fp8_gemm/host.cuh"
#endif

namespace tenon::TENON_TARGET::fp8_gemm {
namespace {

using Args = tenon::fp8_gemm::Args;

Fp8Call call_of(const Args& args) {
  const bool grouped = args.weight.num_dims == 3;
  const bool by_row = args.x.layout == ScaleLayout::kRow;
  Fp8Call call;
  call.gemm = gemm_call(args.x.data, args.weight, args.out, args.row_of ? &*args.row_of : nullptr,
                        args.offsets ? &*args.offsets : nullptr);
  call.scales.x = args.x.scale.as<const float>();
  call.scales.weight = args.weight_scale.as<const float>();
  call.scales.x_row_stride = by_row ? args.x.scale.stride[0] : 1;
  call.scales.x_block_stride = by_row ? 1 : args.x.scale.stride[0];
  call.scales.weight_row_stride = args.weight_scale.stride[grouped ? 1 : 0];
  call.scales.weight_expert_stride = grouped ? args.weight_scale.stride[0] : 0;
  return call;
}

Status supports_simt(const Args& args, const PlanContext&, LaunchShape* shape) {
  shape->blocks = num_tile_blocks(call_of(args).gemm);
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
  shape->blocks = num_host_blocks(call_of(args).gemm);
  shape->threads = 1;
  shape->shared_bytes = sizeof(HostScratch);
  return kHas();
}
template <void (*kKernel)(Fp8Call)>
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

}  // namespace tenon::TENON_TARGET::fp8_gemm
