// Arrays of Python as tensors of tenon.h, through the DLPack protocol, without copies and without
// headers of the libraries that the arrays come from.
#pragma once

#include <nanobind/nanobind.h>

#include <string>

#include "bindings/c/tenon.h"

namespace tenon::python {

// Borrows `array` for as long as this lives. With None there is no tensor: get() is null. `what`
// names it in messages. `on_device`: the producer is told not to synchronize streams (stream -1).
// Raises InvalidArgumentError for what cannot be exported.
class BorrowedTensor {
 public:
  BorrowedTensor(const char* what, nanobind::handle array, bool on_device);
  const tenon_tensor* get() const { return tensor_; }

 private:
  nanobind::object capsule_;  // never consumed, so that its own destructor gives the array back
  const tenon_tensor* tensor_ = nullptr;
};

}  // namespace tenon::python
