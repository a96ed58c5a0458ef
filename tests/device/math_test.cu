#include "tenon/device/math.cuh"

#include "tests/device/math_test.h"

namespace tenon::TENON_TARGET::math_test {

using tenon::math_test::Args;
using tenon::math_test::Function;
using tenon::math_test::TernaryArgs;

TENON_DEVICE float apply(Function function, float x) {
  switch (function) {
    case Function::kExp: return exp_f(x);
    case Function::kLog: return log_f(x);
    case Function::kLog1p: return log1p_f(x);
    case Function::kSoftplus: return softplus_f(x);
    case Function::kSigmoid: return sigmoid_f(x);
    case Function::kSilu: return silu_f(x);
    case Function::kSqrt: return sqrt_f(x);
    case Function::kRsqrt: return rsqrt_f(x);
    case Function::kAbs: return abs_f(x);
  }
  return 0.0f;
}

TENON_KERNEL unary_kernel(Args args) {
  for (int i = thread_id(); i < args.n; i += block_threads())
    args.out[i] = apply(args.function, args.in[i]);
}

TENON_KERNEL ternary_kernel(TernaryArgs args) {
  for (int i = thread_id(); i < args.n; i += block_threads()) {
    args.fma[i] = fma_f(args.a[i], args.b[i], args.c[i]);
    args.min[i] = min_f(args.a[i], args.b[i]);
    args.max[i] = max_f(args.a[i], args.b[i]);
  }
}

extern const tenon::math_test::Kernels kernels;
const tenon::math_test::Kernels kernels = {&unary_kernel, &ternary_kernel};

}  // namespace tenon::TENON_TARGET::math_test
