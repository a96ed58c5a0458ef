// Where exceptions end: at public functions, at the top of threads and in main(). We throw none;
// the standard library does when memory cannot be had.
#pragma once

#include <exception>

#include "tenon/core/status.h"

namespace tenon {

// The exception in flight as a Status. Only inside a catch block.
Status status_of_exception();

// What work() returns, a Status or Result; an exception from it becomes its error.
template <class Work>
auto guarded(Work&& work) -> decltype(work()) {
  try {
    return work();
  } catch (const std::exception&) {
    return status_of_exception();
  }
}

}  // namespace tenon
