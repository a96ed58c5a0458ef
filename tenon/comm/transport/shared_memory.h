// Shared memory of one host as a Mapping, for the transports whose ranks may be processes.
//
// A region is a file in /dev/shm without a name (O_TMPFILE) that peers open under /proc while its
// owner still holds the descriptor. So the kernel frees it with its last holder however that one
// ends: nothing is left behind by a rank that is killed in the middle, and nothing needs sweeping.
// Not memfd_create: that knows no size limit, and asking for too much would end in the kernel
// killing processes instead of in an error. The price: ranks run as one user, in one pid namespace.
#pragma once

#include <chrono>
#include <memory>
#include <string_view>

#include "tenon/comm/transport/transport.h"

namespace tenon {

// A file descriptor, closed with its owner.
struct Descriptor {
  int number = -1;
  Descriptor() = default;
  explicit Descriptor(int opened) : number(opened) {}
  Descriptor(Descriptor&& other) noexcept;
  Descriptor& operator=(Descriptor&& other) noexcept;
  ~Descriptor();
};

// "<what>: <the system's words>", as kOutOfMemory where that is what they mean.
Status system_failed(std::string_view what, int error);

// A region per rank, pinned in every process for kernels of `device`. As Transport::map.
Result<std::shared_ptr<Mapping>> map_shared_memory(Bootstrap& bootstrap, Device device,
                                                   std::size_t bytes, std::uint8_t fill,
                                                   std::string_view label,
                                                   std::chrono::milliseconds deadline);

// Why ranks cannot share memory this way: one of them is elsewhere.
Status check_one_host(std::span<const RankInfo> infos, const RankInfo& mine);

}  // namespace tenon
