// What the two vendors' runtimes spell differently, and the little that all files of this folder
// need: VENDOR(Malloc) is cudaMalloc or hipMalloc. For this folder's host side only.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <iterator>
#include <string>

#include "tenon/core/status.h"
#include "tenon/core/tensor.h"

#if defined(TENON_HAS_CUDA)
#include <cuda_runtime_api.h>
#define VENDOR(name) cuda##name
#else
#include <hip/hip_runtime_api.h>
#define VENDOR(name) hip##name
#endif

namespace tenon::vendor {

#if defined(TENON_HAS_CUDA)
inline constexpr Target kTarget = Target::kCuda;
using DeviceFacts = cudaDeviceProp;
inline constexpr auto kNoMemory = cudaErrorMemoryAllocation;
inline constexpr auto kNoDevice = cudaErrorNoDevice;
inline constexpr auto kNoDriver = cudaErrorInsufficientDriver;
#else
inline constexpr Target kTarget = Target::kHip;
using DeviceFacts = hipDeviceProp_t;
inline constexpr auto kNoMemory = hipErrorOutOfMemory;
inline constexpr auto kNoDevice = hipErrorNoDevice;
inline constexpr auto kNoDriver = hipErrorInsufficientDriver;
#endif
using VendorError = VENDOR(Error_t);
using VendorStream = VENDOR(Stream_t);
using VendorEvent = VENDOR(Event_t);

inline Status to_status(VendorError error, const char* doing_what) {
  if (error == VENDOR(Success)) return Status::ok();
  (void)VENDOR(GetLastError)();  // it is reported here, not to the next caller
  return Status::error(error == kNoMemory ? Code::kOutOfMemory : Code::kDevice,
                       std::string(doing_what) + ": " + VENDOR(GetErrorString)(error) + " (" +
                           VENDOR(GetErrorName)(error) + ")");
}

// Calls the vendor's function and returns early from the caller when it fails.
#define TENON_VENDOR(function, ...) TENON_TRY(to_status(VENDOR(function)(__VA_ARGS__), #function))

// Makes a device current for this thread and leaves it so.
inline thread_local int device_in_use = -1;
inline Status use_device(int index) {
  const Status made = to_status(VENDOR(SetDevice)(index), "make the device current");
  device_in_use = made ? index : -1;
  return made;
}
// The same for launches: asks the vendor only where this thread has used another device since.
inline Status keep_device(int index) {
  return device_in_use == index ? Status::ok() : use_device(index);
}

// Whether the thread has a device that was made current. To make one current that was not would
// make a context on it.
bool has_current_device();

// A device for what gives things back, which may be done by any thread, also by that of another
// rank: whoever uses the vendor's runtime beside this one must not find another device current
// afterwards.
class WhileOnDevice {
 public:
  explicit WhileOnDevice(int index) {
    if (!has_current_device() || VENDOR(GetDevice)(&former_) != VENDOR(Success)) former_ = index;
    (void)use_device(index);
    if (former_ == index) former_ = -1;
  }
  ~WhileOnDevice() {
    if (former_ >= 0) (void)use_device(former_);
  }
  WhileOnDevice(const WhileOnDevice&) = delete;
  WhileOnDevice& operator=(const WhileOnDevice&) = delete;

 private:
  int former_ = -1;  // -1: nothing to put back
};

// What names a device in every process: its UUID, or its place on the bus where it has none.
inline std::array<std::uint8_t, 16> id_of(const DeviceFacts& facts) {
  std::array<std::uint8_t, 16> id{};
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(facts.uuid.bytes);
  std::copy_n(bytes, id.size(), id.begin());
  if (std::any_of(id.begin(), id.end(), [](std::uint8_t byte) { return byte != 0; })) return id;
  const int place[] = {facts.pciDomainID, facts.pciBusID, facts.pciDeviceID, 1};
  for (std::size_t i = 0; i < std::size(place); ++i)
    for (std::size_t byte = 0; byte < 4; ++byte)
      id[4 * i + byte] = static_cast<std::uint8_t>(static_cast<unsigned>(place[i]) >> 8 * byte);
  return id;
}

}  // namespace tenon::vendor
