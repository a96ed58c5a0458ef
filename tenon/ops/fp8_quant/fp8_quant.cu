// Rows are cut into segments, one block at a time: groups need nothing of their neighbours.
#include "tenon/ops/fp8_quant/fp8_quant.h"

#include "tenon/device/variant.h"
#include "tenon/ops/common/quantize.cuh"
#include "tenon/ops/common/row.cuh"
#include "tenon/ops/common/silu_mul.cuh"

namespace tenon::TENON_TARGET::fp8_quant {

using tenon::fp8_quant::Args;
using tenon::fp8_quant::Prologue;

// Elements of a row that a block takes at once: a multiple of every group.
inline constexpr int kSegment = kWave == 1 ? kMaxHidden : 2048;

struct SegmentArgs {
  const std::byte* in;
  std::byte* out;  // null where nobody wants the 16-bit rows
  const std::int32_t* row_limit;
  std::int64_t in_stride, out_stride;  // bytes
  int rows, width;
  bool silu_mul;
  QuantSpec quant;
};

template <class T, int kMaxSpan>
TENON_KERNEL_MAX(kRowThreads)
segment_kernel(TENON_ARGS(SegmentArgs) args) {
  wait_for_previous();
  let_next_start();
  const int num_segments = (args.width + kSegment - 1) / kSegment;
  const int limit = args.row_limit == nullptr ? args.rows : *args.row_limit;
  Word4 held[kMaxSpan];
  for (int task = block_id(); task < args.rows * num_segments; task += grid_blocks()) {
    const int row = task / num_segments, begin = task % num_segments * kSegment;
    const bool wants_fp8 = args.quant.codes != nullptr;
    if (wants_fp8 && begin == 0) pad_scale_rows(args.quant, row);
    if (row >= limit) continue;
    const int left = args.width - begin;
    const ThreadSpan span = own_span<kMaxSpan>((left < kSegment ? left : kSegment) / kVector);
    const std::byte* const in = args.in + row * args.in_stride + begin * 2;
    std::byte* const out =
        args.out == nullptr ? nullptr : args.out + row * args.out_stride + begin * 2;
    for_vectors<kMaxSpan>(span.count, [&]<int kVectors>(int i) {
      const int at = (span.first + i) * 16;
      if (args.silu_mul) {
        silu_mul<T, kVectors>(in + at, in + args.width * 2 + at, &held[i]);
      } else {
        load_vectors<kVectors>(in + at, &held[i]);
      }
      if (out != nullptr) store_vectors<kVectors>(out + at, &held[i]);
    });
    if (!wants_fp8) continue;
    quantize_to_tensors<T>(at_row(args.quant, row), begin, span, held);
    if (begin == 0) pad_scale_groups(args.quant, row);
  }
}

static Status supports(const Args& args, const PlanContext& where, Recipe* recipe) {
  const std::int64_t factor = args.prologue == Prologue::kSiluMul ? 2 : 1;
  const int width = static_cast<int>(args.in.shape[1] / factor);
  const int segment = width < kSegment ? width : kSegment;
  const std::int64_t tasks = args.in.shape[0] * ((width + kSegment - 1) / kSegment);
  if (tasks > 1 << 30)
    return Status::error(Code::kUnsupported,
                         std::to_string(tasks) + " segments of rows are over the limit of 2^30");
  LaunchShape shape;
  shape.blocks = static_cast<int>(tasks < 1 << 16 ? tasks : 1 << 16);
  shape.threads = row_threads(segment, where.properties.max_threads_per_block);
  shape.early = where.may_start_early;
  recipe->launch("segment_kernel", shape);
  return Status::ok();
}

static Status launch(const Recipe& recipe, const Args& args, const ChannelView*, Stream& stream) {
  const LaunchShape& shape = recipe.launches.front().shape;
  SegmentArgs call{};
  call.in = args.in.as<std::byte>();
  call.in_stride = args.in.stride[0] * 2;
  if (args.out.bf16) {
    call.out = args.out.bf16->as<std::byte>();
    call.out_stride = args.out.bf16->stride[0] * 2;
  }
  call.row_limit = args.row_limit;
  call.rows = static_cast<int>(args.in.shape[0]);
  call.silu_mul = args.prologue == Prologue::kSiluMul;
  call.width = static_cast<int>(args.in.shape[1]) / (call.silu_mul ? 2 : 1);
  call.quant = quant_spec(args.out.fp8);
  const bool is_bf16 = args.in.dtype == DType::kBF16;
  // A row may end in a shorter segment than the block has threads for.
  const int segment = call.width < kSegment ? call.width : kSegment;
  const bool is_whole = call.width % segment == 0;
  return with_span(shape.threads, is_whole ? segment : segment + kVector, [&]<int kMaxSpan>() {
    return tenon::launch(stream, shape,
                         is_bf16 ? segment_kernel<bf16, kMaxSpan> : segment_kernel<f16, kMaxSpan>,
                         call);
  });
}

TENON_DEFINE_VARIANT(segment, Args, supports, launch);

}  // namespace tenon::TENON_TARGET::fp8_quant
