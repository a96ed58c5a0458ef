#include "apps/interrupt.h"

#include <csignal>
#include <cstddef>
#include <cstdio>
#include <iterator>

namespace tenon::apps {
namespace {

constexpr int kSignals[] = {SIGINT, SIGTERM, SIGHUP};
volatile std::sig_atomic_t came = 0;
struct sigaction before[std::size(kSignals)];

void keep(int number) { came = number; }

}  // namespace

Interrupt::Interrupt() {
  came = 0;
  struct sigaction action {};
  action.sa_handler = keep;
  action.sa_flags = static_cast<int>(SA_RESETHAND) | SA_RESTART;
  sigemptyset(&action.sa_mask);
  for (std::size_t i = 0; i < std::size(kSignals); ++i) {
    sigaction(kSignals[i], nullptr, &before[i]);
    if (before[i].sa_handler != SIG_IGN) sigaction(kSignals[i], &action, nullptr);
  }
}

Interrupt::~Interrupt() {
  for (std::size_t i = 0; i < std::size(kSignals); ++i) sigaction(kSignals[i], &before[i], nullptr);
}

int Interrupt::received() { return came; }

void Interrupt::act() {
  const int number = came;
  if (number == 0) return;
  std::fflush(nullptr);
  std::signal(number, SIG_DFL);
  std::raise(number);
}

}  // namespace tenon::apps
