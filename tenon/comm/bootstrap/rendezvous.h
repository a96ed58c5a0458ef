// Rendezvous: from a Launch to one TCP connection per peer. Rank 0 listens, the others call; then
// rank 0 tells everybody where the others listen and they connect to each other.
// Private to this folder; what travels afterwards is socket.cc.
#pragma once

#include <chrono>
#include <vector>

#include "tenon/comm/bootstrap/bootstrap.h"
#include "tenon/comm/bootstrap/tcp.h"

namespace tenon {

// sockets[r] leads to rank r; the own entry is empty. Collective.
Result<std::vector<tcp::Socket>> meet(const Launch& launch, std::chrono::milliseconds deadline);

}  // namespace tenon
