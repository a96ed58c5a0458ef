#include "tenon/comm/messages.h"

#include <cstdio>

namespace tenon {

std::string seconds_text(std::chrono::nanoseconds duration) {
  const double seconds = std::chrono::duration<double>(duration).count();
  char text[32];
  const char* format = seconds < 0.1 ? "%.2g s" : seconds < 1 ? "%.2f s" : "%.1f s";
  std::snprintf(text, sizeof text, format, seconds);
  return text;
}

std::string waited_text(int rank, int awaited, std::uint64_t call, std::string_view label) {
  return "rank " + std::to_string(rank) + " waited for rank " + std::to_string(awaited) +
         " in bootstrap call " + std::to_string(call) + " \"" + std::string(label) + "\"";
}

std::string gave_up_text(int rank, std::string_view why) {
  return "rank " + std::to_string(rank) + " gave up: " + std::string(why);
}

Status different_call(int rank, std::string_view label, std::size_t bytes, int peer,
                      std::string_view peer_label, std::size_t peer_bytes, std::uint64_t call) {
  const auto side = [](int who, std::string_view what, std::size_t size) {
    return "rank " + std::to_string(who) + " is in \"" + std::string(what) + "\" with " +
           std::to_string(size) + " bytes";
  };
  return Status::error(Code::kInvalidArgument,
                       "bootstrap call " + std::to_string(call) + ": " + side(rank, label, bytes) +
                           ", " + side(peer, peer_label, peer_bytes) +
                           "; every rank must make the same calls in the same order");
}

}  // namespace tenon
