// What strangers may do to ranks that meet: nothing but cost them a place among the callers for a
// moment. Strangers speak over plain sockets.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <functional>
#include <thread>
#include <tuple>

#include "tenon/comm/bootstrap/bootstrap.h"
#include "tenon/comm/bootstrap/frames.h"
#include "tenon/comm/bootstrap/greeting.h"
#include "tenon/comm/bootstrap/tcp.h"
#include "tests/support/processes.h"
#include "tests/support/says.h"

namespace tenon {
namespace {

using std::chrono::milliseconds;
using tcp::Clock;
using tcp::Socket;
using test::says;
constexpr milliseconds kLong(20'000), kShort(500);
const std::string kSecret = "known to the ranks of this job";

Launch launch(int rank, int size, int port, const std::string& secret = kSecret) {
  Launch made{rank, size, rank, "127.0.0.1", port};
  made.secret = secret;
  return made;
}

// Somebody who calls `port` as soon as anybody listens there.
Socket call(int port) {
  const auto end = Clock::now() + kLong;
  while (Clock::now() < end) {
    if (auto socket = tcp::connect_to("127.0.0.1", port, end)) return *std::move(socket);
    std::this_thread::sleep_for(milliseconds(2));
  }
  ADD_FAILURE() << "nobody listens at port " << port;
  return Socket();
}

template <class T>
bool hear(const Socket& socket, T& message) {
  return static_cast<bool>(
      tcp::receive_all(socket, writable_bytes_of(message), Clock::now() + kLong));
}
template <class T>
void say(const Socket& socket, const T& message) {
  std::ignore = tcp::send_all(socket, bytes_of(message), Clock::now() + kLong);
}

// True when the other side has hung up within `budget`.
bool is_left_alone(const Socket& socket, milliseconds budget = kLong) {
  std::byte byte;
  Status got;
  while (got) got = tcp::receive_all(socket, {&byte, 1}, Clock::now() + budget);
  return got.code() == Code::kPeerLost;
}

// Greets as `rank` of `size`; nothing is changed in the greeting but by `forge`.
struct Greeted {
  Socket socket;
  greeting::Challenge challenge;
  greeting::Hello hello;
  greeting::Answer answer;
};
Greeted greet(int port, int rank, int size, const std::string& secret,
              const std::function<void(greeting::Hello&)>& forge = nullptr) {
  Greeted made;
  made.socket = call(port);
  EXPECT_TRUE(hear(made.socket, made.challenge));
  greeting::Hello& hello = made.hello;
  hello.rank = rank;
  hello.size = size;
  hello.port = 1;
  hello.tag = greeting::tag_of(greeting::Key(secret), made.challenge, hello.nonce, hello);
  if (forge) forge(hello);
  say(made.socket, hello);
  EXPECT_TRUE(hear(made.socket, made.answer));
  return made;
}

// Both ranks of a job of two meet although `disturb` came first.
void meet_in_spite_of(const std::string& secret, const std::function<void(int port)>& disturb) {
  const int port = test::free_port();
  std::atomic<bool> disturbed{false};
  std::thread rank0([&] {
    const auto met = socket_bootstrap(launch(0, 2, port, secret), kLong);
    ASSERT_TRUE(met) << met.status().to_string();
    EXPECT_TRUE((*met)->barrier("met", kLong));
  });
  std::thread rank1([&] {
    while (!disturbed) std::this_thread::sleep_for(milliseconds(1));
    const auto met = socket_bootstrap(launch(1, 2, port, secret), kLong);
    ASSERT_TRUE(met) << met.status().to_string();
    EXPECT_TRUE((*met)->barrier("met", kLong));
  });
  disturb(port);
  disturbed = true;
  rank0.join();
  rank1.join();
}

// The greeting of the first version, in one piece and without being asked: what a worker of
// yesterday's job sends that tries the same port again.
struct OldHello {
  std::uint32_t magic = greeting::kMagic, version = 1;
  std::int32_t rank = 5, size = 9, port = 1, unused = 0;
  std::uint64_t session = 0;
};

TEST(RendezvousAttack, AWrongGreetingEndsNothing) {
  meet_in_spite_of("", [](int port) {
    const Socket stranger = call(port);
    say(stranger, OldHello{});
    EXPECT_TRUE(is_left_alone(stranger));
  });
  meet_in_spite_of(kSecret, [](int port) {
    for (const int rank : {-1, 0, 2, 5, 1 << 30}) {
      const Greeted stranger = greet(port, rank, 2, kSecret);
      EXPECT_EQ(stranger.answer.verdict, greeting::Verdict::kNever) << rank;
      EXPECT_TRUE(is_left_alone(stranger.socket));
    }
    EXPECT_EQ(greet(port, 1, 9, kSecret).answer.verdict, greeting::Verdict::kNever);
    const auto to_another = [](greeting::Hello& hello) { hello.to = 1; };
    EXPECT_EQ(greet(port, 1, 2, kSecret, to_another).answer.verdict, greeting::Verdict::kNotNow);
  });
}

TEST(RendezvousAttack, WhatWasDroppedIsInTheSentenceOfTheDeadline) {
  const int port = test::free_port();
  std::thread strangers([&] {
    say(call(port), OldHello{});
    for (int i = 0; i < 3; ++i) greet(port, 5, 9, kSecret);
    greet(port, 1, 2, "another job's");
    const char nonsense[64] = "GET / HTTP/1.1";
    const Socket socket = call(port);
    say(socket, nonsense);
    EXPECT_TRUE(is_left_alone(socket));
  });
  const auto met = socket_bootstrap(launch(0, 2, port), milliseconds(3'000));
  strangers.join();
  ASSERT_FALSE(met);
  EXPECT_EQ(met.status().code(), Code::kTimeout);
  for (const char* text :
       {"for rank 1 to connect: deadline; dropped: a process at 127.0.0.1",
        "greets in version 1; accepted: 2", "says it is rank 5 of 9;", "once each (3 times)",
        "does not know this job's secret", "says what no rank of this program says"})
    EXPECT_TRUE(says(met.status(), text)) << text << "\n" << met.status().message();
}

TEST(RendezvousAttack, WhoDoesNotKnowTheSecretTakesNoPlace) {
  greeting::Hello overheard;  // of the right rank, in another meeting
  meet_in_spite_of(kSecret, [&](int port) {
    const Greeted guess = greet(port, 1, 2, "");
    EXPECT_EQ(guess.answer.verdict, greeting::Verdict::kNotNow);
    EXPECT_TRUE(is_left_alone(guess.socket));
    // The right greeting for another challenge.
    greeting::Challenge other;
    other.nonce[3] = std::byte{7};
    overheard = {.rank = 1, .size = 2, .port = 1};
    overheard.tag = greeting::tag_of(greeting::Key(kSecret), other, overheard.nonce, overheard);
    const Greeted replayed =
        greet(port, 1, 2, kSecret, [&](greeting::Hello& hello) { hello = overheard; });
    EXPECT_EQ(replayed.answer.verdict, greeting::Verdict::kNotNow);
    // Every bit of a greeting counts.
    for (std::size_t at = offsetof(greeting::Hello, rank); at < sizeof(greeting::Hello); at += 7)
      EXPECT_NE(
          greet(port, 1, 2, kSecret,
                [&](greeting::Hello& hello) { writable_bytes_of(hello)[at] ^= std::byte{0x10}; })
              .answer.verdict,
          greeting::Verdict::kAccepted)
          << at;
  });
}

TEST(RendezvousAttack, ARankWithAnotherSecretSaysSo) {
  const int port = test::free_port();
  std::thread rank0([&] { std::ignore = socket_bootstrap(launch(0, 2, port), 3 * kShort); });
  const auto met = socket_bootstrap(launch(1, 2, port, "another job's"), kShort);
  rank0.join();
  ASSERT_FALSE(met);
  EXPECT_EQ(met.status().code(), Code::kTimeout);
  EXPECT_TRUE(says(met.status(), "rank 1 waited for rank 0 to accept it at 127.0.0.1"))
      << met.status().message();
  EXPECT_TRUE(says(met.status(), "does not know this job's secret")) << met.status().message();
}

// Who listens at rank 0's place and welcomes everybody learns no more than a greeting; the rank
// goes on until the right one listens there.
TEST(RendezvousAttack, AFalseRankZeroIsNotBelieved) {
  const int port = test::free_port();
  auto listener = tcp::listen_at("127.0.0.1", port);
  ASSERT_TRUE(listener);
  std::thread rank1([&] {
    const auto met = socket_bootstrap(launch(1, 2, port), kLong);
    ASSERT_TRUE(met) << met.status().to_string();
    EXPECT_TRUE((*met)->barrier("met", kLong));
  });
  Result<Socket> caller = tcp::accept_from(*listener);
  for (const auto end = Clock::now() + kLong; !caller && Clock::now() < end;
       caller = tcp::accept_from(*listener))
    std::this_thread::sleep_for(milliseconds(1));
  ASSERT_TRUE(caller);
  const greeting::Challenge challenge;
  say(*caller, challenge);
  greeting::Hello hello;
  ASSERT_TRUE(hear(*caller, hello));
  greeting::Answer answer;
  answer.verdict = greeting::Verdict::kAccepted;
  say(*caller, answer);
  EXPECT_TRUE(is_left_alone(*caller));
  listener->close();
  const auto met = socket_bootstrap(launch(0, 2, port), kLong);
  ASSERT_TRUE(met) << met.status().to_string();
  EXPECT_TRUE((*met)->barrier("met", kLong));
  rank1.join();
}

// Between ranks that are not rank 0 the session takes the secret's part: also where there is none.
TEST(RendezvousAttack, WhoWasNotWelcomedDoesNotKnowTheSession) {
  for (const std::string& secret : {std::string(), kSecret}) {
    const greeting::Nonce session = {std::byte{1}}, another = {std::byte{2}};
    const greeting::Key key(secret), right = key.of_session(session);
    const greeting::Challenge challenge;
    greeting::Hello hello{.rank = 2, .size = 3, .to = 1, .port = 1};
    const auto judged = [&](const greeting::Key& made_with) {
      hello.tag = greeting::tag_of(made_with, challenge, hello.nonce, hello);
      return greeting::check(right, challenge, hello, 1, 3).verdict;
    };
    EXPECT_EQ(judged(right), greeting::Verdict::kAccepted);
    EXPECT_EQ(judged(key), greeting::Verdict::kNotNow);
    EXPECT_EQ(judged(key.of_session(another)), greeting::Verdict::kNotNow);
  }
}

TEST(RendezvousAttack, ThePlaceOfARankThatHasGoneIsFree) {
  const int port = test::free_port();
  std::vector<std::thread> ranks;
  const auto meet = [&](int rank) {
    const auto met = socket_bootstrap(launch(rank, 3, port), kLong);
    ASSERT_TRUE(met) << met.status().to_string();
    EXPECT_TRUE((*met)->barrier("met", kLong));
  };
  ranks.emplace_back(meet, 0);
  {
    const Greeted first = greet(port, 1, 3, kSecret);
    EXPECT_EQ(first.answer.verdict, greeting::Verdict::kAccepted);
    const Greeted second = greet(port, 1, 3, kSecret);
    EXPECT_EQ(second.answer.verdict, greeting::Verdict::kNotNow);
    EXPECT_NE(std::string(second.answer.why).find("which another process at 127.0.0.1 has said"),
              std::string::npos)
        << second.answer.why;
  }
  ranks.emplace_back(meet, 1);
  ranks.emplace_back(meet, 2);
  for (std::thread& rank : ranks) rank.join();
}

TEST(RendezvousAttack, AtMost64AreLetInAtOnce) {
  const int port = test::free_port();
  std::thread rank0([&] {
    const auto met = socket_bootstrap(launch(0, 2, port), milliseconds(1'500));
    EXPECT_FALSE(met);
  });
  std::vector<Socket> strangers;
  for (int i = 0; i < 90; ++i) strangers.push_back(call(port));
  std::this_thread::sleep_for(milliseconds(300));
  const auto was_challenged = [](const Socket& socket) {
    greeting::Challenge challenge;
    const auto got = tcp::receive_some(socket, writable_bytes_of(challenge));
    return got && *got != 0;
  };
  EXPECT_EQ(std::count_if(strangers.begin(), strangers.end(), was_challenged), 64);
  rank0.join();
}

double thread_seconds() {
  timespec used{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
  return static_cast<double>(used.tv_sec) + 1e-9 * static_cast<double>(used.tv_nsec);
}

// Rank 0 with few descriptors to spare. It is a process: the strangers need their own.
TEST(RendezvousAttackChild, DISABLED_HasFewDescriptors) {
  const auto open_now = std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {});
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = static_cast<rlim_t>(open_now) + 8;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
  const auto met = socket_bootstrap(launch(0, 2, std::atoi(std::getenv("MASTER_PORT"))), kLong);
  std::printf("%s\nwaited with %.3f s of a processor\n", met.status().to_string().c_str(),
              thread_seconds());
}

TEST(RendezvousAttack, SilentCallersGoAndCostNothing) {
  const int port = test::free_port();
  test::Process rank0 =
      test::start_rank(0, 2, port, "RendezvousAttackChild.DISABLED_HasFewDescriptors");
  std::vector<Socket> strangers;  // more than rank 0 has descriptors
  for (int i = 0; i < 12; ++i) strangers.push_back(call(port));
  const auto met = socket_bootstrap(launch(1, 2, port), kLong);
  EXPECT_TRUE(met) << met.status().to_string();
  EXPECT_EQ(rank0.wait(2 * kLong), 0);
  const std::string& output = rank0.output();
  const auto at = output.find("waited with ");
  ASSERT_NE(at, std::string::npos) << output;
  EXPECT_NE(output.find("ok\nwaited"), std::string::npos) << output;
  // It has waited for more than two seconds.
  EXPECT_LT(std::atof(output.c_str() + at + std::strlen("waited with ")), 0.2) << output;
}

std::size_t resident_bytes() {
  std::size_t pages = 0, resident = 0;
  if (FILE* file = std::fopen("/proc/self/statm", "r")) {
    if (std::fscanf(file, "%zu %zu", &pages, &resident) != 2) resident = 0;
    std::fclose(file);
  }
  return resident * 4096;
}

TEST(RendezvousAttack, ARankThatSendsWithoutEndIsGivenUp) {
  const int port = test::free_port();
  std::atomic<bool> done{false};
  std::thread rank0([&] {
    const auto met = socket_bootstrap(launch(0, 2, port), kLong);
    ASSERT_TRUE(met) << met.status().to_string();
    const std::size_t before = resident_bytes();
    while (!done && !(*met)->loss()) std::this_thread::sleep_for(milliseconds(1));
#if defined(__SANITIZE_THREAD__)
    constexpr std::size_t kRoom = std::size_t{600} << 20;  // each byte has several of shadow
#else
    constexpr std::size_t kRoom = std::size_t{100} << 20;
#endif
    EXPECT_LT(resident_bytes(), before + kRoom);
    ASSERT_TRUE((*met)->loss());
    EXPECT_NE((*met)->loss()->why.find("rank 1 is gone: it sent more than"), std::string::npos)
        << (*met)->loss()->why;
    EXPECT_EQ((*met)->barrier("after", kLong).code(), Code::kPeerLost);
  });
  const Greeted rank1 = greet(port, 1, 2, kSecret);
  EXPECT_EQ(rank1.answer.verdict, greeting::Verdict::kAccepted);
  greeting::Welcome welcome;
  ASSERT_TRUE(hear(rank1.socket, welcome));
  EXPECT_EQ(welcome.complete, 1u);
  const std::vector<std::byte> payload(std::size_t{8} << 20);
  const auto frame = frame_bytes(FrameKind::kExchange, 0, "flood", payload);
  Status sent;
  const auto end = Clock::now() + kLong;
  for (int i = 0; i < 64 && sent; ++i) sent = tcp::send_all(rank1.socket, frame, end);
  EXPECT_EQ(sent.code(), Code::kPeerLost) << "512 MiB were taken";
  done = true;
  rank0.join();
}

TEST(RendezvousAttack, FramesThatAreTooLongAreRefusedOnBothSides) {
  auto head = frame_bytes(FrameKind::kExchange, 0, "", {});
  const std::uint64_t too_long = kMaxPayloadBytes + 1;
  std::memcpy(head.data() + offsetof(FrameHead, payload_bytes), &too_long, sizeof too_long);
  FrameReader reader;
  std::vector<Frame> frames;
  const Status read = reader.read(head, frames);
  EXPECT_TRUE(says(read, "0 + 16777217 bytes; accepted: at most 4096 + 16777216"))
      << read.message();
  const int port = test::free_port();
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < 2; ++rank)
    ranks.emplace_back([&, rank] {
      const auto met = socket_bootstrap(launch(rank, 2, port), kLong);
      ASSERT_TRUE(met) << met.status().to_string();
      const std::vector<std::byte> mine(too_long);
      std::vector<std::byte> all(2 * too_long);
      const Status status = (*met)->exchange(mine, all, "too much", kLong);
      EXPECT_EQ(status.code(), Code::kInvalidArgument);
      EXPECT_TRUE(says(status, "accepted: at most 16777216")) << status.message();
      EXPECT_TRUE((*met)->barrier("still in step", kLong));
    });
  for (std::thread& rank : ranks) rank.join();
}

TEST(RendezvousAttack, AnAddressOfAnotherHostIsNotListenedAt) {
  const int port = test::free_port();
  Launch elsewhere = launch(0, 2, port);
  elsewhere.address = "192.0.2.1";  // kept for documents: nobody's
  const auto met = socket_bootstrap(elsewhere, kLong);
  ASSERT_FALSE(met);
  EXPECT_EQ(met.status().code(), Code::kInvalidArgument);
  EXPECT_TRUE(says(met.status(), "rank 0 cannot listen at 192.0.2.1:" + std::to_string(port) +
                                     ": it is not an address of this host; accepted: one of rank "
                                     "0's host as MASTER_ADDR, or TENON_LISTEN_ALL=1"))
      << met.status().message();
  elsewhere.listen_all = true;
  std::thread rank0([&] {
    const auto asked = socket_bootstrap(elsewhere, kLong);
    EXPECT_TRUE(asked) << asked.status().to_string();
  });
  const auto called = socket_bootstrap(launch(1, 2, port), kLong);
  EXPECT_TRUE(called) << called.status().to_string();
  rank0.join();
}

}  // namespace
}  // namespace tenon
