// The variants of bf16_gemm and their launches.
#include "tenon/ops/bf16_gemm/bf16_gemm.h"

#include "tenon/ops/bf16_gemm/simt.cuh"
#include "tenon/ops/registry.h"

namespace tenon::TENON_TARGET::bf16_gemm {
namespace {

using Args = tenon::bf16_gemm::Args;

GemmCall call_of(const Args& args) {
  const auto& map = args.row_of ? args.row_of : args.row_index;
  return gemm_call(args.x, args.weight, args.out, map ? &*map : nullptr,
                   args.offsets ? &*args.offsets : nullptr);
}

Status supports_simt(const Args& args, const Situation&, LaunchShape* shape) {
  shape->blocks = num_tile_blocks(call_of(args));
  shape->threads = kGemmThreads;
  return Status::ok();
}

Status launch_simt(const LaunchShape& shape, const Args& args, const TeamView*, Stream& stream) {
  return tenon::launch(stream, shape, simt_kernel, call_of(args));
}

constexpr Variant kVariants[] = {variant<Args, supports_simt, launch_simt>("simt")};

}  // namespace

extern const VariantTable table;
const VariantTable table{kVariants};

}  // namespace tenon::TENON_TARGET::bf16_gemm
