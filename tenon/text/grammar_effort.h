// Effort that grammars cost, in states that XGrammar's parser goes through: a count and no time, so
// that it is the same on every machine. The library is mended to count here
// (cmake/xgrammar.cmake): hence C++17, and errors are thrown.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <utility>

namespace tenon::grammar_effort {

inline constexpr const char* kTooMuch = "takes too much work to keep to; accepted are simpler ones";

// One compilation, whose threads draw on the same effort.
class Compilation {
 public:
  // `is_wanted`: asked by each thread, at every part and every kStep of it; none: always.
  Compilation(std::int64_t effort, std::function<bool()> is_wanted)
      : left_(effort), is_wanted_(std::move(is_wanted)) {}
  // Throws where that was more than is left, or nobody wants it any more: then all threads end.
  void spend(std::int64_t effort) {
    if (!is_over() && is_wanted_ && !is_wanted_()) left_ = kUnwanted;
    add(effort);
    if (is_over()) throw std::runtime_error(kTooMuch);
  }
  void add(std::int64_t effort) { left_ -= effort; }
  bool is_over() const { return left_ < 0; }

 private:
  static constexpr std::int64_t kUnwanted = -(std::int64_t{1} << 62);
  std::atomic<std::int64_t> left_;
  const std::function<bool()> is_wanted_;
};

// What a thread may go through before it says so: to a compilation, or, where it is in none, as
// all that it has.
struct Account {
  std::int64_t left = 0;
  Compilation* compilation = nullptr;
};
inline thread_local Account account;

inline constexpr std::int64_t kStep = 1 << 14;  // less than 1 ms

// The parser has gone through so many states.
inline void spend(std::size_t effort) {
  account.left -= static_cast<std::int64_t>(effort);
  if (account.left >= 0) return;
  if (account.compilation == nullptr) throw std::runtime_error(kTooMuch);
  account.compilation->spend(kStep - std::exchange(account.left, kStep));
}

// While it lives, this thread counts for `compilation`.
class OnThread {
 public:
  explicit OnThread(Compilation* compilation) : before_(account) {
    compilation->spend(0);
    account = {kStep, compilation};
  }
  ~OnThread() {
    account.compilation->add(kStep - account.left);
    account = before_;
  }
  OnThread(const OnThread&) = delete;
  OnThread& operator=(const OnThread&) = delete;

 private:
  const Account before_;
};

}  // namespace tenon::grammar_effort
