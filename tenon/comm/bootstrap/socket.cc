// Bootstrap over TCP: one connection per peer and one thread that reads them all. Because that
// thread is always listening, a peer that dies or gives up is noticed at once.
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <thread>
#include <tuple>

#include "tenon/comm/bootstrap/bootstrap.h"
#include "tenon/comm/bootstrap/frames.h"
#include "tenon/comm/bootstrap/rendezvous.h"
#include "tenon/comm/messages.h"
#include "tenon/core/env.h"
#include "tenon/core/guard.h"
#include "tenon/core/thread.h"

namespace tenon {
namespace {

using tcp::Clock;
using tcp::Socket;

// A rank is never more than one exchange ahead of another: two frames of the largest size.
constexpr std::size_t kMaxInboxBytes = 2 * kMaxFrameBytes;
// How often a rank is heard of, whatever it does, and the shortest silence that means something.
constexpr std::chrono::milliseconds kBeat(500), kLeastSilence = 10 * kBeat;

struct Peer {
  Socket socket;
  FrameReader reader;
  std::deque<Frame> inbox;  // exchanges, in order
  std::size_t inbox_bytes = 0;
  bool left = false;  // said goodbye
  bool open = false;
  Clock::time_point heard;  // when the last bytes came
};

class SocketBootstrap final : public Bootstrap {
 public:
  // `wake` ends the reading thread.
  SocketBootstrap(int rank, std::vector<Socket> sockets, Socket wake)
      : rank_(rank),
        peers_(sockets.size()),
        wake_(std::move(wake)),
        alive_(frame_bytes(FrameKind::kAlive, 0, "", {})),
        goodbye_(frame_bytes(FrameKind::kGoodbye, 0, "", {})),
        deaf_(frame_bytes(FrameKind::kAbort, 0, kDeaf, {})),
        deaf_loss_{rank, gave_up_text(rank, kDeaf)} {
    for (std::size_t peer = 0; peer < sockets.size(); ++peer) {
      peers_[peer].open = static_cast<bool>(sockets[peer]);
      peers_[peer].socket = std::move(sockets[peer]);
      peers_[peer].heard = Clock::now();
    }
  }

  // Before anything else.
  Status start() {
    TENON_ASSIGN(reader_, start_thread("tenon reader", [this] {
                   if (!guarded([this] { return read_until_told(); })) become_deaf();
                 }));
    return Status::ok();
  }

  ~SocketBootstrap() override {
    constexpr std::chrono::milliseconds kFarewell(50);
    // Who leaves because of a loss says so: its goodbye may overtake the news of the loss.
    std::ignore = guarded([&] {
      if (const auto lost = loss(); lost && lost->rank != rank_)
        send_to_all(
            frame_bytes(FrameKind::kLoss, static_cast<std::uint64_t>(lost->rank), lost->why, {}),
            Clock::now() + kFarewell);
    });
    has_left_ = true;
    send_to_all(goodbye_, Clock::now() + kFarewell);
    const std::uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = write(wake_.number(), &one, sizeof one);
    reader_.join();
  }

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(peers_.size()); }

  Status exchange(std::span<const std::byte> mine, std::span<std::byte> all, std::string_view label,
                  WaitBudget budget) override {
    TENON_CHECK(all.size() == mine.size() * peers_.size());
    const auto begin = Clock::now(), end = begin + budget.deadline;
    const std::uint64_t call = next_call_++;
    if (const auto lost = loss())
      return Status::error(Code::kPeerLost, std::string(label) + ": " + lost->why);
    if (mine.size() > kMaxPayloadBytes || label.size() > kMaxLabelBytes)
      return Status::error(Code::kInvalidArgument,
                           "exchange \"" + std::string(label.substr(0, 80)) + "\" of " +
                               std::to_string(mine.size()) + " bytes; accepted: at most " +
                               std::to_string(kMaxPayloadBytes) + ", with a label of at most " +
                               std::to_string(kMaxLabelBytes));
    send_to_all(frame_bytes(FrameKind::kExchange, call, label, mine), end);
    Status different;
    std::unique_lock lock(inbox_mutex_);
    for (int peer = 0; peer < size(); ++peer) {
      std::byte* place = all.data() + mine.size() * static_cast<std::size_t>(peer);
      if (peer == rank_) {
        if (!mine.empty()) std::memcpy(place, mine.data(), mine.size());
        continue;
      }
      Peer& from = peers_[static_cast<std::size_t>(peer)];
      auto tell_at = begin + budget.silence;
      while (from.inbox.empty()) {
        TENON_TRY(wait_more(lock, peer, call, label, end, budget));
        // A wait that may be long is told by the leader, once per silence that would end it.
        const bool is_told = budget.silence.count() > 0 && rank_ == 0;
        if (!is_told || Clock::now() < tell_at) continue;
        tell_at = Clock::now() + budget.silence;
        tell_awaited(label, begin, budget);
      }
      const Frame message = std::move(from.inbox.front());
      from.inbox.pop_front();
      from.inbox_bytes -= message.held_bytes();
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
    send_to_all(frame_bytes(FrameKind::kAbort, 0, why, {}), Clock::now() + kPatience);
    report({rank_, gave_up_text(rank_, why)});
  }

  std::chrono::milliseconds silence(int of_rank) const override {
    if (of_rank == rank_) return std::chrono::milliseconds(0);
    std::lock_guard lock(inbox_mutex_);
    return std::chrono::duration_cast<std::chrono::milliseconds>(
        Clock::now() - peers_[static_cast<std::size_t>(of_rank)].heard);
  }

 private:
  // A peer that cannot take the bytes is either gone, which the reader reports, or stopped, which
  // the wait for its answer reports.
  void send_to_all(const std::vector<std::byte>& bytes, tcp::Deadline end) {
    const std::lock_guard lock(send_mutex_);
    send_to_all_locked(bytes, end);
  }
  void send_to_all_locked(const std::vector<std::byte>& bytes, tcp::Deadline end) {
    for (Peer& peer : peers_)
      if (peer.socket) std::ignore = tcp::send_all(peer.socket, bytes, end);
  }

  Status wait_more(std::unique_lock<std::mutex>& lock, int peer, std::uint64_t call,
                   std::string_view label, tcp::Deadline end, WaitBudget budget) {
    const std::string sentence = waited_text(rank_, peer, call, label);
    if (const auto lost = loss())
      return Status::error(Code::kPeerLost, sentence + ": " + lost->why);
    if (peers_[static_cast<std::size_t>(peer)].left)
      return Status::error(Code::kPeerLost, sentence + ", which has left");
    const auto now = Clock::now();
    if (now >= end)
      return Status::error(Code::kTimeout,
                           sentence + " for " + seconds_text(budget.deadline) + ": deadline");
    const auto silence = now - peers_[static_cast<std::size_t>(peer)].heard;
    if (budget.silence.count() > 0 && silence > std::max(budget.silence, kLeastSilence))
      return Status::error(Code::kPeerLost, sentence + ", of which nothing was heard for " +
                                                seconds_text(silence) +
                                                ": it is stopped, or its host is gone");
    if (changed_.wait_until(lock, std::min(end, now + kLook)) == std::cv_status::no_timeout)
      return Status::ok();
    lock.unlock();  // an answer may take its time
    const Status given = given_up();
    lock.lock();
    if (!given && peers_[static_cast<std::size_t>(peer)].inbox.empty())
      return Status(given).with(sentence);
    return Status::ok();
  }

  // For whoever looks at the leader meanwhile.
  void tell_awaited(std::string_view label, Clock::time_point begin, WaitBudget budget) const {
    std::string awaited;
    for (int peer = 0; peer < size(); ++peer)
      if (peer != rank_ && peers_[static_cast<std::size_t>(peer)].inbox.empty())
        awaited += (awaited.empty() ? "rank " : ", rank ") + std::to_string(peer);
    log(LogLevel::kWarning, "\"" + std::string(label) + "\": still waits for " + awaited +
                                " after " + seconds_text(Clock::now() - begin) + ", at most " +
                                seconds_text(budget.deadline));
  }

  // --- the reading thread ---

  Status read_until_told() {
    for (;;) {
      std::vector<pollfd> waiting{{wake_.number(), POLLIN, 0}};
      std::vector<int> ranks{-1};
      for (int peer = 0; peer < size(); ++peer) {
        if (!peers_[static_cast<std::size_t>(peer)].open) continue;
        waiting.push_back({peers_[static_cast<std::size_t>(peer)].socket.number(), POLLIN, 0});
        ranks.push_back(peer);
      }
      const int beat = static_cast<int>(kBeat.count());
      if (poll(waiting.data(), waiting.size(), beat) < 0 && errno != EINTR)
        return Status::error(Code::kOutOfMemory, "poll");
      if (waiting[0].revents != 0) return Status::ok();
      say_alive();
      for (std::size_t i = 1; i < waiting.size(); ++i)
        if (waiting[i].revents != 0) read_from(ranks[i]);
    }
  }

  // A rank that hears nobody would leave everybody waiting: it gives up. Needs no memory, which is
  // what there was too little of.
  void become_deaf() {
    constexpr std::chrono::milliseconds kPatience(50), kNap(1);
    const auto end = Clock::now() + kPatience;
    std::unique_lock lock(send_mutex_, std::defer_lock);  // of one who may not get on with sending
    while (!lock.try_lock() && Clock::now() < end) std::this_thread::sleep_for(kNap);
    if (has_left_) return;
    if (lock) {  // before this rank knows and says goodbye
      send_to_all_locked(deaf_, end);
      lock.unlock();
    }
    report(std::move(deaf_loss_));
    changed_.notify_all();
  }

  // Never waits: a sender that does not get on holds the mutex, and its bytes are a sign of life.
  void say_alive() {
    if (Clock::now() < next_beat_) return;
    next_beat_ = Clock::now() + kBeat;
    const std::unique_lock lock(send_mutex_, std::try_to_lock);
    if (!lock) return;
    for (Peer& peer : peers_) {
      if (!peer.open) continue;
      pollfd one{peer.socket.number(), POLLOUT, 0};  // set where far more than this fits
      if (poll(&one, 1, 0) > 0 && (one.revents & POLLOUT) != 0)
        std::ignore = tcp::send_all(peer.socket, alive_, Clock::now());
    }
  }

  void read_from(int rank) {
    Peer& peer = peers_[static_cast<std::size_t>(rank)];
    std::byte chunk[16384];
    const ssize_t got = recv(peer.socket.number(), chunk, sizeof chunk, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) return hang_up(rank, "its connection closed: the process died");
    {
      std::lock_guard lock(inbox_mutex_);
      peer.heard = Clock::now();
    }
    std::vector<Frame> frames;
    const Status read =
        peer.reader.read(std::span(chunk).first(static_cast<std::size_t>(got)), frames);
    for (Frame& frame : frames)
      if (peer.open) take(rank, std::move(frame));
    if (!read && peer.open) hang_up(rank, read.message());
  }

  void take(int rank, Frame frame) {
    Peer& peer = peers_[static_cast<std::size_t>(rank)];
    const FrameHead head = frame.head;
    if (head.kind == FrameKind::kLoss && head.call < peers_.size())
      report({static_cast<int>(head.call), frame.label});
    if (head.kind == FrameKind::kAbort) report({rank, gave_up_text(rank, frame.label)});
    bool full = false;
    {
      std::lock_guard lock(inbox_mutex_);
      if (head.kind == FrameKind::kExchange) {
        full = peer.inbox_bytes + frame.held_bytes() > kMaxInboxBytes;
        if (!full) peer.inbox_bytes += frame.held_bytes();
        if (!full) peer.inbox.push_back(std::move(frame));
      }
      if (head.kind == FrameKind::kGoodbye) peer.left = true;
    }
    if (full)
      hang_up(rank, "it sent more than " + std::to_string(kMaxInboxBytes) +
                        " bytes that nobody has asked for yet");
    changed_.notify_all();
  }

  void hang_up(int rank, std::string_view why) {
    Peer& peer = peers_[static_cast<std::size_t>(rank)];
    peer.open = false;
    shutdown(peer.socket.number(), SHUT_RDWR);  // who sends without end is told so
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

  // The system refuses nothing else that a reader asks for.
  static constexpr std::string_view kDeaf =
      "it can hear nobody any more: its host has no more memory";

  const int rank_;
  std::vector<Peer> peers_;
  const Socket wake_;
  const std::vector<std::byte> alive_, goodbye_, deaf_;  // frames, there when no memory is
  Loss deaf_loss_;                                       // of the reading thread
  std::uint64_t next_call_ = 0;
  Clock::time_point next_beat_{};  // of the reading thread
  std::mutex send_mutex_;
  std::atomic<bool> has_left_{false};
  mutable std::mutex inbox_mutex_;  // inboxes, `left` and `heard`
  std::condition_variable changed_;
  Thread reader_;
};

}  // namespace

Result<std::shared_ptr<Bootstrap>> socket_bootstrap(const Launch& launch,
                                                    std::chrono::milliseconds deadline) {
  Socket wake(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake) return Status::error(Code::kIo, std::string("eventfd: ") + std::strerror(errno));
  auto sockets = meet(launch, deadline);
  if (!sockets) return sockets.status().with("rendezvous");
  auto bootstrap =
      std::make_shared<SocketBootstrap>(launch.rank, *std::move(sockets), std::move(wake));
  if (Status started = bootstrap->start(); !started) {
    bootstrap->abort(started.message());
    return std::move(started).with("rendezvous");
  }
  return std::static_pointer_cast<Bootstrap>(std::move(bootstrap));
}

}  // namespace tenon
