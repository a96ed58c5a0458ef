// What handles of the C interface stand for. A handle is a number, not an address: one that was
// destroyed, or never made, is not found, and nothing is read through it.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "tenon/core/status.h"

namespace tenon::c {

enum class Kind : std::uint8_t { kTeam = 1, kCommunicator, kChannel, kBoundary };
std::string_view name(Kind kind);

class Object {
 public:
  virtual ~Object() = default;
};

// Ok, or that this process is a child that fork() made after its parent had handles: threads that
// handles need exist in the parent only.
Status check_process();

// A new handle, never 0 and never given before.
Result<std::uintptr_t> keep(Kind kind, std::shared_ptr<Object> object);
// The error says whether the handle is null, of another kind, or none that lives.
Result<std::shared_ptr<Object>> find(Kind kind, std::uintptr_t handle);
// The same, and the handle ends.
Result<std::shared_ptr<Object>> drop(Kind kind, std::uintptr_t handle);

}  // namespace tenon::c
