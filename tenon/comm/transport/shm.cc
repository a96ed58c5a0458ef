// Shared memory of one host: ranks as processes (or threads), on host targets.
#include "tenon/comm/host_exchange.h"
#include "tenon/comm/transport.h"
#include "tenon/comm/transport/shared_memory.h"

namespace tenon::transport_shm {
namespace {

class Shm final : public Transport {
 public:
  explicit Shm(const TransportContext& context)
      : bootstrap_(context.bootstrap), device_(context.device), deadline_(context.deadline) {}

  Status open() {
    TENON_ASSIGN(auto mapping,
                 map(Place::kHost, HostExchange::mapping_bytes(), 0, "host exchange"));
    exchange_ = std::make_unique<HostExchange>(mapping, bootstrap_.rank(), bootstrap_.size());
    return Status::ok();
  }

  Capabilities can() const override { return {.peer_pointers = true, .capturable = true}; }

  Result<std::shared_ptr<Mapping>> map(Place, std::size_t bytes, std::uint8_t fill,
                                       std::string_view label) override {
    return map_shared_memory(bootstrap_, device_, bytes, fill, label, deadline_);
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
  const Device device_;
  const std::chrono::milliseconds deadline_;
  std::unique_ptr<HostExchange> exchange_;
};

}  // namespace

Status probe(const TransportContext& context) {
  const RankCard& mine = context.cards[static_cast<std::size_t>(context.bootstrap.rank())];
  if (!is_host(mine.device.target))
    return Status::error(Code::kUnsupported,
                         "serves host targets only, not " + std::string(name(mine.device.target)));
  return check_one_host(context.cards, mine);
}

Result<std::unique_ptr<Transport>> open(const TransportContext& context) {
  auto transport = std::make_unique<Shm>(context);
  TENON_TRY(transport->open());
  return std::unique_ptr<Transport>(std::move(transport));
}

}  // namespace tenon::transport_shm
