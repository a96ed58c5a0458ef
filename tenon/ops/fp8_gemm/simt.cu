// The portable variant.
#include "tenon/device/variant.h"
#include "tenon/ops/fp8_gemm/call.cuh"
#include "tenon/ops/fp8_gemm/simt.cuh"

namespace tenon::TENON_TARGET::fp8_gemm {
namespace {

Status supports(const Args& args, const PlanContext&, Recipe* recipe) {
  LaunchShape shape;
  shape.blocks = num_tile_blocks(call_of(args).gemm);
  shape.threads = kGemmThreads;
  recipe->launch("simt_kernel", shape);
  return plain_only(args);
}

Status launch(const Recipe& recipe, const Args& args, const ChannelView*, Stream& stream) {
  return tenon::launch(stream, recipe.launches.front().shape, simt_kernel, call_of(args));
}

}  // namespace

TENON_DEFINE_VARIANT(simt, Args, supports, launch);

}  // namespace tenon::TENON_TARGET::fp8_gemm
