// Replaces operator new in a program that loads this library first (LD_PRELOAD): in every thread,
// an allocation fails with a chance. The file which SCARCE_MEMORY names holds four numbers of 32
// bits: the chance times 2^32, a seed, how many have failed, and the only rank (the variable RANK)
// in whose process any does, or 0. Nothing fails before the program has set a handler.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace {

struct Control {
  std::atomic<std::uint32_t> chance, seed, failed, rank;
};

Control* control() {
  static Control* const mapped = []() -> Control* {
    const char* path = std::getenv("SCARCE_MEMORY");
    const int file = path == nullptr ? -1 : open(path, O_RDWR | O_CLOEXEC);
    if (file < 0) return nullptr;
    void* memory = mmap(nullptr, sizeof(Control), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    return memory == MAP_FAILED ? nullptr : static_cast<Control*>(memory);
  }();
  return mapped;
}

std::uint64_t own_rank() {
  const char* own = std::getenv("RANK");
  return own == nullptr ? 0 : std::strtoul(own, nullptr, 10);
}

bool is_spared(const Control& told) {
  const std::uint32_t rank = told.rank.load(std::memory_order_relaxed);
  return rank != 0 && own_rank() != rank;
}

bool fails() {
  Control* const told = control();
  if (told == nullptr || std::get_new_handler() == nullptr) return false;
  const std::uint32_t chance = told->chance.load(std::memory_order_relaxed);
  if (chance == 0 || is_spared(*told)) return false;
  static std::atomic<std::uint64_t> num_threads{0};
  thread_local std::uint64_t state = 0, seed = 0;
  thread_local const std::uint64_t thread = num_threads.fetch_add(1) + 1;
  if (seed != told->seed + 1ull) {
    seed = told->seed + 1ull;
    state = seed * 0x9e3779b97f4a7c15ull ^ thread << 32 ^ own_rank() << 48;
  }
  state ^= state << 13, state ^= state >> 7, state ^= state << 17;
  if (static_cast<std::uint32_t>(state >> 20) >= chance) return false;
  told->failed.fetch_add(1, std::memory_order_relaxed);
  return true;
}

}  // namespace

void* operator new(std::size_t bytes) {
  if (!fails())
    if (void* memory = std::malloc(bytes == 0 ? 1 : bytes)) return memory;
  if (const auto handler = std::get_new_handler()) handler();
  throw std::bad_alloc();
}
void* operator new[](std::size_t bytes) { return operator new(bytes); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
