// Hands open files to the other ranks of a host: what a path under /proc cannot do for files that
// belong to a driver. A datagram socket per rank, under a name without a file; the kernel frees it
// with its process. Unlike pidfd_getfd this needs no right to trace the peers, which containers
// lack. The price: ranks share a network namespace.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "tenon/comm/bootstrap/bootstrap.h"
#include "tenon/comm/transport/shared_memory.h"

namespace tenon {

class FilePost {
 public:
  explicit FilePost(Bootstrap& bootstrap) : bootstrap_(bootstrap) {}

  // Collective, once; every rank gets the same status.
  Status open(std::chrono::milliseconds deadline);

  // files[r] = rank r's `mine`, as a descriptor of this process; none for the own rank. The caller
  // keeps `mine`. Collective; every rank gets the same status.
  Result<std::vector<Descriptor>> exchange(int mine, std::string_view label,
                                           std::chrono::milliseconds deadline);

 private:
  struct Address {
    std::uint64_t secret = 0;  // drawn by the receiver: strangers may write to its socket too
    char name[16] = {};        // in the abstract namespace
    std::uint32_t name_bytes = 0;
  };
  struct Letter {
    std::uint64_t secret = 0;
    std::int32_t from = 0;
    std::uint32_t number = 0;  // of the exchange: one that failed half way leaves letters behind
  };
  Status bind_own(Address& own);
  Status send(int peer, int file) const;
  bool receive(Letter& letter, Descriptor& file) const;
  Status collect(std::span<Descriptor> files) const;

  Bootstrap& bootstrap_;
  Descriptor socket_;
  std::vector<Address> addresses_;
  std::uint32_t number_ = 0;
};

}  // namespace tenon
