// What wait_test.cu hands to wait_test.cc for each target.
#pragma once

#include "tenon/comm/device/channel_view.h"
#include "tenon/device/runtime.h"

namespace tenon::wait_test {

// Waits for *signal == wanted as `team` sees it; thread 0 of each block notes what came of it.
struct WaitArgs {
  ChannelView team;
  std::uint32_t* signal;
  std::uint32_t wanted;
  std::uint32_t* came;  // [blocks]: 1 success, 2 failure
};

// Block 0 writes payload[0 … n) and then raises the signal; block 1 waits for it and sums.
struct PassArgs {
  ChannelView team;
  std::uint32_t* payload;
  int n;
  std::uint32_t* signal;
  std::uint32_t* sum;  // 0 at first: where block 1 leaves its sum
};

struct Kernels {
  void (*wait)(WaitArgs);
  void (*pass)(PassArgs);
  void (*produce)(PassArgs);  // the first half of `pass`, for a rank of its own
  void (*consume)(PassArgs);  // the second half
};

}  // namespace tenon::wait_test
