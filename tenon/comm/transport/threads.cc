// Ranks as threads of one process: a peer's region is a plain pointer. Refuses when a rank lives in
// another process.
#include <sys/mman.h>

#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "tenon/comm/host_exchange.h"
#include "tenon/comm/transport.h"
#include "tenon/comm/words.h"

namespace tenon::transport_threads {
namespace {

// Whole pages of its own: no region shares a cache line with anything else.
struct Region {
  explicit Region(std::size_t num_bytes) : bytes(num_bytes) {
    void* pages = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages != MAP_FAILED) data = static_cast<std::byte*>(pages);
  }
  ~Region() {
    if (data != nullptr) munmap(data, bytes);
  }
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;
  const std::size_t bytes;
  std::byte* data = nullptr;
};

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

class Threads final : public Transport {
 public:
  explicit Threads(const TransportContext& context)
      : bootstrap_(context.bootstrap), deadline_(context.deadline) {}

  Status open() {
    TENON_ASSIGN(auto mapping, map(HostExchange::mapping_bytes(), 0, "host exchange"));
    exchange_ = std::make_unique<HostExchange>(mapping, bootstrap_.rank(), bootstrap_.size());
    return Status::ok();
  }

  Capabilities can() const override { return {.peer_pointers = true, .capturable = true}; }

  Result<std::shared_ptr<Mapping>> map(std::size_t bytes, std::uint8_t fill,
                                       std::string_view label) override {
    const auto region = std::make_shared<Region>(bytes);
    Status mine;
    if (region->data == nullptr)
      mine = Status::error(Code::kOutOfMemory, "no memory for " + std::to_string(bytes) + " bytes");
    else
      std::memset(region->data, fill, bytes);
    TENON_TRY(agree(bootstrap_, mine, label, deadline_));

    struct Published {
      std::uint64_t number;
      ~Published() { registry().remove(number); }
    } const published{registry().add(region)};
    std::vector<std::uint64_t> numbers(static_cast<std::size_t>(bootstrap_.size()));
    TENON_TRY(bootstrap_.exchange(bytes_of(published.number),
                                  std::as_writable_bytes(std::span(numbers)), label, deadline_));
    auto mapping = std::make_shared<Regions>();
    mapping->bytes = bytes;
    TENON_TRY(agree(bootstrap_, find_peers(*mapping, numbers), label, deadline_));
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
    if (context.cards[rank].process != mine.process)
      return Status::error(Code::kUnsupported, "rank " + std::to_string(rank) +
                                                   " is in another process (pid " +
                                                   std::to_string(context.cards[rank].pid) + ")");
  return Status::ok();
}

Result<std::unique_ptr<Transport>> open(const TransportContext& context) {
  auto transport = std::make_unique<Threads>(context);
  TENON_TRY(transport->open());
  return std::unique_ptr<Transport>(std::move(transport));
}

}  // namespace tenon::transport_threads
