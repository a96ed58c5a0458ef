// Small helpers of this folder's host side: values as bytes, texts of fixed size, the sentences of
// waits. Not for other floors.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "tenon/core/status.h"

namespace tenon {

template <class T>
std::span<const std::byte> bytes_of(const T& value) {
  return std::as_bytes(std::span(&value, 1));
}
template <class T>
std::span<std::byte> writable_bytes_of(T& value) {
  return std::as_writable_bytes(std::span(&value, 1));
}

// Copies as much as fits and always ends with a zero.
template <std::size_t kSize>
void copy_text(std::string_view text, char (&to)[kSize]) {
  const std::size_t count = text.copy(to, kSize - 1);
  to[count] = 0;
}

// "30.0 s", "0.25 s", "0.001 s": never nothing.
std::string seconds_text(std::chrono::nanoseconds duration);

// "rank 1 waited for rank 0 in bootstrap call 3 "agree_min"".
std::string waited_text(int rank, int awaited, std::uint64_t call, std::string_view label);

// "rank 1 gave up: its disk is full".
std::string gave_up_text(int rank, std::string_view why);

// Two ranks brought different things to the same call.
Status different_call(int rank, std::string_view label, std::size_t bytes, int peer,
                      std::string_view peer_label, std::size_t peer_bytes, std::uint64_t call);

}  // namespace tenon
