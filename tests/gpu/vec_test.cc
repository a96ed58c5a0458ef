// Wide accesses against the codecs of core/fp8.h, one element at a time.
#include "tests/gpu/vec_test.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#define TENON_TEST_SPACE vec_test
#include "tests/support/kernels.inc"

namespace tenon {
namespace {

using vec_test::kernels;

constexpr int kVectors = 100;  // of 8: no multiple of any wave

struct alignas(16) Vector {
  float v[8];
};
std::vector<Vector> values() {
  std::mt19937 random(9);
  std::vector<Vector> out(kVectors);
  for (Vector& each : out)
    for (float& v : each.v) v = bits_float(static_cast<std::uint32_t>(random()));
  for (int i = 0; i < 8; ++i) out[0].v[i] = static_cast<float>(i) - 3.5f;  // tells the places apart
  out[1] = {{0.0f, -0.0f, 448.0f, -449.0f, 1e-3f, 65519.0f, 65520.0f, INFINITY}};
  return out;
}

bool same(float a, float b) {
  return float_bits(a) == float_bits(b) || (std::isnan(a) && std::isnan(b));
}

LaunchShape shape_of(Target target) {
  LaunchShape shape;
  shape.threads = test::wave_of(target);
  return shape;
}

template <class T>
float through(float value) {
  if constexpr (std::is_same_v<T, bf16>) return to_float(to_bf16(value));
  if constexpr (std::is_same_v<T, f16>) return to_float(to_f16(value));
  return value;
}

template <class T>
void check_round_trip(Target target, void (*kernel)(vec_test::Args)) {
  const std::vector<Vector> in = values();
  std::vector<Vector> loaded(kVectors), stored(kVectors);
  auto stream = Stream::create({target, 0});
  ASSERT_TRUE(
      launch(*stream, shape_of(target), kernel, {in[0].v, stored[0].v, loaded[0].v, kVectors}));
  for (int i = 0; i < 8 * kVectors; ++i) {
    const float want = through<T>(in[0].v[i]);
    T element;
    std::memcpy(
        &element,
        reinterpret_cast<const std::byte*>(stored.data()) + sizeof(T) * static_cast<std::size_t>(i),
        sizeof(T));
    ASSERT_TRUE(same(loaded[0].v[i], want)) << i;
    if constexpr (sizeof(T) == 4) {
      ASSERT_TRUE(same(element, want)) << i;
    } else {
      ASSERT_TRUE(same(to_float(element), want)) << i;
    }
  }
}

TEST(Vec, EightElementsGoThroughMemoryRounded) {
  for (Target target : test::host_targets()) {
    SCOPED_TRACE(test::to_string(target));
    check_round_trip<bf16>(target, kernels(target).bf16);
    check_round_trip<f16>(target, kernels(target).f16);
    check_round_trip<float>(target, kernels(target).f32);
  }
}

template <DType kType>
void check_fp8(Target target, void (*kernel)(vec_test::Fp8Args)) {
  const std::vector<Vector> in = values();
  std::vector<Vector> loaded(kVectors), unpacked(kVectors / 2);
  struct alignas(16) Codes {
    std::uint8_t code[8 * kVectors];
  } codes{};
  auto stream = Stream::create({target, 0});
  ASSERT_TRUE(launch(*stream, shape_of(target), kernel,
                     {in[0].v, codes.code, loaded[0].v, unpacked[0].v, kVectors}));
  for (int i = 0; i < 8 * kVectors; ++i) {
    ASSERT_EQ(codes.code[i], to_fp8<kType>(in[0].v[i])) << i;
    ASSERT_TRUE(same(loaded[0].v[i], from_fp8<kType>(codes.code[i]))) << i;
    if (i % 8 >= 4) continue;
    ASSERT_TRUE(same(unpacked[0].v[i / 8 * 4 + i % 8], loaded[0].v[i])) << i;
  }
}

TEST(Vec, Fp8CodesArePackedInOrder) {
  for (Target target : test::host_targets()) {
    SCOPED_TRACE(test::to_string(target));
    check_fp8<DType::kE4M3>(target, kernels(target).e4m3);
    check_fp8<DType::kE4M3Fnuz>(target, kernels(target).e4m3fnuz);
    check_fp8<DType::kE5M2>(target, kernels(target).e5m2);
  }
}

}  // namespace
}  // namespace tenon
