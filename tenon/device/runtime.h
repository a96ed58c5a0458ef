// The host side of every target: Stream, Event, Graph, Buffer, launch, copies. Owners clean up.
// Each target has one Backend (runtime.cc of its folder); this file never names a vendor.
//
// Streams run their work in order. On host targets (cpu, emu) work runs at once, on the thread that
// enqueues it; while a stream is capturing it is recorded instead.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "tenon/core/status.h"
#include "tenon/core/tensor.h"

namespace tenon {

// How a kernel is launched. threads is a multiple of the wave; the cpu target always uses 1.
struct LaunchShape {
  int blocks = 1;
  int threads = 1;
  bool cooperative = false;  // blocks wait for peers or for each other: all must be resident
  bool early = false;  // may start before earlier work has ended: it calls wait_for_previous()
  std::size_t shared_bytes = 0;
  int cluster =
      1;  // cuda: so many blocks in a row reach each other's shared memory; divides blocks
};

// A kernel with its one argument struct, type erased. `invoke` is how host targets call it.
struct KernelCall {
  const void* kernel = nullptr;
  void (*invoke)(const void* kernel, const void* args) = nullptr;
  const void* args = nullptr;
  std::size_t args_bytes = 0;
};

// What a device can do, as plans need to know it.
struct DeviceProperties {
  std::string name;   // "NVIDIA H100 80GB HBM3", "host"
  int num_units = 1;  // multiprocessors, or cores
  int max_threads_per_block = 1;
  int max_cooperative_blocks = 1;    // blocks that are certainly resident together
  std::size_t max_shared_bytes = 0;  // of one block, TENON_SHARED and TENON_DYNAMIC_SHARED together
  std::size_t total_bytes = 0;
  std::size_t l2_bytes = 0;  // of the second-level cache: what a cold benchmark must exceed
  int cuda_capability = 0;   // 10 · major + minor of CUDA's compute capability; 0 elsewhere
  // The same in every process, whatever numbers devices have there. Zeros on host targets.
  std::array<std::uint8_t, 16> id{};
};

// Who can map a device's memory: only its own process, or others too. They get a file descriptor,
// which keeps the memory for whoever has it, or a handle of plain bytes.
enum class PeerKind : std::uint8_t { kProcess, kFile, kHandle };

// Memory of a device as other processes map it. Travels as bytes, but the file in a socket.
struct PeerHandle {
  PeerKind kind = PeerKind::kProcess;
  std::int32_t file = -1;             // kFile: open in this process; its holder closes it
  std::uint64_t bytes = 0;            // of the whole allocation, at least what was asked for
  std::array<std::byte, 64> words{};  // kHandle
};
struct PeerMemory {
  void* data = nullptr;
  PeerHandle handle;
};

// One per target. Functions are called through Stream, Buffer, Graph and Event. On devices they
// leave the device that they work on current for the thread, and never touch another; those that
// give something back (release..., unpin, unmap..., destroy...) leave the thread's as it was,
// where it had one.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual Result<int> num_devices() = 0;
  virtual Result<DeviceProperties> properties(int index) = 0;

  // Whether kernels on device `from` can address memory of device `to`, or why not.
  virtual Status can_reach(int from, int to) = 0;
  // Lets them do so in this process.
  virtual Status enable_peer(int from, int to) = 0;

  virtual Result<void*> allocate(int index, std::size_t bytes) = 0;  // 256-byte aligned
  virtual void release(int index, void* memory) = 0;

  // Memory that kernels of other devices read and write while kernels of this one do. An error says
  // why the machine or the vendor has no such kind.
  virtual Result<PeerMemory> allocate_for_peers(int index, std::size_t bytes, PeerKind kind) = 0;
  virtual void release_for_peers(int index, const PeerMemory& memory) = 0;
  // The memory of another process for kernels of device `index`. The file stays the caller's.
  // Memory that came as a file lives until it is unmapped, even if its owner is gone.
  virtual Result<PeerMemory> map_of_peer(int index, const PeerHandle& theirs) = 0;
  virtual void unmap_of_peer(int index, const PeerMemory& memory) = 0;

  // Lets kernels of every device address `bytes` of host memory, whole pages, at the same address,
  // until unpin(). `index` is the device of the caller.
  virtual Status pin(int index, void* pages, std::size_t bytes) = 0;
  virtual void unpin(int index, void* pages) = 0;

  virtual Result<void*> create_stream(int index) = 0;
  // A stream over one that the vendor made for somebody else, and that lives longer: destroying it
  // leaves that one alone. Null is the vendor's default stream, and on host targets, whose streams
  // nobody else has, the only one accepted.
  virtual Result<void*> borrow_stream(int index, void* vendor_stream) = 0;
  virtual void destroy_stream(void* stream) = 0;
  // What libraries of the vendor take for this stream; null on host targets.
  virtual void* vendor_stream(void* stream) = 0;
  // Runs `work` on this thread with the device current, as libraries of the vendor expect it.
  virtual Status with_device(int index, const std::function<Status()>& work) = 0;
  virtual Status synchronize(void* stream) = 0;
  virtual Status launch(void* stream, const LaunchShape& shape, const KernelCall& call) = 0;
  virtual Status copy(void* stream, void* to, const void* from, std::size_t bytes) = 0;
  virtual Status fill(void* stream, void* to, std::uint8_t byte, std::size_t bytes) = 0;
  // Runs `call` on the host when the stream reaches it: for host transports inside a step.
  virtual Status host_call(void* stream, void (*call)(void* data), void* data) = 0;

  // Relaxed: meanwhile this thread may call what a vendor forbids in stricter modes, and libraries
  // of the vendor that are called to be captured do. What the house forbids is refused by itself.
  virtual Status begin_capture(void* stream) = 0;
  virtual Result<void*> end_capture(void* stream) = 0;  // a graph
  virtual bool capturing(void* stream) = 0;
  virtual Status replay(void* graph, void* stream) = 0;
  virtual void destroy_graph(void* graph) = 0;

  virtual Result<void*> create_event(int index) = 0;
  virtual void destroy_event(void* event) = 0;
  virtual Status record(void* event, void* stream) = 0;
  virtual Result<bool> has_happened(void* event) = 0;             // does not wait
  virtual Status await(void* event) = 0;                          // until it has happened
  virtual Result<double> elapsed_us(void* begin, void* end) = 0;  // waits for `end`
};

// The targets whose kernels this build has, in the order of targets.def.
std::vector<Target> built_targets();

// The backend of a target, or why this build or machine has none.
Result<Backend*> backend(Target target);

// Properties of one device, or why there is none.
Result<DeviceProperties> properties(Device device);

// The device for the nth rank of a process or host: ranks go round the devices of the machine. Of
// host targets everybody uses the first. An error where there is none.
Result<Device> nth_device(Target target, int n);

// An in-order queue of work on one device. Not thread safe: one thread enqueues at a time.
class Stream {
 public:
  static Result<Stream> create(Device device);
  // Over a cudaStream_t or hipStream_t of somebody else, on `device`, that outlives this object and
  // may be capturing. Null: the default stream; host targets accept nothing else. Cheap on devices,
  // which are not asked.
  static Result<Stream> borrow(Device device, void* vendor_stream);
  Stream(Stream&& other) noexcept;
  Stream& operator=(Stream&& other) noexcept;
  ~Stream();

  Device device() const { return device_; }
  Status synchronize() { return backend_->synchronize(handle_); }
  bool capturing() const { return backend_->capturing(handle_); }
  Status launch(const LaunchShape& shape, const KernelCall& call) {
    return backend_->launch(handle_, shape, call);
  }
  // Either side may be host memory; for device targets host memory should outlive the copy.
  Status copy(void* to, const void* from, std::size_t bytes) {
    return backend_->copy(handle_, to, from, bytes);
  }
  Status fill(void* to, std::uint8_t byte, std::size_t bytes) {
    return backend_->fill(handle_, to, byte, bytes);
  }
  Status host_call(void (*call)(void*), void* data) {
    return backend_->host_call(handle_, call, data);
  }
  void* native() const { return handle_; }  // the backend's own, opaque
  Backend& backend() const { return *backend_; }

 private:
  Stream(Device device, Backend* backend, void* handle)
      : device_(device), backend_(backend), handle_(handle) {}
  Device device_;
  Backend* backend_ = nullptr;
  void* handle_ = nullptr;
};

// Device memory, freed with the owner. Contents start undefined.
class Buffer {
 public:
  Buffer() = default;
  static Result<Buffer> allocate(Device device, std::size_t bytes);
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();

  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  Device device() const { return device_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  Device device_{};
  Backend* backend_ = nullptr;
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

// Host memory that streams of a device copy from and to: pinned, so that such copies need no other
// memory and wait for nobody; plain memory on host targets. Zeros at first.
class HostBuffer {
 public:
  HostBuffer() = default;
  static Result<HostBuffer> allocate(Device device, std::size_t bytes);
  HostBuffer(HostBuffer&& other) noexcept;
  HostBuffer& operator=(HostBuffer&& other) noexcept;
  ~HostBuffer();
  std::span<std::byte> bytes() const { return {data_, bytes_}; }

 private:
  Device device_{};
  Backend* backend_ = nullptr;
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

// Work recorded from a stream, run again as often as wanted with the same addresses.
class Graph {
 public:
  // Everything enqueued on `stream` between begin and end is recorded instead of run.
  static Status begin(Stream& stream);
  static Result<Graph> end(Stream& stream);
  Graph(Graph&& other) noexcept;
  Graph& operator=(Graph&& other) noexcept;
  ~Graph();
  Status replay(Stream& stream) { return backend_->replay(handle_, stream.native()); }

 private:
  Graph(Backend* backend, void* handle) : backend_(backend), handle_(handle) {}
  Backend* backend_ = nullptr;
  void* handle_ = nullptr;
};

// A point in a stream's work: for timing, or to see how far the stream is.
class Event {
 public:
  static Result<Event> create(Device device);
  Event(Event&& other) noexcept;
  Event& operator=(Event&& other) noexcept;
  ~Event();
  Status record(Stream& stream) { return backend_->record(handle_, stream.native()); }
  // Whether what was last recorded has happened; true before anything was. Does not wait.
  Result<bool> has_happened() const { return backend_->has_happened(handle_); }
  // Until what was last recorded has happened, and no longer: what was enqueued behind it goes on.
  Status await() const { return backend_->await(handle_); }
  // Microseconds from `begin` to this event. Waits until this event has happened.
  Result<double> us_since(const Event& begin) {
    return backend_->elapsed_us(begin.handle_, handle_);
  }

 private:
  Event(Backend* backend, void* handle) : backend_(backend), handle_(handle) {}
  Backend* backend_ = nullptr;
  void* handle_ = nullptr;
};

// How many OS threads the cpu target uses for plain launches on streams that this thread creates
// from now on; 1 runs them on the launching thread alone. Ranks as threads of one process divide
// the cores by this. Until it is called: TENON_CPU_THREADS, or all cores.
void set_cpu_threads(int threads);

// The order in which emulated threads run in launches from now on, in place of TENON_EMU_SEED.
void set_emu_seed(std::uint64_t seed);

// A member of tables of host functions that a .cu defines. clang's HIP device pass would copy a
// constant table to the device and then miss the functions; this destructor tells it not to.
struct HostOnly {
#if defined(__HIP_DEVICE_COMPILE__)
  ~HostOnly() { asm volatile(""); }
#endif
};

// Launches kernel(args). Args is one trivially copyable struct.
template <class Args>
Status launch(Stream& stream, const LaunchShape& shape, void (*kernel)(Args), const Args& args) {
  static_assert(std::is_trivially_copyable_v<Args>);
  if (shape.blocks <= 0) return Status::ok();  // nothing to do: zero rows
  KernelCall call;
  call.kernel = reinterpret_cast<const void*>(kernel);
  call.invoke = [](const void* entry, const void* values) {
    reinterpret_cast<void (*)(Args)>(const_cast<void*>(entry))(*static_cast<const Args*>(values));
  };
  call.args = &args;
  call.args_bytes = sizeof(Args);
  return stream.launch(shape, call);
}

}  // namespace tenon
