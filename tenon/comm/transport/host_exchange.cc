#include "tenon/comm/transport/host_exchange.h"

#include <algorithm>
#include <cstring>

#include "tenon/comm/transport/host_wait.h"

namespace tenon {
namespace {
constexpr int kGenerations = 2;
}  // namespace

struct HostExchange::Slot {
  alignas(64) std::uint32_t step_posted;  // 1 + the step whose bytes are below
  std::uint64_t total_bytes;              // of the whole call, for the check
  alignas(64) std::byte chunk[kChunkBytes];
};

std::size_t HostExchange::mapping_bytes() { return sizeof(Slot) * kGenerations * kNumLanes; }

HostExchange::Slot& HostExchange::slot(int rank, HostChannel channel, std::uint32_t step) const {
  auto* slots = reinterpret_cast<Slot*>(mapping_->base[rank]);
  return slots[static_cast<std::size_t>(channel) * kGenerations + step % kGenerations];
}

void HostExchange::post(HostChannel channel, std::uint32_t step, std::span<const std::byte> chunk,
                        std::size_t total) {
  // Free since every peer posted step − 1, which it did after reading step − 2.
  Slot& own = slot(rank_, channel, step);
  own.total_bytes = total;
  if (!chunk.empty()) std::memcpy(own.chunk, chunk.data(), chunk.size());
  store_word(&own.step_posted, step + 1);
}

bool HostExchange::await(HostChannel channel, std::uint32_t step, int peer, std::size_t total,
                         const ChannelView& team) {
  const std::uint32_t call = calls_[static_cast<std::size_t>(channel)];
  Slot& theirs = slot(peer, channel, step);
  if (!host_wait(team, &theirs.step_posted, step + 1, peer, call)) return false;
  if (theirs.total_bytes == total) return true;
  record_host_fault(team, FaultReason::kMismatch, peer, call);
  return false;
}

bool HostExchange::all_gather(HostChannel channel, std::span<const std::byte> mine,
                              std::span<std::byte> all, const ChannelView& team) {
  std::uint32_t& step = steps_[static_cast<std::size_t>(channel)];
  std::size_t begin = 0;
  do {
    const std::size_t count = std::min(kChunkBytes, mine.size() - begin);
    post(channel, step, mine.subspan(begin, count), mine.size());
    for (int peer = 0; peer < size_; ++peer) {
      if (peer != rank_ && !await(channel, step, peer, mine.size(), team)) return false;
      if (count == 0) continue;
      const std::size_t place = static_cast<std::size_t>(peer) * mine.size() + begin;
      std::memcpy(all.data() + place, slot(peer, channel, step).chunk, count);
    }
    ++step;
    begin += count;
  } while (begin < mine.size());
  ++calls_[static_cast<std::size_t>(channel)];
  return true;
}

bool HostExchange::broadcast(HostChannel channel, std::span<std::byte> bytes,
                             const ChannelView& team) {
  std::uint32_t& step = steps_[static_cast<std::size_t>(channel)];
  std::size_t begin = 0;
  do {
    const std::size_t count = std::min(kChunkBytes, bytes.size() - begin);
    const auto chunk = bytes.subspan(begin, count);
    post(channel, step, rank_ == 0 ? chunk : std::span<std::byte>(), bytes.size());
    // Everybody awaits everybody: that is what frees the slots two steps later.
    for (int peer = 0; peer < size_; ++peer)
      if (peer != rank_ && !await(channel, step, peer, bytes.size(), team)) return false;
    if (rank_ != 0 && count != 0) std::memcpy(chunk.data(), slot(0, channel, step).chunk, count);
    ++step;
    begin += count;
  } while (begin < bytes.size());
  ++calls_[static_cast<std::size_t>(channel)];
  return true;
}

}  // namespace tenon
