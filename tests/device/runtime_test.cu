#include "tests/device/runtime_test.h"

#include "tenon/device/device.cuh"

namespace tenon::TENON_TARGET::runtime_test {

using tenon::runtime_test::AddArgs;
using tenon::runtime_test::Args;
using tenon::runtime_test::SharedArgs;
using tenon::runtime_test::WhereArgs;

TENON_KERNEL count_kernel(Args args) {
  if (thread_id() != 0) return;
  atomic_add(&args.runs[block_id()], 1u);
  args.seen[block_id()] = static_cast<std::uint32_t>(grid_blocks());
  const std::uint64_t begin = ticks();
  while (ticks() - begin < args.spin_ns) {
  }
}

TENON_KERNEL affine_kernel(AddArgs args) {
  const int stride = grid_blocks() * block_threads();
  for (int i = block_id() * block_threads() + thread_id(); i < args.n; i += stride)
    args.values[i] = args.values[i] * args.multiply + args.add;
}

// Fills the dynamic shared memory with the block's number and sums it.
TENON_KERNEL shared_kernel(SharedArgs args) {
  TENON_DYNAMIC_SHARED(std::uint32_t, memory);
  for (int i = thread_id(); i < args.words; i += block_threads())
    memory[i] = static_cast<std::uint32_t>(block_id() + 1);
  sync_block();
  if (thread_id() != 0) return;
  std::uint32_t sum = 0;
  for (int i = 0; i < args.words; ++i) sum += memory[i];
  args.out[block_id()] = sum;
}

TENON_KERNEL where_kernel(WhereArgs args) {
  const int here = 0;
  args.stacks[block_id()] = reinterpret_cast<std::uintptr_t>(&here);
  const std::uint64_t begin = ticks();
  while (ticks() - begin < args.spin_ns) {
  }
}

extern const tenon::runtime_test::Kernels kernels;
const tenon::runtime_test::Kernels kernels = {&count_kernel, &affine_kernel, &shared_kernel,
                                              &where_kernel};

}  // namespace tenon::TENON_TARGET::runtime_test
