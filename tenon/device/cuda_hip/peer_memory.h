// Device memory that other processes map. What Backend's functions of the same names do.
#pragma once

#include <cstddef>

#include "tenon/device/runtime.h"

namespace tenon::vendor {

Result<PeerMemory> allocate_for_peers(int index, std::size_t bytes, PeerKind kind);
void release_for_peers(int index, const PeerMemory& memory);
Result<PeerMemory> map_of_peer(int index, const PeerHandle& theirs);
void unmap_of_peer(int index, const PeerMemory& memory);

}  // namespace tenon::vendor
