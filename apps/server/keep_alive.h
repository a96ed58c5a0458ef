// Whether the other end of a connection is still there.
#pragma once

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

namespace tenon::server {

// From now on the system asks a silent peer whether it is there: the first time after 30 s, then
// every 10 s; three times without an answer end the connection as if the peer had closed it. So a
// request whose client vanished without a word (its host went down, a line was cut) ends within a
// minute. What the system does not take (a socket that is none of TCP) stays as it was.
inline void watch_peer(int socket) {
  const int on = 1, idle_s = 30, interval_s = 10, probes = 3;
  setsockopt(socket, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  setsockopt(socket, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
  setsockopt(socket, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof interval_s);
  setsockopt(socket, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
}

}  // namespace tenon::server
