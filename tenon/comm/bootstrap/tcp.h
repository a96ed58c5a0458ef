// TCP for the rendezvous: owning sockets, and sending and receiving that end at a deadline.
// Private to this folder.
#pragma once

#include <chrono>
#include <cstddef>
#include <span>
#include <string>

#include "tenon/core/status.h"

namespace tenon::tcp {

using Clock = std::chrono::steady_clock;
using Deadline = Clock::time_point;

// Milliseconds from now, rounded up, at least 0: what poll() wants.
int milliseconds_until(Deadline end);

class Socket {
 public:
  Socket() = default;
  explicit Socket(int number) : number_(number) {}
  Socket(Socket&& other) noexcept;
  Socket& operator=(Socket&& other) noexcept;
  ~Socket();
  int number() const { return number_; }
  explicit operator bool() const { return number_ >= 0; }
  void close();

 private:
  int number_ = -1;
};

// Listens on `address`, which must be one of this host's; on all of them where it is empty. Port 0
// takes any.
Result<Socket> listen_at(const std::string& address, int port);
// The same without listening: keeps a port for whoever listens there later in this process, while
// this socket is open.
Result<Socket> hold_port(const std::string& address);
Result<int> port_of(const Socket& socket);
// The numeric address of this or of the other end.
std::string own_address(const Socket& socket);
std::string peer_address(const Socket& socket);

// One attempt. The error says what the system said; kTimeout when `end` passed.
Result<Socket> connect_to(const std::string& address, int port, Deadline end);
// Sets what every connection wants: no delay, not blocking, closed on exec. kTimeout when nobody is
// waiting to be accepted; any other error may last.
Result<Socket> accept_from(const Socket& listener);

// All bytes or an error: kTimeout at the deadline, kPeerLost when the connection is closed.
Status send_all(const Socket& socket, std::span<const std::byte> bytes, Deadline end);
Status receive_all(const Socket& socket, std::span<std::byte> bytes, Deadline end);
// What is there, which may be nothing; kPeerLost when the connection is closed.
Result<std::size_t> receive_some(const Socket& socket, std::span<std::byte> bytes);
// True when the other end has closed the connection.
bool is_closed(const Socket& socket);

}  // namespace tenon::tcp
