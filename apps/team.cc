#include "apps/team.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>

namespace tenon::apps {
namespace {

Status system_error(const std::string& doing) {
  return Status::error(Code::kIo, "could not " + doing + ": " + std::strerror(errno));
}

// A port that was free a moment ago. Somebody else may take it before rank 0 listens; that is then
// an error of the rendezvous that names the port.
Result<int> free_port() {
  const int socket_fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (socket_fd < 0) return system_error("make a socket");
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  const bool bound =
      ::bind(socket_fd, generic, length) == 0 && ::getsockname(socket_fd, generic, &length) == 0;
  ::close(socket_fd);
  if (!bound) return system_error("find a free port");
  return static_cast<int>(ntohs(address.sin_port));
}

// The arguments this process was started with.
std::vector<std::string> own_arguments() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  std::vector<std::string> arguments;
  for (std::string each; std::getline(file, each, '\0');) arguments.push_back(each);
  return arguments;
}

constexpr const char* kLeader = "TEAM_LEADER";  // variable of the children: their parent's id

std::string name_of(int rank, int size) {
  return "tenon rank " + std::to_string(rank) + "/" + std::to_string(size);
}

void set_rank(int rank) {
  setenv("RANK", std::to_string(rank).c_str(), 1);
  setenv("LOCAL_RANK", std::to_string(rank).c_str(), 1);
}

// In the child: become this program again, without a further allocation: what would an exception do
// here? Only the leader talks on standard output.
[[noreturn]] void become_rank(int rank, pid_t parent, char** argv) noexcept {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(1);  // it died before the line above
  set_rank(rank);
  setenv(kLeader, std::to_string(parent).c_str(), 1);
  const int nowhere = ::open("/dev/null", O_WRONLY | O_CLOEXEC);
  if (nowhere >= 0) dup2(nowhere, STDOUT_FILENO);
  execv("/proc/self/exe", argv);
  _exit(127);
}

// The children inherit it: nobody else on this host takes a rank's place.
Status draw_secret() {
  unsigned char bytes[32];
  if (getrandom(bytes, sizeof bytes, 0) != static_cast<ssize_t>(sizeof bytes))
    return system_error("draw random bytes");
  std::string text;
  for (const unsigned char byte : bytes)
    for (const int digit : {byte >> 4, byte & 15}) text += "0123456789abcdef"[digit];
  setenv("TENON_SECRET", text.c_str(), 0);
  return Status::ok();
}

}  // namespace

Result<std::unique_ptr<Team>> Team::start(int size) {
  TENON_ASSIGN(const int port, free_port());
  std::vector<std::string> arguments = own_arguments();
  if (arguments.empty()) arguments.emplace_back();
  setenv("WORLD_SIZE", std::to_string(size).c_str(), 1);
  setenv("MASTER_ADDR", "127.0.0.1", 1);
  setenv("MASTER_PORT", std::to_string(port).c_str(), 1);
  TENON_TRY(draw_secret());
  set_rank(0);
  auto team = std::make_unique<Team>();
  team->children_.reserve(static_cast<std::size_t>(size));  // none is started and forgotten
  const pid_t parent = getpid();
  for (int rank = 1; rank < size; ++rank) {
    arguments[0] = name_of(rank, size);
    std::vector<char*> argv;
    for (std::string& each : arguments) argv.push_back(each.data());
    argv.push_back(nullptr);
    const pid_t child = fork();
    if (child < 0) return system_error("start rank " + std::to_string(rank));
    if (child == 0) become_rank(rank, parent, argv.data());
    team->children_.push_back(child);
  }
  return team;
}

bool Team::has_leader() {
  const char* leader = std::getenv(kLeader);
  return leader != nullptr && leader == std::to_string(getppid());
}

// The arguments hold it as well, but where a rank became this program again, the system has named
// it after what was executed.
void Team::name_follower(int rank, int size) {
  if (rank > 0) prctl(PR_SET_NAME, name_of(rank, size).c_str());
}

Status Team::complete() {
  for (std::size_t i = 0; i < children_.size(); ++i) {
    int end = 0;
    if (children_[i] == 0 || waitpid(children_[i], &end, WNOHANG) != children_[i]) continue;
    children_[i] = 0;
    const std::string how = WIFSIGNALED(end)
                                ? "was ended by signal " + std::to_string(WTERMSIG(end))
                                : "ended with exit code " + std::to_string(WEXITSTATUS(end));
    return Status::error(Code::kPeerLost,
                         "the process of rank " + std::to_string(i + 1) + " " + how);
  }
  return Status::ok();
}

Team::~Team() {
  constexpr auto kPatience = std::chrono::seconds(2);
  const auto until = std::chrono::steady_clock::now() + kPatience;
  for (const pid_t child : children_) {
    while (child != 0 && waitpid(child, nullptr, WNOHANG) == 0) {
      if (std::chrono::steady_clock::now() > until) {
        kill(child, SIGKILL);
        waitpid(child, nullptr, 0);
        break;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }
}

}  // namespace tenon::apps
