// Arrays of Python as tensors of tenon.h, through the DLPack protocol, without copies and without
// headers of the libraries that the arrays come from. A library whose type has
// __dlpack_c_exchange_api__ (DLPack 1.3; torch since 2.10) fills the struct in by a call of C; of
// others a capsule is asked for.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <optional>
#include <string>

#include "bindings/c/tenon.h"

namespace tenon::python {

// Borrows `array` for as long as this lives. With None there is no tensor: get() is null. `what`
// names it in messages. `on_device`: the producer is told not to synchronize streams (stream -1).
// Raises InvalidArgumentError for what cannot be exported, and for what is to be `written` and
// never changes.
class BorrowedTensor {
 public:
  enum class Use { kRead, kWritten };
  BorrowedTensor(const char* what, nanobind::handle array, bool on_device, Use use = Use::kRead);
  BorrowedTensor(const BorrowedTensor&) = delete;
  BorrowedTensor& operator=(const BorrowedTensor&) = delete;
  const tenon_tensor* get() const { return tensor_; }

 private:
  tenon_tensor filled_in_{};
  nanobind::object capsule_;  // never consumed, so that its own destructor gives the array back
  const tenon_tensor* tensor_ = nullptr;
};

// `given`, or without it the stream on which the library of `array` works now; 0: the default one.
std::uintptr_t stream_for(std::optional<std::uintptr_t> given, nanobind::handle array,
                          const BorrowedTensor& borrowed);

}  // namespace tenon::python
