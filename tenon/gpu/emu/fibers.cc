// The fiber scheduler: seeded order, rendezvous of blocks and waves, stuck reports, stacks.
#include "tenon/gpu/emu/fibers.h"

#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "tenon/core/env.h"
#include "tenon/gpu/emu/context.h"

namespace tenon {
namespace {
std::atomic<std::uint64_t> chosen_seed{0};
std::atomic<bool> seed_is_chosen{false};
}  // namespace

void set_emu_seed(std::uint64_t seed) {
  chosen_seed = seed;
  seed_is_chosen = true;
}

namespace emu {
namespace {

// Stacks of one OS thread, kept for its next launch. A stack is followed downwards by its
// neighbour, not by a guard page (a guard each would exhaust the kernel's mappings), so its lowest
// word holds a canary, checked at every switch. The odd part of the stride spreads the tops over
// cache sets.
class Stacks {
 public:
  static constexpr std::size_t kBytes = 64 * 1024;
  static constexpr std::uint64_t kCanary = 0x7e4047acc0ffee11ull;

  ~Stacks() {
    for (void* slab : slabs_) munmap(slab, kSlabBytes);
  }
  // Null when the machine has no more memory.
  std::byte* at(std::size_t index) {
    while (index >= slabs_.size() * kPerSlab) {
      void* slab = mmap(nullptr, kSlabBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (slab == MAP_FAILED) return nullptr;
      mprotect(slab, kGuardBytes, PROT_NONE);
      slabs_.push_back(slab);
    }
    auto* slab = static_cast<std::byte*>(slabs_[index / kPerSlab]);
    return slab + kGuardBytes + index % kPerSlab * kStride;
  }

 private:
  static constexpr std::size_t kGuardBytes = 64 * 1024;
  static constexpr std::size_t kStride = kBytes + 4096 + 320;
  static constexpr std::size_t kPerSlab = 64;
  static constexpr std::size_t kSlabBytes = (kGuardBytes + kPerSlab * kStride + 4095) / 4096 * 4096;
  std::vector<void*> slabs_;
};

enum class State : std::uint8_t { kRunnable, kAtBarrier, kInShuffle, kReturned };

struct Fiber {
  Context context;
  Position where;
  State state = State::kRunnable;
  Site site{};  // where it waits
  std::byte* stack = nullptr;
};

struct Wave {
  std::uint32_t passed[2]
                      [64];  // two rounds: a lane may run one shuffle ahead of the slowest reader
  int arrived = 0;
  std::uint32_t round = 0;
  Site site{};
};

struct SharedArray {
  const void* key;
  std::size_t offset;
};

struct Block {
  int arrived = 0, returned = 0;
  Site site{};
  std::vector<Wave> waves;
  std::vector<SharedArray> arrays;
  std::unique_ptr<std::byte[]> memory;  // static part, then dynamic part
  std::size_t static_bytes = 0;
};

bool same(const Site& a, const Site& b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}
std::string to_string(const Site& site) {
  return std::string(site.file) + ":" + std::to_string(site.line);
}

constexpr std::size_t kSharedAlign = 64;
std::byte* aligned(std::byte* at) {
  const auto address = reinterpret_cast<std::uintptr_t>(at);
  return at + (kSharedAlign - address % kSharedAlign) % kSharedAlign;
}

// The blocks that run together, and who of their fibers may run. One per OS thread, reused.
class Grid {
 public:
  Status run(const LaunchShape& shape, const KernelCall& call, int wave);

  void sync_block(Site site);
  std::uint32_t shuffle(std::uint32_t value, int source, int wave, Site site);
  void pause();
  void maybe_switch();
  void* shared_memory(const void* key, std::size_t bytes);
  void* dynamic_shared() {
    return aligned(block_of(*current_).memory.get()) + kMaxStaticSharedBytes;
  }

 private:
  static void fiber_main();
  Status run_blocks(const LaunchShape& shape, int first_block, int num_blocks);
  Status prepare(const LaunchShape& shape, int first_block, int num_blocks);
  void finish_current();
  Fiber* pick();
  void leave();  // runs others until the current fiber is picked again
  void release(State waiting, int first_thread, int num_threads);
  void fail(const std::string& why);
  std::string report() const;

  Block& block_of(const Fiber& fiber) {
    return *blocks_[static_cast<std::size_t>(fiber.where.block - first_block_)];
  }
  std::uint32_t index_of(const Fiber& fiber) const {
    return static_cast<std::uint32_t>((fiber.where.block - first_block_) * fiber.where.num_threads +
                                      fiber.where.thread);
  }
  // A number in [0, bound): xorshift64*.
  std::uint32_t draw(std::size_t bound) {
    random_ ^= random_ >> 12;
    random_ ^= random_ << 25;
    random_ ^= random_ >> 27;
    return static_cast<std::uint32_t>(((random_ * 0x2545f4914f6cdd1dull >> 32) * bound) >> 32);
  }

  KernelCall call_;
  int wave_ = 1, first_block_ = 0, num_threads_ = 0;
  std::uint64_t random_ = 1, launches_ = 0;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<std::unique_ptr<Block>> blocks_;
  std::size_t num_fibers_ = 0, num_returned_ = 0;
  std::vector<std::uint32_t> ready_, paused_;  // fibers that may run now, and after those
  std::vector<int> block_order_;
  bool progressed_ = true;  // somebody did more than pause since paused_ became ready_
  std::string failure_;
  Stacks stacks_;
  Context main_;
  Fiber* current_ = nullptr;
  std::size_t dynamic_bytes_ = 0;
};

thread_local std::unique_ptr<Grid> grid;

void Grid::fiber_main() {
  Grid& self = *grid;
  Context::arrived(self.current_->context);
  self.call_.invoke(self.call_.kernel, self.call_.args);
  self.finish_current();
}

Status Grid::prepare(const LaunchShape& shape, int first_block, int num_blocks) {
  first_block_ = first_block;
  num_threads_ = shape.threads;
  dynamic_bytes_ = shape.shared_bytes;
  num_fibers_ = static_cast<std::size_t>(num_blocks) * static_cast<std::size_t>(shape.threads);
  num_returned_ = 0;
  ready_.clear();
  paused_.clear();
  progressed_ = true;
  failure_.clear();
  while (blocks_.size() < static_cast<std::size_t>(num_blocks)) {
    blocks_.push_back(std::make_unique<Block>());
    blocks_.back()->memory =
        std::make_unique<std::byte[]>(kMaxStaticSharedBytes + kMaxSharedBytes + kSharedAlign);
  }
  for (int i = 0; i < num_blocks; ++i) {
    Block& block = *blocks_[static_cast<std::size_t>(i)];
    block.arrived = block.returned = 0;
    block.static_bytes = 0;
    block.arrays.clear();
    block.waves.resize(static_cast<std::size_t>(shape.threads / wave_));
    for (Wave& wave : block.waves) wave.arrived = 0;
    std::memset(aligned(block.memory.get()) + kMaxStaticSharedBytes, 0xff, shape.shared_bytes);
  }
  while (fibers_.size() < num_fibers_) {
    std::byte* stack = stacks_.at(fibers_.size());
    if (stack == nullptr)
      return Status::error(
          Code::kOutOfMemory,
          "no memory for the stacks of " + std::to_string(num_fibers_) + " emulated threads");
    fibers_.push_back(std::make_unique<Fiber>());
    fibers_.back()->stack = stack;
  }
  for (std::size_t i = 0; i < num_fibers_; ++i) {
    Fiber& fiber = *fibers_[i];
    const int index = static_cast<int>(i);
    fiber.where = {index % shape.threads, shape.threads, first_block + index / shape.threads,
                   shape.blocks};
    fiber.state = State::kRunnable;
    std::memcpy(fiber.stack, &Stacks::kCanary, sizeof(Stacks::kCanary));
    fiber.context.prepare(fiber.stack, Stacks::kBytes, &fiber_main);
    ready_.push_back(static_cast<std::uint32_t>(i));
  }
  return Status::ok();
}

Status Grid::run_blocks(const LaunchShape& shape, int first_block, int num_blocks) {
  TENON_TRY(prepare(shape, first_block, num_blocks));
  const Position* outer = position;
  current_ = pick();
  position = &current_->where;
  main_.switch_to(current_->context);
  position = outer;
  if (num_returned_ == num_fibers_) return Status::ok();
#if defined(__SANITIZE_ADDRESS__)
  // The fibers are given up where they stand: what their frames poisoned is free again.
  for (std::size_t i = 0; i < num_fibers_; ++i)
    __asan_unpoison_memory_region(fibers_[i]->stack, Stacks::kBytes);
#endif
  return Status::error(Code::kInternal,
                       (failure_.empty() ? "no thread can go on" : failure_) + report());
}

Status Grid::run(const LaunchShape& shape, const KernelCall& call, int wave) {
  call_ = call;
  wave_ = wave;
  const std::uint64_t seed = seed_is_chosen ? chosen_seed.load() : env().emu_seed;
  random_ = (seed * 0x9e3779b97f4a7c15ull + ++launches_) * 0xbf58476d1ce4e5b9ull | 1u;
  if (shape.cooperative) return run_blocks(shape, 0, shape.blocks);
  block_order_.clear();
  for (int block = 0; block < shape.blocks; ++block) block_order_.push_back(block);
  for (std::size_t i = block_order_.size(); i > 1; --i)
    std::swap(block_order_[i - 1], block_order_[draw(i)]);
  for (int block : block_order_) TENON_TRY(run_blocks(shape, block, 1));
  return Status::ok();
}

// The next fiber to run, drawn from those that may; null when none may ever.
Fiber* Grid::pick() {
  if (ready_.empty()) {
    if (paused_.empty()) return nullptr;
    if (!progressed_) sched_yield();  // all wait for another OS thread: let it work
    progressed_ = false;
    std::swap(ready_, paused_);
  }
  const std::uint32_t at = draw(ready_.size());
  const std::uint32_t index = ready_[at];
  ready_[at] = ready_.back();
  ready_.pop_back();
  return fibers_[index].get();
}

void Grid::leave() {
  Fiber* self = current_;
  if (std::memcmp(self->stack, &Stacks::kCanary, sizeof(Stacks::kCanary)) != 0) [[unlikely]] {
    std::fprintf(stderr,
                 "tenon: an emulated thread overran its stack of %zu bytes (block %d, thread %d)\n",
                 Stacks::kBytes, self->where.block, self->where.thread);
    std::abort();  // the neighbour's frames are destroyed: nothing can be trusted any more
  }
  Fiber* next = failure_.empty() ? pick() : nullptr;
  if (next == self) return;
  const bool ends = self->state == State::kReturned;
  current_ = next;
  if (next != nullptr) position = &next->where;
  self->context.switch_to(next != nullptr ? next->context : main_, ends);
}

void Grid::fail(const std::string& why) {
  if (failure_.empty()) failure_ = why;
  leave();
}

void Grid::finish_current() {
  Fiber& self = *current_;
  Block& block = block_of(self);
  self.state = State::kReturned;
  ++num_returned_;
  ++block.returned;
  progressed_ = true;
  if (block.arrived > 0) failure_ = "a thread returned while others wait at a barrier";
  if (block.waves[static_cast<std::size_t>(self.where.thread / wave_)].arrived > 0)
    failure_ = "a lane returned while others of its wave wait in a shuffle";
  leave();
}

// Threads of the current fiber's block that wait like this may run again.
void Grid::release(State waiting, int first_thread, int num_threads) {
  const int first = (current_->where.block - first_block_) * num_threads_ + first_thread;
  for (int i = first; i < first + num_threads; ++i) {
    Fiber& fiber = *fibers_[static_cast<std::size_t>(i)];
    if (fiber.state != waiting) continue;
    fiber.state = State::kRunnable;
    ready_.push_back(static_cast<std::uint32_t>(i));
  }
}

void Grid::sync_block(Site site) {
  Fiber& self = *current_;
  Block& block = block_of(self);
  self.site = site;
  self.state = State::kAtBarrier;
  progressed_ = true;
  if (block.returned > 0)
    return fail("a thread waits at a barrier that others have returned without");
  if (block.arrived > 0 && !same(block.site, site))
    return fail("threads of one block meet at different barriers");
  block.site = site;
  if (++block.arrived == num_threads_) {
    block.arrived = 0;
    release(State::kAtBarrier, 0, num_threads_);
  }
  leave();
}

std::uint32_t Grid::shuffle(std::uint32_t value, int source, int wave, Site site) {
  Fiber& self = *current_;
  Block& block = block_of(self);
  Wave& team = block.waves[static_cast<std::size_t>(self.where.thread / wave)];
  const std::uint32_t round = team.round;
  self.site = site;
  self.state = State::kInShuffle;
  progressed_ = true;
  if (team.arrived > 0 && !same(team.site, site))
    fail("lanes of one wave meet in different shuffles");
  if (source < 0 || source >= wave)
    fail("a shuffle reads lane " + std::to_string(source) + " of " + std::to_string(wave));
  team.site = site;
  team.passed[round % 2][self.where.thread % wave] = value;
  if (++team.arrived == wave) {
    team.arrived = 0;
    ++team.round;
    release(State::kInShuffle, self.where.thread / wave * wave, wave);
  }
  leave();
  return team.passed[round % 2][source];
}

void Grid::pause() {
  paused_.push_back(index_of(*current_));
  leave();
}

void Grid::maybe_switch() {
  if (draw(16) != 0) return;
  ready_.push_back(index_of(*current_));
  leave();
}

void* Grid::shared_memory(const void* key, std::size_t bytes) {
  Block& block = block_of(*current_);
  std::byte* memory = aligned(block.memory.get());
  for (const SharedArray& array : block.arrays)
    if (array.key == key) return memory + array.offset;
  const std::size_t offset = block.static_bytes;
  block.static_bytes += (bytes + kSharedAlign - 1) / kSharedAlign * kSharedAlign;
  const std::size_t most = std::min(kMaxStaticSharedBytes, kMaxSharedBytes - dynamic_bytes_);
  if (block.static_bytes > most)
    fail("a block declares " + std::to_string(block.static_bytes) +
         " bytes of shared arrays; beside " + std::to_string(dynamic_bytes_) +
         " dynamic bytes at most " + std::to_string(most) + " are accepted");
  block.arrays.push_back({key, offset});
  std::memset(memory + offset, 0xff, bytes);
  return memory + offset;
}

// Threads that stand alike, as ranges: "block 0: threads 0-31 returned, 32-63 wait at a.cuh:12".
std::string Grid::report() const {
  static constexpr std::size_t kMaxRanges = 12;
  std::string text;
  std::size_t ranges = 0;
  for (std::size_t begin = 0; begin < num_fibers_;) {
    const Fiber& first = *fibers_[begin];
    std::size_t end = begin + 1;
    while (end < num_fibers_ && fibers_[end]->where.block == first.where.block &&
           fibers_[end]->state == first.state &&
           (first.state == State::kRunnable || first.state == State::kReturned ||
            same(fibers_[end]->site, first.site)))
      ++end;
    if (++ranges > kMaxRanges) return text + "; …";
    text += "; block " + std::to_string(first.where.block) + " threads " +
            std::to_string(first.where.thread) + "-" +
            std::to_string(fibers_[end - 1]->where.thread);
    switch (first.state) {
      case State::kRunnable: text += " run or spin"; break;
      case State::kReturned: text += " have returned"; break;
      case State::kAtBarrier: text += " wait in sync_block at " + to_string(first.site); break;
      case State::kInShuffle: text += " wait in a shuffle at " + to_string(first.site); break;
    }
    begin = end;
  }
  return text;
}

}  // namespace

Status run_grid(const LaunchShape& shape, const KernelCall& call, int wave) {
  const auto refuse = [](const std::string& why) {
    return Status::error(Code::kInvalidArgument, "launch: " + why);
  };
  if (shape.threads <= 0 || shape.threads % wave != 0 || shape.threads > kMaxThreads)
    return refuse(std::to_string(shape.threads) + " threads per block, but a multiple of " +
                  std::to_string(wave) + " up to " + std::to_string(kMaxThreads) + " is accepted");
  if (shape.cooperative && shape.blocks > kMaxCooperativeBlocks)
    return refuse(std::to_string(shape.blocks) + " cooperative blocks, but at most " +
                  std::to_string(kMaxCooperativeBlocks) + " are certainly resident");
  if (shape.shared_bytes > kMaxSharedBytes)
    return refuse(std::to_string(shape.shared_bytes) +
                  " bytes of dynamic shared memory, but at most " +
                  std::to_string(kMaxSharedBytes) + " are accepted");
  if (grid == nullptr) grid = std::make_unique<Grid>();
  return grid->run(shape, call, wave);
}

void sync_block(Site site) { grid->sync_block(site); }
std::uint32_t shuffle(std::uint32_t value, int source, int wave, Site site) {
  return grid->shuffle(value, source, wave, site);
}
void pause() { grid->pause(); }
void maybe_switch() { grid->maybe_switch(); }
void* shared_memory(const void* key, std::size_t bytes) { return grid->shared_memory(key, bytes); }
void* dynamic_shared() { return grid->dynamic_shared(); }

}  // namespace emu
}  // namespace tenon
