#include "tenon/core/status.h"

#include <cstdio>
#include <cstdlib>
#include <new>

namespace tenon {

std::string_view name(Code code) {
  switch (code) {
    case Code::kOk: return "ok";
    case Code::kInvalidArgument: return "invalid argument";
    case Code::kUnsupported: return "unsupported";
    case Code::kOutOfMemory: return "out of memory";
    case Code::kTimeout: return "timeout";
    case Code::kPeerLost: return "peer lost";
    case Code::kDevice: return "device";
    case Code::kIo: return "io";
    case Code::kInternal: return "internal";
  }
  return "unknown code";
}

Status Status::error(Code code, std::string message) {
  TENON_CHECK(code != Code::kOk);
  Status status;
  status.code_ = code;
  status.text_ = std::make_shared<const std::string>(std::move(message));
  return status;
}

std::string_view Status::message() const { return text_ ? *text_ : std::string_view(); }

Status Status::with(std::string_view doing_what) && {
  if (*this) return std::move(*this);
  try {
    return error(code_, std::string(doing_what) + ": " + std::string(message()));
  } catch (const std::bad_alloc&) {
    return std::move(*this);  // the error itself is worth more
  }
}

std::string Status::to_string() const {
  if (*this) return "ok";
  return std::string(name(code_)) + ": " + std::string(message());
}

void check_failed(const char* file, int line, const char* what) {
  std::fprintf(stderr, "tenon: internal check failed at %s:%d: %s\n", file, line, what);
  std::abort();
}

}  // namespace tenon
