// Wide accesses and conversions against the codecs of core/fp8.h, one element at a time. Devices
// round by instructions of their own: those see every bf16 value, every halfway point of bf16, f16
// and fp8, and both neighbours of each.
#include "tests/device/vec_test.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "tests/support/device_array.h"

#define TENON_TEST_SPACE vec_test
#include "tests/support/kernels.inc"

namespace tenon {
namespace {

using test::DeviceArray;
using vec_test::kernels;

constexpr int kVectors = 100;  // of 8: no multiple of any wave
constexpr int kSize = 8 * kVectors;

std::vector<float> values() {
  std::mt19937 random(9);
  std::vector<float> out(kSize);
  for (float& v : out) v = bits_float(static_cast<std::uint32_t>(random()));
  for (int i = 0; i < 8; ++i) out[i] = static_cast<float>(i) - 3.5f;  // tells the places apart
  const float edges[8] = {0.0f, -0.0f, 448.0f, -449.0f, 1e-3f, 65519.0f, 65520.0f, INFINITY};
  for (int i = 0; i < 8; ++i) out[8 + i] = edges[i];
  return out;
}

bool same(float a, float b) {
  return float_bits(a) == float_bits(b) || (std::isnan(a) && std::isnan(b));
}

LaunchShape shape_of(Target target, int blocks = 1) {
  LaunchShape shape;
  shape.blocks = blocks;
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
  const std::vector<float> sent = values();
  auto stream = Stream::create({target, 0});
  ASSERT_TRUE(stream);
  DeviceArray<float> in(*stream, kSize), loaded_there(*stream, kSize);
  DeviceArray<T> stored_there(*stream, kSize);
  in.put(sent);
  ASSERT_TRUE(launch(*stream, shape_of(target), kernel,
                     {in.data(), stored_there.data(), loaded_there.data(), kVectors}));
  const std::vector<float> loaded = loaded_there.get(kSize);
  const std::vector<T> stored = stored_there.get(kSize);
  for (int i = 0; i < kSize; ++i) {
    const float want = through<T>(sent[i]);
    ASSERT_TRUE(same(loaded[i], want)) << i;
    if constexpr (sizeof(T) == 4) {
      ASSERT_TRUE(same(stored[i], want)) << i;
    } else {
      ASSERT_TRUE(same(to_float(stored[i]), want)) << i;
    }
  }
}

TEST(Vec, EightElementsGoThroughMemoryRounded) {
  for (Target target : test::usable_targets()) {
    SCOPED_TRACE(test::to_string(target));
    check_round_trip<bf16>(target, kernels(target).bf16);
    check_round_trip<f16>(target, kernels(target).f16);
    check_round_trip<float>(target, kernels(target).f32);
  }
}

// Whether two codes mean the same: every NaN is as good as any other.
template <DType kType>
bool same_code(std::uint32_t a, std::uint32_t b) {
  const auto is_nan = [](std::uint32_t code) {
    return std::isnan(from_fp8<kType>(static_cast<std::uint8_t>(code)));
  };
  return a == b || (is_nan(a) && is_nan(b));
}

template <DType kType>
void check_fp8(Target target, void (*kernel)(vec_test::Fp8Args)) {
  const std::vector<float> sent = values();
  auto stream = Stream::create({target, 0});
  ASSERT_TRUE(stream);
  DeviceArray<float> in(*stream, kSize), loaded_there(*stream, kSize);
  DeviceArray<float> unpacked_there(*stream, kSize / 2);
  DeviceArray<std::uint8_t> codes_there(*stream, kSize);
  in.put(sent);
  ASSERT_TRUE(launch(
      *stream, shape_of(target), kernel,
      {in.data(), codes_there.data(), loaded_there.data(), unpacked_there.data(), kVectors}));
  const std::vector<std::uint8_t> codes = codes_there.get(kSize);
  const std::vector<float> loaded = loaded_there.get(kSize);
  const std::vector<float> unpacked = unpacked_there.get(kSize / 2);
  for (int i = 0; i < kSize; ++i) {
    ASSERT_TRUE(same_code<kType>(codes[i], to_fp8<kType>(sent[i]))) << i;
    ASSERT_TRUE(same(loaded[i], from_fp8<kType>(codes[i]))) << i;
    if (i % 8 >= 4) continue;
    ASSERT_TRUE(same(unpacked[i / 8 * 4 + i % 8], loaded[i])) << i;
  }
}

TEST(Vec, Fp8CodesArePackedInOrder) {
  for (Target target : test::usable_targets()) {
    SCOPED_TRACE(test::to_string(target));
    check_fp8<DType::kE4M3>(target, kernels(target).e4m3);
    check_fp8<DType::kE4M3Fnuz>(target, kernels(target).e4m3fnuz);
    check_fp8<DType::kE5M2>(target, kernels(target).e5m2);
  }
}

// Everything at which a rounding can go wrong, both signs of it.
std::vector<float> all_cases() {
  std::vector<float> out;
  // Every bf16 value: all codes of fp8 and all points halfway between two are among them. The
  // factors next to one shift each to its neighbours; the smallest makes fp32 subnormals; two
  // are what groups are multiplied by.
  for (const float factor :
       {1.0f, 0x1.000002p+0f, 0x1.fffffep-1f, 0x1p-120f, 448.0f / 3.1f, 240.0f / 0.7f})
    for (std::uint32_t bits = 0; bits < 1u << 16; ++bits)
      out.push_back(to_float(bf16{static_cast<std::uint16_t>(bits)}) * factor);
  const auto with_neighbours = [&](float value) {
    for (const float each : {value, -value})
      for (const std::uint32_t step : {0u, 1u, ~0u})
        out.push_back(bits_float(float_bits(each) + step));
  };
  // Halfway between each bf16 and the next one; infinity and the NaNs after it are no harm.
  for (std::uint32_t bits = 0; bits < 1u << 15; ++bits)
    with_neighbours(bits_float(bits << 16 | 0x8000u));
  // The same for f16; the last one is 65520, from where on everything is infinite.
  for (std::uint32_t bits = 0; bits < 0x7c00u; ++bits) {
    const float low = to_float(f16{static_cast<std::uint16_t>(bits)});
    const float high =
        bits == 0x7bffu ? 65536.0f : to_float(f16{static_cast<std::uint16_t>(bits + 1)});
    with_neighbours(low + (high - low) * 0.5f);
  }
  for (const float edge :
       {448.0f,   464.0f,    480.0f,    224.0f,    232.0f,    240.0f,           248.0f,
        65504.0f, 65519.0f,  65520.0f,  0x1p-9f,   0x1p-10f,  0x1p-11f,         0x1p-24f,
        0x1p-25f, 0x1p-126f, 0x1p-133f, 0x1p-134f, 0x1p-149f, 0x1.fffffep+127f, INFINITY})
    with_neighbours(edge);
  for (const std::uint32_t nan : {0x7f800001u, 0x7fbfffffu, 0x7fc00000u, 0x7fffffffu})
    for (const std::uint32_t sign : {0u, 0x80000000u}) out.push_back(bits_float(nan | sign));
  while (out.size() % 4 != 0) out.push_back(0.0f);
  return out;
}

// How many of `got`, kPerWord to a word, differ from what reference() makes of `in`.
template <int kPerWord, class Reference, class Same>
void compare(const std::vector<float>& in, const std::vector<std::uint32_t>& got,
             Reference reference, Same same) {
  constexpr int kBits = 32 / kPerWord;
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < in.size(); ++i) {
    const std::uint32_t one =
        got[i / kPerWord] >> (i % kPerWord * kBits) & ((std::uint64_t{1} << kBits) - 1);
    const std::uint32_t want = reference(in[i]);
    if (same(one, want)) continue;
    if (wrong++ == 0)
      ADD_FAILURE() << std::hexfloat << in[i] << " (" << std::hex << float_bits(in[i])
                    << ") became " << one << ", not " << want;
  }
  EXPECT_EQ(wrong, 0u);
}

template <DType kType>
void compare_fp8(const std::vector<float>& in, const std::vector<std::uint32_t>& got) {
  SCOPED_TRACE(kType == DType::kE4M3 ? "e4m3" : "e4m3fnuz");
  compare<4>(
      in, got, [](float value) { return to_fp8<kType>(value); }, same_code<kType>);
}

template <class T>
std::uint32_t rounded(float value) {
  if constexpr (std::is_same_v<T, bf16>) return to_bf16(value).bits;
  if constexpr (std::is_same_v<T, f16>) return to_f16(value).bits;
}
template <class T>
bool same_half(std::uint32_t a, std::uint32_t b) {
  return a == b || (std::isnan(to_float(T{static_cast<std::uint16_t>(a)})) &&
                    std::isnan(to_float(T{static_cast<std::uint16_t>(b)})));
}

TEST(Vec, PackingRoundsAsTheCodecsDo) {
  const std::vector<float> sent = all_cases();
  const std::size_t n = sent.size();
  for (Target target : test::usable_targets()) {
    SCOPED_TRACE(test::to_string(target));
    auto stream = Stream::create({target, 0});
    ASSERT_TRUE(stream);
    DeviceArray<float> in(*stream, n);
    DeviceArray<std::uint32_t> e4m3(*stream, n / 4), fnuz(*stream, n / 4), twice(*stream, n / 4);
    DeviceArray<std::uint32_t> halves_bf16(*stream, n / 2), halves_f16(*stream, n / 2);
    in.put(sent);
    ASSERT_TRUE(launch(*stream, shape_of(target, 8), kernels(target).pack,
                       {in.data(), e4m3.data(), fnuz.data(), twice.data(), halves_bf16.data(),
                        halves_f16.data(), static_cast<int>(n)}));
    compare_fp8<DType::kE4M3>(sent, e4m3.get(n / 4));
    compare_fp8<DType::kE4M3Fnuz>(sent, fnuz.get(n / 4));
    {
      SCOPED_TRACE("from the code of the double");
      compare_fp8<DType::kE4M3Fnuz>(sent, twice.get(n / 4));
    }
    compare<2>(sent, halves_bf16.get(n / 2), rounded<bf16>, same_half<bf16>);
    compare<2>(sent, halves_f16.get(n / 2), rounded<f16>, same_half<f16>);
  }
}

// Every 16-bit pattern in each half.
TEST(Vec, HalvesAreReadAsTheCodecsDo) {
  constexpr std::size_t kPatterns = 1u << 16;
  std::vector<std::uint32_t> sent;
  for (std::uint32_t i = 0; i < kPatterns; ++i) sent.push_back(i | (0xffffu - i) << 16);
  for (Target target : test::usable_targets()) {
    SCOPED_TRACE(test::to_string(target));
    auto stream = Stream::create({target, 0});
    ASSERT_TRUE(stream);
    DeviceArray<std::uint32_t> in(*stream, kPatterns);
    DeviceArray<float> bf16_there(*stream, 2 * kPatterns), f16_there(*stream, 2 * kPatterns);
    in.put(sent);
    ASSERT_TRUE(launch(*stream, shape_of(target, 8), kernels(target).halves,
                       {in.data(), bf16_there.data(), f16_there.data(), kPatterns}));
    const std::vector<float> as_bf16 = bf16_there.get(2 * kPatterns);
    const std::vector<float> as_f16 = f16_there.get(2 * kPatterns);
    for (std::size_t i = 0; i < 2 * kPatterns; ++i) {
      const auto bits = static_cast<std::uint16_t>(sent[i / 2] >> (i % 2 * 16));
      ASSERT_TRUE(same(as_bf16[i], to_float(bf16{bits}))) << bits;
      ASSERT_TRUE(same(as_f16[i], to_float(f16{bits}))) << bits;
    }
  }
}

}  // namespace
}  // namespace tenon
