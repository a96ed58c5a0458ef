// What reduce_test.cu hands to reduce_test.cc for each target.
#pragma once

#include "tenon/device/runtime.h"

namespace tenon::reduce_test {

struct Args {
  const float* in;  // [threads]
  float* sum;       // [threads]: what every thread got
  float* max;
  float* lanes_sum;  // over groups of 8 lanes (or the whole wave where it is narrower)
  float* second;     // a second block_sum, right after the first
  int* lane;
  std::uint32_t* most;  // the largest bits of `in` in the wave
  int blocks_of_cluster = 1;
};

struct Kernels {
  void (*reduce)(Args);
  void (*cluster)(
      Args);  // `in` and `sum` alone, of all threads of a cluster; null without clusters
  int wave;
};

}  // namespace tenon::reduce_test
