#include "tenon/models/dummy.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <utility>

#include "tenon/core/fp8.h"
#include "tenon/core/hash.h"
#include "tenon/ops/make_weights/make_weights.h"

namespace tenon {
namespace {

using make_weights::kWordBytes;
using make_weights::Made;

std::uint64_t key_of(std::string_view name, std::uint64_t seed) {
  return make_weights::mixed(fnv1a(name) ^ make_weights::mixed(seed + make_weights::kStep));
}

std::string_view spelled(DType dtype) {
  switch (dtype) {
    case DType::kE4M3: return "F8_E4M3";
    case DType::kF32: return "F32";
    default: return "BF16";
  }
}

struct MadeTensor : StoredTensor {
  Made made;
};

std::uint64_t four_bf16(std::uint64_t bits, float center, float spread) {
  std::uint64_t word = 0;
  for (int lane = 0; lane < 4; ++lane)
    word |= std::uint64_t{make_weights::bf16_of(bits, lane, center, spread).bits} << (16 * lane);
  return word;
}

std::uint64_t two_f32(std::uint64_t bits, float center, float spread) {
  std::uint64_t word = 0;
  for (int lane = 0; lane < 2; ++lane) {
    const float value = make_weights::f32_of(bits, lane, center, spread);
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
  const auto word_at = [&](std::size_t index) { return make(make_weights::bits_of(key, index)); };
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

void make_bytes(const Made& made, float factor, std::size_t begin, std::size_t count,
                std::byte* to) {
  const float center = made.center, spread = made.spread * factor;
  switch (made.dtype) {
    case DType::kE4M3: return write_words(made.key, begin, count, to, make_weights::codes);
    case DType::kF32:
      return write_words(made.key, begin, count, to,
                         [=](std::uint64_t bits) { return two_f32(bits, center, spread); });
    default:
      return write_words(made.key, begin, count, to,
                         [=](std::uint64_t bits) { return four_bf16(bits, center, spread); });
  }
}

class Maker final : public TensorReader {
 public:
  Status read(const StoredTensor& tensor, std::size_t begin, std::size_t count,
              std::byte* to) override {
    const Made& made = static_cast<const MadeTensor&>(tensor).made;  // all of a generator's are
    if (!made.skewed_rows) {
      make_bytes(made, 1, begin, count, to);
      return Status::ok();
    }
    const std::size_t width = static_cast<std::size_t>(tensor.shape.back()) * size_of(made.dtype);
    for (const std::size_t end = begin + count; begin < end;) {
      const std::size_t row = begin / width, part = std::min(end, (row + 1) * width) - begin;
      make_bytes(made, make_weights::row_factor(made.key, row), begin, part, to);
      begin += part;
      to += part;
    }
    return Status::ok();
  }
};

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
      tensor.made = {key_of(each.name, seed), each.dtype, each.center, each.spread,
                     each.skewed_rows};
      made_.push_back(std::move(tensor));
      TENON_CHECK(tensors_.emplace(each.name, &made_.back()).second);
    }
  }

  const Tensors& tensors() const override { return tensors_; }

  std::unique_ptr<TensorReader> reader() const override { return std::make_unique<Maker>(); }

  bool makes() const override { return true; }
  Status make(const StoredTensor& tensor, std::int64_t first_row, std::int64_t first_column,
              const TensorView& to, Stream& stream) const override {
    const make_weights::Args args{.made = static_cast<const MadeTensor&>(tensor).made,
                                  .width = tensor.shape.empty() ? 1 : tensor.shape.back(),
                                  .first_row = first_row,
                                  .first_column = first_column,
                                  .out = to};
    TENON_ASSIGN(const PlanContext where, plan_context(stream.device()));
    TENON_ASSIGN(const Plan plan, make_weights::plan(args, where));
    return make_weights::run(plan, args, stream);
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
      const auto byte = static_cast<std::uint8_t>(make_weights::codes(code));
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
