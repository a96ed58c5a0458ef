// Ctrl-C and SIGTERM as a question that a command asks between two steps: what was measured until
// then is told, and the process ends by the signal afterwards. A second signal ends it at once.
#pragma once

namespace tenon::apps {

// While one lives, a first SIGINT or SIGTERM is only remembered. Before and afterwards they end the
// process as ever. At most one at a time.
class Interruptible {
 public:
  Interruptible();
  ~Interruptible();
  Interruptible(const Interruptible&) = delete;
  Interruptible& operator=(const Interruptible&) = delete;
};

// The signal that came, or 0.
int interrupted_by();
// For a chat, which goes on after an answer that was stopped.
void forget_interrupt();
// Waits until `fd` can be read. False when a signal came first.
bool wait_for_input(int fd);

// Ends the process by the signal that came, as if it had never been caught; returns if none came.
void end_if_interrupted();

// For a process whose leader ends it: a terminal's Ctrl-C reaches all processes, and a rank that
// dies of it would look like a failure to the others.
void leave_signals_to_leader();

}  // namespace tenon::apps
