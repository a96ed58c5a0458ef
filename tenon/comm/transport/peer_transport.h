// What the transports with peer pointers have in common: the host's exchanges over a mapping of
// their own. Not here: how memory is mapped.
#pragma once

#include <memory>

#include "tenon/comm/transport/host_exchange.h"
#include "tenon/comm/transport/transport.h"

namespace tenon {

class PeerTransport : public Transport {
 public:
  Capabilities can() const override { return {.peer_pointers = true, .capturable = true}; }
  bool all_gather(HostChannel channel, std::span<const std::byte> mine, std::span<std::byte> all,
                  const ChannelView& team) override {
    return exchange_->all_gather(channel, mine, all, team);
  }
  bool broadcast(HostChannel channel, std::span<std::byte> bytes,
                 const ChannelView& team) override {
    return exchange_->broadcast(channel, bytes, team);
  }

 protected:
  explicit PeerTransport(const TransportContext& context)
      : bootstrap_(context.bootstrap), device_(context.device), deadline_(context.deadline) {}

  // Collective; once, when map() works.
  Status open_exchange() {
    TENON_ASSIGN(auto mapping,
                 map(MemoryKind::kHost, HostExchange::mapping_bytes(), 0, "host exchange"));
    exchange_ = std::make_unique<HostExchange>(mapping, bootstrap_.rank(), bootstrap_.size());
    return Status::ok();
  }

  Bootstrap& bootstrap_;
  const Device device_;
  const std::chrono::milliseconds deadline_;

 private:
  std::unique_ptr<HostExchange> exchange_;
};

}  // namespace tenon
