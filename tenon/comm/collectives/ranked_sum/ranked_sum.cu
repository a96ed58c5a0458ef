// Sums of gathered addends: a plain kernel, which waits for nobody.
#include "tenon/comm/collectives/ranked_sum/ranked_sum.h"

#include "tenon/comm/device/channel_view.h"
#include "tenon/device/variant.h"
#include "tenon/device/vec.cuh"

namespace tenon::TENON_TARGET::ranked_sum {
namespace {

using tenon::ranked_sum::Args;

constexpr int kMaxThreads = 256;
constexpr int kMaxBlocks = 1024;
constexpr std::uint64_t kVectorBytes = 16;

// Eight elements of every rank at a time. Parts, out and bytes are multiples of 16.
template <class T>
TENON_KERNEL_MAX(kMaxThreads)
vectors_kernel(Args args) {
  wait_for_previous();
  let_next_start();
  const std::uint64_t count = args.bytes / kVectorBytes;
  const auto stride = static_cast<std::uint64_t>(grid_blocks()) * block_threads();
  for (std::uint64_t v = static_cast<std::uint64_t>(block_id()) * block_threads() + thread_id();
       v < count; v += stride) {
    Word4 words[kMaxRanks] = {};
    TENON_UNROLL
    for (int rank = 0; rank < kMaxRanks; ++rank)  // all are on their way before one is looked at
      if (rank < args.size) words[rank] = load16(args.parts + rank * args.bytes + v * kVectorBytes);
    float sum[8];
    unpack8<T>(words[0], sum);
    TENON_UNROLL
    for (int rank = 1; rank < kMaxRanks; ++rank) {
      if (rank >= args.size) continue;
      float addend[8];
      unpack8<T>(words[rank], addend);
      TENON_UNROLL
      for (int i = 0; i < 8; ++i) sum[i] += addend[i];
    }
    store16(args.out + v * kVectorBytes, round_pack8<T>(sum));
  }
}

// The same, one element at a time.
template <class T>
TENON_KERNEL_MAX(kMaxThreads)
elements_kernel(Args args) {
  wait_for_previous();
  let_next_start();
  const std::uint64_t count = args.bytes / sizeof(T);
  const T* const parts = reinterpret_cast<const T*>(args.parts);
  T* const out = reinterpret_cast<T*>(args.out);
  const auto stride = static_cast<std::uint64_t>(grid_blocks()) * block_threads();
  for (std::uint64_t i = static_cast<std::uint64_t>(block_id()) * block_threads() + thread_id();
       i < count; i += stride) {
    float sum = to_float(parts[i]);
    for (int rank = 1; rank < args.size; ++rank) sum += to_float(parts[rank * count + i]);
    out[i] = round_to<T>(sum);
  }
}

bool in_vectors(const Args& args) {
  const std::uint64_t bits = reinterpret_cast<std::uintptr_t>(args.parts) |
                             reinterpret_cast<std::uintptr_t>(args.out) | args.bytes;
  return bits % kVectorBytes == 0;
}

LaunchShape shape_for(std::uint64_t items) {
  LaunchShape shape;
  shape.threads = kWave == 1 ? 1 : kMaxThreads;
  const auto threads = static_cast<std::uint64_t>(shape.threads);
  const std::uint64_t blocks = (items + threads - 1) / threads;
  shape.blocks = blocks < kMaxBlocks ? static_cast<int>(blocks) : kMaxBlocks;
  return shape;
}

Status supports(const Args& args, const PlanContext&, Recipe* recipe) {
  if (in_vectors(args))
    recipe->launch("vectors_kernel", shape_for(args.bytes / kVectorBytes));
  else
    recipe->launch("elements_kernel", shape_for(args.bytes / size_of(args.dtype)));
  return Status::ok();
}

// Other arguments than the plan's may be aligned in another way.
template <class T>
Status launch_as(const LaunchShape& shape, const Args& args, Stream& stream) {
  return tenon::launch(stream, shape, in_vectors(args) ? vectors_kernel<T> : elements_kernel<T>,
                       args);
}
Status launch(const Recipe& recipe, const Args& args, const ChannelView*, Stream& stream) {
  const LaunchShape& shape = recipe.launches.front().shape;
  if (args.dtype == DType::kBF16) return launch_as<bf16>(shape, args, stream);
  return launch_as<f16>(shape, args, stream);
}

}  // namespace

TENON_DEFINE_VARIANT(stream, Args, supports, launch);

}  // namespace tenon::TENON_TARGET::ranked_sum
