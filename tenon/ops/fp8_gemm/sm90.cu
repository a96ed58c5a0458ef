// The variant of Hopper: which kernel for how many rows, and its launch.
#include "tenon/device/variant.h"
#include "tenon/ops/common/sm90_tiles.cuh"
#include "tenon/ops/fp8_gemm/call.cuh"

namespace tenon::TENON_TARGET::fp8_gemm {
namespace {

// Measured on an H100 with the products of two models: up to 64 rows the weight is read once, and
// so fast that nothing else matters; up to 128 it still pays where all blocks run at one time.
bool takes_tiles(const GemmCall& gemm, const LaunchShape& few_rows, int units) {
  return gemm.rows > 128 || (gemm.rows > 64 && few_rows.blocks > 2 * units);
}

// Blocks that share a group of activated columns cannot be narrower, and they wait for each other.
// Where k is so long that narrower blocks are taken without activation, and there are many of them
// for a multiprocessor, a launch of its own for the activation costs less (docs/adr/0065).
constexpr int kApartRows = 16, kApartK = 4096, kApartRounds = 3;

Sm90Kind kind_of(const Args& args) {
  return args.activated ? Sm90Kind::kActivated : Sm90Kind::kE4m3;
}

// Tiles of 128 × 256 do most work per byte, those of 128 × 128 leave fewer multiprocessors idle at
// the end: `halves` is what takes fewer rounds of them, where either is possible.
int halves_of(const GemmCall& gemm, const Segments& cut, bool activates, int units) {
  if (activates) return 2;
  if (cut.count > 1) return 1;
  const std::int64_t row_tiles = ceil_div(gemm.rows, kTileSide);
  const auto rounds = [&](int halves) {
    return (row_tiles * ceil_div(gemm.n, kTileSide * halves) + units - 1) / units * halves;
  };
  return 8 * rounds(2) <= 9 * rounds(1) ? 2 : 1;
}

Status supports(const Args& args, const PlanContext& where, Recipe* recipe) {
  const GemmCall gemm = call_of(args).gemm;
  if (args.beside) return sm90_plan_pair(gemm, call_of(*args.beside), where, recipe);
  Recipe skinny;
  TENON_TRY(sm90_plan(kind_of(args), gemm, where, &skinny));
  const int blocks = skinny.launches.front().shape.blocks, units = where.properties.num_units;
  if (args.activated && gemm.rows <= kApartRows && gemm.k > kApartK &&
      blocks > kApartRounds * units)
    return Status::error(Code::kUnsupported,
                         std::to_string(gemm.rows) + " rows take " + std::to_string(blocks) +
                             " blocks for " + std::to_string(units) +
                             " multiprocessors; a product and a launch that activates are faster");
  if (takes_tiles(gemm, skinny.launches.front().shape, units)) {
    plan_tiles(gemm,
               halves_of(gemm, segments_of(gemm.n, gemm.k), args.activated.has_value(), units),
               where, recipe);
  } else {
    *recipe = skinny;
  }
  return Status::ok();
}

Status launch_tiles(const Recipe& recipe, const Args& args, Stream& stream) {
  const Fp8Call operands = call_of(args);
  const GemmCall& gemm = operands.gemm;
  if (gemm.rows == 0) return Status::ok();
  const LaunchShape& shape = recipe.launches.front().shape;
  const int halves = recipe.setting("halves");
  TENON_ASSIGN(TilesCall call, tiles_call(gemm, halves, shape.cluster, 1));
  call.scales = operands.scales;
  call.activated = quant_spec(args.activated);
  return tenon::launch(stream, shape,
                       args.activated       ? sm90_tiles_kernel<TileGrid<2, true>, false>
                       : halves == 2        ? sm90_tiles_kernel<TileGrid<2, false>, false>
                       : call.cut.count > 1 ? sm90_tiles_kernel<TileGrid<1, false>, true>
                                            : sm90_tiles_kernel<TileGrid<1, false>, false>,
                       call);
}

Status launch(const Recipe& recipe, const Args& args, const ChannelView*, Stream& stream) {
  if (recipe.launches.front().kernel == kTilesName) return launch_tiles(recipe, args, stream);
  const Fp8Call call = call_of(args);
  if (args.beside)
    return sm90_launch_pair(recipe, call.gemm, call.scales, call_of(*args.beside), stream);
  if (recipe.launches.front().kernel == kFewName)
    return launch_few(recipe, call.gemm, call.scales, stream);
  return args.activated
             ? sm90_launch<Sm90Kind::kActivated>(recipe, call.gemm, call.scales,
                                                 quant_spec(args.activated), call.gemm.rows, stream)
             : sm90_launch<Sm90Kind::kE4m3>(recipe, call.gemm, call.scales, QuantSpec{},
                                            call.gemm.rows, stream);
}

}  // namespace

TENON_DEFINE_VARIANT(sm90, Args, supports, launch);

}  // namespace tenon::TENON_TARGET::fp8_gemm
