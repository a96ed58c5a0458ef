// The backend of the host targets: cpu (blocks as calls) and emu32, emu64 (blocks of fibers).
// Work runs on the thread that enqueues it, or is recorded while a stream captures.
#include <sched.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <thread>

#include "tenon/gpu/backends.h"
#include "tenon/gpu/cpu/block.h"

namespace tenon {
namespace cpu {

void pause() { sched_yield(); }

}  // namespace cpu

namespace {

using Work = std::function<Status()>;

struct HostGraph {
  std::vector<Work> works;
};

struct HostStream {
  std::unique_ptr<HostGraph> recording;
};

struct HostEvent {
  std::chrono::steady_clock::time_point when;
};

void run_blocks(const LaunchShape& shape, const KernelCall& call) {
  std::vector<std::byte> shared(shape.shared_bytes);
  const CpuBlock outer = cpu_block;
  for (int block = 0; block < shape.blocks; ++block) {
    cpu_block = {block, shape.blocks, shared.data()};
    call.invoke(call.kernel, call.args);
  }
  cpu_block = outer;
}

class HostBackend final : public Backend {
 public:
  Result<int> num_devices() override { return kMaxDevices; }
  Result<DeviceProperties> properties(int) override {
    DeviceProperties found;
    found.name = "host";
    found.num_units = static_cast<int>(std::thread::hardware_concurrency());
    found.max_threads_per_block = 1;
    found.max_cooperative_blocks = 1 << 16;
    return found;
  }

  Result<void*> allocate(int, std::size_t bytes) override {
    void* memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (memory == nullptr) return Status::error(Code::kOutOfMemory, "the host has no more memory");
    return memory;
  }
  void release(int, void* memory) override { std::free(memory); }

  Result<void*> create_stream(int) override { return static_cast<void*>(new HostStream); }
  void destroy_stream(void* stream) override { delete static_cast<HostStream*>(stream); }
  Status synchronize(void*) override { return Status::ok(); }

  Status launch(void* stream, const LaunchShape& shape, const KernelCall& call) override {
    if (!capturing(stream)) {
      run_blocks(shape, call);
      return Status::ok();
    }
    auto args = std::make_shared<std::vector<std::byte>>(call.args_bytes);
    std::memcpy(args->data(), call.args, call.args_bytes);
    return enqueue(stream, [shape, call, args] {
      KernelCall again = call;
      again.args = args->data();
      run_blocks(shape, again);
      return Status::ok();
    });
  }
  Status copy(void* stream, void* to, const void* from, std::size_t bytes) override {
    return enqueue(stream, [=] {
      std::memmove(to, from, bytes);
      return Status::ok();
    });
  }
  Status fill(void* stream, void* to, std::uint8_t byte, std::size_t bytes) override {
    return enqueue(stream, [=] {
      std::memset(to, byte, bytes);
      return Status::ok();
    });
  }
  Status host_call(void* stream, void (*call)(void*), void* data) override {
    return enqueue(stream, [=] {
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
  Status replay(void* graph, void*) override {
    for (const Work& work : static_cast<HostGraph*>(graph)->works) TENON_TRY(work());
    return Status::ok();
  }
  void destroy_graph(void* graph) override { delete static_cast<HostGraph*>(graph); }

  Result<void*> create_event(int) override { return static_cast<void*>(new HostEvent); }
  void destroy_event(void* event) override { delete static_cast<HostEvent*>(event); }
  Status record(void* event, void* stream) override {
    return enqueue(stream, [event] {
      static_cast<HostEvent*>(event)->when = std::chrono::steady_clock::now();
      return Status::ok();
    });
  }
  Result<double> elapsed_us(void* begin, void* end) override {
    const std::chrono::duration<double, std::micro> passed =
        static_cast<HostEvent*>(end)->when - static_cast<HostEvent*>(begin)->when;
    return passed.count();
  }

 private:
  static constexpr int kMaxDevices = 8;  // every rank may have "its own" host device

  template <class F>
  Status enqueue(void* stream, F work) {
    auto& recording = static_cast<HostStream*>(stream)->recording;
    if (recording == nullptr) return work();
    recording->works.emplace_back(std::move(work));
    return Status::ok();
  }
};

}  // namespace

Result<Backend*> host_backend(Target) {
  static HostBackend cpu;
  return static_cast<Backend*>(&cpu);
}

void set_cpu_threads(int) {}

}  // namespace tenon
