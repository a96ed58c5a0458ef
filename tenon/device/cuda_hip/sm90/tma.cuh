// The bulk copy engine (sm_90): global to shared memory, completion told to an mbarrier; and
// clusters, blocks that reach each other's shared memory. One thread issues a copy. Tiles begin at
// multiples of 1024 bytes of shared memory; a tile of a single row at any multiple of 128, for the
// place of a 16-byte chunk follows from its address.
#pragma once

#include "tenon/device/cuda_hip/sm90/mbarrier.cuh"
#include "tenon/device/cuda_hip/sm90/tensor_map.h"

// Declares `std::byte* name`: LaunchShape::shared_bytes of shared memory, aligned for tiles.
#define TENON_SHARED_TILES(name)                                                      \
  extern TENON_SHARED_ __attribute__((aligned(1024))) std::byte tenon_shared_tiles[]; \
  std::byte* name = tenon_shared_tiles

namespace tenon::TENON_TARGET::sm90 {

using ::tenon::sm90::TensorMap;

// How long what is read should stay in the L2 cache.
TENON_DEVICE std::uint64_t policy_evict_first() {
  std::uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
TENON_DEVICE std::uint64_t policy_evict_last() {
  std::uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// The tile of `map` whose first element is byte `byte` of row `row`. All its bytes count, those of
// elements outside of the matrix too.
TENON_DEVICE void copy_tile(void* shared, const TensorMap* map, int byte, int row,
                            Mbarrier* barrier, std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;"
      :
      : "r"(shared_address(shared)), "l"(map), "r"(byte), "r"(row), "r"(shared_address(barrier)),
        "l"(policy)
      : "memory");
}
// The same into every block of the cluster whose bit is set in `blocks`, at the place that `shared`
// and `barrier` have here.
TENON_DEVICE void copy_tile_to(std::uint16_t blocks, void* shared, const TensorMap* map, int byte,
                               int row, Mbarrier* barrier, std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster.L2::cache_hint [%0], [%1, {%2, %3}], [%4], %6, %5;"
      :
      : "r"(shared_address(shared)), "l"(map), "r"(byte), "r"(row), "r"(shared_address(barrier)),
        "l"(policy), "h"(blocks)
      : "memory");
}
// The box of a map made by box_map() with kRows rows, four or eight, whose first row is `row`, from
// block `block` of k on.
template <int kRows>
TENON_DEVICE void copy_box(void* shared, const TensorMap* map, int row, int block,
                           Mbarrier* barrier, std::uint64_t policy) {
  static_assert(kRows == 4 || kRows == 8);
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%2, %3, %4, %5}], [%6], %7;"
      :
      : "r"(shared_address(shared)), "l"(map), "r"(0), "r"(row), "r"(kRows == 4 ? 0 : block),
        "r"(kRows == 4 ? block : 0), "r"(shared_address(barrier)), "l"(policy)
      : "memory");
}
// Contiguous bytes of global memory into the L2 cache; address and number are multiples of 16.
TENON_DEVICE void prefetch_bytes(const void* from, std::uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;"
               :
               : "l"(__cvta_generic_to_global(from)), "r"(bytes)
               : "memory");
}
TENON_DEVICE void prefetch_map(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" : : "l"(map) : "memory");
}

// All threads of all blocks of the cluster arrive once, and later wait once: so a block knows that
// the others have started. Orders barrier_init() and publish_barriers() alone, no other stores.
TENON_DEVICE void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" : : : "memory");
}
TENON_DEVICE void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" : : : "memory");
}
// Arrives at the barrier that block `rank` of the cluster has where `barrier` lies here.
TENON_DEVICE void barrier_arrive_at(Mbarrier* barrier, std::uint32_t rank) {
  asm volatile(
      "{\n\t.reg .b32 bar;\n\t"
      "mapa.shared::cluster.u32 bar, %0, %1;\n\t"
      "mbarrier.arrive.shared::cluster.b64 _, [bar];\n\t}"
      :
      : "r"(shared_address(barrier)), "r"(rank)
      : "memory");
}
// Sixteen bytes into the shared memory of block `rank` of the cluster, at the place `shared` has
// here; `barrier` of that block counts them. The receiver waits with barrier_wait_cluster().
TENON_DEVICE void send_cluster(void* shared, Mbarrier* barrier, std::uint32_t rank, float a,
                               float b, float c, float d) {
  asm volatile(
      "{\n\t.reg .b32 to, bar;\n\t"
      "mapa.shared::cluster.u32 to, %0, %2;\n\t"
      "mapa.shared::cluster.u32 bar, %1, %2;\n\t"
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [to], {%3, %4, %5, %6}, [bar];"
      "\n\t}"
      :
      : "r"(shared_address(shared)), "r"(shared_address(barrier)), "r"(rank), "f"(a), "f"(b),
        "f"(c), "f"(d)
      : "memory");
}
// The same with four bytes.
TENON_DEVICE void send_cluster(void* shared, Mbarrier* barrier, std::uint32_t rank, float value) {
  asm volatile(
      "{\n\t.reg .b32 to, bar;\n\t"
      "mapa.shared::cluster.u32 to, %0, %2;\n\t"
      "mapa.shared::cluster.u32 bar, %1, %2;\n\t"
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [to], %3, [bar];"
      "\n\t}"
      :
      : "r"(shared_address(shared)), "r"(shared_address(barrier)), "r"(rank),
        "r"(__float_as_uint(value))
      : "memory");
}

}  // namespace tenon::TENON_TARGET::sm90
