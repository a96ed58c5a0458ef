// Threads with a stack of their own, a name, and an error where there is no room for one.
#include "tenon/core/thread.h"

#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <new>
#include <string>
#include <vector>

#include "tests/support/thread_names.h"

namespace tenon {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

// In a child, so that its limits are its own: the exit code of body().
int in_child(const std::function<int()>& body) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    _exit(body());
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

void limit(int resource, rlim_t most) {
  const rlimit both{most, most};
  setrlimit(static_cast<__rlimit_resource_t>(resource), &both);
}

std::size_t own_stack_bytes() {
  pthread_attr_t attributes;
  pthread_getattr_np(pthread_self(), &attributes);
  std::size_t bytes = 0;
  pthread_attr_getstacksize(&attributes, &bytes);
  pthread_attr_destroy(&attributes);
  return bytes;
}

TEST(Thread, HasItsNameAndItsStackWhateverTheLimitIs) {
  const auto body = [] {
    limit(RLIMIT_STACK, 256 << 10);
    std::string name;
    std::size_t bytes = 0;
    auto thread = start_thread("tenon thread test", [&] {
      char text[16] = {};
      pthread_getname_np(pthread_self(), text, sizeof text);
      name = text;
      bytes = own_stack_bytes();
    });
    if (!thread) return 2;
    thread->join();
    return name == "tenon thread te" && bytes >= kThreadStackBytes ? 0 : 1;
  };
  EXPECT_EQ(in_child(body), 0);
}

TEST(Thread, HasItsNameFromTheBeginning) {
  std::atomic<bool> stop{false};
  std::vector<Thread> threads;
  for (int i = 0; i < 100; ++i) {
    const std::string name = "named " + std::to_string(i);
    auto thread = start_thread(name, [&] { stop.wait(false); });
    EXPECT_TRUE(thread);
    if (!thread) break;
    threads.push_back(*std::move(thread));
    EXPECT_EQ(test::thread_names().count(name), 1u) << name;
  }
  stop = true;
  stop.notify_all();
}

TEST(Thread, IsJoinedByItsOwner) {
  std::atomic<int> done{0};
  {
    auto one = start_thread("one", [&] { ++done; });
    auto two = start_thread("two", [&] { ++done; });
    ASSERT_TRUE(one && two);
    Thread held = *std::move(one);
    EXPECT_TRUE(held.joinable());
    held = *std::move(two);  // the first is over
    EXPECT_GE(done, 1);
  }
  EXPECT_EQ(done, 2);
  auto alone = start_thread("three", [] {});
  ASSERT_TRUE(alone);
  alone->detach();
  EXPECT_FALSE(alone->joinable());
  Thread none;
  EXPECT_FALSE(none.joinable());
  none.join();
}

TEST(Thread, AnExceptionEndsOnlyTheThread) {
  testing::internal::CaptureStderr();
  auto thread = start_thread("tenon unlucky", [] { throw std::bad_alloc(); });
  ASSERT_TRUE(thread);
  thread->join();
  const std::string line = testing::internal::GetCapturedStderr();
  EXPECT_NE(line.find("thread \"tenon unlucky\" ended: out of memory"), std::string::npos) << line;
}

TEST(Thread, OneThatCannotStartIsASentence) {
  if (kSanitized) GTEST_SKIP() << "sanitizers need more addresses than the limit leaves";
  const auto body = [] {
    limit(RLIMIT_AS, rlim_t{300} << 20);
    std::atomic<bool> stop{false};
    std::vector<Thread> threads;
    Status refused;
    for (int i = 0; i < 200 && refused; ++i) {
      auto thread = start_thread("tenon many", [&] { stop.wait(false); });
      if (thread) threads.push_back(*std::move(thread));
      refused = thread.status();
    }
    stop = true;
    stop.notify_all();
    threads.clear();
    const bool says = refused.message().find("could not start the thread \"tenon many\"") == 0;
    return refused.code() == Code::kOutOfMemory && says ? 0 : 1;
  };
  EXPECT_EQ(in_child(body), 0);
}

}  // namespace
}  // namespace tenon
