#include "tenon/comm/bootstrap/rendezvous.h"

#include <poll.h>

#include <cstdint>
#include <random>
#include <string>
#include <thread>
#include <tuple>

#include "tenon/comm/device.h"
#include "tenon/comm/words.h"

namespace tenon {
namespace {

using tcp::Clock;
using tcp::Deadline;
using tcp::Socket;

constexpr std::uint32_t kMagic = 0x4e4e4554;  // "TENN"
constexpr std::uint32_t kVersion = 1;

// What a caller says first.
struct Hello {
  std::uint32_t magic = kMagic, version = kVersion;
  std::int32_t rank = 0, size = 0;
  std::int32_t port = 0;      // where the caller listens
  std::uint64_t session = 0;  // 0 to rank 0, which draws it
};

// What rank 0 answers when everybody is there, or when it gives up.
struct Welcome {
  std::uint32_t magic = kMagic, accepted = 0;
  std::uint64_t session = 0;
  char refusal[400] = "";
  struct Place {
    char address[64];
    std::int32_t port;
  } places[kMaxRanks] = {};
};

// Whoever answers may send any bytes: texts end within their fields.
void end_texts(Welcome& welcome) {
  welcome.refusal[sizeof welcome.refusal - 1] = 0;
  for (Welcome::Place& place : welcome.places) place.address[sizeof place.address - 1] = 0;
}

std::string at(const Launch& launch) { return launch.address + ":" + std::to_string(launch.port); }

std::string rank_list(const std::vector<Socket>& sockets, int own, int first) {
  std::string list;
  for (int rank = first; rank < static_cast<int>(sockets.size()); ++rank)
    if (rank != own && !sockets[static_cast<std::size_t>(rank)])
      list += (list.empty() ? "" : ", ") + std::string("rank ") + std::to_string(rank);
  return list;
}

// Takes callers until every rank of [first, size) but the own one has said a valid Hello. A caller
// that says anything else, or nothing, is dropped: ports are visited by strangers.
class Reception {
 public:
  Reception(const Launch& launch, const Socket& listener, std::uint64_t session, Deadline end)
      : launch_(launch), listener_(listener), session_(session), end_(end) {}

  Status receive(int first, std::vector<Socket>& sockets, Welcome* welcome) {
    while (!rank_list(sockets, launch_.rank, first).empty()) {
      if (Clock::now() >= end_)
        return Status::error(Code::kTimeout, "rank " + std::to_string(launch_.rank) +
                                                 " waited at " + at(launch_) + " for " +
                                                 rank_list(sockets, launch_.rank, first) +
                                                 " to connect: deadline");
      wait();
      if (auto caller = tcp::accept_from(listener_))
        callers_.push_back({*std::move(caller), {}, 0});
      for (Caller& caller : callers_) TENON_TRY(listen_to(caller, sockets, welcome));
      std::erase_if(callers_, [](const Caller& caller) { return !caller.socket; });
    }
    return Status::ok();
  }

 private:
  struct Caller {
    Socket socket;
    Hello hello;
    std::size_t num_received = 0;
  };

  void wait() {
    std::vector<pollfd> waiting{{listener_.number(), POLLIN, 0}};
    for (const Caller& caller : callers_) waiting.push_back({caller.socket.number(), POLLIN, 0});
    poll(waiting.data(), waiting.size(), tcp::milliseconds_until(end_));
  }

  Status listen_to(Caller& caller, std::vector<Socket>& sockets, Welcome* welcome) {
    const auto rest = writable_bytes_of(caller.hello).subspan(caller.num_received);
    // Byte by byte up to what is there: a deadline in the past never blocks.
    for (std::byte& byte : rest) {
      const Status got = tcp::receive_all(caller.socket, {&byte, 1}, Clock::now());
      if (got.code() == Code::kTimeout) return Status::ok();
      if (!got) {
        caller.socket.close();
        return Status::ok();
      }
      ++caller.num_received;
    }
    const Hello& hello = caller.hello;
    if (hello.magic != kMagic || hello.version != kVersion || hello.session != session_) {
      caller.socket.close();
      return Status::ok();
    }
    if (hello.size != launch_.size || hello.rank <= 0 || hello.rank >= launch_.size ||
        sockets[static_cast<std::size_t>(hello.rank)]) {
      Status refusal = Status::error(
          Code::kInvalidArgument,
          "a process at " + tcp::peer_address(caller.socket) + " says it is rank " +
              std::to_string(hello.rank) + " of " + std::to_string(hello.size) + "; rank " +
              std::to_string(launch_.rank) + " of " + std::to_string(launch_.size) +
              " accepts each other rank of the same world once");
      Welcome answer;
      copy_text(refusal.message(), answer.refusal);
      if (welcome != nullptr)
        std::ignore = tcp::send_all(caller.socket, bytes_of(answer), Clock::now());
      return refusal;
    }
    if (welcome != nullptr) {
      auto& place = welcome->places[hello.rank];
      copy_text(tcp::peer_address(caller.socket), place.address);
      place.port = hello.port;
    }
    sockets[static_cast<std::size_t>(hello.rank)] = std::move(caller.socket);
    return Status::ok();
  }

  const Launch& launch_;
  const Socket& listener_;
  const std::uint64_t session_;
  const Deadline end_;
  std::vector<Caller> callers_;
};

Result<std::vector<Socket>> host(const Launch& launch, Deadline end) {
  std::vector<Socket> sockets(static_cast<std::size_t>(launch.size));
  auto listener = tcp::listen_at(launch.address, launch.port);
  if (!listener) return listener.status().with("rank 0 cannot listen at " + at(launch));
  std::random_device device;
  Welcome welcome;
  welcome.session = std::uint64_t{device()} << 32 | (device() | 1u);
  Reception reception(launch, *listener, 0, end);
  const Status complete = reception.receive(1, sockets, &welcome);
  // Closed before anybody is welcomed: a second rendezvous at this port cannot reach the first.
  listener->close();
  welcome.accepted = complete ? 1 : 0;
  copy_text(complete.message(), welcome.refusal);
  const Deadline grace = Clock::now() + std::chrono::milliseconds(200);
  for (Socket& socket : sockets)
    if (socket) {
      const Status sent = tcp::send_all(socket, bytes_of(welcome), std::max(end, grace));
      if (complete && !sent) return Status(sent).with("rank 0 lost a rank during the rendezvous");
    }
  if (!complete) return complete;
  return sockets;
}

// Connects with retries: the other side may not have started yet.
Result<Socket> call(const Launch& launch, const std::string& address, int port, int whom,
                    Deadline end) {
  constexpr std::chrono::milliseconds kPause(20);
  for (;;) {
    auto socket = tcp::connect_to(address, port, end);
    if (socket) return socket;
    if (Clock::now() + kPause >= end)
      return Status::error(Code::kTimeout,
                           "rank " + std::to_string(launch.rank) + " waited for rank " +
                               std::to_string(whom) + " to accept it at " + address + ":" +
                               std::to_string(port) +
                               ": deadline (last: " + std::string(socket.status().message()) + ")");
    std::this_thread::sleep_for(kPause);
  }
}

Result<std::vector<Socket>> join(const Launch& launch, Deadline end, Deadline answer_end) {
  std::vector<Socket> sockets(static_cast<std::size_t>(launch.size));
  TENON_ASSIGN(sockets[0], call(launch, launch.address, launch.port, 0, end));
  TENON_ASSIGN(const Socket listener, tcp::listen_at(tcp::own_address(sockets[0]), 0));
  Hello hello;
  hello.rank = launch.rank;
  hello.size = launch.size;
  TENON_ASSIGN(hello.port, tcp::port_of(listener));

  const std::string awaited = "rank " + std::to_string(launch.rank) + " waited for rank 0 at " +
                              at(launch) + " to welcome it";
  TENON_TRY(tcp::send_all(sockets[0], bytes_of(hello), end), awaited);
  Welcome welcome;
  TENON_TRY(tcp::receive_all(sockets[0], writable_bytes_of(welcome), answer_end), awaited);
  end_texts(welcome);
  if (welcome.magic != kMagic)
    return Status::error(Code::kIo, awaited + ": what answers there is not a rank of this program");
  if (welcome.accepted == 0)
    return Status::error(Code::kPeerLost, "rank 0 refused: " + std::string(welcome.refusal));

  hello.session = welcome.session;
  for (int peer = 1; peer < launch.rank; ++peer) {
    const auto& place = welcome.places[peer];
    Socket& socket = sockets[static_cast<std::size_t>(peer)];
    TENON_ASSIGN(socket, call(launch, place.address, place.port, peer, answer_end));
    TENON_TRY(tcp::send_all(socket, bytes_of(hello), answer_end));
  }
  Reception reception(launch, listener, welcome.session, answer_end);
  TENON_TRY(reception.receive(launch.rank + 1, sockets, nullptr));
  return sockets;
}

}  // namespace

Result<std::vector<tcp::Socket>> meet(const Launch& launch, std::chrono::milliseconds deadline) {
  if (launch.size < 1 || launch.size > kMaxRanks)
    return Status::error(
        Code::kInvalidArgument,
        std::to_string(launch.size) + " ranks; accepted: 1 to " + std::to_string(kMaxRanks));
  const Deadline end = Clock::now() + deadline;
  if (launch.size == 1) return std::vector<Socket>(1);
  // Rank 0 gives up at its deadline and says why: the others listen a little longer to hear it.
  if (launch.rank == 0) return host(launch, end);
  return join(launch, end, end + deadline / 10);
}

}  // namespace tenon
