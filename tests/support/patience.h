// How much slower than usual a test may be: sanitizers make everything slow, and a limit of time
// that tells nothing there must not fail. TEST_SLOWDOWN in the environment says it of tools that a
// build knows nothing of.
#pragma once

#include <algorithm>
#include <cstdlib>

namespace tenon::test {

#if defined(__SANITIZE_THREAD__)
inline constexpr int kSlowdownOfBuild = 20;
#elif defined(__SANITIZE_ADDRESS__)
inline constexpr int kSlowdownOfBuild = 5;
#else
inline constexpr int kSlowdownOfBuild = 1;
#endif

// TEST_SLOWDOWN, at least 1.
inline int slowdown_of_run() {
  const char* const asked = std::getenv("TEST_SLOWDOWN");
  return asked == nullptr ? 1 : std::max(std::atoi(asked), 1);
}

inline const int kSlowdown = kSlowdownOfBuild * slowdown_of_run();

}  // namespace tenon::test
