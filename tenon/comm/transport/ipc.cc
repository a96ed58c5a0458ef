// Ranks as processes of one host, on devices: a peer's region is its device's memory, mapped into
// this process as a file descriptor (preferred: the memory lives until the last rank unmaps it) or
// as a vendor's handle. What hosts share is shared memory, pinned by every process. Which way the
// ranks take is agreed on when they open; the other's refusal is kept in the error.
#include <unistd.h>

#include <string>
#include <vector>

#include "tenon/comm/fault.h"
#include "tenon/comm/messages.h"
#include "tenon/comm/transport/fd_passing.h"
#include "tenon/comm/transport/peer_transport.h"
#include "tenon/comm/transport/shared_memory.h"
#include "tenon/core/env.h"

namespace tenon::transport_ipc {
namespace {

class DeviceRegions final : public Mapping {
 public:
  DeviceRegions(Backend* backend, int index, int rank)
      : backend_(backend), index_(index), rank_(rank) {}
  ~DeviceRegions() override {
    for (int peer = 0; peer < kMaxRanks; ++peer)
      if (peer != rank_ && memory_[peer].data != nullptr)
        backend_->unmap_of_peer(index_, memory_[peer]);
    if (memory_[rank_].data != nullptr) backend_->release_for_peers(index_, memory_[rank_]);
  }

  // Makes this rank's own region and fills it. `file` is what peers get of it, where it is a file.
  Status create(Device device, PeerKind kind, std::uint8_t fill, Descriptor& file) {
    PeerMemory& own = memory_[rank_];
    TENON_ASSIGN(own, backend_->allocate_for_peers(index_, bytes, kind));
    file = Descriptor(own.handle.file);
    own.handle.file = -1;
    TENON_ASSIGN(Stream stream, Stream::create(device));
    TENON_TRY(stream.fill(own.data, fill, bytes));
    TENON_TRY(stream.synchronize());
    base[rank_] = static_cast<std::byte*>(own.data);
    return Status::ok();
  }

  Status open_peer(int peer, PeerHandle theirs, const Descriptor& file) {
    if (theirs.bytes < bytes)
      return Status::error(Code::kInternal, "rank " + std::to_string(peer) + " offers " +
                                                std::to_string(theirs.bytes) + " bytes of " +
                                                std::to_string(bytes));
    theirs.file = file.number;
    TENON_ASSIGN(memory_[peer], backend_->map_of_peer(index_, theirs),
                 "map the memory of rank " + std::to_string(peer));
    base[peer] = static_cast<std::byte*>(memory_[peer].data);
    return Status::ok();
  }

  const PeerHandle& own_handle() const { return memory_[rank_].handle; }

 private:
  Backend* const backend_;
  const int index_, rank_;
  PeerMemory memory_[kMaxRanks];
};

class Ipc final : public PeerTransport {
 public:
  Ipc(const TransportContext& context, Backend* backend)
      : PeerTransport(context),
        backend_(backend),
        infos_(context.infos.begin(), context.infos.end()),
        post_(context.bootstrap) {}

  // kUnsupported, on every rank, where no way leads to the peers' memory.
  Status open() {
    TENON_TRY(choose_kind());
    return open_exchange();
  }

  Result<std::shared_ptr<Mapping>> map(MemoryKind place, std::size_t bytes, std::uint8_t fill,
                                       std::string_view label) override {
    if (place == MemoryKind::kHost)
      return map_shared_memory(bootstrap_, device_, bytes, fill, label, deadline_);
    return map_device_memory(kind_, bytes, fill, label);
  }

 private:
  // Tries each kind on a small region: what a machine or a container forbids shows up nowhere else.
  Status choose_kind() {
    std::string refusals;
    for (const PeerKind kind : {PeerKind::kFile, PeerKind::kHandle}) {
      kind_ = kind;
      Status tried = try_kind(kind);
      if (is_fatal(tried)) return tried;
      if (tried) {
        log(LogLevel::kInfo, std::string("ipc: memory of devices travels as ") +
                                 (kind == PeerKind::kFile ? "files" : "handles" + refusals));
        return tried;
      }
      refusals += (kind == PeerKind::kFile ? "; not as files: " : "; not as handles: ") +
                  std::string(tried.message());
    }
    return Status::error(Code::kUnsupported, "memory of devices cannot travel" + refusals);
  }

  Status try_kind(PeerKind kind) {
    if (kind == PeerKind::kFile) {
      TENON_TRY(post_.open(deadline_));
    } else {
      TENON_TRY(check_processes());
    }
    return map_device_memory(kind, 1, 0, "ipc trial").status();
  }

  // The same answer on every rank: all have the same infos.
  Status check_processes() const {
    for (std::size_t a = 0; a < infos_.size(); ++a)
      for (std::size_t b = a + 1; b < infos_.size(); ++b)
        if (infos_[a].process == infos_[b].process)
          return Status::error(Code::kUnsupported,
                               "ranks " + std::to_string(a) + " and " + std::to_string(b) +
                                   " are threads of one process, which cannot open its own handle");
    return Status::ok();
  }

  Result<std::shared_ptr<Mapping>> map_device_memory(PeerKind kind, std::size_t bytes,
                                                     std::uint8_t fill, std::string_view label) {
    const int rank = bootstrap_.rank(), size = bootstrap_.size();
    auto mapping = std::make_shared<DeviceRegions>(backend_, device_.index, rank);
    mapping->bytes = bytes;
    Descriptor file;
    TENON_TRY(agree(bootstrap_, mapping->create(device_, kind, fill, file), label, deadline_));
    std::vector<PeerHandle> handles(static_cast<std::size_t>(size));
    TENON_TRY(bootstrap_.exchange(bytes_of(mapping->own_handle()),
                                  std::as_writable_bytes(std::span(handles)), label, deadline_));
    std::vector<Descriptor> files(static_cast<std::size_t>(size));
    if (kind == PeerKind::kFile) {
      TENON_ASSIGN(files, post_.exchange(file.number, label, deadline_));
    }
    Status opened;
    for (int peer = 0; peer < size && opened; ++peer) {
      const auto of_peer = static_cast<std::size_t>(peer);
      if (peer != rank) opened = mapping->open_peer(peer, handles[of_peer], files[of_peer]);
    }
    TENON_TRY(agree(bootstrap_, opened, label, deadline_));
    return std::static_pointer_cast<Mapping>(mapping);
  }

  Backend* const backend_;
  const std::vector<RankInfo> infos_;
  FilePost post_;
  PeerKind kind_ = PeerKind::kFile;
};

}  // namespace

Status probe(const TransportContext& context) {
  const RankInfo& mine = context.infos[static_cast<std::size_t>(context.bootstrap.rank())];
  if (is_host(mine.device.target))
    return Status::error(Code::kUnsupported,
                         "serves devices only, not " + std::string(name(mine.device.target)));
  TENON_TRY(check_one_host(context.infos, mine));
  TENON_ASSIGN(Backend * held, backend(mine.device.target));
  TENON_ASSIGN(const int count, held->num_devices());
  for (int index = 0; index < count; ++index) {
    TENON_ASSIGN(const DeviceProperties found, held->properties(index));
    for (std::size_t rank = 0; rank < context.infos.size(); ++rank)
      if (context.infos[rank].device_id == found.id)
        TENON_TRY(held->can_reach(mine.device.index, index), "rank " + std::to_string(rank));
  }
  return Status::ok();  // a device that is not visible here shows what it can when ranks open
}

Result<std::unique_ptr<Transport>> open(const TransportContext& context) {
  TENON_ASSIGN(Backend * held, backend(context.device.target));
  auto transport = std::make_unique<Ipc>(context, held);
  TENON_TRY(transport->open());
  return std::unique_ptr<Transport>(std::move(transport));
}

}  // namespace tenon::transport_ipc
