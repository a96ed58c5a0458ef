// What runtime_test.cu hands to runtime_test.cc for each target.
#pragma once

#include "tenon/device/runtime.h"

namespace tenon::runtime_test {

struct Args {
  std::uint32_t* runs;  // [blocks]: raised by one by every block that runs
  std::uint32_t* seen;  // [blocks]: grid size as seen there
  std::uint64_t spin_ns;
};
struct AddArgs {
  std::uint32_t* values;
  int n;
  std::uint32_t add, multiply;
};
struct SharedArgs {
  std::uint32_t* out;  // [blocks]
  int words;           // of dynamic shared memory
};
struct WhereArgs {
  std::uintptr_t* stacks;  // [blocks]: an address on the stack that ran the block
  std::uint64_t spin_ns;
};
struct Kernels {
  void (*count)(Args);
  void (*affine)(AddArgs);
  void (*shared)(SharedArgs);
  void (*where)(WhereArgs);
};

}  // namespace tenon::runtime_test
