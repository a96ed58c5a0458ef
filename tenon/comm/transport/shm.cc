// POSIX shared memory: ranks as processes (or threads) of one host. A name lives only while the
// ranks map it and contains the owner's pid and a random number, so none is ever stale or guessed.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>

#include "tenon/comm/host_exchange.h"
#include "tenon/comm/transport.h"
#include "tenon/comm/words.h"

namespace tenon::transport_shm {
namespace {

struct RegionName {
  char text[64];
};

RegionName fresh_name() {
  std::random_device device;
  const std::uint64_t nonce = std::uint64_t{device()} << 32 | device();
  RegionName name{};
  std::snprintf(name.text, sizeof name.text, "/tenon-%d-%016llx", static_cast<int>(getpid()),
                static_cast<unsigned long long>(nonce));
  return name;
}

Status failed(std::string_view what, const RegionName& name, int error) {
  const bool full = error == ENOSPC || error == ENOMEM;
  return Status::error(full ? Code::kOutOfMemory : Code::kIo,
                       std::string(what) + " " + name.text + ": " + std::strerror(error));
}

struct Descriptor {
  int number = -1;
  ~Descriptor() {
    if (number >= 0) close(number);
  }
};

struct Names {
  explicit Names(std::size_t count) : list(count) {}
  ~Names() {
    for (const RegionName& name : list)
      if (name.text[0] == '/') shm_unlink(name.text);
  }
  std::vector<RegionName> list;
};

class SharedRegions final : public Mapping {
 public:
  ~SharedRegions() override {
    for (std::byte* region : base)
      if (region != nullptr) munmap(region, bytes);
  }

  // Makes this rank's own region and fills it.
  Status create(int rank, const RegionName& name, std::uint8_t fill) {
    const Descriptor file{shm_open(name.text, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600)};
    if (file.number < 0) return failed("create shared memory", name, errno);
    // Reserves the pages: a full /dev/shm is an error here instead of a bus error later.
    const int error = posix_fallocate(file.number, 0, static_cast<off_t>(bytes));
    if (error != 0) return failed("reserve " + std::to_string(bytes) + " bytes of", name, error);
    TENON_TRY(attach(rank, file.number, name));
    std::memset(base[rank], fill, bytes);
    return Status::ok();
  }

  Status open_peer(int rank, const RegionName& name) {
    const Descriptor file{shm_open(name.text, O_RDWR | O_CLOEXEC, 0600)};
    if (file.number < 0) return failed("open shared memory", name, errno);
    return attach(rank, file.number, name);
  }

 private:
  Status attach(int rank, int file, const RegionName& name) {
    void* region = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (region == MAP_FAILED) return failed("map shared memory", name, errno);
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
    // Names are known to all before any of them exists: whoever lives to the end removes them all,
    // also those of a rank that was killed meanwhile.
    const RegionName own = fresh_name();
    Names names(static_cast<std::size_t>(bootstrap_.size()));
    TENON_TRY(bootstrap_.exchange(bytes_of(own), std::as_writable_bytes(std::span(names.list)),
                                  label, deadline_));
    TENON_TRY(agree(bootstrap_, mapping->create(rank, own, fill), label, deadline_));
    Status opened;
    for (int peer = 0; peer < bootstrap_.size() && opened; ++peer)
      if (peer != rank)
        opened = mapping->open_peer(peer, names.list[static_cast<std::size_t>(peer)]);
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
      return Status::error(Code::kUnsupported, "rank " + std::to_string(rank) +
                                                   " is on another host or sees another /dev/shm");
  return Status::ok();
}

Result<std::unique_ptr<Transport>> open(const TransportContext& context) {
  auto transport = std::make_unique<Shm>(context);
  TENON_TRY(transport->open());
  return std::unique_ptr<Transport>(std::move(transport));
}

}  // namespace tenon::transport_shm
