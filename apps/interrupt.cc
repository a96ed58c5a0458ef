#include "apps/interrupt.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>

namespace tenon::apps {
namespace {

constexpr int kSignals[] = {SIGINT, SIGTERM};

std::atomic<int> came{0};
static_assert(std::atomic<int>::is_always_lock_free);  // for the handler
std::atomic<int> wake[2] = {-1, -1};  // a pipe: a signal may arrive on any thread, a poll sees this

void set_action(void (*action)(int)) {
  struct sigaction wanted {};
  wanted.sa_handler = action;
  wanted.sa_flags = SA_RESTART;
  sigemptyset(&wanted.sa_mask);
  for (const int each : kSignals) {
    struct sigaction now {};
    // What the parent told this process to ignore (nohup, a shell's background job) stays ignored.
    if (sigaction(each, nullptr, &now) == 0 && now.sa_handler == SIG_IGN) continue;
    sigaction(each, &wanted, nullptr);
  }
}

void remember(int number) {
  const int error = errno;
  if (came.exchange(number) != 0) {
    signal(number, SIG_DFL);
    raise(number);
  }
  if (const int end = wake[1]; end >= 0) {
    const char byte = 0;
    [[maybe_unused]] const auto written = ::write(end, &byte, 1);
  }
  errno = error;
}

}  // namespace

Interruptible::Interruptible() {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) == 0) {
    wake[0] = ends[0];
    wake[1] = ends[1];
  }
  set_action(remember);
}

Interruptible::~Interruptible() {
  set_action(SIG_DFL);
  for (auto& end : wake)
    if (const int fd = end.exchange(-1); fd >= 0) ::close(fd);
}

int interrupted_by() { return came; }

void forget_interrupt() {
  came = 0;
  char bytes[16];
  while (wake[0] >= 0 && ::read(wake[0], bytes, sizeof bytes) > 0) {
  }
}

bool wait_for_input(int fd) {
  while (came == 0) {
    pollfd each[] = {{fd, POLLIN, 0}, {wake[0], POLLIN, 0}};
    if (::poll(each, 2, -1) < 0 && errno != EINTR) return true;  // the read will say why
    if (came == 0 && each[0].revents != 0) return true;
  }
  return false;
}

void end_if_interrupted() {
  const int number = came;
  if (number == 0) return;
  signal(number, SIG_DFL);
  raise(number);
}

void leave_signals_to_leader() {
  for (const int each : kSignals) signal(each, SIG_IGN);
}

}  // namespace tenon::apps
