// NCCL (or RCCL) as a transport: for ranks that are threads, processes, or on different hosts.
// There are no peer pointers, so kernels of ours never wait for a peer here: collectives are the
// library's, on streams, and hosts talk over the bootstrap. The library is loaded at run time
// (ccl_library.h) and kept from waiting for ever (ccl_session.h).
#include <cstdlib>
#include <cstring>
#include <deque>
#include <tuple>

#include "tenon/comm/transport/ccl_session.h"
#include "tenon/comm/transport/host_wait.h"
#include "tenon/comm/transport/transport.h"

namespace tenon::transport_ccl {
namespace {

// The own region, and behind it one for every peer that nobody else sees: words that are written
// for peers have a place, and what peers have to say comes through the bootstrap.
class OwnRegions final : public Mapping {
 public:
  static Result<std::shared_ptr<Mapping>> make(int size, std::size_t bytes_each,
                                               std::uint8_t fill) {
    constexpr std::size_t kLine = 64;
    auto made = std::make_shared<OwnRegions>();
    made->is_shared = size == 1;
    made->bytes = bytes_each;
    const std::size_t step = (bytes_each + kLine - 1) / kLine * kLine;
    const std::size_t total = step * static_cast<std::size_t>(size);
    made->memory_ = static_cast<std::byte*>(std::aligned_alloc(kLine, total));
    if (made->memory_ == nullptr)
      return Status::error(Code::kOutOfMemory, "no memory for " + std::to_string(total) + " bytes");
    std::memset(made->memory_, fill, total);
    for (int rank = 0; rank < size; ++rank)
      made->base[rank] = made->memory_ + static_cast<std::size_t>(rank) * step;
    return std::static_pointer_cast<Mapping>(made);
  }
  ~OwnRegions() override { std::free(memory_); }

 private:
  std::byte* memory_ = nullptr;
};

// Work for a host target, run when its stream gets there.
struct HostWork {
  Session* session = nullptr;
  Work work;
};

class Ccl final : public Transport, public StreamCollectives {
 public:
  explicit Ccl(const TransportContext& context)
      : bootstrap_(context.bootstrap), device_(context.device), deadline_(context.deadline) {}
  ~Ccl() override {
    if (session_ != nullptr) session_->close();
  }

  Status open(const TransportContext& context, const Library& library) {
    TENON_ASSIGN(session_, Session::open(context, library));
    return Status::ok();
  }

  Capabilities can() const override { return {.peer_pointers = false, .capturable = true}; }

  Result<std::shared_ptr<Mapping>> map(MemoryKind place, std::size_t bytes, std::uint8_t fill,
                                       std::string_view label) override {
    if (place == MemoryKind::kDevice)
      return Status::error(Code::kUnsupported, "transport ccl has no peer pointers");
    auto made = OwnRegions::make(bootstrap_.size(), bytes, fill);
    TENON_TRY(agree(bootstrap_, made.status(), label, deadline_));
    return made;
  }

  // Both lanes are the bootstrap's one: collectives of streams need no host exchange here.
  bool all_gather(HostChannel, std::span<const std::byte> mine, std::span<std::byte> all,
                  const ChannelView& team) override {
    return exchange(mine, all, team);
  }
  bool broadcast(HostChannel, std::span<std::byte> bytes, const ChannelView& team) override {
    std::vector<std::byte> all(bytes.size() * static_cast<std::size_t>(team.size));
    if (!exchange(bytes, all, team)) return false;
    if (!bytes.empty()) std::memcpy(bytes.data(), all.data(), bytes.size());
    return true;
  }

  StreamCollectives* on_streams() override { return this; }
  void watch(const std::function<void(const Status&)>& failed) override { session_->watch(failed); }

  // --- on streams ---

  Status connect(std::byte* scratch, std::size_t part_bytes, bool own_sum) override {
    TENON_ASSIGN(Stream stream, Stream::create(device_));
    const auto size = static_cast<std::size_t>(bootstrap_.size());
    TENON_TRY(stream.fill(scratch, 0, size * part_bytes));
    // Small and large: the library connects for each way that it chooses by size.
    for (const std::size_t bytes : {std::size_t{16}, part_bytes}) {
      const std::byte* mine = scratch + static_cast<std::size_t>(bootstrap_.rank()) * bytes;
      TENON_TRY(all_gather(mine, scratch, bytes, stream));
      if (own_sum) {
        TENON_TRY(
            all_reduce(scratch, scratch, bytes / size_of(DType::kBF16), DType::kBF16, stream));
      }
    }
    return session_->drain();
  }

  Status all_gather(const std::byte* mine, std::byte* all, std::size_t bytes,
                    Stream& stream) override {
    return enqueue({Work::Kind::kGather, kUint8, mine, all, bytes}, stream);
  }
  Status all_reduce(const std::byte* in, std::byte* out, std::size_t count, DType dtype,
                    Stream& stream) override {
    const int type = dtype == DType::kBF16 ? kBFloat16 : kFloat16;
    return enqueue({Work::Kind::kSum, type, in, out, count}, stream);
  }

 private:
  bool exchange(std::span<const std::byte> mine, std::span<std::byte> all,
                const ChannelView& team) {
    const auto deadline =
        std::chrono::ceil<std::chrono::milliseconds>(std::chrono::nanoseconds(team.deadline_ns));
    const Status status = bootstrap_.exchange(mine, all, "host exchange", deadline);
    if (status) return true;
    std::ignore = session_->fail(status);
    spread_abort(team, team.rank);
    return false;
  }

  // Streams of host targets run what they are given at once, or when a graph is replayed; failures
  // show in health().
  Status enqueue(const Work& work, Stream& stream) {
    if (!is_host(device_.target)) return session_->run(work, &stream);
    const auto run_now = [](void* data) {
      const HostWork& job = *static_cast<const HostWork*>(data);
      std::ignore = job.session->run(job.work, nullptr);
    };
    HostWork job{session_.get(), work};
    if (!stream.capturing()) return stream.host_call(run_now, &job);
    recorded_.push_back(job);
    return stream.host_call(run_now, &recorded_.back());
  }

  Bootstrap& bootstrap_;
  const Device device_;
  const std::chrono::milliseconds deadline_;
  std::shared_ptr<Session> session_;
  std::deque<HostWork> recorded_;  // of captured graphs: addresses must not move
};

std::string device_text(const RankInfo& info) {
  return std::string(name(info.device.target)) + ":" + std::to_string(info.device.index);
}

// The library takes one rank per device. Processes may number devices as they like.
Status check_devices(std::span<const RankInfo> infos) {
  for (std::size_t rank = 0; rank < infos.size(); ++rank)
    for (std::size_t other = 0; other < rank; ++other)
      if (share_device(infos[other], infos[rank]))
        return Status::error(Code::kUnsupported,
                             "ranks " + std::to_string(other) + " and " + std::to_string(rank) +
                                 " share one device, which they call " + device_text(infos[other]) +
                                 " and " + device_text(infos[rank]) +
                                 "; accepted: one rank per device");
  return Status::ok();
}

}  // namespace

Status probe(const TransportContext& context) {
  const RankInfo& mine = context.infos[static_cast<std::size_t>(context.bootstrap.rank())];
  if (!is_host(mine.device.target)) TENON_TRY(check_devices(context.infos));
  return to_status(library_for(mine.device.target));
}

Result<std::unique_ptr<Transport>> open(const TransportContext& context) {
  TENON_ASSIGN(const Library* const library, library_for(context.device.target));
  auto transport = std::make_unique<Ccl>(context);
  TENON_TRY(transport->open(context, *library));
  return std::unique_ptr<Transport>(std::move(transport));
}

}  // namespace tenon::transport_ccl
