#include "tenon/serve/request.h"

namespace tenon::serve {
namespace {

double seconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace

std::string_view name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop: return "stop";
    case FinishReason::kStopString: return "stop_string";
    case FinishReason::kLength: return "length";
    case FinishReason::kContext: return "context";
    case FinishReason::kFailed: return "failed";
    case FinishReason::kCancelled: return "cancelled";
    case FinishReason::kReaderBehind: return "reader_behind";
    case FinishReason::kStopped: return "stopped";
  }
  return "?";
}

RequestState state_of(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
    case FinishReason::kStopString:
    case FinishReason::kLength:
    case FinishReason::kContext: return RequestState::kFinished;
    case FinishReason::kFailed: return RequestState::kFailed;
    case FinishReason::kCancelled:
    case FinishReason::kReaderBehind:
    case FinishReason::kStopped: return RequestState::kCancelled;
  }
  return RequestState::kFailed;
}

std::optional<double> first_token_seconds(const Outcome& outcome) {
  if (!outcome.times.first_token) return std::nullopt;
  return seconds(outcome.times.queued, *outcome.times.first_token);
}

std::optional<double> seconds_per_token(const Outcome& outcome) {
  if (outcome.completion_tokens < 2) return std::nullopt;
  return seconds(*outcome.times.first_token, *outcome.times.last_token) /
         static_cast<double>(outcome.completion_tokens - 1);
}

}  // namespace tenon::serve
