#include "tenon/models/dummy.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <utility>

#include "tenon/core/fp8.h"

namespace tenon {
namespace {

constexpr std::size_t kWordBytes = 8;  // elements are made so many bytes at a time
constexpr std::uint64_t kStep = 0x9e3779b97f4a7c15u;
// Of eight codes: no exponent of 8 and more, so never NaN.
constexpr std::uint64_t kCodeBits = 0xbfbfbfbfbfbfbfbfu;
constexpr float kLeastRow = 0.5f, kRowRange = 3.5f;  // sizes of skewed rows

// splitmix64's output: every bit depends on every bit.
constexpr std::uint64_t mixed(std::uint64_t value) {
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

std::uint64_t key_of(std::string_view name, std::uint64_t seed) {
  std::uint64_t key = 0xcbf29ce484222325u;  // FNV-1a
  for (const char each : name) key = (key ^ static_cast<unsigned char>(each)) * 0x100000001b3u;
  return mixed(key ^ mixed(seed + kStep));
}

std::string_view spelled(DType dtype) {
  switch (dtype) {
    case DType::kE4M3: return "F8_E4M3";
    case DType::kF32: return "F32";
    default: return "BF16";
  }
}

struct MadeTensor : StoredTensor {
  std::uint64_t key = 0;
  float center = 0, spread = 0;
  bool skewed_rows = false;
};

std::uint64_t codes(std::uint64_t bits) { return bits & kCodeBits; }

std::uint64_t four_bf16(std::uint64_t bits, float center, float spread) {
  std::uint64_t word = 0;
  for (int lane = 0; lane < 4; ++lane) {
    const auto number = static_cast<std::int16_t>(bits >> (16 * lane));
    const float value = center + static_cast<float>(number) * (spread * 0x1p-15f);
    word |= std::uint64_t{std::bit_cast<std::uint16_t>(to_bf16(value))} << (16 * lane);
  }
  return word;
}

std::uint64_t two_f32(std::uint64_t bits, float center, float spread) {
  std::uint64_t word = 0;
  for (int lane = 0; lane < 2; ++lane) {
    const auto number = static_cast<std::int32_t>(bits >> (32 * lane)) >> 8;  // exact as f32
    const float value = center + static_cast<float>(number) * (spread * 0x1p-23f);
    word |= std::uint64_t{std::bit_cast<std::uint32_t>(value)} << (32 * lane);
  }
  return word;
}

// Bytes [begin, begin + count) of what make(bits of word 0), make(bits of word 1), … are in a row.
template <class Make>
void write_words(std::uint64_t key, std::size_t begin, std::size_t count, std::byte* to,
                 Make&& make) {
  const std::size_t end = begin + count;
  std::size_t at = begin;
  const auto word_at = [&](std::size_t index) { return make(mixed(key + (index + 1) * kStep)); };
  const auto part = [&](std::size_t until) {
    const std::uint64_t word = word_at(at / kWordBytes);
    std::memcpy(to, reinterpret_cast<const std::byte*>(&word) + at % kWordBytes, until - at);
    to += until - at;
    at = until;
  };
  if (at % kWordBytes != 0) part(std::min(end, (at / kWordBytes + 1) * kWordBytes));
  for (; at + kWordBytes <= end; at += kWordBytes, to += kWordBytes) {
    const std::uint64_t word = word_at(at / kWordBytes);
    std::memcpy(to, &word, kWordBytes);
  }
  if (at < end) part(end);
}

// The size of a skewed row.
float row_factor(std::uint64_t key, std::size_t row) {
  const std::uint64_t bits = mixed(~key + (row + 1) * kStep);
  const float unit = static_cast<float>(bits >> 40) * 0x1p-24f;
  const float square = unit * unit;
  return kLeastRow + kRowRange * (square * square);
}

void make(const MadeTensor& tensor, float factor, std::size_t begin, std::size_t count,
          std::byte* to) {
  const float center = tensor.center, spread = tensor.spread * factor;
  switch (*tensor.dtype) {
    case DType::kE4M3: return write_words(tensor.key, begin, count, to, codes);
    case DType::kF32:
      return write_words(tensor.key, begin, count, to,
                         [=](std::uint64_t bits) { return two_f32(bits, center, spread); });
    default:
      return write_words(tensor.key, begin, count, to,
                         [=](std::uint64_t bits) { return four_bf16(bits, center, spread); });
  }
}

class Generator final : public TensorSource {
 public:
  Generator(const std::vector<TensorRecipe>& recipes, std::uint64_t seed) {
    made_.reserve(recipes.size());  // tensors_ points into it: they must not move
    for (const TensorRecipe& each : recipes) {
      TENON_CHECK(each.dtype == DType::kBF16 || each.dtype == DType::kF32 ||
                  each.dtype == DType::kE4M3);
      MadeTensor tensor;
      tensor.type = spelled(each.dtype);
      tensor.dtype = each.dtype;
      tensor.shape = each.shape;
      tensor.bytes = size_of(each.dtype);
      for (const std::int64_t extent : each.shape) tensor.bytes *= static_cast<std::size_t>(extent);
      tensor.key = key_of(each.name, seed);
      tensor.center = each.center;
      tensor.spread = each.spread;
      tensor.skewed_rows = each.skewed_rows;
      made_.push_back(std::move(tensor));
      TENON_CHECK(tensors_.emplace(each.name, &made_.back()).second);
    }
  }

  const Tensors& tensors() const override { return tensors_; }

  void read(const StoredTensor& tensor, std::size_t begin, std::size_t count,
            std::byte* to) const override {
    const auto& made = static_cast<const MadeTensor&>(tensor);  // all of tensors_ are
    if (!made.skewed_rows) return make(made, 1, begin, count, to);
    const std::size_t width = static_cast<std::size_t>(made.shape.back()) * size_of(*made.dtype);
    for (const std::size_t end = begin + count; begin < end;) {
      const std::size_t row = begin / width, part = std::min(end, (row + 1) * width) - begin;
      make(made, row_factor(made.key, row), begin, part, to);
      begin += part;
      to += part;
    }
  }

 private:
  std::vector<MadeTensor> made_;
  Tensors tensors_;
};

}  // namespace

float made_code_rms() {
  static const float rms = [] {
    double sum = 0;
    for (unsigned code = 0; code < 256; ++code) {
      const auto byte = static_cast<std::uint8_t>(code & kCodeBits);
      const double value = static_cast<double>(from_fp8<DType::kE4M3>(byte));
      sum += value * value;
    }
    return static_cast<float>(std::sqrt(sum / 256));
  }();
  return rms;
}

float unit_spread(std::int64_t in) { return std::sqrt(3.0f / static_cast<float>(in)); }

Weights made_weights(const std::vector<TensorRecipe>& recipes, std::uint64_t seed) {
  return Weights(std::make_unique<Generator>(recipes, seed));
}

Result<Weights> open_weights(const std::string& directory, const WeightsFrom& from,
                             const std::function<std::vector<TensorRecipe>()>& recipes) {
  if (from.format == LoadFormat::kDummy) return made_weights(recipes(), from.seed);
  return Weights::open(directory);
}

}  // namespace tenon
