// What vec_test.cu hands to vec_test.cc for each target.
#pragma once

#include "tenon/core/fp8.h"
#include "tenon/device/runtime.h"

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
// Four values at a time, rounded to every type that pack_*() of device/vec.cuh makes. n is a
// multiple of 4.
struct PackArgs {
  const float* in;            // [n]
  std::uint32_t* e4m3;        // [n / 4]
  std::uint32_t* e4m3fnuz;    // [n / 4]
  std::uint32_t* from_twice;  // [n / 4], fnuz_code() of what to_fp8<kE4M3>() makes of the double
  std::uint32_t* bf16;        // [n / 2]
  std::uint32_t* f16;         // [n / 2]
  int n;
};
// Both halves of words as floats.
struct HalvesArgs {
  const std::uint32_t* in;  // [n]
  float* bf16;              // [2 n]
  float* f16;               // [2 n]
  int n;
};
struct Kernels {
  void (*bf16)(Args);
  void (*f16)(Args);
  void (*f32)(Args);
  void (*e4m3)(Fp8Args);
  void (*e4m3fnuz)(Fp8Args);
  void (*e5m2)(Fp8Args);
  void (*pack)(PackArgs);
  void (*halves)(HalvesArgs);
};

}  // namespace tenon::vec_test
