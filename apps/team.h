// The processes behind --processes: this program again, once per further rank, with the variables
// of the torchrun convention. Not here: how they find each other
// (tenon/comm/bootstrap/bootstrap.h).
#pragma once

#include <sys/types.h>

#include <memory>
#include <vector>

#include "tenon/core/status.h"

namespace tenon::apps {

class Team {
 public:
  // Starts ranks 1 … size − 1 with this process's own arguments and sets this process's variables
  // to rank 0. They die with this process.
  static Result<std::unique_ptr<Team>> start(int size);
  // True in a process that start() started. Its errors reach the leader, which tells them once.
  static bool has_leader();
  // Names this process, a follower, "tenon rank 1/2" in ps and top. The leader keeps the program's
  // name.
  static void name_follower(int rank, int size);
  // Ok, or which of the processes has ended, and how: for who awaits them.
  Status complete();
  // Waits a moment for the processes to end by themselves, then ends them.
  ~Team();

 private:
  std::vector<pid_t> children_;  // of rank 1 and on; 0: has ended
};

}  // namespace tenon::apps
