#include "bindings/python/src/dlpack.h"

#include <algorithm>
#include <array>
#include <utility>

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
  PyObject* const capsule = PyObject_GetAttrString(type, "__dlpack_c_exchange_api__");
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

// A function of tenon._arrays, found once and then `kept` under the GIL. What is kept here is no
// static variable with a value of its own: the guard of one, and the GIL, would be waited for in
// two orders.
nb::handle function_of_arrays(nb::handle& kept, const char* name) {
  if (!kept) kept = nb::object(nb::module_::import_("tenon._arrays").attr(name)).release();
  return kept;
}

// What all arrays of a type have in common.
struct Type {
  PyObject* type = nullptr;
  const Exchange* exchange = nullptr;  // null: it has none
  bool of_jax = false;
};

// Of the type of `array`. The last types are remembered, since a call of torch has tensors and
// parameters. Under the GIL.
const Type& type_of(nb::handle array) {
  static std::array<Type, 4> known;
  static std::size_t next = 0;
  PyObject* const type = reinterpret_cast<PyObject*>(Py_TYPE(array.ptr()));
  for (const Type& each : known)
    if (each.type == type) return each;
  static nb::handle kept;
  const bool of_jax = nb::cast<bool>(function_of_arrays(kept, "is_of_jax")(nb::handle(type)));
  const Exchange* const exchange = exchange_of_type(type);
  Type& place = known[next++ % known.size()];
  Py_INCREF(type);
  Py_XDECREF(std::exchange(place.type, type));
  place.exchange = exchange;
  place.of_jax = of_jax;
  return place;
}

std::uintptr_t bits_of(void* stream) { return reinterpret_cast<std::uintptr_t>(stream); }

// With the first line of what the library said: some add where in their code.
[[noreturn]] void refuse(const char* what, nb::python_error& error) {
  const std::string said = nb::str(error.value()).c_str();
  raise(TENON_INVALID_ARGUMENT, std::string(what) + " cannot be exported: " +
                                    said.substr(0, said.find('\n')) + "; " + kAccepted);
}

// array.__dlpack__(stream=stream), without the argument where `stream` is null; null and Python's
// error where it fails.
PyObject* dlpack_of(PyObject* array, PyObject* stream) {
  static PyObject *method = nullptr, *names = nullptr;
  if (method == nullptr) method = PyUnicode_InternFromString("__dlpack__");
  if (names == nullptr) names = Py_BuildValue("(s)", "stream");
  PyObject* const arguments[] = {array, stream};
  return PyObject_VectorcallMethod(method, arguments, 1, stream != nullptr ? names : nullptr);
}

// Null and Python's error where the library refuses.
PyObject* capsule_of(PyObject* array, bool of_jax, const Place& place) {
  if (!place.on_device) return dlpack_of(array, nullptr);
  nb::object stream = nb::int_(-1);
  // The default stream is 1 to DLPack, and to CUDA's driver.
  if (of_jax) stream = nb::int_(std::max<std::uintptr_t>(bits_of(place.stream), 1));
  PyObject* const capsule = dlpack_of(array, stream.ptr());
  if (capsule != nullptr) return capsule;
  PyErr_Clear();  // of host memory, which has no streams: asked again without
  return dlpack_of(array, nullptr);
}

}  // namespace

BorrowedTensor::BorrowedTensor(const char* what, nb::handle array, const Place& place, Use use) {
  if (array.is_none()) return;
  const Type type = type_of(array);
  if (use == Use::kWritten && type.of_jax)
    raise(TENON_INVALID_ARGUMENT, std::string(what) + " is a " + nb::inst_name(array).c_str() +
                                      ", which never changes; accepted where tenon writes: arrays "
                                      "of NumPy, torch or CuPy");
  if (type.exchange != nullptr) {
    if (type.exchange->borrow(array.ptr(), &filled_in_) != 0) {
      nb::python_error error;
      refuse(what, error);
    }
    tensor_ = &filled_in_;
    return;
  }
  capsule_ = nb::steal(capsule_of(array.ptr(), type.of_jax, place));
  if (!capsule_) {
    PyErr_Clear();
    if (!nb::hasattr(array, "__dlpack__"))
      raise(TENON_INVALID_ARGUMENT, std::string(what) + " is a " + nb::inst_name(array).c_str() +
                                        ", which has no __dlpack__; " + kAccepted);
    static nb::handle kept;
    try {
      const nb::object seen = function_of_arrays(kept, "exportable")(array);
      capsule_ = nb::steal(capsule_of(seen.ptr(), type.of_jax, place));
      if (!capsule_) throw nb::python_error();
    } catch (nb::python_error& error) {
      refuse(what, error);
    }
  }
  // The protocol's struct begins with the DLTensor, which tenon_tensor is.
  if (!PyCapsule_IsValid(capsule_.ptr(), "dltensor"))
    raise(TENON_INVALID_ARGUMENT,
          std::string(what) + " gave no capsule \"dltensor\" from __dlpack__; " + kAccepted);
  tensor_ = static_cast<const tenon_tensor*>(PyCapsule_GetPointer(capsule_.ptr(), "dltensor"));
}

void* stream_of_number(nb::handle given) {
  if (given.is_none()) return nullptr;
  const unsigned long long number = PyLong_AsUnsignedLongLong(given.ptr());
  if (number == ~0ULL && PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    raise(TENON_INVALID_ARGUMENT, std::string("stream is ") + nb::repr(given).c_str() +
                                      "; accepted: the number of a stream, 0 or more, or None");
  }
  return reinterpret_cast<void*>(static_cast<std::uintptr_t>(number));
}

void* current_stream(nb::handle array, const BorrowedTensor& borrowed) {
  const tenon_tensor* const tensor = borrowed.get();
  if (tensor == nullptr || tensor->device_type == 1) return nullptr;  // of a host: no streams
  void* stream = nullptr;
  if (const Exchange* const exchange = type_of(array).exchange) {
    if (exchange->current_stream(tensor->device_type, tensor->device_id, &stream) != 0)
      throw nb::python_error();
    return stream;
  }
  static nb::handle kept;
  const nb::object number = function_of_arrays(kept, "stream_of")(array);
  return stream_of_number(number);
}

}  // namespace tenon::python
