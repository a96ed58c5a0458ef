// What math_test.cu hands to math_test.cc for each target.
#pragma once

#include "tenon/device/runtime.h"

namespace tenon::math_test {

enum class Function { kExp, kLog, kLog1p, kSoftplus, kSigmoid, kSilu, kSqrt, kRsqrt, kAbs };
inline constexpr Function kFunctions[] = {Function::kExp,      Function::kLog,     Function::kLog1p,
                                          Function::kSoftplus, Function::kSigmoid, Function::kSilu,
                                          Function::kSqrt,     Function::kRsqrt,   Function::kAbs};

struct Args {
  Function function;
  const float* in;
  float* out;
  int n;
};
// out[i] = a[i] · b[i] + c[i] in one rounding; smaller and larger of a[i], b[i].
struct TernaryArgs {
  const float *a, *b, *c;
  float *fma, *min, *max;
  int n;
};
struct Kernels {
  void (*unary)(Args);
  void (*ternary)(TernaryArgs);
};

}  // namespace tenon::math_test
