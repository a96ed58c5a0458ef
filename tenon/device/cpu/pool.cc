#include "tenon/device/cpu/pool.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <new>
#include <string>
#include <thread>

#include "tenon/device/cpu/block.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tenon::cpu {
namespace {

std::uint64_t now_ns() {
  return static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch() /
                                    std::chrono::nanoseconds(1));
}

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

}  // namespace

bool Arena::reserve(std::size_t wanted) {
  if (wanted <= bytes_) return true;
  std::unique_ptr<std::byte[]> larger(new (std::nothrow) std::byte[wanted + kAlign]);
  if (larger == nullptr) return false;
  memory_ = std::move(larger);
  bytes_ = wanted;
  return true;
}

Status no_shared_memory(std::size_t bytes) {
  return Status::error(Code::kOutOfMemory, "the host has no memory for the " +
                                               std::to_string(bytes) +
                                               " bytes that blocks of a kernel share");
}

void* Arena::begin() const {
  const auto address = reinterpret_cast<std::uintptr_t>(memory_.get());
  return memory_.get() + (kAlign - address % kAlign) % kAlign;
}

void run_blocks(const LaunchShape& shape, const KernelCall& call, const Arena& arena, int begin,
                int end) {
  const CpuBlock outer = cpu_block;
  cpu_block = {begin, shape.blocks, shape.shared_bytes > 0 ? arena.begin() : nullptr};
  for (int block = begin; block < end; ++block) {
    cpu_block.block = block;
    call.invoke(call.kernel, call.args);
  }
  cpu_block = outer;
}

Result<std::shared_ptr<Pool>> Pool::create(int num_threads) {
  auto pool = std::make_shared<Pool>(num_threads);
  for (int i = 1; i < num_threads; ++i)
    TENON_TRY(pool->start_worker(i), "the kernels of the cpu target run on " +
                                         std::to_string(num_threads) +
                                         " threads (TENON_CPU_THREADS takes fewer)");
  return pool;
}

Pool::Pool(int num_threads)
    : ranges_(static_cast<std::size_t>(num_threads)),
      arenas_(ranges_.size()),
      workers_(ranges_.size()) {}

Status Pool::start_worker(int self) {
  const auto i = static_cast<std::size_t>(self);
  if (!arenas_[i].reserve(kMaxSharedBytes)) return no_shared_memory(kMaxSharedBytes);
  TENON_ASSIGN(workers_[i],
               start_thread("tenon pool " + std::to_string(self), [this, self] { work(self); }));
  return Status::ok();
}

Pool::~Pool() {
  stop_.store(true);
  bell_.fetch_add(1);
  bell_.notify_all();
  for (Thread& each : workers_) each.join();
}

Pool::Cost& Pool::cost_of(const LaunchShape& shape, const KernelCall& call) {
  const auto mixed = (reinterpret_cast<std::uintptr_t>(call.kernel) +
                      static_cast<std::uintptr_t>(shape.blocks) * 0x9e3779b9u) *
                     0x9e3779b97f4a7c15ull;
  Cost& cost = costs_[mixed >> 56];
  if (cost.kernel != call.kernel || cost.blocks != shape.blocks)
    cost = {call.kernel, shape.blocks, kWorthSharingNs};  // unknown: worth sharing
  return cost;
}

void Pool::run(const LaunchShape& shape, const KernelCall& call, const Arena& arena) {
  if (shape.blocks == 1 || workers_.size() < 2 || busy_.exchange(true, std::memory_order_acquire)) {
    run_blocks(shape, call, arena, 0, shape.blocks);
    return;
  }
  Cost& cost = cost_of(shape, call);
  if (cost.ns_per_block * static_cast<std::uint64_t>(shape.blocks) < kWorthSharingNs) {
    const std::uint64_t begin = now_ns();
    run_blocks(shape, call, arena, 0, shape.blocks);
    cost.ns_per_block = (now_ns() - begin) / static_cast<std::uint64_t>(shape.blocks);
  } else {
    run_shared(shape, call, arena);
  }
  busy_.store(false, std::memory_order_release);
}

void Pool::run_shared(const LaunchShape& shape, const KernelCall& call, const Arena& arena) {
  shape_ = shape;
  call_ = call;
  const auto num_threads = static_cast<int>(ranges_.size());
  chunk_ = std::max(1, shape.blocks / (num_threads * 8));
  for (int i = 0; i < num_threads; ++i) {
    Range& range = ranges_[static_cast<std::size_t>(i)];
    const auto part = [&](int k) {
      return static_cast<int>(static_cast<std::int64_t>(shape.blocks) * k / num_threads);
    };
    range.next.store(part(i), std::memory_order_relaxed);
    range.end = part(i + 1);
  }
  const std::uint64_t launch = (state_.load(std::memory_order_relaxed) / kLaunch + 1) * kLaunch;
  state_.store(launch | kOpen, std::memory_order_release);
  bell_.fetch_add(1);
  bell_.notify_all();  // no system call when nobody sleeps

  const std::uint64_t begin = now_ns();
  const int ran = take_blocks(0, arena);
  const std::uint64_t spent = now_ns() - begin;
  state_.fetch_and(~kOpen, std::memory_order_acq_rel);
  for (int spins = 0; state_.load(std::memory_order_acquire) != launch; ++spins)
    spins < 2000 ? relax() : std::this_thread::yield();
  if (ran > 0) cost_of(shape, call).ns_per_block = spent / static_cast<std::uint64_t>(ran);
}

bool Pool::join(std::uint64_t seen) {
  while ((seen & kOpen) != 0)
    if (state_.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel,
                                     std::memory_order_relaxed))
      return true;
  return false;
}

int Pool::take_blocks(int self, const Arena& arena) {
  int ran = 0;
  const auto num_ranges = static_cast<int>(ranges_.size());
  for (int i = 0; i < num_ranges; ++i) {
    Range& range = ranges_[static_cast<std::size_t>((self + i) % num_ranges)];
    for (;;) {
      const int begin = range.next.fetch_add(chunk_, std::memory_order_relaxed);
      if (begin >= range.end) break;
      const int end = std::min(begin + chunk_, range.end);
      run_blocks(shape_, call_, arena, begin, end);
      ran += end - begin;
    }
  }
  return ran;
}

void Pool::work(int self) {
  Arena& arena = arenas_[static_cast<std::size_t>(self)];
  std::uint32_t heard = 0;
  for (;;) {
    const std::uint64_t begin = now_ns();
    std::uint32_t rung;
    for (int spins = 0; (rung = bell_.load()) == heard; ++spins) {
      relax();
      if (spins % 64 != 63 || now_ns() - begin < kSpinNs) continue;
      bell_.wait(heard);
    }
    heard = rung;
    if (stop_.load()) return;
    if (!join(state_.load(std::memory_order_acquire))) continue;
    // Without memory it takes none: the launching thread does.
    if (arena.reserve(shape_.shared_bytes)) take_blocks(self, arena);
    state_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace tenon::cpu
