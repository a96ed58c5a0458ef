// What the links and the memory of this machine give, measured or as told, and the least time that
// a boundary could take with that.
#pragma once

#include "apps/bench/calls.h"
#include "tenon/device/plan.h"

namespace tenon::apps {

struct Rates {
  double link_gbs = 0;    // one rank to its neighbour, all ranks at once; 0 for a lone rank
  double memory_gbs = 0;  // read plus written
  double latency_us = 0;  // of the smallest all-reduce: a launch and a trip
};

// Collective: all ranks measure at once and get the slowest one's. Of `told`, what is not 0 is not
// measured.
Result<Rates> measure_rates(const Rates& told, Communicator& comm, Gate& gate, Stream& stream);

// Microseconds: the latency, and the slower one of links and memory, which work side by side.
double floor_us(const Traffic& traffic, const Rates& rates);

}  // namespace tenon::apps
