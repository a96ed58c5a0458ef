// What fibers_test.cu hands to fibers_test.cc for each emulated target.
#pragma once

#include "tenon/device/runtime.h"

namespace tenon::fibers_test {

struct Args {
  std::uint32_t* counter = nullptr;  // starts at 0
  std::uint32_t* order = nullptr;    // [threads of the grid]: who came how late
  std::uint32_t* out = nullptr;
  int n = 0;
};

using Kernel = void (*)(Args);
struct Kernels {
  Kernel arrival;          // out of order arrival: order[global thread] = ticket
  Kernel staged;           // neighbours read each other's shared values between barriers
  Kernel deep;             // n bytes of stack
  Kernel early_return;     // thread 3 returns in front of a barrier
  Kernel divergent;        // odd and even threads meet at different barriers
  Kernel roles;            // halves of a block meet at different places of the code
  Kernel half_shuffle;     // only the lower half of each wave shuffles
  Kernel mixed_shuffle;    // lanes of a wave meet in different shuffles
  Kernel wrong_lane;       // reads a lane that does not exist
  Kernel too_much_shared;  // more static shared memory than a block has
  Kernel shared_start;     // out[0] = first word of a fresh shared array, out[1] of the dynamic one
  Kernel grid_barrier;     // all blocks meet at a counter; out[block] = what it read there
  Kernel shuffles;         // out[thread] = a chain of shuffles
  Kernel position;         // order[global thread] = thread ids as seen there
  // Null where there are no emulated clusters.
  Kernel cluster_lost;     // block 1 ends before block 0 wants its shared memory
  Kernel cluster_wild;     // an address that lies in no shared array
  Kernel cluster_outside;  // a block that the cluster does not have
};

}  // namespace tenon::fibers_test
