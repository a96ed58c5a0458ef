// Counts what every thread allocates, and lets chosen allocations fail. It replaces operator new:
// for the one source file of an executable.
#pragma once

#include <malloc.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace tenon::test {

inline std::atomic<std::int64_t> num_allocations{0};
inline std::atomic<std::int64_t> bytes_held{0};
// Asked in the thread that allocates, with the allocation's number from 0. Null: none fails.
inline std::atomic<bool (*)(std::int64_t number)> allocation_fails{nullptr};

inline std::atomic<std::int64_t> failing_from{0}, failing_to{0};
// Allocations [first, first + count) from here on fail, whichever thread makes them.
inline void fail_allocations(std::int64_t first, std::int64_t count) {
  allocation_fails = nullptr;
  failing_from = num_allocations + first;
  failing_to = failing_from + count;
  allocation_fails = [](std::int64_t number) {
    return number >= failing_from && number < failing_to;
  };
}

}  // namespace tenon::test

// Not inlined: the compiler would pair new with free and object.
[[gnu::noinline]] void* operator new(std::size_t bytes) {
  using namespace tenon::test;
  const std::int64_t number = num_allocations.fetch_add(1, std::memory_order_relaxed);
  const auto fails = allocation_fails.load();
  void* memory = fails != nullptr && fails(number) ? nullptr : std::malloc(bytes == 0 ? 1 : bytes);
  if (memory == nullptr) throw std::bad_alloc();
  bytes_held += static_cast<std::int64_t>(malloc_usable_size(memory));
  return memory;
}
[[gnu::noinline]] void operator delete(void* memory) noexcept {
  if (memory != nullptr)
    tenon::test::bytes_held -= static_cast<std::int64_t>(malloc_usable_size(memory));
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept {
  operator delete(memory);
}
