// What vec_test.cu hands to vec_test.cc for each target.
#pragma once

#include "tenon/core/fp8.h"
#include "tenon/gpu/runtime.h"

namespace tenon::vec_test {

// Eight values at a time, one thread each: through memory of the element type and back.
struct Args {
  const float* in;  // [8 n]
  void* stored;     // [8 n] of the type
  float* loaded;    // [8 n]
  int n;
};
// Codes of one fp8 type: stored eight at a time, loaded sixteen at a time. n is even.
struct Fp8Args {
  const float* in;
  std::uint8_t* codes;
  float* loaded;
  float* unpacked;  // the first four of every eight, through unpack_fp8x4
  int n;
};
struct Kernels {
  void (*bf16)(Args);
  void (*f16)(Args);
  void (*f32)(Args);
  void (*e4m3)(Fp8Args);
  void (*e4m3fnuz)(Fp8Args);
  void (*e5m2)(Fp8Args);
};

}  // namespace tenon::vec_test
