// The variant of Hopper, dense: ops/common/sm90_product.cuh, and for prompts sm90_tiles.cuh beside
// it.
#include "tenon/device/variant.h"
#include "tenon/ops/bf16_gemm/call.cuh"
#include "tenon/ops/common/sm90_tiles.cuh"

namespace tenon::TENON_TARGET::bf16_gemm {
namespace {

// Measured on an H100 with the products of a router: up to half as many rows the other kernels,
// whose segments are made at one time, are as fast or faster.
constexpr int kManyRows = 4096;

using Bf16Tiles = TileGrid<1, false, true>;

Status supports(const Args& args, const PlanContext& where, Recipe* recipe) {
  const GemmCall gemm = call_of(args);
  Recipe few_rows;
  TENON_TRY(sm90_plan(Sm90Kind::kBf16, gemm, where, &few_rows));
  if (gemm.rows >= kManyRows && gemm.row_map == nullptr) {
    plan_tiles(gemm, 1, where, recipe);
  } else {
    *recipe = few_rows;
  }
  return Status::ok();
}

Status launch(const Recipe& recipe, const Args& args, const ChannelView*, Stream& stream) {
  const GemmCall gemm = call_of(args);
  const LaunchShape& shape = recipe.launches.front().shape;
  if (recipe.launches.front().kernel != kTilesName)
    return sm90_launch<Sm90Kind::kBf16>(recipe, gemm, GemmScales{}, QuantSpec{}, args.x.shape[0],
                                        stream);
  if (gemm.rows == 0) return Status::ok();
  TENON_ASSIGN(const TilesCall call, tiles_call(gemm, 1, shape.cluster, 2));
  return tenon::launch(stream, shape, sm90_tiles_kernel<Bf16Tiles, true>, call);
}

}  // namespace

TENON_DEFINE_VARIANT(sm90, Args, supports, launch);

}  // namespace tenon::TENON_TARGET::bf16_gemm
