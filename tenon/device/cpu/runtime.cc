// The backend of the host targets: cpu (blocks as calls, plain launches spread over a pool) and
// emu32, emu64 (blocks of fibers). Work runs on the thread that enqueues it, or is recorded while a
// stream captures.
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>

#include "tenon/core/env.h"
#include "tenon/core/guard.h"
#include "tenon/device/backends.h"
#include "tenon/device/cpu/pool.h"
#include "tenon/device/emu/fibers.h"
#include "tenon/device/launch_timer.h"

namespace tenon {
namespace cpu {

void pause() { sched_yield(); }

}  // namespace cpu

namespace {

struct HostStream;
using Work = std::function<Status(HostStream& stream)>;

struct HostGraph {
  std::vector<Work> works;
};

struct HostStream {
  std::unique_ptr<HostGraph> recording;
  std::shared_ptr<cpu::Pool> pool;  // null: launches stay on the enqueuing thread
  cpu::Arena arena;                 // of the enqueuing thread's blocks
};

struct HostEvent {
  std::chrono::steady_clock::time_point when;
};

// The pool of the streams that this thread creates; made by the first of them.
struct ThreadPools {
  int num_threads = 0;  // 0: nobody has said
  std::shared_ptr<cpu::Pool> pool;
};
thread_local ThreadPools thread_pools;

Result<std::shared_ptr<cpu::Pool>> pool_for_new_stream() {
  int wanted = thread_pools.num_threads;
  if (wanted == 0) wanted = env().cpu_threads;
  if (wanted == 0) wanted = static_cast<int>(std::thread::hardware_concurrency());
  if (wanted <= 1) return std::shared_ptr<cpu::Pool>();
  if (thread_pools.pool == nullptr || thread_pools.pool->num_threads() != wanted) {
    thread_pools.pool = nullptr;  // its threads end before others start
    TENON_ASSIGN(thread_pools.pool, cpu::Pool::create(wanted));
  }
  return thread_pools.pool;
}

// The cpu target's kernels run on the stack of the thread that enqueues them, and keep up to about
// 150 KiB there.
constexpr std::size_t kKernelStackBytes = 192 * 1024;

Status check_stack() {
  pthread_attr_t attributes;
  if (pthread_getattr_np(pthread_self(), &attributes) != 0) return Status::ok();  // cannot be known
  void* low = nullptr;
  std::size_t bytes = 0;
  const int error = pthread_attr_getstack(&attributes, &low, &bytes);
  pthread_attr_destroy(&attributes);
  const auto here = reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0));
  const std::size_t left = here - reinterpret_cast<std::uintptr_t>(low);
  if (error != 0 || left > bytes || left >= kKernelStackBytes) return Status::ok();
  return Status::error(Code::kOutOfMemory, "the stack of this thread has " +
                                               std::to_string(left / 1024) +
                                               " KiB left; kernels of the cpu target need " +
                                               std::to_string(kKernelStackBytes / 1024) +
                                               " KiB (ulimit -s, or the attributes of the thread)");
}

constexpr int kMaxDevices = 8;  // every rank may have "its own" host device

class HostBackend final : public Backend {
 public:
  HostBackend(Target target, int wave) : target_(target), wave_(wave) {}

  Result<int> num_devices() override { return kMaxDevices; }
  Result<DeviceProperties> properties(int) override {
    DeviceProperties found;
    if (target_ == Target::kCpu) {
      found.name = "host";
      found.num_units = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
      found.max_threads_per_block = 1;
      found.max_cooperative_blocks = 1;  // blocks of one launch run in order, not together
      found.max_shared_bytes = cpu::kMaxSharedBytes;
    } else {
      found.name = "emulator with waves of " + std::to_string(wave_);
      found.num_units = 4;
      found.max_threads_per_block = emu::kMaxThreads;
      found.max_cooperative_blocks = emu::kMaxCooperativeBlocks;
      found.max_shared_bytes = emu::max_shared_bytes(wave_);
    }
    found.total_bytes = static_cast<std::size_t>(sysconf(_SC_PHYS_PAGES)) *
                        static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    // Not every system tells the size of its caches.
    const long l2_bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
    found.l2_bytes = l2_bytes > 0 ? static_cast<std::size_t>(l2_bytes) : std::size_t{1} << 20;
    return found;
  }

  Status can_reach(int, int) override { return Status::ok(); }  // one address space
  Status enable_peer(int, int) override { return Status::ok(); }

  Result<void*> allocate(int, std::size_t bytes) override {
    const std::size_t rounded = (bytes + 255) / 256 * 256;
    void* memory = rounded < bytes ? nullptr : std::aligned_alloc(256, rounded);
    if (memory == nullptr) return Status::error(Code::kOutOfMemory, "the host has no more memory");
    return memory;
  }
  void release(int, void* memory) override { std::free(memory); }
  Result<PeerMemory> allocate_for_peers(int, std::size_t, PeerKind) override {
    return no_device_memory();
  }
  void release_for_peers(int, const PeerMemory&) override {}
  Result<PeerMemory> map_of_peer(int, const PeerHandle&) override { return no_device_memory(); }
  void unmap_of_peer(int, const PeerMemory&) override {}
  Status pin(int, void*, std::size_t) override { return Status::ok(); }
  void unpin(int, void*) override {}

  Result<void*> create_stream(int) override {
    return guarded([this]() -> Result<void*> {
      auto stream = std::make_unique<HostStream>();
      if (target_ == Target::kCpu) {
        TENON_TRY(check_stack());
        if (!stream->arena.reserve(cpu::kMaxSharedBytes))
          return cpu::no_shared_memory(cpu::kMaxSharedBytes);
        TENON_ASSIGN(stream->pool, pool_for_new_stream());
      }
      return static_cast<void*>(stream.release());
    });
  }
  Result<void*> borrow_stream(int index, void* vendor_stream) override {
    if (vendor_stream == nullptr) return create_stream(index);
    return Status::error(Code::kInvalidArgument, "a stream was passed, but target " +
                                                     std::string(name(target_)) +
                                                     " has none of a vendor's; accepted: null");
  }
  void destroy_stream(void* stream) override { delete static_cast<HostStream*>(stream); }
  void* vendor_stream(void*) override { return nullptr; }
  Status with_device(int, const std::function<Status()>& work) override { return work(); }
  Status synchronize(void* stream) override {
    if (capturing(stream))
      return Status::error(Code::kInvalidArgument, "synchronize: the stream is capturing");
    return Status::ok();
  }

  Status launch(void* stream, const LaunchShape& shape, const KernelCall& call) override {
    return timed(
        stream, [] { return "kernel"; }, [&] { return launch_now(stream, shape, call); });
  }
  Status launch_now(void* stream, const LaunchShape& shape, const KernelCall& call) {
    if (!capturing(stream))
      return guarded([&] { return run(*static_cast<HostStream*>(stream), shape, call); });
    auto args = std::make_shared<std::vector<std::byte>>(call.args_bytes);
    std::memcpy(args->data(), call.args, call.args_bytes);
    return enqueue(stream, [this, shape, call, args](HostStream& on) {
      KernelCall again = call;
      again.args = args->data();
      return run(on, shape, again);
    });
  }
  Status copy(void* stream, void* to, const void* from, std::size_t bytes) override {
    const auto work = [=](HostStream&) {
      if (bytes > 0) std::memmove(to, from, bytes);
      return Status::ok();
    };
    return timed(
        stream, [] { return "copy"; }, [&] { return enqueue(stream, work); });
  }
  Status fill(void* stream, void* to, std::uint8_t byte, std::size_t bytes) override {
    const auto work = [=](HostStream&) {
      if (bytes > 0) std::memset(to, byte, bytes);
      return Status::ok();
    };
    return timed(
        stream, [] { return "fill"; }, [&] { return enqueue(stream, work); });
  }
  Status host_call(void* stream, void (*call)(void*), void* data) override {
    return enqueue(stream, [=](HostStream&) {
      call(data);
      return Status::ok();
    });
  }

  Status begin_capture(void* stream) override {
    if (capturing(stream))
      return Status::error(Code::kInvalidArgument, "the stream is capturing already");
    static_cast<HostStream*>(stream)->recording = std::make_unique<HostGraph>();
    return Status::ok();
  }
  Result<void*> end_capture(void* stream) override {
    if (!capturing(stream))
      return Status::error(Code::kInvalidArgument, "the stream is not capturing");
    return static_cast<void*>(static_cast<HostStream*>(stream)->recording.release());
  }
  bool capturing(void* stream) override {
    return static_cast<HostStream*>(stream)->recording != nullptr;
  }
  Status replay(void* graph, void* stream) override {
    if (capturing(stream))
      return Status::error(Code::kInvalidArgument, "replay: the stream is capturing");
    for (const Work& work : static_cast<HostGraph*>(graph)->works)
      TENON_TRY(work(*static_cast<HostStream*>(stream)));
    return Status::ok();
  }
  void destroy_graph(void* graph) override { delete static_cast<HostGraph*>(graph); }

  Result<void*> create_event(int) override { return static_cast<void*>(new HostEvent); }
  void destroy_event(void* event) override { delete static_cast<HostEvent*>(event); }
  Status record(void* event, void* stream) override {
    return enqueue(stream, [event](HostStream&) {
      static_cast<HostEvent*>(event)->when = std::chrono::steady_clock::now();
      return Status::ok();
    });
  }
  Result<bool> has_happened(void*) override { return true; }  // work runs when it is enqueued
  Status await(void*) override { return Status::ok(); }
  Result<double> elapsed_us(void* begin, void* end) override {
    const std::chrono::duration<double, std::micro> passed =
        static_cast<HostEvent*>(end)->when - static_cast<HostEvent*>(begin)->when;
    return passed.count();
  }

 private:
  static Status no_device_memory() {
    return Status::error(Code::kUnsupported,
                         "host targets have no memory of a device; processes share files instead");
  }

  // Cooperative launches of the cpu target stay on this thread, in order: a rank's waits must not
  // depend on which of its workers the system happens to run.
  Status run(HostStream& stream, const LaunchShape& shape, const KernelCall& call) {
    if (target_ != Target::kCpu) return emu::run_grid(shape, call, wave_);
    if (!stream.arena.reserve(shape.shared_bytes)) return cpu::no_shared_memory(shape.shared_bytes);
    if (shape.cooperative || stream.pool == nullptr) {
      cpu::run_blocks(shape, call, stream.arena, 0, shape.blocks);
    } else {
      stream.pool->run(shape, call, stream.arena);
    }
    return Status::ok();
  }

  template <class F>
  Status enqueue(void* stream, F work) {
    auto& on = *static_cast<HostStream*>(stream);
    if (on.recording == nullptr) return work(on);
    on.recording->works.emplace_back(std::move(work));
    return Status::ok();
  }

  Target target_;
  int wave_;
};

}  // namespace

Result<Backend*> host_backend(Target target) {
  static HostBackend cpu(Target::kCpu, 1), emu32(Target::kEmu32, 32), emu64(Target::kEmu64, 64);
  switch (target) {
    case Target::kCpu: return static_cast<Backend*>(&cpu);
    case Target::kEmu32: return static_cast<Backend*>(&emu32);
    case Target::kEmu64: return static_cast<Backend*>(&emu64);
    default:
      return Status::error(Code::kInternal, "not a host target: " + std::string(name(target)));
  }
}

void set_cpu_threads(int threads) { thread_pools.num_threads = std::max(0, threads); }

}  // namespace tenon
