// Each thread makes up to kRun elements of a row, so that it computes a word of bits once.
#include "tenon/ops/make_weights/make_weights.h"

#include "tenon/device/device.cuh"
#include "tenon/device/variant.h"

namespace tenon::TENON_TARGET::make_weights {
namespace {

namespace element = tenon::make_weights;
using Args = tenon::make_weights::Args;

constexpr int kRun = 8, kThreads = 256;
constexpr int kBlocksPerUnit = 8;  // of the device: rows are many, and blocks go round

struct Slice {
  element::Made made;
  std::int64_t width = 0, first_row = 0, first_column = 0, rows = 0, columns = 0;
  DType as{};
  void* out = nullptr;
};

template <class T>
TENON_DEVICE void put(const Slice& slice, std::int64_t at, T value) {
  static_cast<T*>(slice.out)[at] = value;
}

// Element `index` of the tensor, whose bits are in `word`, to place `at` of the slice.
TENON_DEVICE void make_element(const Slice& slice, std::uint64_t index, std::uint64_t word,
                               float spread, std::int64_t at) {
  const float center = slice.made.center;
  if (slice.made.dtype == DType::kE4M3) {
    const int lane = static_cast<int>(index % 8);
    put(slice, at, static_cast<std::uint8_t>(element::codes(word) >> (8 * lane)));
  } else if (slice.made.dtype == DType::kBF16) {
    const bf16 value = element::bf16_of(word, static_cast<int>(index % 4), center, spread);
    if (slice.as == DType::kBF16)
      put(slice, at, value.bits);
    else
      put(slice, at, to_float(value));
  } else {
    const float value = element::f32_of(word, static_cast<int>(index % 2), center, spread);
    if (slice.as == DType::kBF16)
      put(slice, at, to_bf16(value).bits);
    else
      put(slice, at, value);
  }
}

TENON_KERNEL make_kernel(Slice slice) {
  const std::int64_t runs = (slice.columns + kRun - 1) / kRun;
  const std::int64_t all = slice.rows * runs;
  const std::int64_t stride = std::int64_t{grid_blocks()} * block_threads();
  const std::uint64_t per_word = element::kWordBytes / size_of(slice.made.dtype);
  for (std::int64_t run = std::int64_t{block_id()} * block_threads() + thread_id(); run < all;
       run += stride) {
    const std::int64_t row = run / runs, first = run % runs * kRun;
    const std::int64_t last = first + kRun < slice.columns ? first + kRun : slice.columns;
    const auto source = static_cast<std::uint64_t>(slice.first_row + row);
    const element::Made& made = slice.made;
    const float factor = made.skewed_rows ? element::row_factor(made.key, source) : 1.0f;
    const std::uint64_t begin = source * static_cast<std::uint64_t>(slice.width) +
                                static_cast<std::uint64_t>(slice.first_column + first);
    std::uint64_t word = element::bits_of(made.key, begin / per_word);
    for (std::int64_t column = first; column < last; ++column) {
      const std::uint64_t index = begin + static_cast<std::uint64_t>(column - first);
      if (column > first && index % per_word == 0)
        word = element::bits_of(made.key, index / per_word);
      make_element(slice, index, word, made.spread * factor, row * slice.columns + column);
    }
  }
}

Status supports_runs(const Args& args, const PlanContext& where, Recipe* recipe) {
  const std::int64_t runs = args.out.shape[0] * ((args.out.shape[1] + kRun - 1) / kRun);
  LaunchShape shape;
  shape.threads = kWave == 1 ? 1 : kThreads;
  const std::int64_t blocks = (runs + shape.threads - 1) / shape.threads;
  const std::int64_t most = std::int64_t{kBlocksPerUnit} * where.properties.num_units;
  shape.blocks = static_cast<int>(blocks < most ? blocks : most);
  recipe->launch("make_kernel", shape);
  return Status::ok();
}

Status launch_runs(const Recipe& recipe, const Args& args, const ChannelView*, Stream& stream) {
  const Slice slice{args.made,         args.width,        args.first_row, args.first_column,
                    args.out.shape[0], args.out.shape[1], args.out.dtype, args.out.data};
  return tenon::launch(stream, recipe.launches.front().shape, make_kernel, slice);
}

}  // namespace

TENON_DEFINE_VARIANT(runs, Args, supports_runs, launch_runs);

}  // namespace tenon::TENON_TARGET::make_weights
