#include "tenon/gpu/vec.h"

#include "tests/gpu/vec_test.h"

namespace tenon::TENON_TARGET::vec_test {

using tenon::vec_test::Args;
using tenon::vec_test::Fp8Args;

template <class T>
TENON_KERNEL round_trip_kernel(Args args) {
  T* stored = static_cast<T*>(args.stored);
  for (int i = thread_id(); i < args.n; i += block_threads()) {
    float values[8];
    load8(args.in + 8 * i, values);
    store8(stored + 8 * i, values);
    load8(stored + 8 * i, values);
    store8(args.loaded + 8 * i, values);
  }
}

template <DType kType>
TENON_KERNEL fp8_kernel(Fp8Args args) {
  for (int i = thread_id(); i < args.n; i += block_threads()) {
    float values[8];
    load8(args.in + 8 * i, values);
    store_fp8x8<kType>(args.codes + 8 * i, values);
    float four[4];
    unpack_fp8x4<kType>(pack_fp8x4<kType>(values[0], values[1], values[2], values[3]), four);
    for (int k = 0; k < 4; ++k) args.unpacked[4 * i + k] = four[k];
  }
  sync_block();
  for (int i = thread_id(); i < args.n / 2; i += block_threads()) {
    float values[16];
    load_fp8x16<kType>(args.codes + 16 * i, values);
    for (int k = 0; k < 16; ++k) args.loaded[16 * i + k] = values[k];
  }
}

extern const tenon::vec_test::Kernels kernels;
const tenon::vec_test::Kernels kernels = {&round_trip_kernel<bf16>,      &round_trip_kernel<f16>,
                                          &round_trip_kernel<float>,     &fp8_kernel<DType::kE4M3>,
                                          &fp8_kernel<DType::kE4M3Fnuz>, &fp8_kernel<DType::kE5M2>};

}  // namespace tenon::TENON_TARGET::vec_test
