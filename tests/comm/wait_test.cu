#include "tests/comm/wait_test.h"

#include "tenon/comm/device/wait.cuh"

namespace tenon::TENON_TARGET::wait_test {

using tenon::wait_test::PassArgs;
using tenon::wait_test::WaitArgs;

TENON_KERNEL wait_kernel(WaitArgs args) {
  const bool ok = team_wait(args.team, Phase::kGather, 1, 7, 3,
                            [&] { return load_acquire(args.signal) == args.wanted; });
  if (thread_id() == 0) args.came[block_id()] = ok ? 1 : 2;
}

TENON_DEVICE void produce(const PassArgs& args) {
  for (int i = thread_id(); i < args.n; i += block_threads())
    args.payload[i] = static_cast<std::uint32_t>(i + 1);
  sync_block();
  if (thread_id() == 0) store_release(args.signal, 1u);
}

TENON_DEVICE void consume(const PassArgs& args) {
  if (!team_wait(args.team, Phase::kScatter, 0, 0, kNoRow,
                 [&] { return load_acquire(args.signal) == 1; }))
    return;
  for (int i = thread_id(); i < args.n; i += block_threads()) atomic_add(args.sum, args.payload[i]);
}

TENON_KERNEL pass_kernel(PassArgs args) {
  if (block_id() == 0) {
    produce(args);
  } else {
    consume(args);
  }
}
TENON_KERNEL produce_kernel(PassArgs args) { produce(args); }
TENON_KERNEL consume_kernel(PassArgs args) { consume(args); }

extern const tenon::wait_test::Kernels kernels;
const tenon::wait_test::Kernels kernels = {&wait_kernel, &pass_kernel, &produce_kernel,
                                           &consume_kernel};

}  // namespace tenon::TENON_TARGET::wait_test
