#include "tests/device/fibers_test.h"

#include "tenon/device/device.cuh"

namespace tenon::TENON_TARGET::fibers_test {

using tenon::fibers_test::Args;

TENON_DEVICE int global_thread() { return block_id() * block_threads() + thread_id(); }

TENON_KERNEL arrival_kernel(Args args) {
  args.order[global_thread()] = atomic_add(args.counter, 1u);
}

TENON_KERNEL staged_kernel(Args args) {
  TENON_SHARED(std::uint32_t, values, 1024);
  const int threads = block_threads();
  std::uint32_t mine = static_cast<std::uint32_t>(global_thread());
  for (int round = 0; round < 3; ++round) {
    values[thread_id()] = mine;
    sync_block();
    mine += values[(thread_id() + 1) % threads];
    sync_block();
  }
  args.out[global_thread()] = mine;
}

TENON_KERNEL deep_kernel(Args args) {
  volatile char* stack =
      static_cast<volatile char*>(__builtin_alloca(static_cast<std::size_t>(args.n)));
  for (int i = 0; i < args.n; i += 64) stack[i] = static_cast<char>(thread_id());
  sync_block();
  args.out[global_thread()] = static_cast<std::uint32_t>(stack[0]);
}

TENON_KERNEL early_return_kernel(Args) {
  if (thread_id() == 3) return;
  sync_block();
}

TENON_KERNEL divergent_kernel(Args) {
  if (thread_id() % 2 == 0) {
    sync_block();
  } else {
    sync_block();
  }
}

// The lower half writes what the upper half reads, each in a loop of its own.
TENON_KERNEL roles_kernel(Args args) {
  TENON_SHARED(std::uint32_t, values, 1024);
  const int half = block_threads() > 1 ? block_threads() / 2 : 1, mine = thread_id() % half;
  std::uint32_t sum = 0;
  if (thread_id() < half) {
    for (int round = 0; round < 4; ++round) {
      values[mine] = static_cast<std::uint32_t>(round * 1000 + mine);
      sync_roles();
      sync_roles();
    }
  } else {
    for (int round = 0; round < 4; ++round) {
      sync_roles();
      sum += values[(mine + 1) % half];
      sync_roles();
    }
  }
  args.out[global_thread()] = sum;
}

TENON_KERNEL half_shuffle_kernel(Args args) {
  if (thread_id() % kWave < kWave / 2) args.out[global_thread()] = shuffle_xor(1u, 1);
}

TENON_KERNEL mixed_shuffle_kernel(Args args) {
  std::uint32_t got;
  if (thread_id() % 2 == 0) {
    got = shuffle_from(1u, 0);
  } else {
    got = shuffle_from(2u, 1);
  }
  args.out[global_thread()] = got;
}

TENON_KERNEL wrong_lane_kernel(Args args) { args.out[global_thread()] = shuffle_from(1u, kWave); }

// Reads what nobody wrote, which the cpu target's compiler would
// see and refuse. A volatile read: nvcc 13.0 ends by a fault at inline PTX that reads from there.
TENON_DEVICE std::uint32_t first_word(const void* memory) {
  if constexpr (kWave == 1) return 0;
  return *static_cast<const volatile std::uint32_t*>(memory);
}

TENON_KERNEL too_much_shared_kernel(Args args) {
  TENON_SHARED(float, large, 40 * 1024 / 4);
  TENON_SHARED(float, larger, 9 * 1024 / 4);
  args.out[0] = first_word(large) + first_word(larger);
}

TENON_KERNEL shared_start_kernel(Args args) {
  TENON_SHARED(std::uint32_t, fresh, 4);
  TENON_DYNAMIC_SHARED(std::uint32_t, dynamic);
  if (thread_id() == 0) {
    args.out[2 * block_id()] = first_word(fresh);
    args.out[2 * block_id() + 1] = first_word(dynamic);
  }
  sync_block();
  fresh[thread_id() % 4] = 7;
  dynamic[0] = 7;
}

TENON_KERNEL grid_barrier_kernel(Args args) {
  sync_block();
  if (thread_id() == 0) {
    atomic_add(args.counter, 1u);
    while (load_acquire(args.counter) < static_cast<std::uint32_t>(grid_blocks())) pause();
  }
  sync_block();
  if (thread_id() == 0) args.out[block_id()] = load_acquire(args.counter);
}

TENON_KERNEL shuffles_kernel(Args args) {
  std::uint32_t mine = static_cast<std::uint32_t>(global_thread());
  for (int mask = 1; mask < kWave; mask *= 2) mine = 3 * mine + shuffle_xor(mine, mask);
  mine += shuffle_from(mine, (thread_id() + 5) % kWave);
  args.out[global_thread()] = mine;
}

TENON_KERNEL position_kernel(Args args) {
  args.out[global_thread()] =
      static_cast<std::uint32_t>(thread_id() + 10'000 * block_id() + 1'000'000 * grid_blocks() +
                                 100'000'000 * (block_threads() / kWave));
}

#if defined(TENON_HAS_CLUSTERS) && !defined(__CUDACC__)
TENON_KERNEL cluster_lost_kernel(Args args) {
  TENON_SHARED(std::uint32_t, word, 1);
  if (block_id() == 1) {
    atomic_add(args.counter, 1u);
    return;
  }
  while (load_acquire(args.counter) < static_cast<std::uint32_t>(block_threads())) pause();
  for (int turn = 0; turn < 8; ++turn) pause();
  *in_cluster(word, 1) = 7;
}
TENON_KERNEL cluster_wild_kernel(Args args) { *in_cluster(args.out, 1) = 7; }
TENON_KERNEL cluster_outside_kernel(Args) {
  TENON_SHARED(std::uint32_t, word, 1);
  *in_cluster(word, 2) = 7;
}
inline constexpr tenon::fibers_test::Kernel kClusterKernels[] = {
    &cluster_lost_kernel, &cluster_wild_kernel, &cluster_outside_kernel};
#else
inline constexpr tenon::fibers_test::Kernel kClusterKernels[] = {nullptr, nullptr, nullptr};
#endif

extern const tenon::fibers_test::Kernels kernels;
const tenon::fibers_test::Kernels kernels = {
    &arrival_kernel,    &staged_kernel,          &deep_kernel,         &early_return_kernel,
    &divergent_kernel,  &roles_kernel,           &half_shuffle_kernel, &mixed_shuffle_kernel,
    &wrong_lane_kernel, &too_much_shared_kernel, &shared_start_kernel, &grid_barrier_kernel,
    &shuffles_kernel,   &position_kernel,        kClusterKernels[0],   kClusterKernels[1],
    kClusterKernels[2]};

}  // namespace tenon::TENON_TARGET::fibers_test
