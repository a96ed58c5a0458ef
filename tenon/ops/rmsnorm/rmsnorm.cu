// One block per row: residual add, RMSNorm and group quantisation, all in the row code that the
// fused op shares (ops/common).
#include "tenon/ops/rmsnorm/rmsnorm.h"

#include "tenon/device/variant.h"
#include "tenon/ops/common/quantize.cuh"
#include "tenon/ops/common/row.cuh"

namespace tenon::TENON_TARGET::rmsnorm {

using tenon::rmsnorm::Args;

struct RowArgs {
  const std::byte* y;
  std::int64_t y_stride;  // bytes
  int rows;
  NormSpec norm;
  QuantSpec quant;
};

template <class T, int kMaxSpan, bool kFastPath>
TENON_KERNEL_MAX(kRowThreads)
row_kernel(TENON_ARGS(RowArgs) args) {
  const NormSpec call_norm = choose_path<kFastPath>(args.norm);
  const QuantSpec quant = choose_path<kFastPath>(args.quant);
  wait_for_previous();
  let_next_start();
  const ThreadSpan span = own_span<kMaxSpan>(args.norm.hidden / kVector);
  Word4 held[kMaxSpan];
  int rows_done = 0;
  for (int row = block_id(); row < args.rows; row += grid_blocks()) {
    const std::byte* const y = args.y + row * args.y_stride;
    const NormSpec norm = at_row(call_norm, row);
    const auto ahead = prefetch_row<kMaxSpan>(norm, span);
    norm_row<T>(
        norm, [&](float value) { return block_sum(value, rows_done++); }, span, ahead, held,
        [&]<int kVectors>(int vector, float(&sums)[kVectors * kVector]) {
          load_floats<T, kVectors>(reinterpret_cast<const T*>(y) + vector * kVector, sums);
        });
    if (quant.codes == nullptr) continue;
    quantize_to_tensors<T>(at_row(quant, row), 0, span, held);
    pad_scales(quant, row);
  }
}

static Status supports(const Args& args, const PlanContext& where, Recipe* recipe) {
  LaunchShape shape;
  shape.blocks = static_cast<int>(args.y.shape[0]);
  shape.threads =
      row_threads(static_cast<int>(args.y.shape[1]), where.properties.max_threads_per_block);
  shape.early = where.may_start_early;
  recipe->launch("row_kernel", shape);
  return Status::ok();
}

static Status launch(const Recipe& recipe, const Args& args, const ChannelView*, Stream& stream) {
  const LaunchShape& shape = recipe.launches.front().shape;
  const int hidden = static_cast<int>(args.y.shape[1]);
  RowArgs call{};
  call.y = args.y.as<std::byte>();
  call.y_stride = args.y.stride[0] * 2;
  call.rows = static_cast<int>(args.y.shape[0]);
  call.norm = norm_spec(args.weight, args.residual, args.out.bf16);
  call.norm.eps = args.eps;
  call.norm.offset = args.offset;
  call.norm.fresh_residual = args.fresh_residual;
  call.quant = quant_spec(args.out.fp8);
  const auto launch_as = [&]<class T>() {
    return with_span(shape.threads, hidden, [&]<int kMaxSpan>() {
      return with_path<T, kMaxSpan>(is_fast_path(call.norm, call.quant), [&]<bool kFastPath>() {
        return tenon::launch(stream, shape, row_kernel<T, kMaxSpan, kFastPath>, call);
      });
    });
  };
  if (args.y.dtype == DType::kBF16) return launch_as.template operator()<bf16>();
  return launch_as.template operator()<f16>();
}

TENON_DEFINE_VARIANT(row, Args, supports, launch);

}  // namespace tenon::TENON_TARGET::rmsnorm
