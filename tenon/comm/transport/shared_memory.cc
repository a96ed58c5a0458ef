#include "tenon/comm/transport/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "tenon/comm/messages.h"

namespace tenon {

Descriptor::Descriptor(Descriptor&& other) noexcept : number(std::exchange(other.number, -1)) {}
Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  std::swap(number, other.number);
  return *this;
}
Descriptor::~Descriptor() {
  if (number >= 0) close(number);
}

Status system_failed(std::string_view what, int error) {
  const bool full = error == ENOSPC || error == ENOMEM;
  return Status::error(full ? Code::kOutOfMemory : Code::kIo,
                       std::string(what) + ": " + std::strerror(error));
}

Status check_one_host(std::span<const RankInfo> infos, const RankInfo& mine) {
  for (std::size_t rank = 0; rank < infos.size(); ++rank)
    if (infos[rank].host != mine.host)
      return Status::error(
          Code::kUnsupported,
          "rank " + std::to_string(rank) + " is on another host or in another pid namespace");
  return Status::ok();
}

namespace {

// Where peers find a region, and what they must find there: descriptors are reused.
struct RegionFile {
  std::int32_t pid = 0, number = -1;
  std::uint64_t device = 0, inode = 0;
};

class SharedRegions final : public Mapping {
 public:
  SharedRegions(Backend* backend, int device_index)
      : backend_(backend), device_index_(device_index) {}
  ~SharedRegions() override {
    for (int rank = 0; rank < kMaxRanks; ++rank) {
      if (pinned_[rank]) backend_->unpin(device_index_, base[rank]);
      if (base[rank] != nullptr) munmap(base[rank], bytes);
    }
  }

  // Makes this rank's own region and fills it. `file` keeps it open for the peers.
  Status create(int rank, std::uint8_t fill, Descriptor& file, RegionFile& where) {
    file.number = open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (file.number < 0) return system_failed("create shared memory in /dev/shm", errno);
    // Reserves the pages: a full /dev/shm is an error here instead of a bus error later.
    const int error = posix_fallocate(file.number, 0, static_cast<off_t>(bytes));
    if (error != 0)
      return system_failed("reserve " + std::to_string(bytes) + " bytes of shared memory", error);
    TENON_TRY(attach(rank, file.number));
    std::memset(base[rank], fill, bytes);
    struct stat found {};
    if (fstat(file.number, &found) != 0) return system_failed("look at shared memory", errno);
    where = {getpid(), file.number, found.st_dev, found.st_ino};
    return Status::ok();
  }

  Status open_peer(int rank, const RegionFile& where) {
    const std::string path =
        "/proc/" + std::to_string(where.pid) + "/fd/" + std::to_string(where.number);
    const std::string what = "open shared memory of rank " + std::to_string(rank) + " at " + path;
    const Descriptor file(open(path.c_str(), O_RDWR | O_CLOEXEC));
    struct stat found {};
    if (file.number < 0 || fstat(file.number, &found) != 0) return system_failed(what, errno);
    if (found.st_dev != where.device || found.st_ino != where.inode)
      return Status::error(Code::kIo, what + ": another file is there by now");
    // Memory behind the end of a file is a bus error when it is touched.
    if (found.st_size < 0 || static_cast<std::size_t>(found.st_size) < bytes)
      return Status::error(Code::kIo, what + ": it has " + std::to_string(found.st_size) +
                                          " bytes; accepted: at least " + std::to_string(bytes));
    return attach(rank, file.number);
  }

 private:
  Status attach(int rank, int file) {
    void* region = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (region == MAP_FAILED) return system_failed("map shared memory", errno);
    base[rank] = static_cast<std::byte*>(region);
    TENON_TRY(backend_->pin(device_index_, region, bytes));
    pinned_[rank] = true;
    return Status::ok();
  }

  Backend* const backend_;
  const int device_index_;
  bool pinned_[kMaxRanks] = {};
};

}  // namespace

Result<std::shared_ptr<Mapping>> map_shared_memory(Bootstrap& bootstrap, Device device,
                                                   std::size_t bytes, std::uint8_t fill,
                                                   std::string_view label,
                                                   std::chrono::milliseconds deadline) {
  const int rank = bootstrap.rank();
  TENON_ASSIGN(Backend * held, backend(device.target));
  auto mapping = std::make_shared<SharedRegions>(held, device.index);
  mapping->bytes = bytes;
  Descriptor file;
  RegionFile own;
  TENON_TRY(agree(bootstrap, mapping->create(rank, fill, file, own), label, deadline));
  std::vector<RegionFile> files(static_cast<std::size_t>(bootstrap.size()));
  TENON_TRY(
      bootstrap.exchange(bytes_of(own), std::as_writable_bytes(std::span(files)), label, deadline));
  Status opened;
  for (int peer = 0; peer < bootstrap.size() && opened; ++peer)
    if (peer != rank) opened = mapping->open_peer(peer, files[static_cast<std::size_t>(peer)]);
  // After this nobody needs the file any more: the mappings hold the memory.
  TENON_TRY(agree(bootstrap, opened, label, deadline));
  return std::static_pointer_cast<Mapping>(mapping);
}

}  // namespace tenon
