#include "tenon/device/vec.cuh"

#include "tests/device/vec_test.h"

namespace tenon::TENON_TARGET::vec_test {

using tenon::vec_test::Args;
using tenon::vec_test::Fp8Args;
using tenon::vec_test::HalvesArgs;
using tenon::vec_test::PackArgs;

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

// Both kernels below are strided by the grid.
TENON_DEVICE int first_index() { return block_id() * block_threads() + thread_id(); }
TENON_DEVICE int stride() { return grid_blocks() * block_threads(); }

TENON_DEVICE std::uint32_t from_twice(float value) {
  return fnuz_code(to_fp8<DType::kE4M3>(value + value), value);
}
TENON_KERNEL pack_kernel(PackArgs args) {
  for (int i = first_index(); i < args.n / 4; i += stride()) {
    const float* v = args.in + 4 * i;
    args.e4m3[i] = pack_fp8x4<DType::kE4M3>(v[0], v[1], v[2], v[3]);
    args.e4m3fnuz[i] = pack_fp8x4<DType::kE4M3Fnuz>(v[0], v[1], v[2], v[3]);
    args.from_twice[i] =
        from_twice(v[0]) | from_twice(v[1]) << 8 | from_twice(v[2]) << 16 | from_twice(v[3]) << 24;
    for (int k = 0; k < 2; ++k) {
      args.bf16[2 * i + k] = pack_halves<bf16>(v[2 * k], v[2 * k + 1]);
      args.f16[2 * i + k] = pack_halves<f16>(v[2 * k], v[2 * k + 1]);
    }
  }
}

TENON_KERNEL halves_kernel(HalvesArgs args) {
  for (int i = first_index(); i < args.n; i += stride()) {
    args.bf16[2 * i] = low_half<bf16>(args.in[i]);
    args.bf16[2 * i + 1] = high_half<bf16>(args.in[i]);
    args.f16[2 * i] = low_half<f16>(args.in[i]);
    args.f16[2 * i + 1] = high_half<f16>(args.in[i]);
  }
}

extern const tenon::vec_test::Kernels kernels;
const tenon::vec_test::Kernels kernels = {&round_trip_kernel<bf16>,
                                          &round_trip_kernel<f16>,
                                          &round_trip_kernel<float>,
                                          &fp8_kernel<DType::kE4M3>,
                                          &fp8_kernel<DType::kE4M3Fnuz>,
                                          &fp8_kernel<DType::kE5M2>,
                                          &pack_kernel,
                                          &halves_kernel};

}  // namespace tenon::TENON_TARGET::vec_test
