// Bytes of a device on the host, for tests.
#pragma once

#include <cstddef>

#include "tenon/device/runtime.h"

namespace tenon::test {

// Copies what the stream's work so far has made. It waits before the copy too: one to pageable
// memory may hold up launches of other ranks' threads on the same device while it waits for a
// kernel that waits for theirs.
inline Status copy_back(Stream& stream, void* to, const void* from, std::size_t bytes) {
  TENON_TRY(stream.synchronize());
  TENON_TRY(stream.copy(to, from, bytes));
  return stream.synchronize();
}

}  // namespace tenon::test
