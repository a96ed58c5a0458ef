// Shared memory of one host: ranks as processes (or threads). A region is a file in /dev/shm
// without a name (O_TMPFILE) that peers open under /proc while its owner still holds the
// descriptor. So the kernel frees it with its last holder however that one ends: nothing is left
// behind by a rank that is killed in the middle of map(), and nothing needs sweeping. Not
// memfd_create(): that knows no size limit, and asking for too much would end in the kernel killing
// processes instead of in an error. The price: ranks must run as one user, in one pid namespace.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <string>

#include "tenon/comm/host_exchange.h"
#include "tenon/comm/transport.h"
#include "tenon/comm/words.h"

namespace tenon::transport_shm {
namespace {

// Where peers find a region, and what they must find there: descriptors are reused.
struct RegionFile {
  std::int32_t pid = 0, number = -1;
  std::uint64_t device = 0, inode = 0;
};

Status failed(std::string_view what, int error) {
  const bool full = error == ENOSPC || error == ENOMEM;
  return Status::error(full ? Code::kOutOfMemory : Code::kIo,
                       std::string(what) + ": " + std::strerror(error));
}

struct Descriptor {
  int number = -1;
  Descriptor() = default;
  explicit Descriptor(int opened) : number(opened) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (number >= 0) close(number);
  }
};

class SharedRegions final : public Mapping {
 public:
  ~SharedRegions() override {
    for (std::byte* region : base)
      if (region != nullptr) munmap(region, bytes);
  }

  // Makes this rank's own region and fills it. `file` keeps it open for the peers.
  Status create(int rank, std::uint8_t fill, Descriptor& file, RegionFile& where) {
    file.number = open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (file.number < 0) return failed("create shared memory in /dev/shm", errno);
    // Reserves the pages: a full /dev/shm is an error here instead of a bus error later.
    const int error = posix_fallocate(file.number, 0, static_cast<off_t>(bytes));
    if (error != 0)
      return failed("reserve " + std::to_string(bytes) + " bytes of shared memory", error);
    TENON_TRY(attach(rank, file.number));
    std::memset(base[rank], fill, bytes);
    struct stat found {};
    if (fstat(file.number, &found) != 0) return failed("look at shared memory", errno);
    where = {getpid(), file.number, found.st_dev, found.st_ino};
    return Status::ok();
  }

  Status open_peer(int rank, const RegionFile& where) {
    const std::string path =
        "/proc/" + std::to_string(where.pid) + "/fd/" + std::to_string(where.number);
    const std::string what = "open shared memory of rank " + std::to_string(rank) + " at " + path;
    const Descriptor file(open(path.c_str(), O_RDWR | O_CLOEXEC));
    struct stat found {};
    if (file.number < 0 || fstat(file.number, &found) != 0) return failed(what, errno);
    if (found.st_dev != where.device || found.st_ino != where.inode)
      return Status::error(Code::kIo, what + ": another file is there by now");
    return attach(rank, file.number);
  }

 private:
  Status attach(int rank, int file) {
    void* region = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (region == MAP_FAILED) return failed("map shared memory", errno);
    base[rank] = static_cast<std::byte*>(region);
    return Status::ok();
  }
};

class Shm final : public Transport {
 public:
  explicit Shm(const TransportContext& context)
      : bootstrap_(context.bootstrap), deadline_(context.deadline) {}

  Status open() {
    TENON_ASSIGN(auto mapping,
                 map(Place::kHost, HostExchange::mapping_bytes(), 0, "host exchange"));
    exchange_ = std::make_unique<HostExchange>(mapping, bootstrap_.rank(), bootstrap_.size());
    return Status::ok();
  }

  Capabilities can() const override { return {.peer_pointers = true, .capturable = true}; }

  Result<std::shared_ptr<Mapping>> map(Place, std::size_t bytes, std::uint8_t fill,
                                       std::string_view label) override {
    const int rank = bootstrap_.rank();
    auto mapping = std::make_shared<SharedRegions>();
    mapping->bytes = bytes;
    Descriptor file;
    RegionFile own;
    TENON_TRY(agree(bootstrap_, mapping->create(rank, fill, file, own), label, deadline_));
    std::vector<RegionFile> files(static_cast<std::size_t>(bootstrap_.size()));
    TENON_TRY(bootstrap_.exchange(bytes_of(own), std::as_writable_bytes(std::span(files)), label,
                                  deadline_));
    Status opened;
    for (int peer = 0; peer < bootstrap_.size() && opened; ++peer)
      if (peer != rank) opened = mapping->open_peer(peer, files[static_cast<std::size_t>(peer)]);
    // After this nobody needs the file any more: the mappings hold the memory.
    TENON_TRY(agree(bootstrap_, opened, label, deadline_));
    return std::static_pointer_cast<Mapping>(mapping);
  }

  bool all_gather(Lane lane, std::span<const std::byte> mine, std::span<std::byte> all,
                  const TeamView& team) override {
    return exchange_->all_gather(lane, mine, all, team);
  }
  bool broadcast(Lane lane, std::span<std::byte> bytes, const TeamView& team) override {
    return exchange_->broadcast(lane, bytes, team);
  }

 private:
  Bootstrap& bootstrap_;
  const std::chrono::milliseconds deadline_;
  std::unique_ptr<HostExchange> exchange_;
};

}  // namespace

Status probe(const TransportContext& context) {
  const RankCard& mine = context.cards[static_cast<std::size_t>(context.bootstrap.rank())];
  if (!is_host(mine.device.target))
    return Status::error(Code::kUnsupported,
                         "serves host targets only, not " + std::string(name(mine.device.target)));
  for (std::size_t rank = 0; rank < context.cards.size(); ++rank)
    if (context.cards[rank].host != mine.host)
      return Status::error(
          Code::kUnsupported,
          "rank " + std::to_string(rank) + " is on another host or in another pid namespace");
  return Status::ok();
}

Result<std::unique_ptr<Transport>> open(const TransportContext& context) {
  auto transport = std::make_unique<Shm>(context);
  TENON_TRY(transport->open());
  return std::unique_ptr<Transport>(std::move(transport));
}

}  // namespace tenon::transport_shm
