// Errors are values: Code, Status, Result<T>, TENON_TRY. No exception crosses a public function.
// What does not live here: logging (env.h), device faults (comm/device/channel_view.h).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace tenon {

enum class Code : std::uint8_t {
  kOk,
  kInvalidArgument,  // the caller asked for something that cannot be
  kUnsupported,      // sensible, but not on this build, device or variant
  kOutOfMemory,
  kTimeout,   // a wait passed its deadline
  kPeerLost,  // another rank died, left or aborted
  kDevice,    // the device or its driver failed
  kIo,        // a file or socket failed, or held something malformed
  kInternal,  // this code is wrong
};

// "invalid argument", "timeout", …: for people, stable enough to grep.
std::string_view name(Code code);

// Success, or a code with one sentence: what was asked, what was found, what is accepted.
class [[nodiscard]] Status {
 public:
  Status() = default;
  static Status ok() { return Status(); }
  static Status error(Code code, std::string message);

  explicit operator bool() const { return code_ == Code::kOk; }
  Code code() const { return code_; }
  std::string_view message() const;

  // The same error with one more context line in front: "load model: <message>". No-op when ok.
  Status with(std::string_view doing_what) &&;

  // "timeout: rank 1 waited for rank 0 …", or "ok".
  std::string to_string() const;

 private:
  std::shared_ptr<const std::string> text_;
  Code code_ = Code::kOk;
};

// A T, or the Status that prevented it. Dereference only after testing.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : held_(std::in_place_index<0>, std::move(value)) {}
  Result(Status why) : held_(std::in_place_index<1>, std::move(why)) {}

  explicit operator bool() const { return held_.index() == 0; }
  T& operator*() & { return std::get<0>(held_); }
  const T& operator*() const& { return std::get<0>(held_); }
  T&& operator*() && { return std::get<0>(std::move(held_)); }
  T* operator->() { return &std::get<0>(held_); }
  const T* operator->() const { return &std::get<0>(held_); }

  Status status() const { return *this ? Status::ok() : std::get<1>(held_); }

 private:
  std::variant<T, Status> held_;
};

inline Status to_status(const Status& status) { return status; }
template <class T>
Status to_status(const Result<T>& result) {
  return result.status();
}

// Prints `what` with its place and aborts. Behind TENON_CHECK only.
[[noreturn]] void check_failed(const char* file, int line, const char* what);

}  // namespace tenon

// Returns early from a function that yields Status or Result when `expression` failed.
// The optional second argument becomes a context line.
#define TENON_TRY(expression, ...)                                          \
  do {                                                                      \
    if (auto&& tenon_try_ = (expression); !tenon_try_) [[unlikely]]         \
      return ::tenon::to_status(tenon_try_) __VA_OPT__(.with(__VA_ARGS__)); \
  } while (false)

#define TENON_JOIN_(a, b) a##b
#define TENON_JOIN(a, b) TENON_JOIN_(a, b)

// Declares `name` from a Result<T>, or returns its Status: TENON_ASSIGN(auto file, open(path),
// "…").
#define TENON_ASSIGN(declaration, expression, ...)                \
  TENON_ASSIGN_(TENON_JOIN(tenon_result_, __LINE__), declaration, \
                expression __VA_OPT__(, ) __VA_ARGS__)
#define TENON_ASSIGN_(held, declaration, expression, ...) \
  auto held = (expression);                               \
  if (!held) [[unlikely]]                                 \
    return held.status() __VA_OPT__(.with(__VA_ARGS__));  \
  declaration = *std::move(held)

// For "this code is wrong" only: never for input, files, peers or devices.
#define TENON_CHECK(condition) \
  ((condition) ? void(0) : ::tenon::check_failed(__FILE__, __LINE__, #condition))
