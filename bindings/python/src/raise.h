// How both extensions raise: a code of tenon.h and a sentence become an exception of tenon._errors.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <string>

namespace tenon::python {

// Needs the GIL.
[[noreturn]] inline void raise(std::int32_t code, const std::string& text) {
  const nanobind::object error =
      nanobind::module_::import_("tenon._errors").attr("make")(code, text);
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error.ptr())), error.ptr());
  throw nanobind::python_error();
}

}  // namespace tenon::python
