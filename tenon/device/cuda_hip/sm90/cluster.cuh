// Clusters of blocks that read each other's shared memory like their own (sm_90). What is sent with
// a barrier that counts it: sm90/tma.cuh. For variants of the cuda target alone.
#pragma once

#include "tenon/device/cuda_hip/sm90/mbarrier.cuh"

namespace tenon::TENON_TARGET::sm90 {

// A barrier of all threads of the cluster's blocks, for shared memory alone: what each stored in
// its own block's before it, all see after it; what it read of other blocks' it must have used
// before. A plain release would order all memory, for which it waits for the whole device, about
// half a microsecond.
TENON_DEVICE void cluster_sync() {
  asm volatile(
      "fence.release.sync_restrict::shared::cta.cluster;\n\t"
      "barrier.cluster.arrive.relaxed.aligned;\n\t"
      "barrier.cluster.wait.acquire.aligned;"
      :
      :
      : "memory");
}

// Where block `rank` of the cluster has what lies at `mine` in the shared memory of this one. That
// block must have started and must not have ended: a cluster_sync() before the first use, and one
// behind the last.
template <class T>
TENON_DEVICE T* at_rank(T* mine, int rank) {
  std::uint64_t theirs;
  asm("mapa.u64 %0, %1, %2;" : "=l"(theirs) : "l"(mine), "r"(rank));
  return reinterpret_cast<T*>(theirs);
}

}  // namespace tenon::TENON_TARGET::sm90
