// One sum over all threads of a cluster, blocks that reach each other's shared memory
// (LaunchShape::cluster): block_sum() for a row that several blocks share, with the same bits. For
// targets that have clusters (TENON_HAS_CLUSTERS): cuda, and emu32 to show there what cuda does.
//
// Each wave of the cluster sends its sum to every block; who has all of them adds them up itself.
// As at a barrier, every thread waits for the slowest, however long that one waits for something
// else.
#pragma once

#include "tenon/device/reduce.cuh"
#if !defined(TENON_HAS_CLUSTERS)
#error "this target has no clusters"
#endif
#if defined(__CUDACC__)
#include "tenon/device/cuda_hip/sm90/tma.cuh"
#endif

namespace tenon::TENON_TARGET {

// The blocks of a cluster, and which of them this one is. They have equally many threads, together
// no more than kMaxBlockThreads.
struct ClusterPlace {
  int blocks, rank;
};

// In shared memory: TENON_SHARED(ClusterSum, sum, 1). For one sum of a launch.
struct ClusterSum {
  Word4 waves[kMaxWaves / 4];
#if defined(__CUDACC__)
  sm90::Mbarrier all_there;
#else
  std::uint32_t num_there;
#endif
};

// Every thread of the cluster, before anything else. A sync_block() must follow, then
// await_cluster(), then the sum.
TENON_DEVICE void begin_cluster_sum(ClusterSum& sum, const ClusterPlace& place) {
  const int num_waves = place.blocks * (block_threads() / kWave);
  for (int i = num_waves + thread_id(); i < kMaxWaves; i += block_threads())
    reinterpret_cast<float*>(sum.waves)[i] = 0.0f;
#if defined(__CUDACC__)
  if (thread_id() == 0) {
    sm90::barrier_init(&sum.all_there, 1);
    sm90::publish_barriers();
    sm90::barrier_arrive_expect(&sum.all_there, static_cast<std::uint32_t>(num_waves) * 4);
  }
  sync_wave();  // lanes come from a loop
  sm90::cluster_arrive();
#endif
}

// Every thread of the cluster: all its blocks have begun, so that they can be sent to. Long before
// the sum: behind it, reads would have to be made anew.
TENON_DEVICE void await_cluster() {
#if defined(__CUDACC__)
  sync_wave();
  sm90::cluster_wait();
#endif
}

// Every thread of the cluster, once.
TENON_DEVICE float cluster_sum(ClusterSum& sum, const ClusterPlace& place, float value) {
  value = wave_sum(value);
  auto* const own =
      reinterpret_cast<float*>(sum.waves) + place.rank * (block_threads() / kWave) + wave_id();
#if defined(__CUDACC__)
  if (lane_id() < place.blocks)
    sm90::send_cluster(own, &sum.all_there, static_cast<std::uint32_t>(lane_id()), value);
  sm90::barrier_wait_shared(&sum.all_there, 0);
#else
  if (lane_id() < place.blocks) {
    *in_cluster(own, lane_id()) = value;
    ++*in_cluster(&sum.num_there, lane_id());
  }
  // Shared memory of the emulator is all-ones at first.
  const std::uint32_t all =
      static_cast<std::uint32_t>(place.blocks * (block_threads() / kWave)) - 1;
  while (sum.num_there != all) pause();
#endif
  return sum_of_waves(sum.waves);
}

}  // namespace tenon::TENON_TARGET
