#include "tenon/comm/bootstrap/tcp.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

namespace tenon::tcp {
namespace {

Status system_error(std::string_view what, int error) {
  return Status::error(Code::kIo, std::string(what) + ": " + std::strerror(error));
}

struct FreeAddresses {
  void operator()(addrinfo* list) const { freeaddrinfo(list); }
};
using Addresses = std::unique_ptr<addrinfo, FreeAddresses>;

Result<Addresses> resolve(const std::string& address, int port, int flags) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags | AI_NUMERICSERV;
  addrinfo* list = nullptr;
  const int error = getaddrinfo(address.empty() ? nullptr : address.c_str(),
                                std::to_string(port).c_str(), &hints, &list);
  if (error != 0)
    return Status::error(
        Code::kIo, "the address \"" + address + "\" cannot be resolved: " + gai_strerror(error));
  return Addresses(list);
}

void set_options(int socket) {
  const int on = 1;
  setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  setsockopt(socket, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
}

Result<Socket> bind_to(const addrinfo& place) {
  Socket socket(::socket(place.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) return system_error("socket", errno);
  const int on = 1;
  setsockopt(socket.number(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(socket.number(), place.ai_addr, place.ai_addrlen) != 0)
    return system_error("bind", errno);
  return socket;
}

Result<Socket> bind_and_listen(const addrinfo& place) {
  constexpr int kBacklog = 64;
  TENON_ASSIGN(Socket socket, bind_to(place));
  if (listen(socket.number(), kBacklog) != 0) return system_error("listen", errno);
  return socket;
}

using Name = int (*)(int, sockaddr*, socklen_t*);
std::string numeric_address(const Socket& socket, Name get) {
  sockaddr_storage storage{};
  socklen_t bytes = sizeof storage;
  char text[NI_MAXHOST] = "";
  if (get(socket.number(), reinterpret_cast<sockaddr*>(&storage), &bytes) == 0)
    getnameinfo(reinterpret_cast<sockaddr*>(&storage), bytes, text, sizeof text, nullptr, 0,
                NI_NUMERICHOST);
  return text;
}

// True when the socket is ready for `events` before the deadline.
bool wait_for(const Socket& socket, short events, Deadline end) {
  for (;;) {
    pollfd one{socket.number(), events, 0};
    const int ready = poll(&one, 1, milliseconds_until(end));
    if (ready > 0) return true;
    if (ready == 0 && Clock::now() >= end) return false;
    if (ready < 0 && errno != EINTR) return true;  // the next call on the socket says why
  }
}

Status closed() { return Status::error(Code::kPeerLost, "the connection was closed"); }
Status late() { return Status::error(Code::kTimeout, "deadline"); }

}  // namespace

int milliseconds_until(Deadline end) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - Clock::now()).count();
  return static_cast<int>(std::clamp<std::int64_t>(left, 0, 1'000'000));
}

Socket::Socket(Socket&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
Socket& Socket::operator=(Socket&& other) noexcept {
  std::swap(number_, other.number_);
  return *this;
}
Socket::~Socket() { close(); }
void Socket::close() {
  if (number_ >= 0) ::close(number_);
  number_ = -1;
}

namespace {

// The first of the addresses that can be opened by `open`.
Result<Socket> open_at(const std::string& address, int port,
                       Result<Socket> (*open)(const addrinfo& place)) {
  TENON_ASSIGN(const Addresses found, resolve(address, port, AI_PASSIVE));
  Status why;
  for (const addrinfo* each = found.get(); each != nullptr; each = each->ai_next) {
    auto socket = open(*each);
    if (socket) return socket;
    const int error = errno;
    if (error == EADDRINUSE) return socket.status();
    if (error != EADDRNOTAVAIL)
      why = socket.status();
    else if (why)
      why = Status::error(Code::kInvalidArgument, "it is not an address of this host");
  }
  return why;
}

}  // namespace

Result<Socket> listen_at(const std::string& address, int port) {
  return open_at(address, port, bind_and_listen);
}
Result<Socket> hold_port(const std::string& address) { return open_at(address, 0, bind_to); }

Result<int> port_of(const Socket& socket) {
  sockaddr_storage storage{};
  socklen_t bytes = sizeof storage;
  if (getsockname(socket.number(), reinterpret_cast<sockaddr*>(&storage), &bytes) != 0)
    return system_error("getsockname", errno);
  const auto port = storage.ss_family == AF_INET6
                        ? reinterpret_cast<const sockaddr_in6*>(&storage)->sin6_port
                        : reinterpret_cast<const sockaddr_in*>(&storage)->sin_port;
  return static_cast<int>(ntohs(port));
}

std::string own_address(const Socket& socket) { return numeric_address(socket, &getsockname); }
std::string peer_address(const Socket& socket) { return numeric_address(socket, &getpeername); }

Result<Socket> connect_to(const std::string& address, int port, Deadline end) {
  TENON_ASSIGN(const Addresses found, resolve(address, port, 0));
  int error = 0;
  for (const addrinfo* each = found.get(); each != nullptr; each = each->ai_next) {
    Socket socket(::socket(each->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!socket) return system_error("socket", errno);
    set_options(socket.number());
    if (connect(socket.number(), each->ai_addr, each->ai_addrlen) == 0) return socket;
    error = errno;
    if (error != EINPROGRESS) continue;
    if (!wait_for(socket, POLLOUT, end)) return late();
    socklen_t bytes = sizeof error;
    getsockopt(socket.number(), SOL_SOCKET, SO_ERROR, &error, &bytes);
    if (error == 0) return socket;
  }
  return system_error("connect", error);
}

Result<Socket> accept_from(const Socket& listener) {
  Socket socket(accept4(listener.number(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  const bool nobody = errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ||
                      errno == ECONNABORTED;  // one that has left again
  if (!socket && nobody) return Status::error(Code::kTimeout, "nobody is calling");
  if (!socket) return system_error("accept", errno);
  set_options(socket.number());
  return socket;
}

Status send_all(const Socket& socket, std::span<const std::byte> bytes, Deadline end) {
  while (!bytes.empty()) {
    const ssize_t sent = send(socket.number(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent > 0) {
      bytes = bytes.subspan(static_cast<std::size_t>(sent));
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      if (!wait_for(socket, POLLOUT, end)) return late();
    } else if (errno != EINTR) {
      return closed();
    }
  }
  return Status::ok();
}

Status receive_all(const Socket& socket, std::span<std::byte> bytes, Deadline end) {
  while (!bytes.empty()) {
    const ssize_t got = recv(socket.number(), bytes.data(), bytes.size(), 0);
    if (got > 0) {
      bytes = bytes.subspan(static_cast<std::size_t>(got));
    } else if (got == 0) {
      return closed();
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      if (!wait_for(socket, POLLIN, end)) return late();
    } else if (errno != EINTR) {
      return closed();
    }
  }
  return Status::ok();
}

Result<std::size_t> receive_some(const Socket& socket, std::span<std::byte> bytes) {
  const ssize_t got = recv(socket.number(), bytes.data(), bytes.size(), MSG_DONTWAIT);
  if (got > 0) return static_cast<std::size_t>(got);
  if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return std::size_t{0};
  return closed();
}

bool is_closed(const Socket& socket) {
  pollfd one{socket.number(), POLLRDHUP, 0};
  return poll(&one, 1, 0) > 0;
}

}  // namespace tenon::tcp
