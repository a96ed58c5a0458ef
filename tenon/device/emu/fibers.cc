// The fiber scheduler: seeded order, rendezvous of blocks and waves, stuck reports, stacks.
#include "tenon/device/emu/fibers.h"

#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tenon/core/env.h"
#include "tenon/device/emu/context.h"

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

// Tells the address sanitizer that nobody's frames lie here.
void unpoison([[maybe_unused]] const void* memory, [[maybe_unused]] std::size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(memory, bytes);
#endif
}

// Stacks of one OS thread, kept for its next launch. A stack is followed downwards by its
// neighbour, not by a guard page (a guard each would exhaust the kernel's mappings), so its lowest
// word holds a canary, checked at every switch. The odd part of the stride spreads the tops over
// cache sets.
class Stacks {
 public:
  static constexpr std::size_t kBytes = 64 * 1024;
  static constexpr std::uint64_t kCanary = 0x7e4047acc0ffee11ull;

  ~Stacks() {
    for (void* slab : slabs_) {
      unpoison(slab, kSlabBytes);  // the next mapping at this address begins clean
      munmap(slab, kSlabBytes);
    }
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

struct Fiber {
  Context context;
  Position where;
  std::byte* stack = nullptr;
};

// The lanes of a wave as bits: a fiber is in exactly one of these sets.
struct Wave {
  std::uint64_t ready = 0, paused = 0, at_barrier = 0, in_shuffle = 0, returned = 0;
  bool listed = false;      // in ready_waves_
  std::uint32_t round = 0;  // of shuffles
  std::uint32_t passed[2]
                      [64];  // two rounds: a lane may run one shuffle ahead of the slowest reader
  Site site{};               // of the shuffle that lanes wait in
};

struct SharedArray {
  const void* key;
  std::size_t offset, bytes;
};

struct Block {
  int arrived = 0, returned = 0;
  Site site{};  // of the barrier that threads wait at
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
//
// The next fiber is mostly drawn from the wave of the last one, whose stacks are in the cache, and
// now and then from any wave; so lanes and waves overtake each other in every way, but rarely both.
class Grid {
 public:
  Status run(const LaunchShape& shape, const KernelCall& call, int wave);

  void sync_block(Site site);
  std::uint32_t shuffle(std::uint32_t value, int source, Site site);
  void pause();
  void maybe_switch();
  void* shared_memory(const void* key, std::size_t bytes) {
    return shared_memory(block(), key, bytes);
  }
  void* in_cluster(void* mine, int rank);
  void* dynamic_shared() { return aligned(block().memory.get()) + kMaxStaticSharedBytes; }

 private:
  static constexpr std::uint32_t kStay =
      16;  // one switch in so many leaves a wave that could go on

  static void fiber_main();
  Status run_blocks(const LaunchShape& shape, int first_block, int num_blocks);
  Status prepare(const LaunchShape& shape, int first_block, int num_blocks);
  Status prepare_fibers(const LaunchShape& shape);
  void finish_current();
  void* shared_memory(Block& mine, const void* key, std::size_t bytes);
  Fiber* pick();
  void leave();  // runs others until the current fiber is picked again
  void make_ready(Wave& wave, std::uint64_t lanes);
  void blame(std::string why);  // ends the launch at the next leave(), which does not return
  std::string report() const;
  std::string describe(int fiber) const;

  // The running fiber's.
  Block& block() { return *blocks_[static_cast<std::size_t>(current_ / num_threads_)]; }
  Wave& wave() { return waves_[static_cast<std::size_t>(current_ / width_)]; }
  std::uint64_t lane_bit() const { return std::uint64_t{1} << (current_ % width_); }
  Fiber& fiber(int index) { return fibers_[static_cast<std::size_t>(index)]; }

  // A number in [0, bound): xorshift64*.
  std::uint32_t draw(std::size_t bound) {
    random_ ^= random_ >> 12;
    random_ ^= random_ << 25;
    random_ ^= random_ >> 27;
    return static_cast<std::uint32_t>(((random_ * 0x2545f4914f6cdd1dull >> 32) * bound) >> 32);
  }

  KernelCall call_;
  int width_ = 1, num_threads_ = 1, cluster_ = 1, num_fibers_ = 0, num_returned_ = 0;
  std::size_t dynamic_bytes_ = 0;
  std::uint64_t random_ = 1, launches_ = 0;
  std::vector<Fiber> fibers_;  // block by block
  std::vector<Wave> waves_;
  std::vector<std::unique_ptr<Block>> blocks_;
  std::vector<std::uint32_t> ready_waves_;
  std::uint32_t last_wave_ = 0;
  std::vector<int> block_order_;
  int num_paused_ = 0;
  bool progressed_ = true;  // somebody did more than pause since the paused ones became ready
  std::string failure_;
  Stacks stacks_;
  Context main_;
  int current_ = 0;  // index of the running fiber
};

thread_local std::unique_ptr<Grid> grid;

void Grid::fiber_main() {
  Grid& self = *grid;
  Context::arrived(self.fiber(self.current_).context);
  self.call_.invoke(self.call_.kernel, self.call_.args);
  self.finish_current();
}

Status Grid::prepare(const LaunchShape& shape, int first_block, int num_blocks) {
  num_threads_ = shape.threads;
  cluster_ = shape.cluster;
  dynamic_bytes_ = shape.shared_bytes;
  num_fibers_ = num_blocks * shape.threads;
  num_returned_ = num_paused_ = 0;
  progressed_ = true;
  failure_.clear();
  while (blocks_.size() < static_cast<std::size_t>(num_blocks)) {
    blocks_.push_back(std::make_unique<Block>());
    blocks_.back()->memory =
        std::make_unique<std::byte[]>(kMaxStaticSharedBytes + kMaxSharedBytes + kSharedAlign);
  }
  for (int i = 0; i < num_blocks; ++i) {
    Block& each = *blocks_[static_cast<std::size_t>(i)];
    each.arrived = each.returned = 0;
    each.static_bytes = 0;
    each.arrays.clear();
    std::memset(aligned(each.memory.get()) + kMaxStaticSharedBytes, 0xff, shape.shared_bytes);
  }
  TENON_TRY(prepare_fibers(shape));
  for (int i = 0; i < num_fibers_; ++i)
    fiber(i).where = {i % shape.threads, shape.threads, first_block + i / shape.threads,
                      shape.blocks};
  const auto num_waves = static_cast<std::size_t>(num_fibers_ / width_);
  if (waves_.size() < num_waves) waves_.resize(num_waves);
  ready_waves_.clear();
  last_wave_ = 0;
  const std::uint64_t all = ~std::uint64_t{0} >> (64 - width_);
  for (std::size_t i = 0; i < num_waves; ++i) {
    Wave& each = waves_[i];
    each.paused = each.at_barrier = each.in_shuffle = each.returned = each.ready = 0;
    each.listed = false;
    make_ready(each, all);
  }
  return Status::ok();
}

Status Grid::prepare_fibers(const LaunchShape& shape) {
  const auto wanted = static_cast<std::size_t>(num_fibers_);
  while (fibers_.size() < wanted) {
    std::byte* stack = stacks_.at(fibers_.size());
    if (stack == nullptr)
      return Status::error(Code::kOutOfMemory,
                           "no memory for the stacks of " + std::to_string(num_fibers_) +
                               " emulated threads in blocks of " + std::to_string(shape.threads));
    std::memcpy(stack, &Stacks::kCanary, sizeof(Stacks::kCanary));
    fibers_.emplace_back().stack = stack;
  }
  for (std::size_t i = 0; i < wanted; ++i) {
    // The fiber before left for good from somewhere: what its frames poisoned is free again.
    unpoison(fibers_[i].stack, Stacks::kBytes);
    fibers_[i].context.prepare(fibers_[i].stack, Stacks::kBytes, &fiber_main);
  }
  return Status::ok();
}

Status Grid::run_blocks(const LaunchShape& shape, int first_block, int num_blocks) {
  TENON_TRY(prepare(shape, first_block, num_blocks));
  const Position* outer = position;
  Fiber* first = pick();
  position = &first->where;
  main_.switch_to(first->context);
  position = outer;
  if (num_returned_ == num_fibers_) return Status::ok();
  return Status::error(Code::kInternal,
                       (failure_.empty() ? "no thread can go on" : failure_) + report());
}

Status Grid::run(const LaunchShape& shape, const KernelCall& call, int wave) {
  call_ = call;
  width_ = wave;
  const std::uint64_t seed = seed_is_chosen ? chosen_seed.load() : env().emu_seed;
  random_ = (seed * 0x9e3779b97f4a7c15ull + ++launches_) * 0xbf58476d1ce4e5b9ull | 1u;
  if (shape.cooperative) return run_blocks(shape, 0, shape.blocks);
  block_order_.clear();
  for (int each = 0; each < shape.blocks; ++each) block_order_.push_back(each);
  for (std::size_t i = block_order_.size(); i > 1; --i)
    std::swap(block_order_[i - 1], block_order_[draw(i)]);
  for (int each : block_order_) TENON_TRY(run_blocks(shape, each, 1));
  return Status::ok();
}

void Grid::make_ready(Wave& wave, std::uint64_t lanes) {
  wave.ready |= lanes;
  if (wave.listed || lanes == 0) return;
  wave.listed = true;
  ready_waves_.push_back(static_cast<std::uint32_t>(&wave - waves_.data()));
}

// The next fiber to run, drawn from those that may, and makes it the current one; null when none
// may ever.
Fiber* Grid::pick() {
  if (waves_[last_wave_].ready == 0 || draw(kStay) == 0) {
    for (;;) {
      if (ready_waves_.empty()) {
        if (num_paused_ == 0) return nullptr;
        if (!progressed_) sched_yield();  // all wait for another OS thread: let it work
        progressed_ = false;
        num_paused_ = 0;
        for (int i = 0; i < num_fibers_ / width_; ++i) {
          Wave& each = waves_[static_cast<std::size_t>(i)];
          make_ready(each, std::exchange(each.paused, 0));
        }
      }
      const std::uint32_t at = draw(ready_waves_.size());
      last_wave_ = ready_waves_[at];
      if (waves_[last_wave_].ready != 0) break;
      waves_[last_wave_].listed = false;  // used up since it was listed
      ready_waves_[at] = ready_waves_.back();
      ready_waves_.pop_back();
    }
  }
  Wave& from = waves_[last_wave_];
  const int turn = static_cast<int>(draw(64));
  const int lane = (std::countr_zero(std::rotr(from.ready, turn)) + turn) % 64;
  from.ready &= ~(std::uint64_t{1} << lane);
  current_ = static_cast<int>(last_wave_) * width_ + lane;
  return &fiber(current_);
}

void Grid::leave() {
  Fiber& self = fiber(current_);
  const bool ends = (wave().returned & lane_bit()) != 0;
  if (static_cast<const std::byte*>(__builtin_frame_address(0)) < self.stack ||
      (ends && std::memcmp(self.stack, &Stacks::kCanary, sizeof(Stacks::kCanary)) != 0))
      [[unlikely]] {
    std::fprintf(stderr,
                 "tenon: an emulated thread overran its stack of %zu bytes (block %d, thread %d)\n",
                 Stacks::kBytes, self.where.block, self.where.thread);
    std::abort();  // the neighbour's frames are destroyed: nothing can be trusted any more
  }
  Fiber* next = failure_.empty() ? pick() : nullptr;
  if (next == &self) return;
  if (next != nullptr) position = &next->where;
  self.context.switch_to(next != nullptr ? next->context : main_, ends);
}

void Grid::blame(std::string why) {
  if (failure_.empty()) failure_ = std::move(why);
}

void Grid::finish_current() {
  wave().returned |= lane_bit();
  ++num_returned_;
  ++block().returned;
  progressed_ = true;
  if (block().arrived > 0) blame("a thread returned while others wait at a barrier");
  if (wave().in_shuffle != 0) blame("a lane returned while others of its wave wait in a shuffle");
  leave();
}

void Grid::sync_block(Site site) {
  Block& mine = block();
  wave().at_barrier |= lane_bit();
  progressed_ = true;
  if (mine.returned > 0)
    blame("a thread waits at a barrier that others have returned without, " + to_string(site));
  if (mine.arrived > 0 && !same(mine.site, site))
    blame("threads of one block meet at different barriers, " + to_string(mine.site) + " and " +
          to_string(site));
  if (mine.arrived == 0) mine.site = site;
  if (++mine.arrived == num_threads_ && failure_.empty()) {
    mine.arrived = 0;
    const int first = current_ / num_threads_ * (num_threads_ / width_);
    for (int i = first; i < first + num_threads_ / width_; ++i) {
      Wave& each = waves_[static_cast<std::size_t>(i)];
      make_ready(each, std::exchange(each.at_barrier, 0));
    }
  }
  leave();
}

std::uint32_t Grid::shuffle(std::uint32_t value, int source, Site site) {
  Wave& team = wave();
  const std::uint32_t round = team.round;
  progressed_ = true;
  if (source < 0 || source >= width_)
    blame("a shuffle at " + to_string(site) + " reads lane " + std::to_string(source) + " of " +
          std::to_string(width_));
  if (team.in_shuffle != 0 && !same(team.site, site))
    blame("lanes of one wave meet in different shuffles, " + to_string(team.site) + " and " +
          to_string(site));
  if (team.returned != 0)
    blame("a shuffle at " + to_string(site) + " lacks lanes that have returned");
  if (team.in_shuffle == 0) team.site = site;
  team.in_shuffle |= lane_bit();
  team.passed[round % 2][current_ % width_] = value;
  if (std::popcount(team.in_shuffle) == width_ && failure_.empty()) {
    ++team.round;
    make_ready(team, std::exchange(team.in_shuffle, 0));
  }
  leave();
  return team.passed[round % 2][source];
}

void Grid::pause() {
  wave().paused |= lane_bit();
  ++num_paused_;
  leave();
}

void Grid::maybe_switch() {
  if (draw(16) != 0) return;
  make_ready(wave(), lane_bit());
  leave();
}

void* Grid::shared_memory(Block& mine, const void* key, std::size_t bytes) {
  std::byte* memory = aligned(mine.memory.get());
  for (const SharedArray& array : mine.arrays)
    if (array.key == key) return memory + array.offset;
  const std::size_t offset = mine.static_bytes;
  mine.static_bytes += (bytes + kSharedAlign - 1) / kSharedAlign * kSharedAlign;
  const std::size_t most =
      std::min(kMaxStaticSharedBytes, max_shared_bytes(width_) - dynamic_bytes_);
  if (mine.static_bytes > most) {
    blame("a block declares " + std::to_string(mine.static_bytes) +
          " bytes of shared arrays; beside " + std::to_string(dynamic_bytes_) +
          " dynamic bytes at most " + std::to_string(most) + " are accepted");
    leave();
  }
  mine.arrays.push_back({key, offset, bytes});
  std::memset(memory + offset, 0xff, bytes);
  return memory + offset;
}

void* Grid::in_cluster(void* mine, int rank) {
  const int own = current_ / num_threads_, peer = own / cluster_ * cluster_ + rank;
  if (rank < 0 || rank >= cluster_)
    blame("block " + std::to_string(rank) + " is asked for of a cluster of " +
          std::to_string(cluster_));
  else if (blocks_[static_cast<std::size_t>(peer)]->returned > 0)
    blame("block " + std::to_string(peer) + ", whose shared memory is wanted, has ended");
  const auto at =
      static_cast<std::size_t>(static_cast<std::byte*>(mine) - aligned(block().memory.get()));
  for (const SharedArray& array : block().arrays)
    if (failure_.empty() && at >= array.offset && at - array.offset < array.bytes)
      return static_cast<std::byte*>(
                 shared_memory(*blocks_[static_cast<std::size_t>(peer)], array.key, array.bytes)) +
             (at - array.offset);
  blame("an address that a cluster is asked for lies in no array of this block");
  leave();
  return nullptr;
}

std::string Grid::describe(int index) const {
  const Wave& wave = waves_[static_cast<std::size_t>(index / width_)];
  const std::uint64_t bit = std::uint64_t{1} << (index % width_);
  if ((wave.returned & bit) != 0) return "returned";
  if ((wave.at_barrier & bit) != 0)
    return "in sync_block at " +
           to_string(blocks_[static_cast<std::size_t>(index / num_threads_)]->site);
  if ((wave.in_shuffle & bit) != 0) return "in a shuffle at " + to_string(wave.site);
  return "running or spinning";
}

// Threads that stand alike, as ranges: "; block 0 threads 0-31 returned; block 0 threads 32-63 …".
std::string Grid::report() const {
  static constexpr int kMaxRanges = 12;
  std::string text;
  int ranges = 0;
  for (int begin = 0; begin < num_fibers_;) {
    const Position& first = fibers_[static_cast<std::size_t>(begin)].where;
    const std::string state = describe(begin);
    int end = begin + 1;
    while (end < num_fibers_ && end % num_threads_ != 0 && describe(end) == state) ++end;
    if (++ranges > kMaxRanges) return text + "; …";
    text += "; block " + std::to_string(first.block) + " threads " + std::to_string(first.thread) +
            "-" + std::to_string(first.thread + end - begin - 1) + " " + state;
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
  if (shape.shared_bytes > max_shared_bytes(wave))
    return refuse(std::to_string(shape.shared_bytes) +
                  " bytes of dynamic shared memory, but at most " +
                  std::to_string(max_shared_bytes(wave)) + " are accepted");
  if (shape.cluster < 1 || shape.blocks % shape.cluster != 0 ||
      (shape.cluster > 1 && !shape.cooperative))
    return refuse(std::to_string(shape.blocks) + " blocks in clusters of " +
                  std::to_string(shape.cluster) +
                  "; accepted: whole clusters, and of a cooperative launch");
  if (grid == nullptr) grid = std::make_unique<Grid>();
  return grid->run(shape, call, wave);
}

void sync_block(Site site) { grid->sync_block(site); }
std::uint32_t shuffle(std::uint32_t value, int source, Site site) {
  return grid->shuffle(value, source, site);
}
void pause() { grid->pause(); }
void maybe_switch() { grid->maybe_switch(); }
void* shared_memory(const void* key, std::size_t bytes) { return grid->shared_memory(key, bytes); }
void* dynamic_shared() { return grid->dynamic_shared(); }
void* in_cluster(void* mine, int rank) { return grid->in_cluster(mine, rank); }

}  // namespace emu
}  // namespace tenon
