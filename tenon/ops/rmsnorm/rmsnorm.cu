// One block per row: residual add, RMSNorm and group quantisation, all in the row code that the
// fused op shares (ops/common).
#include "tenon/ops/rmsnorm/rmsnorm.h"

#include "tenon/ops/common/quantize.cuh"
#include "tenon/ops/common/row.cuh"
#include "tenon/ops/registry.h"

namespace tenon::TENON_TARGET::rmsnorm {

using tenon::rmsnorm::Args;

struct RowArgs {
  const std::byte* y;
  std::int64_t y_stride;  // bytes
  int rows;
  NormSpec norm;
  QuantSpec quant;
};

template <class T, int kMaxRun, bool kUsual>
TENON_KERNEL_MAX(kRowThreads)
row_kernel(TENON_ARGS(RowArgs) args) {
  const NormSpec call_norm = usual_or_not<kUsual>(args.norm);
  const QuantSpec quant = usual_or_not<kUsual>(args.quant);
  wait_for_previous();
  let_next_start();
  const Run run = own_run<kMaxRun>(args.norm.hidden / kVector);
  Word4 held[kMaxRun];
  int turn = 0;
  for (int row = block_id(); row < args.rows; row += grid_blocks()) {
    const std::byte* const y = args.y + row * args.y_stride;
    const NormSpec norm = at_row(call_norm, row);
    const auto ahead = read_ahead<kMaxRun>(norm, run);
    norm_row<T>(norm, turn++, run, ahead, held,
                [&]<int kVectors>(int vector, float(&sums)[kVectors * kVector]) {
                  load_floats<T, kVectors>(reinterpret_cast<const T*>(y) + vector * kVector, sums);
                });
    if (quant.codes == nullptr) continue;
    quantize_to_tensors<T>(at_row(quant, row), 0, run, held);
    pad_scales(quant, row);
  }
}

static Status supports(const Args& args, const Situation& where, LaunchShape* shape) {
  shape->blocks = static_cast<int>(args.y.shape[0]);
  shape->threads =
      row_threads(static_cast<int>(args.y.shape[1]), where.properties.max_threads_per_block);
  shape->early = where.may_start_early;
  return Status::ok();
}

static Status launch(const LaunchShape& shape, const Args& args, const TeamView*, Stream& stream) {
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
    return with_run(shape.threads, hidden, [&]<int kMaxRun>() {
      return with_usual<T, kMaxRun>(is_usual(call.norm, call.quant), [&]<bool kUsual>() {
        return tenon::launch(stream, shape, row_kernel<T, kMaxRun, kUsual>, call);
      });
    });
  };
  if (args.y.dtype == DType::kBF16) return launch_as.template operator()<bf16>();
  return launch_as.template operator()<f16>();
}

static constexpr Variant kVariants[] = {variant<Args, supports, launch>("row")};
extern const VariantTable table;
const VariantTable table{kVariants};

}  // namespace tenon::TENON_TARGET::rmsnorm
