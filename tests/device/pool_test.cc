// The threads behind the cpu target's streams: their names, and what there is to say when the
// system has too few of them, too small a stack or too little memory.
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <set>
#include <string>

#include "tenon/device/runtime.h"
#include "tests/support/says.h"
#include "tests/support/thread_names.h"

namespace tenon {
namespace {

using test::says;

constexpr Device kHost{Target::kCpu, 0};

void count_block(const void*, const void* args) {
  (*static_cast<std::atomic<int>* const*>(args))->fetch_add(1);
}

// A launch of plain blocks, without a compiled kernel.
Status count_blocks(Stream& stream, int blocks, std::size_t shared_bytes, std::atomic<int>* count) {
  LaunchShape shape;
  shape.blocks = blocks;
  shape.threads = 1;
  shape.shared_bytes = shared_bytes;
  KernelCall call;
  call.invoke = count_block;
  call.args = &count;
  call.args_bytes = sizeof count;
  return stream.launch(shape, call);
}

TEST(Pool, ThreadsHaveNames) {
  set_cpu_threads(3);
  auto stream = Stream::create(kHost);
  ASSERT_TRUE(stream) << stream.status().to_string();
  std::atomic<int> count{0};
  ASSERT_TRUE(count_blocks(*stream, 100, 64, &count));
  EXPECT_EQ(count, 100);
  const std::set<std::string> names = test::thread_names();
  EXPECT_EQ(names.count("tenon pool 1"), 1u);
  EXPECT_EQ(names.count("tenon pool 2"), 1u);
}

TEST(Pool, SharedMemoryThatCannotBeHadIsAnError) {
  set_cpu_threads(2);
  auto stream = Stream::create(kHost);
  ASSERT_TRUE(stream) << stream.status().to_string();
  std::atomic<int> count{0};
  const Status refused = count_blocks(*stream, 4, std::size_t{1} << 50, &count);
  EXPECT_EQ(refused.code(), Code::kOutOfMemory);
  EXPECT_TRUE(says(refused, "1125899906842624 bytes that blocks of a kernel share"))
      << refused.to_string();
  EXPECT_EQ(count, 0);
}

TEST(Pool, AThreadWithASmallStackIsToldSo) {
  Status refused;
  const auto body = [](void* out) -> void* {
    *static_cast<Status*>(out) = Stream::create(kHost).status();
    return nullptr;
  };
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  ASSERT_EQ(pthread_attr_setstacksize(&attributes, 128 * 1024), 0);
  pthread_t thread;
  ASSERT_EQ(pthread_create(&thread, &attributes, body, &refused), 0);
  pthread_join(thread, nullptr);
  pthread_attr_destroy(&attributes);
  EXPECT_EQ(refused.code(), Code::kOutOfMemory);
  EXPECT_TRUE(says(refused, "KiB left; kernels of the cpu target need 192 KiB"))
      << refused.to_string();
}

// In a child, whose limit of addresses leaves room for some of them.
TEST(Pool, ThreadsThatCannotStartAreAnError) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers need more addresses than the limit leaves";
#endif
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    const rlimit limit{rlim_t{500} << 20, rlim_t{500} << 20};
    setrlimit(RLIMIT_AS, &limit);
    set_cpu_threads(1024);
    const Status refused = Stream::create(kHost).status();
    const bool good = refused.code() == Code::kOutOfMemory &&
                      says(refused, "run on 1024 threads (TENON_CPU_THREADS takes fewer): ");
    set_cpu_threads(2);  // the ones that had started are gone
    _exit(good && Stream::create(kHost) ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

}  // namespace
}  // namespace tenon
