// Barriers in shared memory that count arrivals of threads and bytes of the copy engine (sm_90).
// A barrier goes through phases 0, 1, 0, 1 … A phase ends when the announced number of arrivals
// has come and no announced byte is missing. Who waits names the parity of the phase it waits for.
// For variants of the cuda target alone.
#pragma once

#if !defined(__CUDACC__)
#error "device/cuda_hip/sm90 is for the cuda target only"
#endif

#include "tenon/device/device.cuh"

namespace tenon::TENON_TARGET::sm90 {

using Mbarrier = std::uint64_t;  // in shared memory, aligned to 8 bytes

TENON_DEVICE std::uint32_t shared_address(const void* at) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(at));
}

// One thread. Before others use the barrier: publish_barriers() by the same thread, sync_block().
TENON_DEVICE void barrier_init(Mbarrier* barrier, std::uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;"
               :
               : "r"(shared_address(barrier)), "r"(arrivals)
               : "memory");
}
// Makes barrier_init() known to the copy engine and to the other blocks of the cluster.
TENON_DEVICE void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" : : : "memory");
}
TENON_DEVICE void barrier_arrive(Mbarrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];"
               :
               : "r"(shared_address(barrier))
               : "memory");
}
// Arrives, and lets the phase wait for so many bytes of the copy engine or of send_cluster().
TENON_DEVICE void barrier_arrive_expect(Mbarrier* barrier, std::uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
               :
               : "r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

// Waits until the phase of this parity has ended. A copy inside one device ends in microseconds; a
// phase that has not ended after kBarrierLooks looks, each of which may sleep a while, never will:
// an address or a number of bytes is wrong, and the kernel stops with an error.
inline constexpr std::uint32_t kBarrierLooks = 1u << 22;
TENON_DEVICE void barrier_wait(Mbarrier* barrier, std::uint32_t parity) {
  TENON_NO_UNROLL
  for (std::uint32_t looks = 0; looks < kBarrierLooks; ++looks) {
    std::uint32_t ended;
    asm volatile(
        "{\n\t.reg .pred ended;\n\t"
        "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 ended, [%1], %2;\n\t"
        "selp.b32 %0, 1, 0, ended;\n\t}"
        : "=r"(ended)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
    if (ended != 0) return;
  }
  __trap();
}
// The same where other blocks of the cluster have sent.
TENON_DEVICE void barrier_wait_cluster(Mbarrier* barrier, std::uint32_t parity) {
  TENON_NO_UNROLL
  for (std::uint32_t looks = 0; looks < kBarrierLooks; ++looks) {
    std::uint32_t ended;
    asm volatile(
        "{\n\t.reg .pred ended;\n\t"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 ended, [%1], %2;\n\t"
        "selp.b32 %0, 1, 0, ended;\n\t}"
        : "=r"(ended)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
    if (ended != 0) return;
  }
  __trap();
}
// The same for shared memory alone, so that nothing read of other memory is forgotten, and without
// an end: who sends may wait for peers first, until the deadline of these waits.
TENON_DEVICE void barrier_wait_shared(Mbarrier* barrier, std::uint32_t parity) {
  std::uint32_t ended = 0;
  TENON_NO_UNROLL
  while (ended == 0)
    asm volatile(
        "{\n\t.reg .pred ended;\n\t"
        "mbarrier.try_wait.parity.relaxed.cluster.shared::cta.b64 ended, [%1], %2;\n\t"
        "selp.b32 %0, 1, 0, ended;\n\t}"
        : "=r"(ended)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  asm volatile("fence.acquire.sync_restrict::shared::cluster.cluster;" : : : "memory");
}

// A barrier of the block's first kCount threads; the others do not take part.
template <int kCount>
TENON_DEVICE void sync_first_threads() {
  asm volatile("bar.sync 1, %0;" : : "n"(kCount) : "memory");
}

// A meeting of kCount threads to which some only say that they have been there, and go on: what
// they did before is seen by those that meet.
template <int kCount>
TENON_DEVICE void tell_meeting() {
  asm volatile("bar.arrive 3, %0;" : : "n"(kCount) : "memory");
}
template <int kCount>
TENON_DEVICE void meet_told() {
  asm volatile("bar.sync 3, %0;" : : "n"(kCount) : "memory");
}

// Position in a ring of `stages` buffers: the buffer's index and the parity of its current round.
struct RingPlace {
  int stage = 0;
  std::uint32_t parity = 0;
  TENON_HD void next(int stages) {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
  // `count` times next(); at most once around.
  TENON_HD void skip(int count, int stages) {
    stage += count;
    if (stage >= stages) {
      stage -= stages;
      parity ^= 1;
    }
  }
};

}  // namespace tenon::TENON_TARGET::sm90
