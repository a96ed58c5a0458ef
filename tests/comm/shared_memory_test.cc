// Shared memory of peers: what they say about it is looked at before it is touched.
#include "tenon/comm/transport/shared_memory.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <thread>

namespace tenon {
namespace {

constexpr std::chrono::milliseconds kDeadline(10'000);
constexpr std::size_t kBytes = std::size_t{1} << 20;

// Cuts the own file before the peers hear of it: {pid, descriptor, device, inode}, 24 bytes.
class Shortening final : public Bootstrap {
 public:
  explicit Shortening(std::shared_ptr<Bootstrap> inner) : inner_(std::move(inner)) {}
  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  Status exchange(std::span<const std::byte> mine, std::span<std::byte> all, std::string_view label,
                  WaitBudget budget) override {
    if (mine.size() == 24) {
      std::int32_t descriptor = -1;
      std::memcpy(&descriptor, mine.data() + 4, sizeof descriptor);
      EXPECT_EQ(ftruncate(descriptor, 4096), 0);
    }
    return inner_->exchange(mine, all, label, budget);
  }
  void abort(std::string_view why) override { inner_->abort(why); }

 private:
  const std::shared_ptr<Bootstrap> inner_;
};

TEST(SharedMemory, AFileThatIsTooShortIsRefusedByAll) {
  auto handles = local_bootstrap(2);
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < 2; ++rank)
    ranks.emplace_back([bootstrap = std::move(handles[static_cast<std::size_t>(rank)]), rank] {
      Shortening shortening(bootstrap);
      Bootstrap& mine = rank == 1 ? shortening : *bootstrap;
      const auto mapped = map_shared_memory(mine, Device{}, kBytes, 0, "region", kDeadline);
      ASSERT_FALSE(mapped);
      EXPECT_EQ(mapped.status().code(), Code::kIo);
      const std::string_view text = mapped.status().message();
      EXPECT_TRUE(text.starts_with("rank 0: open shared memory of rank 1 at /proc/")) << text;
      EXPECT_TRUE(text.ends_with(": it has 4096 bytes; accepted: at least 1048576")) << text;
    });
  for (std::thread& rank : ranks) rank.join();
}

}  // namespace
}  // namespace tenon
