// Files: physical memory of CUDA's driver (cuMem*), mapped at an address of each process and kept
// by whoever maps it. Its functions are looked up at run time: nothing links libcuda. Handles: the
// older way of both vendors, for whole allocations of the runtime. On HIP peers' memory is
// uncached, without which kernels would not see what other devices write while they run. The HIP
// half has been compiled by nobody who could run it.
#include "tenon/device/cuda_hip/peer_memory.h"

#include <cstring>
#include <string>

#include "tenon/device/cuda_hip/vendor.h"
#if defined(TENON_HAS_CUDA)
#include <cuda.h>
#endif

namespace tenon::vendor {
namespace {

// Smaller allocations of the runtime share pages, and a handle would give away the neighbours.
constexpr std::size_t kHandlePages = std::size_t{2} << 20;

std::size_t round_up(std::size_t bytes, std::size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

Status too_large(std::size_t bytes) {
  return Status::error(Code::kOutOfMemory, "no device has " + std::to_string(bytes) + " bytes");
}

#if defined(TENON_HAS_CUDA)

// The driver's functions, as far as this machine's driver has them.
struct Driver {
  decltype(&cuGetErrorString) error_string = nullptr;
  decltype(&cuDeviceGetAttribute) attribute = nullptr;
  decltype(&cuCtxGetCurrent) current = nullptr;
  decltype(&cuMemGetAllocationGranularity) granularity = nullptr;
  decltype(&cuMemCreate) create = nullptr;
  decltype(&cuMemRelease) release = nullptr;
  decltype(&cuMemExportToShareableHandle) give = nullptr;
  decltype(&cuMemImportFromShareableHandle) take = nullptr;
  decltype(&cuMemAddressReserve) reserve = nullptr;
  decltype(&cuMemAddressFree) unreserve = nullptr;
  decltype(&cuMemMap) map = nullptr;
  decltype(&cuMemUnmap) unmap = nullptr;
  decltype(&cuMemSetAccess) set_access = nullptr;
  Status found;

  Driver() {
    find("cuGetErrorString", error_string);
    find("cuDeviceGetAttribute", attribute);
    find("cuCtxGetCurrent", current);
    find("cuMemGetAllocationGranularity", granularity);
    find("cuMemCreate", create);
    find("cuMemRelease", release);
    find("cuMemExportToShareableHandle", give);
    find("cuMemImportFromShareableHandle", take);
    find("cuMemAddressReserve", reserve);
    find("cuMemAddressFree", unreserve);
    find("cuMemMap", map);
    find("cuMemUnmap", unmap);
    find("cuMemSetAccess", set_access);
  }

  template <class F>
  void find(const char* symbol, F& function) {
    void* at = nullptr;
#if CUDART_VERSION >= 12050
    cudaDriverEntryPointQueryResult result{};
    const auto error =
        cudaGetDriverEntryPointByVersion(symbol, &at, 12000, cudaEnableDefault, &result);
#else
    cudaDriverEntryPointQueryResult result{};
    const auto error = cudaGetDriverEntryPoint(symbol, &at, cudaEnableDefault, &result);
#endif
    if (error == cudaSuccess && result == cudaDriverEntryPointSuccess && at != nullptr) {
      function = reinterpret_cast<F>(at);
      return;
    }
    (void)cudaGetLastError();
    if (found)
      found = Status::error(Code::kUnsupported, std::string("the driver has no ") + symbol);
  }

  Status status(CUresult result, const char* doing_what) const {
    if (result == CUDA_SUCCESS) return Status::ok();
    const char* text = nullptr;
    if (error_string(result, &text) != CUDA_SUCCESS || text == nullptr) text = "unknown error";
    return Status::error(result == CUDA_ERROR_OUT_OF_MEMORY ? Code::kOutOfMemory : Code::kDevice,
                         std::string(doing_what) + ": " + text + " (" +
                             std::to_string(static_cast<int>(result)) + ")");
  }
};

const Driver& driver() {
  static const Driver functions;
  return functions;
}

// Waits for this process's kernels on the device first, as freeing does.
void unmap(const PeerMemory& memory) {
  (void)cudaDeviceSynchronize();
  const auto at = reinterpret_cast<CUdeviceptr>(memory.data);
  (void)driver().unmap(at, memory.handle.bytes);
  (void)driver().unreserve(at, memory.handle.bytes);
}

// Gives physical memory an address at which kernels of device `index` see it.
Result<void*> map(int index, CUmemGenericAllocationHandle physical, std::size_t bytes) {
  const Driver& cu = driver();
  CUdeviceptr at = 0;
  TENON_TRY(cu.status(cu.reserve(&at, bytes, 0, 0, 0), "cuMemAddressReserve"));
  Status done = cu.status(cu.map(at, bytes, 0, physical, 0), "cuMemMap");
  if (done) {
    CUmemAccessDesc access{};
    access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    access.location.id = index;
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    done = cu.status(cu.set_access(at, bytes, &access, 1), "cuMemSetAccess");
    if (!done) (void)cu.unmap(at, bytes);
  }
  if (done) return reinterpret_cast<void*>(at);
  (void)cu.unreserve(at, bytes);
  return done;
}

Status check_files(int index) {
  const Driver& cu = driver();
  TENON_TRY(cu.found);
  int possible = 0;
  const auto what = CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED;
  TENON_TRY(cu.status(cu.attribute(&possible, what, index), "cuDeviceGetAttribute"));
  if (possible != 0) return Status::ok();
  return Status::error(Code::kUnsupported, "device " + std::to_string(index) +
                                               " cannot give its memory away as a file descriptor");
}

Result<PeerMemory> allocate_as_file(int index, std::size_t bytes) {
  TENON_TRY(check_files(index));
  const Driver& cu = driver();
  CUmemAllocationProp kind{};
  kind.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  kind.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  kind.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  kind.location.id = index;
  std::size_t unit = 0;
  TENON_TRY(cu.status(cu.granularity(&unit, &kind, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED),
                      "cuMemGetAllocationGranularity"));
  PeerMemory memory;
  memory.handle.kind = PeerKind::kFile;
  memory.handle.bytes = round_up(bytes, unit);
  if (memory.handle.bytes < bytes) return too_large(bytes);
  CUmemGenericAllocationHandle physical = 0;
  TENON_TRY(cu.status(cu.create(&physical, memory.handle.bytes, &kind, 0), "cuMemCreate"));
  Result<void*> mapped = map(index, physical, memory.handle.bytes);
  Status done = mapped.status();
  if (done) {
    memory.data = *mapped;
    int file = -1;
    done = cu.status(cu.give(&file, physical, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
                     "cuMemExportToShareableHandle");
    memory.handle.file = file;
    if (!done) unmap(memory);
  }
  (void)cu.release(physical);  // the mapping and the file keep the memory
  if (!done) return done;
  return memory;
}

Result<PeerMemory> map_file(int index, const PeerHandle& theirs) {
  const Driver& cu = driver();
  TENON_TRY(cu.found);
  CUmemGenericAllocationHandle physical = 0;
  void* file = reinterpret_cast<void*>(static_cast<std::uintptr_t>(theirs.file));
  TENON_TRY(cu.status(cu.take(&physical, file, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
                      "cuMemImportFromShareableHandle"));
  Result<void*> mapped = map(index, physical, theirs.bytes);
  (void)cu.release(physical);
  TENON_TRY(mapped.status());
  return PeerMemory{*mapped, theirs};
}

VendorError allocate_uncached(void** memory, std::size_t bytes) {
  return cudaMalloc(memory, bytes);  // the system scope of loads and stores is enough
}

#else

Status no_files() {
  return Status::error(Code::kUnsupported, "HIP passes memory on as handles, not as files");
}
Result<PeerMemory> allocate_as_file(int, std::size_t) { return no_files(); }
Result<PeerMemory> map_file(int, const PeerHandle&) { return no_files(); }
void unmap(const PeerMemory&) {}

VendorError allocate_uncached(void** memory, std::size_t bytes) {
  return hipExtMallocWithFlags(memory, bytes, hipDeviceMallocUncached);
}

#endif

}  // namespace

bool has_current_device() {
#if defined(TENON_HAS_CUDA)
  CUcontext context = nullptr;
  const auto& current = driver().current;
  return current != nullptr && current(&context) == CUDA_SUCCESS && context != nullptr;
#else
  return true;  // HIP makes nothing on a device before it is used
#endif
}

Result<PeerMemory> allocate_for_peers(int index, std::size_t bytes, PeerKind kind) {
  TENON_TRY(use_device(index));
  if (kind == PeerKind::kFile) return allocate_as_file(index, bytes);
  PeerMemory memory;
  memory.handle.kind = kind;
  memory.handle.bytes = kind == PeerKind::kHandle ? round_up(bytes, kHandlePages) : bytes;
  if (memory.handle.bytes < bytes) return too_large(bytes);
  TENON_TRY(to_status(allocate_uncached(&memory.data, memory.handle.bytes), "Malloc"));
  if (kind == PeerKind::kProcess) return memory;
  VENDOR(IpcMemHandle_t) handle;
  const Status given = to_status(VENDOR(IpcGetMemHandle)(&handle, memory.data), "IpcGetMemHandle");
  if (!given) {
    (void)VENDOR(Free)(memory.data);
    return given;
  }
  static_assert(sizeof handle == sizeof memory.handle.words);
  std::memcpy(memory.handle.words.data(), &handle, sizeof handle);
  return memory;
}

void release_for_peers(int index, const PeerMemory& memory) {
  const WhileOnDevice there(index);
  if (memory.handle.kind == PeerKind::kFile)
    unmap(memory);
  else
    (void)VENDOR(Free)(memory.data);
}

Result<PeerMemory> map_of_peer(int index, const PeerHandle& theirs) {
  TENON_TRY(use_device(index));
  if (theirs.kind == PeerKind::kFile) return map_file(index, theirs);
  if (theirs.kind == PeerKind::kProcess)
    return Status::error(Code::kInvalidArgument, "the memory is its own process's only");
  VENDOR(IpcMemHandle_t) handle;
  std::memcpy(&handle, theirs.words.data(), sizeof handle);
  PeerMemory memory;
  memory.handle = theirs;
  TENON_VENDOR(IpcOpenMemHandle, &memory.data, handle, VENDOR(IpcMemLazyEnablePeerAccess));
  return memory;
}

void unmap_of_peer(int index, const PeerMemory& memory) {
  const WhileOnDevice there(index);
  if (memory.handle.kind == PeerKind::kFile)
    unmap(memory);
  else
    (void)VENDOR(IpcCloseMemHandle)(memory.data);
}

}  // namespace tenon::vendor
