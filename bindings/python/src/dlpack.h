// Arrays of Python as tensors of tenon.h, through the DLPack protocol, without copies and without
// headers of the libraries that the arrays come from. A library whose type has
// __dlpack_c_exchange_api__ (DLPack 1.3; torch since 2.10) fills the struct in by a call of C; of
// others a capsule is asked for.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <string>

#include "bindings/c/tenon.h"

namespace tenon::python {

// Where the memory is that a call works on, and its stream there; null: the default one.
struct Place {
  bool on_device = false;
  void* stream = nullptr;
};

// Borrows `array` for as long as this lives. With None there is no tensor: get() is null. `what`
// names it in messages. On devices the library of the array is told not to synchronize streams
// (stream -1), since the caller's orders the work; JAX, whose streams nobody knows, makes
// `place.stream` wait until the array is there. Raises InvalidArgumentError for what cannot be
// exported, and for what is to be `written` and never changes.
class BorrowedTensor {
 public:
  enum class Use { kRead, kWritten };
  BorrowedTensor(const char* what, nanobind::handle array, const Place& place,
                 Use use = Use::kRead);
  BorrowedTensor(const BorrowedTensor&) = delete;
  BorrowedTensor& operator=(const BorrowedTensor&) = delete;
  const tenon_tensor* get() const { return tensor_; }

 private:
  tenon_tensor filled_in_{};
  nanobind::object capsule_;  // never consumed, so that its own destructor gives the array back
  const tenon_tensor* tensor_ = nullptr;
};

// The stream of that number; null for None. Raises InvalidArgumentError for what is no number of 64
// bits.
void* stream_of_number(nanobind::handle given);
// The stream on which the library of `array` works now; null: the default one.
void* current_stream(nanobind::handle array, const BorrowedTensor& borrowed);

}  // namespace tenon::python
