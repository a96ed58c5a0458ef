// Ranks as threads of one process: a peer's region is a plain pointer, on devices by peer access.
// Refuses when a rank lives in another process or on a device that cannot be addressed.
#include <sys/mman.h>

#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "tenon/comm/messages.h"
#include "tenon/comm/transport/peer_transport.h"

namespace tenon::transport_threads {
namespace {

// One rank's memory of a mapping.
class Region {
 public:
  Region() = default;
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;
  virtual ~Region() = default;
  std::byte* data = nullptr;
};

// Whole pages of its own: no region shares a cache line with anything else.
class HostRegion final : public Region {
 public:
  static Result<std::shared_ptr<Region>> make(Device device, std::size_t bytes, std::uint8_t fill) {
    TENON_ASSIGN(Backend * held, backend(device.target));
    void* pages = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED)
      return Status::error(Code::kOutOfMemory, "no memory for " + std::to_string(bytes) + " bytes");
    auto region = std::make_shared<HostRegion>();
    region->data = static_cast<std::byte*>(pages);
    region->bytes_ = bytes;
    std::memset(region->data, fill, bytes);
    TENON_TRY(held->pin(device.index, pages, bytes));
    region->backend_ = held;
    region->index_ = device.index;
    return std::static_pointer_cast<Region>(region);
  }
  ~HostRegion() override {
    if (backend_ != nullptr) backend_->unpin(index_, data);
    if (data != nullptr) munmap(data, bytes_);
  }

 private:
  std::size_t bytes_ = 0;
  Backend* backend_ = nullptr;  // that holds the pin
  int index_ = 0;
};

class DeviceRegion final : public Region {
 public:
  static Result<std::shared_ptr<Region>> make(Device device, std::size_t bytes, std::uint8_t fill) {
    auto region = std::make_shared<DeviceRegion>();
    TENON_ASSIGN(Backend * held, backend(device.target));
    TENON_ASSIGN(region->memory_,
                 held->allocate_for_peers(device.index, bytes, PeerKind::kProcess));
    region->backend_ = held;
    region->index_ = device.index;
    region->data = static_cast<std::byte*>(region->memory_.data);
    TENON_ASSIGN(Stream stream, Stream::create(device));
    TENON_TRY(stream.fill(region->data, fill, bytes));
    TENON_TRY(stream.synchronize());
    return std::static_pointer_cast<Region>(region);
  }
  ~DeviceRegion() override {
    if (backend_ != nullptr) backend_->release_for_peers(index_, memory_);
  }

 private:
  PeerMemory memory_;
  Backend* backend_ = nullptr;  // that the memory is from
  int index_ = 0;
};

Result<std::shared_ptr<Region>> make_region(MemoryKind place, Device device, std::size_t bytes,
                                            std::uint8_t fill) {
  if (place == MemoryKind::kDevice && !is_host(device.target))
    return DeviceRegion::make(device, bytes, fill);
  return HostRegion::make(device, bytes, fill);
}

// Where the ranks of this process leave their regions for each other while they map. The number of
// a region is the only thing that travels, so a rank that fails half way leaves no pointer behind.
class Registry {
 public:
  std::uint64_t add(std::shared_ptr<Region> region) {
    std::lock_guard lock(mutex_);
    regions_.emplace(next_, std::move(region));
    return next_++;
  }
  void remove(std::uint64_t number) {
    std::lock_guard lock(mutex_);
    regions_.erase(number);
  }
  std::shared_ptr<Region> find(std::uint64_t number) {
    std::lock_guard lock(mutex_);
    const auto found = regions_.find(number);
    return found == regions_.end() ? nullptr : found->second;
  }

 private:
  std::mutex mutex_;
  std::map<std::uint64_t, std::shared_ptr<Region>> regions_;
  std::uint64_t next_ = 1;
};

Registry& registry() {
  static Registry regions;
  return regions;
}

class Regions final : public Mapping {
 public:
  std::shared_ptr<Region> held[kMaxRanks];
};

Status find_peers(Regions& mapping, std::span<const std::uint64_t> numbers) {
  for (std::size_t rank = 0; rank < numbers.size(); ++rank) {
    mapping.held[rank] = registry().find(numbers[rank]);
    if (mapping.held[rank] == nullptr)
      return Status::error(Code::kPeerLost,
                           "the region of rank " + std::to_string(rank) + " is gone");
    mapping.base[rank] = mapping.held[rank]->data;
  }
  return Status::ok();
}

class Threads final : public PeerTransport {
 public:
  explicit Threads(const TransportContext& context) : PeerTransport(context) {}

  Status open() { return open_exchange(); }

  Result<std::shared_ptr<Mapping>> map(MemoryKind place, std::size_t bytes, std::uint8_t fill,
                                       std::string_view label) override {
    auto region = make_region(place, device_, bytes, fill);
    TENON_TRY(agree(bootstrap_, region.status(), label, deadline_));

    struct Published {
      std::uint64_t number;
      ~Published() { registry().remove(number); }
    } const published{registry().add(*std::move(region))};
    std::vector<std::uint64_t> numbers(static_cast<std::size_t>(bootstrap_.size()));
    TENON_TRY(bootstrap_.exchange(bytes_of(published.number),
                                  std::as_writable_bytes(std::span(numbers)), label, deadline_));
    auto mapping = std::make_shared<Regions>();
    mapping->bytes = bytes;
    TENON_TRY(agree(bootstrap_, find_peers(*mapping, numbers), label, deadline_));
    return std::static_pointer_cast<Mapping>(mapping);
  }
};

}  // namespace

Status probe(const TransportContext& context) {
  const RankInfo& mine = context.infos[static_cast<std::size_t>(context.bootstrap.rank())];
  TENON_ASSIGN(Backend * held, backend(mine.device.target));
  for (std::size_t rank = 0; rank < context.infos.size(); ++rank) {
    const RankInfo& theirs = context.infos[rank];
    if (theirs.process != mine.process)
      return Status::error(Code::kUnsupported,
                           "rank " + std::to_string(rank) + " is in another process" +
                               (theirs.pid > 0 ? " (pid " + std::to_string(theirs.pid) + ")" : ""));
    TENON_TRY(held->enable_peer(mine.device.index, theirs.device.index));
  }
  return Status::ok();
}

Result<std::unique_ptr<Transport>> open(const TransportContext& context) {
  auto transport = std::make_unique<Threads>(context);
  TENON_TRY(transport->open());
  return std::unique_ptr<Transport>(std::move(transport));
}

}  // namespace tenon::transport_threads
