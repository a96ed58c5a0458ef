// The owners of device/runtime.h over the Backend of their target. No vendor is named here.
#include "tenon/device/runtime.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "tenon/device/backends.h"

namespace tenon {

std::vector<Target> built_targets() {
  return {
#define TENON_TARGET_ENTRY(enumerator, space, folder, wave) Target::k##enumerator,
#include "tenon/core/built_targets.def"
#undef TENON_TARGET_ENTRY
  };
}

Result<Backend*> backend(Target target) {
  static const std::vector<Target> built = built_targets();
  if (std::find(built.begin(), built.end(), target) == built.end())
    return Status::error(Code::kUnsupported,
                         "target " + std::string(name(target)) + " is not part of this build");
  return is_host(target) ? host_backend(target) : vendor_backend(target);
}
#if !defined(TENON_HAS_CUDA) && !defined(TENON_HAS_HIP)
Result<Backend*> vendor_backend(Target target) {
  return Status::error(Code::kUnsupported,
                       std::string(name(target)) + " is not part of this build");
}
#endif

Result<DeviceProperties> properties(Device device) {
  TENON_ASSIGN(Backend * held, backend(device.target));
  TENON_ASSIGN(const int count, held->num_devices());
  if (device.index < 0 || device.index >= count)
    return Status::error(Code::kInvalidArgument, "device " + std::string(name(device.target)) +
                                                     ":" + std::to_string(device.index) +
                                                     " was asked for, but this machine has " +
                                                     std::to_string(count));
  return held->properties(device.index);
}

Result<Device> nth_device(Target target, int n) {
  if (is_host(target)) return Device{target, 0};
  TENON_ASSIGN(Backend * held, backend(target));
  TENON_ASSIGN(const int count, held->num_devices());
  if (count > 0) return Device{target, n % count};
  return Status::error(Code::kUnsupported,
                       "this machine has no device for target " + std::string(name(target)));
}

Result<Stream> Stream::create(Device device) {
  TENON_TRY(properties(device));
  TENON_ASSIGN(Backend * held, tenon::backend(device.target));
  TENON_ASSIGN(void* handle, held->create_stream(device.index));
  return Stream(device, held, handle);
}
Result<Stream> Stream::borrow(Device device, void* vendor_stream) {
  TENON_ASSIGN(Backend * held, tenon::backend(device.target));
  TENON_ASSIGN(void* handle, held->borrow_stream(device.index, vendor_stream));
  return Stream(device, held, handle);
}
Stream::Stream(Stream&& other) noexcept
    : device_(other.device_),
      backend_(other.backend_),
      handle_(std::exchange(other.handle_, nullptr)) {}
Stream& Stream::operator=(Stream&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(backend_, other.backend_);
  std::swap(handle_, other.handle_);
  return *this;
}
Stream::~Stream() {
  if (handle_ != nullptr) backend_->destroy_stream(handle_);
}

Result<Buffer> Buffer::allocate(Device device, std::size_t bytes) {
  TENON_ASSIGN(Backend * held, tenon::backend(device.target));
  Buffer buffer;
  buffer.device_ = device;
  buffer.bytes_ = bytes;
  if (bytes == 0) return buffer;
  TENON_ASSIGN(buffer.data_, held->allocate(device.index, bytes),
               "allocate " + std::to_string(bytes) + " bytes on " +
                   std::string(name(device.target)) + ":" + std::to_string(device.index));
  buffer.backend_ = held;
  return buffer;
}
Buffer::Buffer(Buffer&& other) noexcept
    : device_(other.device_),
      backend_(other.backend_),
      data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}
Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(backend_, other.backend_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}
Buffer::~Buffer() {
  if (data_ != nullptr) backend_->release(device_.index, data_);
}

Result<HostBuffer> HostBuffer::allocate(Device device, std::size_t bytes) {
  constexpr std::size_t kPage = 4096;
  TENON_ASSIGN(Backend * held, tenon::backend(device.target));
  HostBuffer buffer;
  if (bytes == 0) return buffer;
  const std::size_t whole_pages = (bytes + kPage - 1) / kPage * kPage;
  void* pages = std::aligned_alloc(kPage, whole_pages);
  if (pages == nullptr)
    return Status::error(
        Code::kOutOfMemory,
        "the host has no more memory: " + std::to_string(whole_pages) + " bytes were asked for");
  std::memset(pages, 0, whole_pages);
  if (const Status pinned = held->pin(device.index, pages, whole_pages); !pinned) {
    std::free(pages);
    return Status(pinned).with("pin " + std::to_string(whole_pages) + " bytes of host memory");
  }
  buffer.device_ = device;
  buffer.backend_ = held;
  buffer.data_ = static_cast<std::byte*>(pages);
  buffer.bytes_ = bytes;
  return buffer;
}
HostBuffer::HostBuffer(HostBuffer&& other) noexcept
    : device_(other.device_),
      backend_(other.backend_),
      data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}
HostBuffer& HostBuffer::operator=(HostBuffer&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(backend_, other.backend_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}
HostBuffer::~HostBuffer() {
  if (data_ == nullptr) return;
  backend_->unpin(device_.index, data_);
  std::free(data_);
}

Status Graph::begin(Stream& stream) { return stream.backend().begin_capture(stream.native()); }
Result<Graph> Graph::end(Stream& stream) {
  TENON_ASSIGN(void* handle, stream.backend().end_capture(stream.native()));
  return Graph(&stream.backend(), handle);
}
Graph::Graph(Graph&& other) noexcept
    : backend_(other.backend_), handle_(std::exchange(other.handle_, nullptr)) {}
Graph& Graph::operator=(Graph&& other) noexcept {
  std::swap(backend_, other.backend_);
  std::swap(handle_, other.handle_);
  return *this;
}
Graph::~Graph() {
  if (handle_ != nullptr) backend_->destroy_graph(handle_);
}

Result<Event> Event::create(Device device) {
  TENON_ASSIGN(Backend * held, tenon::backend(device.target));
  TENON_ASSIGN(void* handle, held->create_event(device.index));
  return Event(held, handle);
}
Event::Event(Event&& other) noexcept
    : backend_(other.backend_), handle_(std::exchange(other.handle_, nullptr)) {}
Event& Event::operator=(Event&& other) noexcept {
  std::swap(backend_, other.backend_);
  std::swap(handle_, other.handle_);
  return *this;
}
Event::~Event() {
  if (handle_ != nullptr) backend_->destroy_event(handle_);
}

}  // namespace tenon
