#include "bindings/python/src/dlpack.h"

#include <cstring>

#include "bindings/python/src/raise.h"

namespace tenon::python {

namespace nb = nanobind;

namespace {

constexpr const char* kAccepted =
    "accepted: writable arrays of NumPy, torch, CuPy or JAX, or anything else with __dlpack__; "
    "bf16 "
    "and fp8 of NumPy as uint16 and uint8 that hold their bits";

nb::object exported(nb::handle array, bool on_device) {
  if (on_device) {
    try {
      return array.attr("__dlpack__")(nb::arg("stream") = -1);
    } catch (nb::python_error&) {  // of host memory, which has no streams: asked again without
    }
  }
  return array.attr("__dlpack__")();
}

}  // namespace

BorrowedTensor::BorrowedTensor(const char* what, nb::handle array, bool on_device) {
  if (array.is_none()) return;
  if (!nb::hasattr(array, "__dlpack__"))
    raise(TENON_INVALID_ARGUMENT, std::string(what) + " is a " + nb::inst_name(array).c_str() +
                                      ", which has no __dlpack__; " + kAccepted);
  try {
    capsule_ = exported(array, on_device);
  } catch (nb::python_error& error) {
    raise(TENON_INVALID_ARGUMENT, std::string(what) + " cannot be exported: " +
                                      nb::str(error.value()).c_str() + "; " + kAccepted);
  }
  // The protocol's struct begins with the DLTensor, which tenon_tensor is.
  if (!PyCapsule_IsValid(capsule_.ptr(), "dltensor"))
    raise(TENON_INVALID_ARGUMENT,
          std::string(what) + " gave no capsule \"dltensor\" from __dlpack__; " + kAccepted);
  tensor_ = static_cast<const tenon_tensor*>(PyCapsule_GetPointer(capsule_.ptr(), "dltensor"));
}

}  // namespace tenon::python
