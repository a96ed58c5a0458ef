#include "tenon/core/guard.h"

#include <new>
#include <stdexcept>
#include <string>
#include <system_error>

namespace tenon {
namespace {

// Made at the start: when it is needed there is no memory to make it with.
const Status no_memory = Status::error(Code::kOutOfMemory, "the host has no more memory");

Status described() {
  try {
    throw;
  } catch (const std::bad_alloc&) {
    return no_memory;
  } catch (const std::length_error& error) {
    return Status::error(
        Code::kOutOfMemory,
        std::string("more than any memory can hold was asked for: ") + error.what());
  } catch (const std::system_error& error) {  // a thread that cannot start, above all
    return Status::error(Code::kIo, std::string("the system refused: ") + error.what());
  } catch (const std::exception& error) {
    return Status::error(Code::kInternal, std::string("an exception: ") + error.what());
  }
}

}  // namespace

Status status_of_exception() {
  try {
    return described();
  } catch (const std::bad_alloc&) {  // of the description
    return no_memory;
  }
}

}  // namespace tenon
