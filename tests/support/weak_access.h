// Loads, stores and fences of a target of tests, on the rank's WeakMemory. Included by the device
// headers weak_device.h and weak_wave_device.h, which supply writer(), switch_threads(), rest() and
// the rest of a target.
#pragma once

#include "tenon/device/cpu/memory.h"
#include "tests/support/weak_memory.h"

namespace tenon::TENON_TARGET {

using host_memory::atomic_add;
inline std::uint32_t atomic_add_system(std::uint32_t* at, std::uint32_t value) {
  return atomic_add(at, value);
}
using host_memory::load16;
using host_memory::load_acquire;
using host_memory::store16;
using host_memory::store8_bytes;
using host_memory::ticks;

inline std::uint32_t load_word(const std::uint32_t* at) {
  return test::weak_memory->load(at, writer());
}
inline void store_word(std::uint32_t* at, std::uint32_t value) {
  test::weak_memory->store(at, value, writer());
  rest(test::weak_memory->after_store(value));
}
inline const std::uint32_t* look_at(const void* at) {
  switch_threads();
  rest(test::weak_memory->before_look());
  return static_cast<const std::uint32_t*>(at);
}

// Of a mailbox as of counters: what nobody stored through the weak memory is visible at once.
inline std::uint32_t load4_relaxed(const void* at) { return load_word(look_at(at)); }
inline Word2 load8_relaxed(const void* at) {
  const std::uint32_t* const words = look_at(at);
  return {load_word(words), load_word(words + 1)};
}
inline Word4 load16_relaxed(const void* at) {
  const std::uint32_t* const words = look_at(at);
  return {load_word(words), load_word(words + 1), load_word(words + 2), load_word(words + 3)};
}
inline void store4_relaxed(void* at, std::uint32_t value) {
  switch_threads();
  store_word(static_cast<std::uint32_t*>(at), value);
}
inline void store8_relaxed(void* at, Word2 value) {
  switch_threads();
  auto* const words = static_cast<std::uint32_t*>(at);
  store_word(words, value.x);
  store_word(words + 1, value.y);
}
inline void store16_relaxed(void* at, Word4 value) {
  switch_threads();
  auto* const words = static_cast<std::uint32_t*>(at);
  store_word(words, value.x);
  store_word(words + 1, value.y);
  store_word(words + 2, value.z);
  store_word(words + 3, value.w);
}
inline void fence_system() {
  switch_threads();
  test::weak_memory->fence(writer());
  host_memory::fence_system();
}
inline void store_release(std::uint32_t* at, std::uint32_t value) {
  test::weak_memory->fence(writer());
  host_memory::store_release(at, value);
}
inline void let_next_start() {}
inline void wait_for_previous() {}

}  // namespace tenon::TENON_TARGET
