// Ranks as threads, for tests: run_ranks(4, [](int rank, Communicator& comm) { … }) runs the body
// once per rank and fails the test with the rank's number when a rank fails.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "tenon/comm/bootstrap/bootstrap.h"
#include "tenon/comm/communicator.h"
#include "tests/support/patience.h"

namespace tenon::test {

struct RankOptions {
  Target target = Target::kCpu;
  std::chrono::milliseconds deadline{10'000 * slowdown_of_run()};  // generous: a busy machine
  std::string transport = "auto";
  int concurrent_channels = 1;
  bool only_exchanges = true;  // as in CommOptions
  bool expect_healthy = true;  // every rank ends with health() ok
};

// Waits until every rank is here. Memory of a device that ranks share is allocated before and freed
// after such a place: either may wait until the device is idle, which it is not while the kernel of
// another rank waits for this one.
inline void meet(Communicator& comm) {
  const Status met = comm.agree_min({});
  ASSERT_TRUE(met) << met.to_string();
}

using RankBody = std::function<void(int rank, Communicator& comm)>;

inline void run_one_rank(int rank, const RankOptions& options, std::shared_ptr<Bootstrap> bootstrap,
                         const RankBody& body) {
  SCOPED_TRACE("rank " + std::to_string(rank) + " of " + std::to_string(bootstrap->size()) +
               " on " + std::string(name(options.target)));
  CommOptions comm_options;
  comm_options.rank = rank;
  comm_options.size = bootstrap->size();
  comm_options.transport = options.transport;
  comm_options.deadline = options.deadline;
  comm_options.concurrent_channels = options.concurrent_channels;
  comm_options.only_exchanges = options.only_exchanges;
  comm_options.bootstrap = std::move(bootstrap);
  const auto device = nth_device(options.target, rank);
  ASSERT_TRUE(device) << device.status().to_string();
  auto comm = Communicator::create(comm_options, *device);
  ASSERT_TRUE(comm) << comm.status().to_string();
  body(rank, **comm);
  if (!options.expect_healthy) return;
  const Status health = (*comm)->health();
  EXPECT_TRUE(health) << health.to_string();
}

inline void run_ranks(int size, const RankOptions& options, const RankBody& body) {
  auto handles = local_bootstrap(size);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank)
    threads.emplace_back([&, rank, handle = std::move(handles[static_cast<std::size_t>(rank)])] {
      run_one_rank(rank, options, handle, body);
    });
  handles.clear();
  for (std::thread& thread : threads) thread.join();
}

inline void run_ranks(int size, const RankBody& body) { run_ranks(size, RankOptions{}, body); }

}  // namespace tenon::test
