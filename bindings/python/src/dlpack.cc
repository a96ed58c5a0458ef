#include "bindings/python/src/dlpack.h"

#include <cstring>

#include "bindings/python/src/raise.h"

namespace tenon::python {

namespace nb = nanobind;

namespace {

constexpr const char* kAccepted =
    "accepted: writable arrays of NumPy, torch, CuPy or JAX, or anything else with __dlpack__; "
    "bf16 and fp8 of NumPy as uint16 and uint8 that hold their bits";

// DLPackExchangeAPI of DLPack 1.3: functions of a library, the same for all arrays of a type. Its
// DLTensor is tenon_tensor.
struct Exchange {
  std::uint32_t major, minor;
  const Exchange* previous;  // of an older major version
  void (*allocate)();
  void (*to_managed)();
  void (*from_managed)();
  int (*borrow)(void* array, tenon_tensor* tensor);  // may be null
  int (*current_stream)(std::int32_t device_type, std::int32_t device, void** stream);
};

const Exchange* exchange_of_type(PyObject* type) {
  static PyObject* const name = PyUnicode_InternFromString("__dlpack_c_exchange_api__");
  PyObject* const capsule = PyObject_GetAttr(type, name);
  if (capsule == nullptr) {
    PyErr_Clear();
    return nullptr;
  }
  const Exchange* found = nullptr;
  if (PyCapsule_IsValid(capsule, "dlpack_exchange_api"))
    found = static_cast<const Exchange*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
  Py_DECREF(capsule);  // what it points to stays for as long as the process
  while (found != nullptr && found->major != 1) found = found->previous;
  return found != nullptr && found->borrow != nullptr ? found : nullptr;
}

// Of the type of `array`; null where it has none. The last type is remembered, under the GIL.
const Exchange* exchange_of(nb::handle array) {
  static PyObject* last_type = nullptr;
  static const Exchange* last = nullptr;
  PyObject* const type = reinterpret_cast<PyObject*>(Py_TYPE(array.ptr()));
  if (type != last_type) {
    last = exchange_of_type(type);
    Py_INCREF(type);
    Py_XDECREF(last_type);
    last_type = type;
  }
  return last;
}

// With the first line of what the library said: some add where in their code.
[[noreturn]] void refuse(const char* what, nb::python_error& error) {
  const std::string said = nb::str(error.value()).c_str();
  raise(TENON_INVALID_ARGUMENT, std::string(what) + " cannot be exported: " +
                                    said.substr(0, said.find('\n')) + "; " + kAccepted);
}

nb::object capsule_of(nb::handle array, bool on_device) {
  if (on_device) {
    try {
      return array.attr("__dlpack__")(nb::arg("stream") = -1);
    } catch (nb::python_error&) {  // of host memory, which has no streams: asked again without
    }
  }
  return array.attr("__dlpack__")();
}

}  // namespace

BorrowedTensor::BorrowedTensor(const char* what, nb::handle array, bool on_device, Use use) {
  if (array.is_none()) return;
  if (const Exchange* const exchange = exchange_of(array)) {
    if (exchange->borrow(array.ptr(), &filled_in_) != 0) {
      nb::python_error error;
      refuse(what, error);
    }
    tensor_ = &filled_in_;
    return;
  }
  if (!nb::hasattr(array, "__dlpack__"))
    raise(TENON_INVALID_ARGUMENT, std::string(what) + " is a " + nb::inst_name(array).c_str() +
                                      ", which has no __dlpack__; " + kAccepted);
  const nb::object seen = nb::module_::import_("tenon._arrays")
                              .attr(use == Use::kWritten ? "writable" : "readable")(what, array);
  try {
    capsule_ = capsule_of(seen, on_device);
  } catch (nb::python_error& error) {
    refuse(what, error);
  }
  // The protocol's struct begins with the DLTensor, which tenon_tensor is.
  if (!PyCapsule_IsValid(capsule_.ptr(), "dltensor"))
    raise(TENON_INVALID_ARGUMENT,
          std::string(what) + " gave no capsule \"dltensor\" from __dlpack__; " + kAccepted);
  tensor_ = static_cast<const tenon_tensor*>(PyCapsule_GetPointer(capsule_.ptr(), "dltensor"));
}

std::uintptr_t stream_for(std::optional<std::uintptr_t> given, nb::handle array,
                          const BorrowedTensor& borrowed) {
  if (given) return *given;
  const tenon_tensor* const tensor = borrowed.get();
  if (tensor == nullptr || tensor->device_type == 1) return 0;  // of a host: no streams
  const Exchange* const exchange = exchange_of(array);
  if (exchange == nullptr)
    return nb::cast<std::uintptr_t>(nb::module_::import_("tenon._arrays").attr("stream_of")(array));
  void* stream = nullptr;
  if (exchange->current_stream(tensor->device_type, tensor->device_id, &stream) != 0)
    throw nb::python_error();
  return reinterpret_cast<std::uintptr_t>(stream);
}

}  // namespace tenon::python
