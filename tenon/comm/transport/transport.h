// Transport: makes memory that all ranks see, and moves bytes between ranks on the host. One line
// of comm/transport/transports.def per kind; each may refuse with a reason, and all ranks take the
// same one.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "tenon/comm/bootstrap/bootstrap.h"
#include "tenon/comm/communicator.h"
#include "tenon/comm/device/channel_view.h"
#include "tenon/core/status.h"
#include "tenon/core/tensor.h"

namespace tenon {

// What the ranks tell each other before they choose a transport. Travels as bytes.
struct RankInfo {
  std::uint64_t host = 0;     // equal for ranks that share a kernel and its process numbers
  std::uint64_t process = 0;  // equal for ranks that are threads of one process
  std::int32_t pid = 0;
  Device device{};
  std::int32_t max_blocks = 0;  // resident together on the device; 0 where there is no such device
  std::array<std::uint8_t, 16> device_id{};  // DeviceProperties::id; zeros on host targets
};
RankInfo own_card(Device device);
// Whether two ranks run on the same device, by whatever numbers their processes know it.
bool share_device(const RankInfo& a, const RankInfo& b);

// What a transport needs to know. The references outlive it.
struct TransportContext {
  Bootstrap& bootstrap;
  Device device{};
  std::span<const RankInfo> infos;  // in rank order
  std::chrono::milliseconds deadline;
};

// One region per rank, of the same size, addressable by this rank. Unmapped with its last holder;
// a peer's region stays valid until then even if that peer is gone.
class Mapping {
 public:
  Mapping() = default;
  virtual ~Mapping() = default;
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  std::byte* base[kMaxRanks] = {};
  std::size_t bytes = 0;
  bool is_shared = true;  // false: base[r] is this rank's own memory too, which rank r never sees
};

// The host's exchanges run in lanes with their own counters, so that two threads of a rank may each
// use one: data for collectives of a stream, control for agreement between hosts.
enum class HostChannel : std::uint8_t { kData, kControl };
inline constexpr int kNumLanes = 2;

// Where the regions of a mapping lie: on each rank's device, for what kernels exchange, or in host
// memory that kernels and hosts of all ranks see. On host targets that is the same.
enum class MemoryKind : std::uint8_t { kDevice, kHost };

// Collectives of the device's memory that a transport brings itself. They enqueue on a stream, wait
// for nothing but the library behind them, and may be captured. One stream at a time.
class StreamCollectives {
 public:
  virtual ~StreamCollectives() = default;
  // Makes every connection now, so that no later call has to. `scratch` holds size × part_bytes.
  // Collective, blocks at most the deadline.
  virtual Status connect(std::byte* scratch, std::size_t part_bytes, bool own_sum) = 0;
  // all[r] = rank r's `bytes` at `mine`. Collective.
  virtual Status all_gather(const std::byte* mine, std::byte* all, std::size_t bytes,
                            Stream& stream) = 0;
  // The library's own sum, in an order that is its own. bf16 or f16. Collective.
  virtual Status all_reduce(const std::byte* in, std::byte* out, std::size_t count, DType dtype,
                            Stream& stream) = 0;
};

class Transport {
 public:
  virtual ~Transport() = default;
  virtual Capabilities can() const = 0;

  // Every byte of every region is `fill` before anybody gets the mapping. Collective; every rank
  // gets the same status.
  virtual Result<std::shared_ptr<Mapping>> map(MemoryKind place, std::size_t bytes,
                                               std::uint8_t fill, std::string_view label) = 0;

  // all[r] = rank r's `mine`, between hosts, without peer pointers.
  // Collective. Waits are bounded by team.deadline_ns and end when *team.abort_word[team.rank] is
  // set, or the bootstrap has lost a rank; false after a fault, which is then in *team.fault, or
  // with the watcher.
  virtual bool all_gather(HostChannel channel, std::span<const std::byte> mine,
                          std::span<std::byte> all, const ChannelView& team) = 0;
  // Rank 0's bytes reach everybody. The same rules.
  virtual bool broadcast(HostChannel channel, std::span<std::byte> bytes,
                         const ChannelView& team) = 0;

  // Null where collectives are kernels over peer memory or go through the host.
  virtual StreamCollectives* on_streams() { return nullptr; }
  // `failed` hears, from any thread, of a failure that has no fault record. At most once, and not
  // after the transport's end.
  virtual void watch(const std::function<void(const Status& status)>& failed) { (void)failed; }
};

// One line of comm/transport/transports.def.
struct TransportEntry {
  std::string_view name;
  // Ok, or this rank's reason to refuse. Not collective.
  Status (*probe)(const TransportContext& context);
  // Collective, after all ranks said ok. kUnsupported, then on every rank, is a refusal too.
  Result<std::unique_ptr<Transport>> (*open)(const TransportContext& context);
};
std::span<const TransportEntry> transport_lines();

// Tries the lines in order, or only the one named, until one is accepted by all ranks. Collective.
struct ChosenTransport {
  std::string_view name;
  std::unique_ptr<Transport> transport;
  std::vector<std::string> refusals;  // "shm: rank 1: …", one for each line passed over
};
Result<ChosenTransport> choose_transport(const TransportContext& context, std::string_view wanted);

}  // namespace tenon
