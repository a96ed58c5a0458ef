// Counts what every thread allocates, and lets chosen allocations fail. It replaces operator new:
// for the one source file of an executable.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace {
std::atomic<std::int64_t> num_allocations{0};
std::atomic<std::int64_t> failing_from{INT64_MAX};  // these allocations fail, by number
std::atomic<std::int64_t> failing_to{INT64_MAX};
}  // namespace

// Not inlined: the compiler would pair new with free and object.
__attribute__((noinline)) void* operator new(std::size_t bytes) {
  const std::int64_t number = num_allocations.fetch_add(1, std::memory_order_relaxed);
  const bool fails = number >= failing_from && number < failing_to;
  if (void* memory = fails ? nullptr : std::malloc(bytes)) return memory;
  throw std::bad_alloc();
}
__attribute__((noinline)) void operator delete(void* memory) noexcept { std::free(memory); }
__attribute__((noinline)) void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
