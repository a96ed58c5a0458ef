#include "apps/load/child_server.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <sstream>
#include <thread>

#include "apps/interrupt.h"

namespace tenon::apps {
namespace {

constexpr auto kPatience = std::chrono::seconds(20);  // after SIGTERM

Status system_error(const std::string& doing) {
  return Status::error(Code::kIo, "could not " + doing + ": " + std::strerror(errno));
}

// In the child: become this program again. A group of its own, so that a terminal's Ctrl-C does not
// end it in the middle of what is measured.
[[noreturn]] void become_server(pid_t parent, int log, const std::vector<char*>& argv) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(1);  // it died before the line above
  setpgid(0, 0);
  const int nowhere = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  if (nowhere >= 0) {
    dup2(nowhere, STDIN_FILENO);
    dup2(nowhere, STDOUT_FILENO);
  }
  dup2(log, STDERR_FILENO);
  execv("/proc/self/exe", argv.data());
  _exit(127);
}

// Lines that begin with this end with the address.
constexpr const char* kServedOn = " is served on ";

}  // namespace

std::vector<std::string> words_of(const std::string& text) {
  std::istringstream stream(text);
  std::vector<std::string> words;
  for (std::string word; stream >> word;) words.push_back(word);
  return words;
}

Result<std::unique_ptr<ChildServer>> ChildServer::start(const std::vector<std::string>& options) {
  std::vector<std::string> words{"tenon", "serve", "--port", "0", "--quiet"};
  words.insert(words.end(), options.begin(), options.end());
  std::vector<char*> argv;
  for (std::string& each : words) argv.push_back(each.data());
  argv.push_back(nullptr);
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return system_error("make a pipe");
  std::unique_ptr<ChildServer> server(new ChildServer);
  server->log_ = ends[0];
  const pid_t parent = getpid();
  server->child_ = fork();
  if (server->child_ == 0) become_server(parent, ends[1], argv);
  ::close(ends[1]);
  if (server->child_ < 0) return system_error("start a server");
  TENON_TRY(server->wait_until_it_serves());
  TENON_ASSIGN(server->reader_, start_thread("tenon child log", [log = server->log_] {
                 char bytes[4096];
                 for (ssize_t got = 1; got > 0 || (got < 0 && errno == EINTR);) {
                   got = ::read(log, bytes, sizeof bytes);
                   if (got > 0) std::fwrite(bytes, 1, static_cast<std::size_t>(got), stderr);
                 }
               }));
  return server;
}

Status ChildServer::wait_until_it_serves() {
  std::string line, last;
  while (wait_for_input(log_)) {
    char byte = 0;
    const ssize_t got = ::read(log_, &byte, 1);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0)
      return Status::error(Code::kIo, "the server ended before it served; its last line: " + last);
    if (byte != '\n') {
      line += byte;
      continue;
    }
    if (const auto at = line.find(kServedOn); at != std::string::npos) {
      const std::size_t begin = at + std::strlen(kServedOn);
      url_ = line.substr(begin, line.find(',', begin) - begin);
      return Status::ok();
    }
    last = std::move(line);
    line.clear();
  }
  return Status::error(Code::kIo, "a signal came before the server served");
}

ChildServer::~ChildServer() {
  if (child_ > 0) {
    kill(child_, SIGTERM);
    const auto until = std::chrono::steady_clock::now() + kPatience;
    while (waitpid(child_, nullptr, WNOHANG) == 0) {
      if (std::chrono::steady_clock::now() > until) {
        kill(child_, SIGKILL);
        waitpid(child_, nullptr, 0);
        break;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }
  reader_.join();  // the pipe has ended with the child
  if (log_ >= 0) ::close(log_);
}

}  // namespace tenon::apps
