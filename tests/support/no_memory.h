// Threads that get no memory. It replaces operator new: for the one source file of an executable.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

namespace tenon::test {
inline thread_local bool has_no_memory = false;  // this thread
}

// Not inlined: the compiler would pair new with free and object.
[[gnu::noinline]] void* operator new(std::size_t bytes) {
  if (void* memory = tenon::test::has_no_memory ? nullptr : std::malloc(bytes)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
