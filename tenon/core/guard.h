// Where exceptions end: at public functions, at the top of threads and in main(). We throw none;
// the standard library does when memory cannot be had.
#pragma once

#include <exception>
#include <type_traits>

#include "tenon/core/status.h"

namespace tenon {

// The exception in flight as a Status. Only inside a catch block.
Status status_of_exception();

// What work() returns, a Status or Result, or ok where it returns nothing; an exception from it
// becomes its error.
template <class Work>
auto guarded(Work&& work) {
  using Returned = decltype(work());
  using Guarded = std::conditional_t<std::is_void_v<Returned>, Status, Returned>;
  try {
    if constexpr (std::is_void_v<Returned>) {
      work();
      return Guarded::ok();
    } else {
      return Guarded(work());
    }
  } catch (const std::exception&) {
    return Guarded(status_of_exception());
  }
}

}  // namespace tenon
