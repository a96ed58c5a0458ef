// Where all ranks of several teams meet that share devices.
#pragma once

#include <barrier>

#include "tenon/core/status.h"

namespace tenon::test {

// One rank's part of it. What allocates or frees on a device may wait until nothing runs there, so
// that no team may call before all are prepared, and none free before all have ended. A rank that
// fails leaves, and nobody waits for it any more.
class MeetingPlace {
 public:
  MeetingPlace(std::barrier<>& all, int team, int num_teams)
      : all_(all), team_(team), num_teams_(num_teams) {}
  ~MeetingPlace() { all_.arrive_and_drop(); }
  MeetingPlace(const MeetingPlace&) = delete;
  MeetingPlace& operator=(const MeetingPlace&) = delete;

  // Until every rank is here.
  void wait() { all_.arrive_and_wait(); }

  // The body on one team after the other; this rank's result. The last team may still be at it.
  template <class Body>
  Status in_turn(const Body& body) {
    Status mine;
    for (int team = 0; team < num_teams_; ++team) {
      wait();
      if (team == team_) mine = body();
    }
    return mine;
  }

 private:
  std::barrier<>& all_;
  int team_, num_teams_;
};

}  // namespace tenon::test
