// The GIL, released while something may wait.
#pragma once

#include <dlfcn.h>
#include <nanobind/nanobind.h>
#include <unistd.h>

namespace tenon::python {

// Is the interpreter on its way out? Then a thread that asks for the GIL is ended by Python,
// through frames of C++ that abort the process.
inline bool interpreter_ends() {
  using Ask = int (*)();
  static const Ask ask = [] {
    void* found = dlsym(RTLD_DEFAULT, "Py_IsFinalizing");  // public from Python 3.13 on
    if (found == nullptr) found = dlsym(RTLD_DEFAULT, "_Py_IsFinalizing");
    return reinterpret_cast<Ask>(found);
  }();
  return ask != nullptr && ask() != 0;
}

// Without the GIL for as long as this lives. A thread of a process that ends meanwhile stays where
// it is, for it can neither go on in Python nor unwind; the process ends without it.
class Released {
 public:
  Released() : state_(PyEval_SaveThread()) {}
  ~Released() {
    while (interpreter_ends()) pause();
    PyEval_RestoreThread(state_);
  }
  Released(const Released&) = delete;
  Released& operator=(const Released&) = delete;

 private:
  PyThreadState* const state_;
};

}  // namespace tenon::python
