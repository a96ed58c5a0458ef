// Ranks as processes, for tests whose subject is a process: starts this test binary again, once per
// rank, with the variables of a launcher, to run one disabled test as that rank's body.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace tenon::test {

// A port of this host that nobody listens at just now.
inline int free_port() {
  const int socket_number = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in place{};
  place.sin_family = AF_INET;
  place.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t bytes = sizeof place;
  int port = 0;
  if (bind(socket_number, reinterpret_cast<sockaddr*>(&place), bytes) == 0 &&
      getsockname(socket_number, reinterpret_cast<sockaddr*>(&place), &bytes) == 0)
    port = ntohs(place.sin_port);
  close(socket_number);
  return port;
}

// One child. Killed with its owner if it still runs.
class Process {
 public:
  Process(pid_t pid, int output) : pid_(pid), output_(output) {}
  Process(Process&& other) noexcept
      : pid_(std::exchange(other.pid_, -1)),
        output_(std::exchange(other.output_, -1)),
        text_(std::move(other.text_)) {}
  Process& operator=(Process&&) = delete;
  ~Process() {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
    if (output_ >= 0) close(output_);
  }

  void send(int signal_number) const { kill(pid_, signal_number); }

  // What the child has printed so far.
  const std::string& output() {
    char chunk[4096];
    for (ssize_t got; (got = read(output_, chunk, sizeof chunk)) > 0;)
      text_.append(chunk, static_cast<std::size_t>(got));
    return text_;
  }

  // Waits until the child has printed `text`; false after `budget`.
  bool prints(const std::string& text, std::chrono::milliseconds budget) {
    const auto end = std::chrono::steady_clock::now() + budget;
    while (output().find(text) == std::string::npos) {
      if (std::chrono::steady_clock::now() > end) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    return true;
  }

  // The child's wait status, or −1 if it still runs after `budget`.
  int wait(std::chrono::milliseconds budget) {
    const auto end = std::chrono::steady_clock::now() + budget;
    int status = 0;
    while (waitpid(pid_, &status, WNOHANG) == 0) {
      if (std::chrono::steady_clock::now() > end) return -1;
      output();  // keep the pipe empty
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    pid_ = -1;
    output();
    return status;
  }

 private:
  pid_t pid_;
  int output_;
  std::string text_;
};

// Starts `child` (Suite.DISABLED_Name) as one rank. `extra` are more variables, "NAME=value".
inline Process start_rank(int rank, int size, int port, const std::string& child,
                          const std::vector<std::string>& extra = {}) {
  std::vector<std::string> words = {"/proc/self/exe", "--gtest_also_run_disabled_tests",
                                    "--gtest_filter=" + child};
  std::vector<std::string> variables = {
      "RANK=" + std::to_string(rank), "LOCAL_RANK=" + std::to_string(rank),
      "WORLD_SIZE=" + std::to_string(size), "MASTER_ADDR=127.0.0.1",
      "MASTER_PORT=" + std::to_string(port)};
  variables.insert(variables.end(), extra.begin(), extra.end());
  for (char** each = environ; *each != nullptr; ++each) variables.emplace_back(*each);
  std::vector<char*> argv, envp;
  for (std::string& word : words) argv.push_back(word.data());
  for (std::string& variable : variables) envp.push_back(variable.data());
  argv.push_back(nullptr);
  envp.push_back(nullptr);

  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) std::abort();
  fcntl(ends[0], F_SETFL, O_NONBLOCK);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDERR_FILENO);
  pid_t pid = -1;
  const int error =
      posix_spawn(&pid, "/proc/self/exe", &actions, nullptr, argv.data(), envp.data());
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  EXPECT_EQ(error, 0);
  return Process(pid, ends[0]);
}

inline std::vector<Process> start_ranks(int size, const std::string& child,
                                        const std::vector<std::string>& extra = {}) {
  const int port = free_port();
  std::vector<Process> ranks;
  for (int rank = 0; rank < size; ++rank)
    ranks.push_back(start_rank(rank, size, port, child, extra));
  return ranks;
}

// Every rank ends with success within `budget`, or the test fails with what it printed.
inline void expect_all_succeed(std::vector<Process>& ranks, std::chrono::milliseconds budget) {
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    const int status = ranks[rank].wait(budget);
    EXPECT_TRUE(status >= 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0)
        << "rank " << rank << " ended with " << status << " and printed:\n"
        << ranks[rank].output();
  }
}

}  // namespace tenon::test
