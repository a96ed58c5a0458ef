// Bootstrap over TCP: one connection per peer and one thread that reads them all. Because that
// thread is always listening, a peer that dies or gives up is noticed at once.
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <tuple>

#include "tenon/comm/bootstrap.h"
#include "tenon/comm/bootstrap/rendezvous.h"
#include "tenon/comm/words.h"
#include "tenon/core/thread.h"

namespace tenon {
namespace {

using tcp::Clock;
using tcp::Socket;

// kLoss passes on what the sender knows of a third rank, whose number stands in `call`.
enum class Kind : std::uint32_t { kExchange = 1, kAbort = 2, kGoodbye = 3, kLoss = 4 };

struct FrameHead {
  std::uint32_t magic = kFrameMagic;
  Kind kind = Kind::kExchange;
  std::uint64_t call = 0;
  std::uint64_t label_bytes = 0, payload_bytes = 0;
  static constexpr std::uint32_t kFrameMagic = 0x4652414d;  // "FRAM"
};
constexpr std::uint64_t kMaxLabelBytes = 4096;
constexpr std::uint64_t kMaxPayloadBytes = std::uint64_t{1} << 30;

struct Message {
  FrameHead head;
  std::string label;
  std::vector<std::byte> payload;
};

struct Peer {
  Socket socket;
  std::vector<std::byte> received;  // bytes of a frame that is not complete yet
  std::deque<Message> inbox;        // exchanges, in order
  bool left = false;                // said goodbye
  bool open = false;
};

class SocketBootstrap final : public Bootstrap {
 public:
  SocketBootstrap(int rank, std::vector<Socket> sockets)
      : rank_(rank), peers_(sockets.size()), wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    for (std::size_t peer = 0; peer < sockets.size(); ++peer) {
      peers_[peer].open = static_cast<bool>(sockets[peer]);
      peers_[peer].socket = std::move(sockets[peer]);
    }
  }
  // Before anything else.
  Status start() {
    TENON_ASSIGN(reader_, start_thread("tenon reader", [this] { read_until_told(); }));
    return Status::ok();
  }

  ~SocketBootstrap() override {
    constexpr std::chrono::milliseconds kFarewell(50);
    // Who leaves because of a loss says so: its goodbye may overtake the news of the loss.
    if (const auto lost = loss(); lost && lost->rank != rank_)
      send_to_all(frame(Kind::kLoss, static_cast<std::uint64_t>(lost->rank),
                        std::string_view(lost->why).substr(0, kMaxLabelBytes), {}),
                  Clock::now() + kFarewell);
    send_to_all(frame(Kind::kGoodbye, 0, "", {}), Clock::now() + kFarewell);
    const std::uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = write(wake_.number(), &one, sizeof one);
    reader_.join();
  }

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(peers_.size()); }

  Status exchange(std::span<const std::byte> mine, std::span<std::byte> all, std::string_view label,
                  std::chrono::milliseconds deadline) override {
    TENON_CHECK(all.size() == mine.size() * peers_.size());
    const auto end = Clock::now() + deadline;
    const std::uint64_t call = next_call_++;
    if (const auto lost = loss())
      return Status::error(Code::kPeerLost, std::string(label) + ": " + lost->why);
    send_to_all(frame(Kind::kExchange, call, label, mine), end);
    Status different;
    std::unique_lock lock(inbox_mutex_);
    for (int peer = 0; peer < size(); ++peer) {
      std::byte* place = all.data() + mine.size() * static_cast<std::size_t>(peer);
      if (peer == rank_) {
        if (!mine.empty()) std::memcpy(place, mine.data(), mine.size());
        continue;
      }
      Peer& from = peers_[static_cast<std::size_t>(peer)];
      while (from.inbox.empty()) TENON_TRY(wait_more(lock, peer, call, label, end, deadline));
      const Message message = std::move(from.inbox.front());
      from.inbox.pop_front();
      const bool same = message.head.call == call && message.label == label &&
                        message.payload.size() == mine.size();
      // Everybody's message is taken even so: the next call is in step again.
      if (!same && different)
        different = different_call(rank_, label, mine.size(), peer, message.label,
                                   message.payload.size(), call);
      if (same && !mine.empty()) std::memcpy(place, message.payload.data(), mine.size());
    }
    return different;
  }

  void abort(std::string_view why) override {
    constexpr std::chrono::milliseconds kPatience(50);
    send_to_all(frame(Kind::kAbort, 0, why.substr(0, kMaxLabelBytes), {}),
                Clock::now() + kPatience);
    report({rank_, "rank " + std::to_string(rank_) + " gave up: " + std::string(why)});
  }

 private:
  static std::vector<std::byte> frame(Kind kind, std::uint64_t call, std::string_view label,
                                      std::span<const std::byte> payload) {
    FrameHead head;
    head.kind = kind;
    head.call = call;
    head.label_bytes = label.size();
    head.payload_bytes = payload.size();
    std::vector<std::byte> bytes(sizeof head + label.size() + payload.size());
    std::memcpy(bytes.data(), &head, sizeof head);
    label.copy(reinterpret_cast<char*>(bytes.data() + sizeof head), label.size());
    if (!payload.empty())
      std::memcpy(bytes.data() + sizeof head + label.size(), payload.data(), payload.size());
    return bytes;
  }

  // A peer that cannot take the bytes is either gone, which the reader reports, or stopped, which
  // the wait for its answer reports.
  void send_to_all(const std::vector<std::byte>& bytes, tcp::Deadline end) {
    std::lock_guard lock(send_mutex_);
    for (Peer& peer : peers_)
      if (peer.socket) std::ignore = tcp::send_all(peer.socket, bytes, end);
  }

  Status wait_more(std::unique_lock<std::mutex>& lock, int peer, std::uint64_t call,
                   std::string_view label, tcp::Deadline end, std::chrono::milliseconds deadline) {
    const std::string sentence = waited_text(rank_, peer, call, label);
    if (const auto lost = loss())
      return Status::error(Code::kPeerLost, sentence + ": " + lost->why);
    if (peers_[static_cast<std::size_t>(peer)].left)
      return Status::error(Code::kPeerLost, sentence + ", which has left");
    if (Clock::now() >= end)
      return Status::error(Code::kTimeout,
                           sentence + " for " + seconds_text(deadline) + ": deadline");
    changed_.wait_until(lock, end);
    return Status::ok();
  }

  // --- the reading thread ---

  void read_until_told() {
    for (;;) {
      std::vector<pollfd> waiting{{wake_.number(), POLLIN, 0}};
      std::vector<int> ranks{-1};
      for (int peer = 0; peer < size(); ++peer) {
        if (!peers_[static_cast<std::size_t>(peer)].open) continue;
        waiting.push_back({peers_[static_cast<std::size_t>(peer)].socket.number(), POLLIN, 0});
        ranks.push_back(peer);
      }
      if (poll(waiting.data(), waiting.size(), -1) < 0 && errno != EINTR) return;
      if (waiting[0].revents != 0) return;
      for (std::size_t i = 1; i < waiting.size(); ++i)
        if (waiting[i].revents != 0) read_from(ranks[i]);
    }
  }

  void read_from(int rank) {
    Peer& peer = peers_[static_cast<std::size_t>(rank)];
    std::byte chunk[16384];
    const ssize_t got = recv(peer.socket.number(), chunk, sizeof chunk, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) return hang_up(rank, "its connection closed: the process died");
    peer.received.insert(peer.received.end(), chunk, chunk + got);
    std::size_t used = 0;
    while (const std::size_t bytes = take_frame(rank, std::span(peer.received).subspan(used)))
      used += bytes;
    peer.received.erase(peer.received.begin(),
                        peer.received.begin() + static_cast<std::ptrdiff_t>(used));
  }

  // Handles the frame at the front of `bytes` and returns its size; 0 if it is not complete.
  std::size_t take_frame(int rank, std::span<const std::byte> bytes) {
    Message message;
    if (bytes.size() < sizeof(FrameHead)) return 0;
    std::memcpy(&message.head, bytes.data(), sizeof(FrameHead));
    const FrameHead& head = message.head;
    if (head.magic != FrameHead::kFrameMagic || head.label_bytes > kMaxLabelBytes ||
        head.payload_bytes > kMaxPayloadBytes) {
      hang_up(rank, "it sent something malformed");
      return 0;
    }
    const std::size_t total = sizeof(FrameHead) + head.label_bytes + head.payload_bytes;
    if (bytes.size() < total) return 0;
    const auto text = bytes.subspan(sizeof(FrameHead), head.label_bytes);
    message.label.assign(reinterpret_cast<const char*>(text.data()), text.size());
    const auto payload = bytes.subspan(sizeof(FrameHead) + head.label_bytes, head.payload_bytes);
    message.payload.assign(payload.begin(), payload.end());

    Peer& peer = peers_[static_cast<std::size_t>(rank)];
    if (head.kind == Kind::kLoss && head.call < peers_.size())
      report({static_cast<int>(head.call), message.label});
    if (head.kind == Kind::kAbort)
      report({rank, "rank " + std::to_string(rank) + " gave up: " + message.label});
    {
      std::lock_guard lock(inbox_mutex_);
      if (head.kind == Kind::kExchange) peer.inbox.push_back(std::move(message));
      if (head.kind == Kind::kGoodbye) peer.left = true;
    }
    changed_.notify_all();
    return total;
  }

  void hang_up(int rank, std::string_view why) {
    Peer& peer = peers_[static_cast<std::size_t>(rank)];
    peer.open = false;
    bool left;
    {
      std::lock_guard lock(inbox_mutex_);
      left = peer.left;
    }
    if (!left) report({rank, "rank " + std::to_string(rank) + " is gone: " + std::string(why)});
    {
      std::lock_guard lock(inbox_mutex_);  // nobody is between the test and the wait
    }
    changed_.notify_all();
  }

  const int rank_;
  std::vector<Peer> peers_;
  const Socket wake_;
  std::uint64_t next_call_ = 0;
  std::mutex send_mutex_;
  std::mutex inbox_mutex_;  // inboxes and `left`
  std::condition_variable changed_;
  Thread reader_;
};

}  // namespace

Result<std::shared_ptr<Bootstrap>> socket_bootstrap(const Launch& launch,
                                                    std::chrono::milliseconds deadline) {
  auto sockets = meet(launch, deadline);
  if (!sockets) return sockets.status().with("rendezvous");
  auto bootstrap = std::make_shared<SocketBootstrap>(launch.rank, *std::move(sockets));
  if (Status started = bootstrap->start(); !started) {
    bootstrap->abort(started.message());
    return std::move(started).with("rendezvous");
  }
  return std::static_pointer_cast<Bootstrap>(std::move(bootstrap));
}

}  // namespace tenon
