// Exchanges between the hosts of ranks that share memory: what the threads and shm transports have
// in common. Bytes are posted in one's own slot and copied out by the peers, chunk by chunk, in two
// rotating generations: a rank may run ahead by one chunk and needs no barrier at the end.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "tenon/comm/transport/transport.h"

namespace tenon {

class HostExchange {
 public:
  static constexpr std::size_t kChunkBytes = std::size_t{1} << 16;
  // Of the mapping that the exchange works on, which must be filled with zeros.
  static std::size_t mapping_bytes();

  HostExchange(std::shared_ptr<Mapping> mapping, int rank, int size)
      : mapping_(std::move(mapping)), rank_(rank), size_(size) {}

  // As Transport::all_gather and broadcast.
  bool all_gather(HostChannel channel, std::span<const std::byte> mine, std::span<std::byte> all,
                  const ChannelView& team);
  bool broadcast(HostChannel channel, std::span<std::byte> bytes, const ChannelView& team);

 private:
  struct Slot;
  Slot& slot(int rank, HostChannel channel, std::uint32_t step) const;
  void post(HostChannel channel, std::uint32_t step, std::span<const std::byte> chunk,
            std::size_t total);
  bool await(HostChannel channel, std::uint32_t step, int peer, std::size_t total,
             const ChannelView& team);

  const std::shared_ptr<Mapping> mapping_;
  const int rank_, size_;
  std::array<std::uint32_t, kNumLanes> steps_{}, calls_{};
};

}  // namespace tenon
