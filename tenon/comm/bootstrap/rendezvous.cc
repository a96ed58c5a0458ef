#include "tenon/comm/bootstrap/rendezvous.h"

#include <poll.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <thread>
#include <tuple>

#include "tenon/comm/bootstrap/greeting.h"
#include "tenon/comm/device/channel_view.h"
#include "tenon/comm/messages.h"
#include "tenon/core/env.h"

namespace tenon {
namespace {

using greeting::Answer;
using greeting::Challenge;
using greeting::Hello;
using greeting::Key;
using greeting::Verdict;
using greeting::Welcome;
using std::chrono::milliseconds;
using tcp::Clock;
using tcp::Deadline;
using tcp::Socket;

std::string at(const std::string& address, int port) {
  return address + ":" + std::to_string(port);
}

std::string rank_list(const std::vector<Socket>& sockets, int first) {
  std::string list;
  for (int rank = first; rank < static_cast<int>(sockets.size()); ++rank)
    if (!sockets[static_cast<std::size_t>(rank)])
      list += (list.empty() ? "" : ", ") + std::string("rank ") + std::to_string(rank);
  return list;
}

// What went wrong without being the end: each different sentence once, with how often.
class Notes {
 public:
  void add(std::string sentence) {
    ++num_all_;
    for (auto& [known, times] : kept_)
      if (known == sentence) return void(++times);
    if (kept_.size() < kMost) kept_.emplace_back(std::move(sentence), 1);
  }
  std::string text() const {
    std::string text;
    int left = num_all_;
    for (const auto& [sentence, times] : kept_) {
      text += (text.empty() ? "" : "; ") + sentence;
      if (times > 1) text += " (" + std::to_string(times) + " times)";
      left -= times;
    }
    if (left > 0) text += "; and " + std::to_string(left) + " more";
    return text;
  }

 private:
  static constexpr std::size_t kMost = 4;
  std::vector<std::pair<std::string, int>> kept_;
  int num_all_ = 0;
};

// Takes callers until every rank above the own one has greeted. Ports are visited by strangers: a
// caller that greets wrongly or not at all is dropped and remembered, and never ends the reception.
class Reception {
 public:
  Reception(const Launch& launch, const Socket& listener, const std::string& place, Key key,
            Deadline end)
      : launch_(launch), listener_(listener), place_(place), key_(std::move(key)), end_(end) {}

  // Whom sockets[rank] leads to.
  struct Guest {
    std::string address;
    Challenge challenge;
    Hello hello;
  };
  const Guest& guest(int rank) const { return guests_[static_cast<std::size_t>(rank)]; }

  Status receive(std::vector<Socket>& sockets) {
    guests_.resize(sockets.size());
    for (;;) {
      const std::string missing = rank_list(sockets, launch_.rank + 1);
      const std::string notes = notes_.text();
      if (missing.empty() && !notes.empty()) log(LogLevel::kInfo, "rendezvous: dropped: " + notes);
      if (missing.empty()) return Status::ok();
      Status over = launch_.given_up ? launch_.given_up() : Status::ok();
      if (over && Clock::now() >= end_) over = Status::error(Code::kTimeout, "deadline");
      if (!over)
        return Status::error(over.code(), "rank " + std::to_string(launch_.rank) + " waited at " +
                                              place_ + " for " + missing +
                                              " to connect: " + std::string(over.message()) +
                                              (notes.empty() ? "" : "; dropped: " + notes));
      wait(sockets);
      let_in();
      for (Caller& caller : callers_) listen_to(caller, sockets);
      std::erase_if(callers_, [](const Caller& caller) { return !caller.socket; });
    }
  }

 private:
  static constexpr std::size_t kMostCallers = 64;
  static constexpr milliseconds kPatience{2000};  // with a caller that has not greeted
  // After a caller could not be let in, and between questions.
  static constexpr milliseconds kPause{50};

  struct Caller {
    Socket socket;
    std::string address;
    Deadline end;
    Challenge challenge;
    Hello hello;
    std::size_t num_received = 0;
  };

  void drop(Caller& caller, const std::string& why) {
    notes_.add("a process at " + caller.address + " " + why);
    caller.socket.close();
  }

  // Until something happens. Notices guests that have gone: their places are free again.
  void wait(std::vector<Socket>& sockets) {
    std::vector<pollfd> waiting;
    Deadline until = end_;
    may_let_in_ = callers_.size() < kMostCallers && Clock::now() >= paused_until_;
    if (may_let_in_) waiting.push_back({listener_.number(), POLLIN, 0});
    if (Clock::now() < paused_until_) until = std::min(until, paused_until_);
    if (launch_.given_up) until = std::min(until, Clock::now() + kPause);
    for (const Caller& caller : callers_) {
      waiting.push_back({caller.socket.number(), POLLIN, 0});
      until = std::min(until, caller.end);
    }
    const std::size_t num_others = waiting.size();
    for (int rank = launch_.rank + 1; rank < launch_.size; ++rank)
      if (const Socket& socket = sockets[static_cast<std::size_t>(rank)])
        waiting.push_back({socket.number(), POLLRDHUP, 0});
    poll(waiting.data(), waiting.size(), tcp::milliseconds_until(until));
    for (std::size_t i = num_others; i < waiting.size(); ++i)
      if (waiting[i].revents != 0) say_farewell(waiting[i].fd, sockets);
  }

  void say_farewell(int number, std::vector<Socket>& sockets) {
    for (std::size_t rank = 0; rank < sockets.size(); ++rank) {
      if (sockets[rank].number() != number) continue;
      notes_.add("rank " + std::to_string(rank) + " at " + guests_[rank].address +
                 " greeted and left again");
      sockets[rank].close();
    }
  }

  void let_in() {
    while (may_let_in_ && callers_.size() < kMostCallers) {
      auto socket = tcp::accept_from(listener_);
      if (socket.status().code() == Code::kTimeout) return;
      Challenge challenge;
      const auto nonce = greeting::fresh_nonce();
      if (!socket || !nonce) {
        // Out of descriptors, say: the listener stays readable, and asking again at once is in
        // vain.
        notes_.add("a caller could not be let in: " +
                   std::string(socket ? nonce.status().message() : socket.status().message()));
        paused_until_ = Clock::now() + kPause;
        return;
      }
      challenge.nonce = *nonce;
      std::string address = tcp::peer_address(*socket);
      callers_.push_back({*std::move(socket), std::move(address), Clock::now() + kPatience,
                          challenge, Hello{}, 0});
      Caller& caller = callers_.back();
      if (!tcp::send_all(caller.socket, bytes_of(challenge), Clock::now()))
        drop(caller, "left at once");
    }
  }

  void listen_to(Caller& caller, std::vector<Socket>& sockets) {
    if (!caller.socket) return;
    const auto rest = writable_bytes_of(caller.hello).subspan(caller.num_received);
    const auto got = tcp::receive_some(caller.socket, rest);
    if (!got) return drop(caller, "left without a greeting");
    caller.num_received += *got;
    // Whoever begins with something else never gets to the end of a greeting.
    const Hello& hello = caller.hello;
    Challenge begin{hello.magic, hello.version, {}};
    if (caller.num_received >= sizeof begin.magic + sizeof begin.version)
      if (const Status known = greeting::check(begin); !known)
        return drop(caller, std::string(known.message()));
    if (caller.num_received == sizeof hello) return judge(caller, sockets);
    if (Clock::now() >= caller.end) drop(caller, "did not greet within " + seconds_text(kPatience));
  }

  void judge(Caller& caller, std::vector<Socket>& sockets) {
    const Hello& hello = caller.hello;
    greeting::Checked checked =
        greeting::check(key_, caller.challenge, hello, launch_.rank, launch_.size);
    const auto rank = static_cast<std::size_t>(hello.rank);
    if (checked.verdict == Verdict::kAccepted && sockets[rank] && !tcp::is_closed(sockets[rank]))
      checked = {Verdict::kNotNow, "says it is rank " + std::to_string(hello.rank) +
                                       ", which another process at " + guests_[rank].address +
                                       " has said before"};
    Answer answer;
    answer.verdict = checked.verdict;
    if (!checked.why.empty())
      copy_text("a process at " + caller.address + " " + checked.why, answer.why);
    answer.tag = greeting::tag_of(key_, caller.challenge, hello.nonce, answer);
    const Status sent = tcp::send_all(caller.socket, bytes_of(answer), Clock::now());
    if (checked.verdict != Verdict::kAccepted) return drop(caller, checked.why);
    if (!sent) return drop(caller, "left at once");
    guests_[rank] = {caller.address, caller.challenge, hello};
    sockets[rank] = std::move(caller.socket);
    caller.socket.close();  // a guest's that had gone, if any
  }

  const Launch& launch_;
  const Socket& listener_;
  const std::string place_;
  const Key key_;
  const Deadline end_;
  std::vector<Caller> callers_;
  std::vector<Guest> guests_;  // by rank
  Notes notes_;
  bool may_let_in_ = true;
  Deadline paused_until_{};
};

Result<Socket> listen_as_rank_0(const Launch& launch) {
  const std::string place = at(launch.address, launch.port);
  if (launch.listen_all)
    log(LogLevel::kWarning,
        "rank 0 listens at every address of this host (TENON_LISTEN_ALL), "
        "port " +
            std::to_string(launch.port));
  auto listener = tcp::listen_at(launch.listen_all ? "" : launch.address, launch.port);
  if (listener) return listener;
  std::string advice;
  if (listener.status().code() == Code::kInvalidArgument)
    advice =
        "; accepted: one of rank 0's host as MASTER_ADDR, or TENON_LISTEN_ALL=1 to listen at "
        "all of them (an address that is translated on the way)";
  return Status::error(listener.status().code(), "rank 0 cannot listen at " + place + ": " +
                                                     std::string(listener.status().message()) +
                                                     advice);
}

Result<std::vector<Socket>> host(const Launch& launch, Deadline end) {
  const Key key(launch.secret);
  std::vector<Socket> sockets(static_cast<std::size_t>(launch.size));
  TENON_ASSIGN(Socket listener, listen_as_rank_0(launch));
  TENON_ASSIGN(const greeting::Nonce session, greeting::fresh_nonce());
  Reception reception(launch, listener, at(launch.address, launch.port), key, end);
  const Status complete = reception.receive(sockets);
  // Closed before anybody is welcomed: a second rendezvous at this port cannot reach the first.
  listener.close();
  Welcome welcome;
  welcome.complete = complete ? 1 : 0;
  welcome.session = session;
  copy_text(complete.message(), welcome.why);
  for (int rank = 1; rank < launch.size; ++rank) {
    if (!sockets[static_cast<std::size_t>(rank)]) continue;
    copy_text(reception.guest(rank).address, welcome.places[rank].address);
    welcome.places[rank].port = reception.guest(rank).hello.port;
  }
  const Deadline grace = Clock::now() + milliseconds(200);
  for (int rank = 1; rank < launch.size; ++rank) {
    const Socket& socket = sockets[static_cast<std::size_t>(rank)];
    if (!socket) continue;
    const auto& guest = reception.guest(rank);
    welcome.tag = greeting::tag_of(key, guest.challenge, guest.hello.nonce, welcome);
    const Status sent = tcp::send_all(socket, bytes_of(welcome), std::max(end, grace));
    if (complete && !sent) return Status(sent).with("rank 0 lost a rank during the rendezvous");
  }
  if (!complete) return complete;
  return sockets;
}

// A connection to a rank that has proved to be one, and what was said on it.
struct Line {
  Socket socket;
  Challenge challenge;
  Hello hello;
  bool never = false;  // the other side is of this job and has no place for this rank
};

class Joining {
 public:
  explicit Joining(const Launch& launch) : launch_(launch) {}

  // Where this rank listens: at the address from which it first reached another.
  const Socket& listener() const { return listener_; }

  // Calls with retries: the other side may not have started yet, and what listens there now may be
  // left from another job.
  Result<Line> call(const Key& key, const std::string& address, int port, int whom, Deadline end) {
    Notes notes;
    for (;;) {
      Line line;
      const Status met = try_once(key, address, port, whom, line, end);
      if (met) return line;
      if (line.never) return met;
      notes.add(std::string(met.message()));
      const milliseconds pause(line.socket ? 250 : 20);  // somebody is there: do not pester it
      if (Clock::now() + pause >= end)
        return Status::error(Code::kTimeout, "rank " + std::to_string(launch_.rank) +
                                                 " waited for rank " + std::to_string(whom) +
                                                 " to accept it at " + at(address, port) +
                                                 ": deadline (" + notes.text() + ")");
      std::this_thread::sleep_for(pause);
    }
  }

 private:
  Status try_once(const Key& key, const std::string& address, int port, int whom, Line& line,
                  Deadline end) {
    TENON_ASSIGN(line.socket, tcp::connect_to(address, port, end));
    if (!listener_) {
      TENON_ASSIGN(listener_, tcp::listen_at(tcp::own_address(line.socket), 0));
    }
    TENON_TRY(in_words(tcp::receive_all(line.socket, writable_bytes_of(line.challenge), end)));
    TENON_TRY(in_words(greeting::check(line.challenge)));
    Hello& hello = line.hello;
    hello.rank = launch_.rank;
    hello.size = launch_.size;
    hello.to = whom;
    TENON_ASSIGN(hello.port, tcp::port_of(listener_));
    TENON_ASSIGN(hello.nonce, greeting::fresh_nonce());
    hello.tag = greeting::tag_of(key, line.challenge, hello.nonce, hello);
    TENON_TRY(in_words(tcp::send_all(line.socket, bytes_of(hello), end)));
    Answer answer;
    TENON_TRY(in_words(tcp::receive_all(line.socket, writable_bytes_of(answer), end)));
    TENON_TRY(in_words(greeting::check(key, line.challenge, hello, answer)));
    if (answer.verdict == Verdict::kAccepted) return Status::ok();
    line.never = answer.verdict == Verdict::kNever;
    return Status::error(Code::kPeerLost,
                         "rank " + std::to_string(whom) + " refused: " + answer.why);
  }

  static Status in_words(const Status& status) {
    if (status) return status;
    std::string what(status.message());
    if (status.code() == Code::kTimeout) what = "says nothing";
    if (status.code() == Code::kPeerLost) what = "closed the connection";
    return Status::error(Code::kIo, "what listens there " + what);
  }

  const Launch& launch_;
  Socket listener_;
};

Result<std::vector<Socket>> join(const Launch& launch, Deadline end, Deadline answer_end) {
  const Key key(launch.secret);
  Joining joining(launch);
  TENON_ASSIGN(Line line, joining.call(key, launch.address, launch.port, 0, end));
  const std::string awaited = "rank " + std::to_string(launch.rank) + " waited for rank 0 at " +
                              at(launch.address, launch.port) + " to welcome it";
  Welcome welcome;
  TENON_TRY(tcp::receive_all(line.socket, writable_bytes_of(welcome), answer_end), awaited);
  TENON_TRY(greeting::check(key, line.challenge, line.hello, welcome), awaited + ": it");
  if (welcome.complete == 0)
    return Status::error(Code::kPeerLost, "rank 0 gave up: " + std::string(welcome.why));
  std::vector<Socket> sockets(static_cast<std::size_t>(launch.size));
  sockets[0] = std::move(line.socket);

  // Only those whom rank 0 has welcomed know the session.
  const Key session_key = key.of_session(welcome.session);
  for (int peer = 1; peer < launch.rank; ++peer) {
    const Welcome::Place& place = welcome.places[peer];
    TENON_ASSIGN(Line other,
                 joining.call(session_key, place.address, place.port, peer, answer_end));
    sockets[static_cast<std::size_t>(peer)] = std::move(other.socket);
  }
  TENON_ASSIGN(const int port, tcp::port_of(joining.listener()));
  Reception reception(launch, joining.listener(), at(tcp::own_address(sockets[0]), port),
                      session_key, answer_end);
  TENON_TRY(reception.receive(sockets));
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
