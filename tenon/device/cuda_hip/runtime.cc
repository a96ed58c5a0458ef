// The backend of CUDA and of HIP: streams, memory, launches, graphs and events through the vendor's
// runtime. The two spell nearly everything alike: VENDOR(Malloc) is cudaMalloc or hipMalloc.
// The HIP half has been compiled by nobody who could run it.
#include <cxxabi.h>

#include <array>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>

#include "tenon/device/backends.h"
#include "tenon/device/cuda_hip/peer_memory.h"
#include "tenon/device/cuda_hip/vendor.h"
#include "tenon/device/launch_timer.h"

namespace tenon {
namespace {

using namespace vendor;

// What a Stream holds. The vendors' question for a stream's device would break a capture.
struct DeviceStream {
  VendorStream stream = nullptr;
  int device = 0;
  bool borrowed = false;  // somebody else destroys it
};

// "tenon::cuda::rope::(anonymous namespace)::head_kernel(…)"
std::string name_of_kernel(const void* kernel) {
  const char* name = nullptr;
#if defined(TENON_HAS_CUDA)
  const bool known = cudaFuncGetName(&name, kernel) == cudaSuccess;
#else
  name = hipKernelNameRefByPtr(kernel, nullptr);
  const bool known = name != nullptr;
#endif
  if (!known) {
    (void)VENDOR(GetLastError)();
    return "kernel";
  }
  int failed = 0;
  char* const plain = abi::__cxa_demangle(name, nullptr, nullptr, &failed);
  const std::string found = failed == 0 ? plain : name;
  std::free(plain);
  return found;
}

class VendorBackend final : public Backend {
 public:
  VendorBackend() {
    // Loading a kernel at its first launch may wait for the device to be idle, which it never is
    // while another rank on it waits for this one. Has an effect before the driver starts only.
    setenv("CUDA_MODULE_LOADING", "EAGER", 0);
    // Streams that share a hardware queue wait for each other: ranks that share a device must not.
    setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
  }

  Result<int> num_devices() override {
    int count = 0;
    const VendorError error = VENDOR(GetDeviceCount)(&count);
    if (error == kNoDevice || error == kNoDriver) {  // not an error: this machine has none
      (void)VENDOR(GetLastError)();
      return 0;
    }
    TENON_TRY(to_status(error, "count the devices"));
    return count;
  }

  // Asked once for each device: the vendors take milliseconds to answer.
  Result<DeviceProperties> properties(int index) override {
    std::lock_guard lock(mutex_);
    const auto known = properties_.find(index);
    if (known != properties_.end()) return known->second;
    DeviceFacts facts{};
    TENON_VENDOR(GetDeviceProperties, &facts, index);
    DeviceProperties found;
    found.name = facts.name;
    found.num_units = facts.multiProcessorCount;
    found.max_threads_per_block = facts.maxThreadsPerBlock;
    found.max_cooperative_blocks = facts.multiProcessorCount;  // one on each is always possible
    found.max_shared_bytes =
        facts.sharedMemPerBlockOptin > 0 ? facts.sharedMemPerBlockOptin : facts.sharedMemPerBlock;
    found.total_bytes = facts.totalGlobalMem;
    found.l2_bytes = static_cast<std::size_t>(facts.l2CacheSize);
    found.id = id_of(facts);
#if defined(TENON_HAS_CUDA)
    found.cuda_capability = 10 * facts.major + facts.minor;
#endif
    properties_.emplace(index, found);
    return found;
  }

  Status can_reach(int from, int to) override {
    if (from == to) return Status::ok();
    int possible = 0;
    TENON_VENDOR(DeviceCanAccessPeer, &possible, from, to);
    if (possible != 0) return Status::ok();
    return Status::error(Code::kUnsupported, "device " + std::to_string(from) +
                                                 " cannot address the memory of device " +
                                                 std::to_string(to));
  }
  Status enable_peer(int from, int to) override {
    if (from == to) return Status::ok();
    TENON_TRY(can_reach(from, to));
    TENON_TRY(use_device(from));
    const VendorError error = VENDOR(DeviceEnablePeerAccess)(to, 0);
    if (error == VENDOR(ErrorPeerAccessAlreadyEnabled)) {
      (void)VENDOR(GetLastError)();
      return Status::ok();
    }
    return to_status(error, "DeviceEnablePeerAccess");
  }

  Result<void*> allocate(int index, std::size_t bytes) override {
    TENON_TRY(use_device(index));
    void* memory = nullptr;
    TENON_VENDOR(Malloc, &memory, bytes);  // aligned to 256 bytes by both vendors
    return memory;
  }
  void release(int index, void* memory) override {
    const WhileOnDevice there(index);
    (void)VENDOR(Free)(memory);
  }

  Result<PeerMemory> allocate_for_peers(int index, std::size_t bytes, PeerKind kind) override {
    return vendor::allocate_for_peers(index, bytes, kind);
  }
  void release_for_peers(int index, const PeerMemory& memory) override {
    vendor::release_for_peers(index, memory);
  }
  Result<PeerMemory> map_of_peer(int index, const PeerHandle& theirs) override {
    return vendor::map_of_peer(index, theirs);
  }
  void unmap_of_peer(int index, const PeerMemory& memory) override {
    vendor::unmap_of_peer(index, memory);
  }

  Status pin(int index, void* pages, std::size_t bytes) override {
    TENON_TRY(use_device(index));
    TENON_VENDOR(HostRegister, pages, bytes,
                 VENDOR(HostRegisterPortable) | VENDOR(HostRegisterMapped));
    void* seen = nullptr;
    const VendorError error = VENDOR(HostGetDevicePointer)(&seen, pages, 0);
    if (error == VENDOR(Success) && seen == pages) return Status::ok();
    unpin(index, pages);
    TENON_TRY(to_status(error, "HostGetDevicePointer"));
    return Status::error(Code::kUnsupported,
                         "devices see pinned host memory at another address than the host");
  }
  void unpin(int index, void* pages) override {
    const WhileOnDevice there(index);
    (void)VENDOR(HostUnregister)(pages);
  }

  Result<void*> create_stream(int index) override {
    TENON_TRY(use_device(index));
    auto made = std::make_unique<DeviceStream>();
    made->device = index;
    TENON_VENDOR(StreamCreateWithFlags, &made->stream, VENDOR(StreamNonBlocking));
    return static_cast<void*>(made.release());
  }
  Result<void*> borrow_stream(int index, void* vendor_stream) override {
    return static_cast<void*>(
        new DeviceStream{static_cast<VendorStream>(vendor_stream), index, true});
  }
  void destroy_stream(void* stream) override {
    const std::unique_ptr<DeviceStream> held(static_cast<DeviceStream*>(stream));
    if (held->borrowed) return;
    const WhileOnDevice there(held->device);
    (void)VENDOR(StreamDestroy)(held->stream);
  }

  void* vendor_stream(void* stream) override { return as_stream(stream); }
  Status with_device(int index, const std::function<Status()>& work) override {
    TENON_TRY(use_device(index));
    return work();
  }

  Status synchronize(void* stream) override {
    TENON_TRY(keep_device(device_of(stream)));
    if (capturing(stream))  // asking the vendor would also break the capture
      return Status::error(Code::kInvalidArgument, "synchronize: the stream is capturing");
    return to_status(VENDOR(StreamSynchronize)(as_stream(stream)), "StreamSynchronize");
  }

  Status launch(void* stream, const LaunchShape& shape, const KernelCall& call) override {
    return timed(
        stream, [&] { return name_of_kernel(call.kernel); },
        [&] { return launch_now(stream, shape, call); });
  }
  Status launch_now(void* stream, const LaunchShape& shape, const KernelCall& call) {
    TENON_TRY(keep_device(device_of(stream)));
    TENON_TRY(allow_shared(call.kernel, device_of(stream), shape.shared_bytes));
    TENON_TRY(allow_cluster(call.kernel, device_of(stream), shape.cluster));
    std::array<void*, 1> args{const_cast<void*>(call.args)};
    const dim3 grid(static_cast<unsigned>(shape.blocks)),
        block(static_cast<unsigned>(shape.threads));
    // Cooperative launches are plain ones: their plans take at most max_cooperative_blocks, which
    // are resident together as soon as other work of the device has ended, and a vendor's
    // cooperative launch would cost time to make sure of just that.
    const auto once = [&] {
#if defined(TENON_HAS_CUDA)
      std::array<cudaLaunchAttribute, 4> attributes{};
      unsigned count = 0;
      if (shape.early) {
        attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attributes[count++].val.programmaticStreamSerializationAllowed = 1;
      }
      if (shape.cluster > 1) {
        attributes[count].id = cudaLaunchAttributeClusterDimension;
        attributes[count++].val.clusterDim = {static_cast<unsigned>(shape.cluster), 1, 1};
      }
      // Waits for peers: better on many multiprocessors, and each of them left as a product wants
      // it, whose blocks take all of its memory as shared and would wait until it is set anew.
      if (shape.cluster > 1 && shape.cooperative) {
        attributes[count].id = cudaLaunchAttributeClusterSchedulingPolicyPreference;
        attributes[count++].val.clusterSchedulingPolicyPreference =
            cudaClusterSchedulingPolicySpread;
        attributes[count].id = cudaLaunchAttributePreferredSharedMemoryCarveout;
        attributes[count++].val.sharedMemCarveout = cudaSharedmemCarveoutMaxShared;
      }
      cudaLaunchConfig_t config{};
      config.gridDim = grid;
      config.blockDim = block;
      config.dynamicSmemBytes = shape.shared_bytes;
      config.stream = as_stream(stream);
      config.attrs = attributes.data();
      config.numAttrs = count;
      return cudaLaunchKernelExC(&config, call.kernel, args.data());
#else
      return hipLaunchKernel(call.kernel, grid, block, args.data(), shape.shared_bytes,
                             as_stream(stream));
#endif
    };
    VendorError error = once();
    // Other code of this thread may have made another device current since.
    if (error != VENDOR(Success) && use_device(device_of(stream))) error = once();
    if (error == VENDOR(Success)) return Status::ok();
    return to_status(error, "launch")
        .with(std::to_string(shape.blocks) + " blocks of " + std::to_string(shape.threads) +
              " threads with " + std::to_string(shape.shared_bytes) + " shared bytes" +
              (shape.cooperative ? ", cooperative" : ""));
  }

  Status copy(void* stream, void* to, const void* from, std::size_t bytes) override {
    if (bytes == 0) return Status::ok();
    TENON_TRY(keep_device(device_of(stream)));
    return timed(
        stream, [] { return "copy"; },
        [&] {
          return to_status(
              VENDOR(MemcpyAsync)(to, from, bytes, VENDOR(MemcpyDefault), as_stream(stream)),
              "MemcpyAsync");
        });
  }
  Status fill(void* stream, void* to, std::uint8_t byte, std::size_t bytes) override {
    if (bytes == 0) return Status::ok();
    TENON_TRY(keep_device(device_of(stream)));
    return timed(
        stream, [] { return "fill"; },
        [&] {
          return to_status(VENDOR(MemsetAsync)(to, byte, bytes, as_stream(stream)), "MemsetAsync");
        });
  }
  Status host_call(void* stream, void (*call)(void*), void* data) override {
    TENON_TRY(keep_device(device_of(stream)));
    return to_status(VENDOR(LaunchHostFunc)(as_stream(stream), call, data), "LaunchHostFunc");
  }

  Status begin_capture(void* stream) override {
    TENON_TRY(keep_device(device_of(stream)));
    if (capturing(stream))
      return Status::error(Code::kInvalidArgument, "the stream is capturing already");
    return to_status(
        VENDOR(StreamBeginCapture)(as_stream(stream), VENDOR(StreamCaptureModeRelaxed)),
        "StreamBeginCapture");
  }
  Result<void*> end_capture(void* stream) override {
    if (!capturing(stream))
      return Status::error(Code::kInvalidArgument, "the stream is not capturing");
    VENDOR(Graph_t) graph = nullptr;
    TENON_VENDOR(StreamEndCapture, as_stream(stream), &graph);
    TENON_TRY(use_device(device_of(stream)));
    VENDOR(GraphExec_t) runnable = nullptr;
    const VendorError error = VENDOR(GraphInstantiateWithFlags)(&runnable, graph, 0);
    (void)VENDOR(GraphDestroy)(graph);
    TENON_TRY(to_status(error, "GraphInstantiateWithFlags"));
    return static_cast<void*>(runnable);
  }
  bool capturing(void* stream) override {
    VENDOR(StreamCaptureStatus) found = VENDOR(StreamCaptureStatusNone);
    if (VENDOR(StreamIsCapturing)(as_stream(stream), &found) != VENDOR(Success)) {
      (void)VENDOR(GetLastError)();
      return false;
    }
    return found != VENDOR(StreamCaptureStatusNone);
  }
  Status replay(void* graph, void* stream) override {
    TENON_TRY(keep_device(device_of(stream)));
    return to_status(
        VENDOR(GraphLaunch)(static_cast<VENDOR(GraphExec_t)>(graph), as_stream(stream)),
        "GraphLaunch");
  }
  void destroy_graph(void* graph) override {
    (void)VENDOR(GraphExecDestroy)(static_cast<VENDOR(GraphExec_t)>(graph));
  }

  Result<void*> create_event(int index) override {
    TENON_TRY(use_device(index));
    VendorEvent event = nullptr;
    TENON_VENDOR(EventCreate, &event);
    return static_cast<void*>(event);
  }
  void destroy_event(void* event) override {
    (void)VENDOR(EventDestroy)(static_cast<VendorEvent>(event));
  }
  Status record(void* event, void* stream) override {
    // In a capture a plain record only orders work; an external one also takes the time at replay.
    const unsigned flags = capturing(stream) ? VENDOR(EventRecordExternal) : 0u;
    return to_status(
        VENDOR(EventRecordWithFlags)(static_cast<VendorEvent>(event), as_stream(stream), flags),
        "EventRecordWithFlags");
  }
  Result<bool> has_happened(void* event) override {
    const VendorError found = VENDOR(EventQuery)(static_cast<VendorEvent>(event));
    if (found != VENDOR(ErrorNotReady)) {
      TENON_TRY(to_status(found, "EventQuery"));
      return true;
    }
    (void)VENDOR(GetLastError)();
    return false;
  }
  Status await(void* event) override {
    return to_status(VENDOR(EventSynchronize)(static_cast<VendorEvent>(event)), "EventSynchronize");
  }
  Result<double> elapsed_us(void* begin, void* end) override {
    TENON_TRY(await(end));
    float milliseconds = 0;
    TENON_VENDOR(EventElapsedTime, &milliseconds, static_cast<VendorEvent>(begin),
                 static_cast<VendorEvent>(end));
    return static_cast<double>(milliseconds) * 1e3;
  }

 private:
  // More must be asked for, per kernel: 48 KiB are free, but what the kernel declares counts too.
  static constexpr std::size_t kFreeSharedBytes = 32 * 1024;

  // Asks once for the largest launch of a kernel so far. The vendors keep one number per kernel and
  // device: were each launch to set its own, that of one thread would shrink under another's.
  Status allow_shared(const void* kernel, int device, std::size_t bytes) {
    if (bytes <= kFreeSharedBytes) return Status::ok();
    std::lock_guard lock(mutex_);
    std::size_t& allowed = allowed_shared_[{kernel, device}];
    if (bytes <= allowed) return Status::ok();
    TENON_VENDOR(FuncSetAttribute, kernel, VENDOR(FuncAttributeMaxDynamicSharedMemorySize),
                 static_cast<int>(bytes));
    allowed = bytes;
    return Status::ok();
  }

  // Every device that has clusters takes some of this size; for more a kernel must ask.
  static constexpr int kPortableCluster = 8;
  Status allow_cluster(const void* kernel, int device, int cluster) {
    if (cluster <= kPortableCluster) return Status::ok();
#if defined(TENON_HAS_CUDA)
    std::lock_guard lock(mutex_);
    if (large_clusters_.contains({kernel, device})) return Status::ok();
    TENON_VENDOR(FuncSetAttribute, kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    large_clusters_.emplace(kernel, device);
    return Status::ok();
#else
    static_cast<void>(kernel);
    return Status::error(Code::kUnsupported, "device " + std::to_string(device) +
                                                 " has no clusters; asked for one of " +
                                                 std::to_string(cluster) + " blocks");
#endif
  }

  static VendorStream as_stream(void* stream) { return static_cast<DeviceStream*>(stream)->stream; }
  std::mutex mutex_;
  std::map<int, DeviceProperties> properties_;
  std::map<std::pair<const void*, int>, std::size_t> allowed_shared_;  // of a kernel on a device
  std::set<std::pair<const void*, int>> large_clusters_;               // that they may have

  static int device_of(void* stream) { return static_cast<DeviceStream*>(stream)->device; }
};

}  // namespace

Result<Backend*> vendor_backend(Target target) {
  static VendorBackend backend;
  if (target != kTarget)
    return Status::error(Code::kUnsupported,
                         "target " + std::string(name(target)) + " is not part of this build");
  return static_cast<Backend*>(&backend);
}

}  // namespace tenon
