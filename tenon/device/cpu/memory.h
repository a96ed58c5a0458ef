// Memory accesses of the host targets (cpu, emu32, emu64): the primitives of device/device.cuh that
// need no wave.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace tenon::host_memory {

inline void store_release(std::uint32_t* at, std::uint32_t value) {
  std::atomic_ref(*at).store(value, std::memory_order_release);
}
inline std::uint32_t load_acquire(const std::uint32_t* at) {
  return std::atomic_ref(*const_cast<std::uint32_t*>(at)).load(std::memory_order_acquire);
}
inline std::uint32_t load4_relaxed(const void* at) {
  return std::atomic_ref(*static_cast<std::uint32_t*>(const_cast<void*>(at)))
      .load(std::memory_order_relaxed);
}
inline void store4_relaxed(void* at, std::uint32_t value) {
  std::atomic_ref(*static_cast<std::uint32_t*>(at)).store(value, std::memory_order_relaxed);
}
inline Word2 load8_relaxed(const void* at) {
  const auto* words = static_cast<const std::uint32_t*>(at);
  return {load4_relaxed(words), load4_relaxed(words + 1)};
}
inline void store8_relaxed(void* at, Word2 value) {
  auto* words = static_cast<std::uint32_t*>(at);
  store4_relaxed(words, value.x);
  store4_relaxed(words + 1, value.y);
}
inline Word4 load16_relaxed(const void* at) {
  const auto* words = static_cast<const std::uint32_t*>(at);
  return {load4_relaxed(words), load4_relaxed(words + 1), load4_relaxed(words + 2),
          load4_relaxed(words + 3)};
}
inline void store16_relaxed(void* at, Word4 value) {
  auto* words = static_cast<std::uint32_t*>(at);
  store4_relaxed(words, value.x);
  store4_relaxed(words + 1, value.y);
  store4_relaxed(words + 2, value.z);
  store4_relaxed(words + 3, value.w);
}
// Through memcpy: the bytes may belong to objects of any type.
inline Word4 load16(const void* at) {
  Word4 value;
  __builtin_memcpy(&value, __builtin_assume_aligned(at, 16), sizeof(value));
  return value;
}
inline void store16(void* at, Word4 value) {
  __builtin_memcpy(__builtin_assume_aligned(at, 16), &value, sizeof(value));
}
inline void store8_bytes(void* at, std::uint32_t low, std::uint32_t high) {
  const std::uint32_t words[2] = {low, high};
  __builtin_memcpy(__builtin_assume_aligned(at, 8), words, sizeof(words));
}
// The thread sanitizer does not see fences: it would report data that only a fence orders.
#if defined(__SANITIZE_THREAD__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wtsan"
#endif
inline void fence_system() { std::atomic_thread_fence(std::memory_order_seq_cst); }
#if defined(__SANITIZE_THREAD__)
#pragma GCC diagnostic pop
#endif
inline std::uint32_t atomic_add(std::uint32_t* at, std::uint32_t value) {
  return std::atomic_ref(*at).fetch_add(value, std::memory_order_relaxed);
}
inline std::uint64_t ticks() {
  return static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch() /
                                    std::chrono::nanoseconds(1));
}

}  // namespace tenon::host_memory
