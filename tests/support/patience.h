// How much slower than usual a test may be: sanitizers make everything slow, and a limit of time
// that tells nothing there must not fail.
#pragma once

namespace tenon::test {

#if defined(__SANITIZE_THREAD__)
inline constexpr int kSlowdown = 20;
#elif defined(__SANITIZE_ADDRESS__)
inline constexpr int kSlowdown = 5;
#else
inline constexpr int kSlowdown = 1;
#endif

}  // namespace tenon::test
