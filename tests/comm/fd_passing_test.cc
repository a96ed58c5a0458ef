// Files that travel between ranks: the right one from each, whatever strangers and calls that
// failed leave in the sockets.
#include "tenon/comm/transport/fd_passing.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <functional>
#include <thread>

namespace tenon {
namespace {

constexpr std::chrono::milliseconds kDeadline(5'000);

void run_posts(int size, const std::function<void(int rank, Bootstrap& bootstrap)>& body) {
  auto handles = local_bootstrap(size);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank)
    threads.emplace_back([&, rank] { body(rank, *handles[static_cast<std::size_t>(rank)]); });
  for (std::thread& thread : threads) thread.join();
}

Descriptor file_with(char content) {
  Descriptor file(open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  EXPECT_EQ(pwrite(file.number, &content, 1, 0), 1);
  return file;
}
char content_of(const Descriptor& file) {
  char content = 0;
  EXPECT_EQ(pread(file.number, &content, 1, 0), 1);
  return content;
}

TEST(FilePost, BringsEveryRanksFile) {
  for (const int size : {1, 2, 8})
    run_posts(size, [&](int rank, Bootstrap& bootstrap) {
      FilePost post(bootstrap);
      ASSERT_TRUE(post.open(kDeadline));
      for (char round = 0; round < 5; ++round) {
        auto files = Result<std::vector<Descriptor>>(Status::ok());
        {
          const Descriptor mine = file_with(static_cast<char>('0' + rank + 8 * round));
          files = post.exchange(mine.number, "files", kDeadline);
        }
        ASSERT_TRUE(files) << files.status().to_string();
        for (int peer = 0; peer < size; ++peer) {
          const Descriptor& file = (*files)[static_cast<std::size_t>(peer)];
          EXPECT_EQ(file.number >= 0, peer != rank);
          if (peer == rank) continue;
          EXPECT_EQ(content_of(file), '0' + peer + 8 * round);
        }
      }
    });
}

TEST(FilePost, ARankThatHasNothingToSendFailsAllAndTheNextCallWorks) {
  run_posts(3, [&](int rank, Bootstrap& bootstrap) {
    FilePost post(bootstrap);
    ASSERT_TRUE(post.open(kDeadline));
    const Descriptor mine = file_with(static_cast<char>('a' + rank));
    const auto refused = post.exchange(rank == 1 ? -1 : mine.number, "files", kDeadline);
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.status().message().find("rank 1: send a file to rank 2: "),
              std::string_view::npos)
        << refused.status().to_string();
    const auto files = post.exchange(mine.number, "files", kDeadline);
    ASSERT_TRUE(files) << files.status().to_string();
    for (int peer = 0; peer < 3; ++peer)
      if (peer != rank) {
        EXPECT_EQ(content_of((*files)[static_cast<std::size_t>(peer)]), 'a' + peer);
      }
  });
}

}  // namespace
}  // namespace tenon
