// A signal that asks the program to end, while a command has results worth printing first.
#pragma once

namespace tenon::apps {

// As long as it lives, the first SIGINT, SIGTERM or SIGHUP is only kept; the next one acts as ever.
// A signal that was ignored before stays so. One at a time.
class Interrupt {
 public:
  Interrupt();
  ~Interrupt();
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;

  // The signal that came, or 0. For any thread.
  static int received();
  // Ends this process as the signal that came would have, after what was printed has been flushed.
  // Returns where none came.
  static void act();
};

}  // namespace tenon::apps
