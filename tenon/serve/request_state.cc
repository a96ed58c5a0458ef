#include "tenon/serve/request_state.h"

#include "tenon/core/status.h"

namespace tenon::serve {

std::string_view name(RequestState state) {
  switch (state) {
    case RequestState::kQueued: return "queued";
    case RequestState::kRunning: return "running";
    case RequestState::kFinished: return "finished";
    case RequestState::kFailed: return "failed";
    case RequestState::kCancelled: return "cancelled";
  }
  return "?";
}

void advance(RequestState& state, RequestState next) {
  TENON_CHECK(may_follow(state, next));
  state = next;
}

}  // namespace tenon::serve
