// Shared memory of one host: ranks as processes (or threads), on host targets.
#include "tenon/comm/transport/peer_transport.h"
#include "tenon/comm/transport/shared_memory.h"

namespace tenon::transport_shm {
namespace {

class Shm final : public PeerTransport {
 public:
  explicit Shm(const TransportContext& context) : PeerTransport(context) {}

  Status open() { return open_exchange(); }

  Result<std::shared_ptr<Mapping>> map(MemoryKind, std::size_t bytes, std::uint8_t fill,
                                       std::string_view label) override {
    return map_shared_memory(bootstrap_, device_, bytes, fill, label, deadline_);
  }
};

}  // namespace

Status probe(const TransportContext& context) {
  const RankInfo& mine = context.infos[static_cast<std::size_t>(context.bootstrap.rank())];
  if (!is_host(mine.device.target))
    return Status::error(Code::kUnsupported,
                         "serves host targets only, not " + std::string(name(mine.device.target)));
  return check_one_host(context.infos, mine);
}

Result<std::unique_ptr<Transport>> open(const TransportContext& context) {
  auto transport = std::make_unique<Shm>(context);
  TENON_TRY(transport->open());
  return std::unique_ptr<Transport>(std::move(transport));
}

}  // namespace tenon::transport_shm
