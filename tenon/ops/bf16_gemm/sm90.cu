// The variant of Hopper, dense: ops/common/sm90_product.cuh.
#include "tenon/device/variant.h"
#include "tenon/ops/bf16_gemm/call.cuh"
#include "tenon/ops/common/sm90_plan.cuh"

namespace tenon::TENON_TARGET::bf16_gemm {
namespace {

Status supports(const Args& args, const PlanContext& where, Recipe* recipe) {
  return sm90_plan(Sm90Kind::kBf16, call_of(args), where, recipe);
}

Status launch(const Recipe& recipe, const Args& args, const ChannelView*, Stream& stream) {
  return sm90_launch<Sm90Kind::kBf16>(recipe, call_of(args), GemmScales{}, QuantSpec{},
                                      args.x.shape[0], stream);
}

}  // namespace

TENON_DEFINE_VARIANT(sm90, Args, supports, launch);

}  // namespace tenon::TENON_TARGET::bf16_gemm
