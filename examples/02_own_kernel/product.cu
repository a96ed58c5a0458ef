// The kernel, once for all targets: on the cpu target a block has one thread and blocks share the
// cores, on GPUs it is what it looks like. tenon/device/device.cuh lists what it may use.
#include "product.h"
#include "tenon/device/math.cuh"
#include "tenon/device/vec.cuh"

namespace tenon::TENON_TARGET::product {

// [kernel]
TENON_KERNEL product_kernel(own::ProductArgs args) {
  wait_for_previous();  // in front of all memory that others use: a boundary may still be running
  let_next_start();     // the boundary behind it may set itself up meanwhile
  const int step = grid_blocks() * block_threads();
  for (int i = block_id() * block_threads() + thread_id(); i < args.rows * args.hidden; i += step) {
    const bf16* const x = args.x + i / args.hidden * args.depth;
    const bf16* const weight = args.weight + i % args.hidden * args.depth;
    float sum = 0.0f;
    for (int k = 0; k < args.depth; ++k) sum = fma_f(to_float(x[k]), to_float(weight[k]), sum);
    args.addend[i] = round_to<bf16>(sum);
  }
}
// [/kernel]

Status run(const own::ProductArgs& args, bool may_start_early, Stream& stream) {
  LaunchShape shape;
  shape.threads = kWave == 1 ? 1 : 4 * kWave;
  shape.blocks = (args.rows * args.hidden + shape.threads - 1) / shape.threads;
  if (kWave == 1) shape.blocks = args.rows;
  shape.early = may_start_early;
  return launch(stream, shape, &product_kernel, args);
}

extern const own::Product product;
const own::Product product = {&run};

}  // namespace tenon::TENON_TARGET::product
