// The states of a request and the ways between them. Every change is checked by advance().
#pragma once

#include <cstdint>
#include <string_view>

namespace tenon::serve {

enum class RequestState : std::uint8_t {
  kQueued,     // accepted; waits for a place among those that run
  kRunning,    // the engine has it
  kFinished,   // it has its answer
  kFailed,     // it has no whole answer, and a Status says why
  kCancelled,  // its reader left or asked for the end, or the queue was stopped
};
inline constexpr int kNumRequestStates = 5;

std::string_view name(RequestState state);

constexpr bool is_end(RequestState state) { return state >= RequestState::kFinished; }

// kQueued -> kRunning -> kFinished
//    |          |
//    +----------+-----> kFailed or kCancelled
//
// Nothing follows an end, and nothing finishes that has not run.
constexpr bool may_follow(RequestState now, RequestState next) {
  switch (now) {
    case RequestState::kQueued:
      return next == RequestState::kRunning || next == RequestState::kFailed ||
             next == RequestState::kCancelled;
    case RequestState::kRunning: return is_end(next);
    case RequestState::kFinished:
    case RequestState::kFailed:
    case RequestState::kCancelled: return false;
  }
  return false;
}

// Makes `state` the next one. Aborts where that is no way of a request: the caller is wrong.
void advance(RequestState& state, RequestState next);

}  // namespace tenon::serve
