// Processes of a team that were started with other options: all of them are told, and none waits.
#include <gtest/gtest.h>

#include <thread>

#include "tenon/comm/bootstrap/bootstrap.h"
#include "tenon/runtime/engine.h"
#include "tests/runtime/fake_model.h"

namespace tenon {
namespace {

EngineOptions usual_options() {
  EngineOptions options;
  options.tp = 2;
  options.max_batch = 4;
  options.max_context = 300;
  options.max_tokens_per_step = 140;
  options.num_tokens = 60;
  options.deadline = std::chrono::milliseconds(20'000);
  return options;
}

// What each rank gets from opening the engine; rank 1 has other options.
std::vector<Status> open_two(const std::function<void(EngineOptions&)>& change) {
  auto handles = local_bootstrap(2);
  std::vector<Status> statuses(2);
  std::vector<std::thread> threads;
  for (std::size_t rank = 0; rank < 2; ++rank)
    threads.emplace_back([&, rank, handle = std::move(handles[rank])] {
      EngineOptions options = usual_options();
      if (rank == 1) change(options);
      options.bootstrap = handle;
      const auto begin = std::chrono::steady_clock::now();
      statuses[rank] =
          Engine::open(options, [&](Communicator& comm, Stream&) -> Result<std::unique_ptr<Model>> {
            return std::unique_ptr<Model>(new test::FakeModel({}, comm, options.max_batch));
          }).status();
      EXPECT_LT(std::chrono::steady_clock::now() - begin, options.deadline / 2);
    });
  handles.clear();
  for (std::thread& thread : threads) thread.join();
  return statuses;
}

TEST(EngineAgreement, OptionsThatDifferAreAnErrorOnAllRanks) {
  const struct {
    std::function<void(EngineOptions&)> change;
    std::string text;
  } cases[] = {
      {[](EngineOptions& o) { o.max_batch = 5; }, "max_batch: 4 on rank 0, 5 on rank 1"},
      {[](EngineOptions& o) { o.max_context = 301; }, "max_context: 300 on rank 0, 301 on rank 1"},
      {[](EngineOptions& o) { o.max_tokens_per_step = 141; },
       "max_tokens_per_step: 140 on rank 0, 141 on rank 1"},
      {[](EngineOptions& o) { o.num_tokens = 59; }, "num_tokens: 60 on rank 0, 59 on rank 1"},
  };
  for (const auto& [change, text] : cases)
    for (const Status& status : open_two(change))
      EXPECT_NE(status.message().find("engine options: the ranks disagree about " + text),
                std::string_view::npos)
          << status.to_string();
}

}  // namespace
}  // namespace tenon
