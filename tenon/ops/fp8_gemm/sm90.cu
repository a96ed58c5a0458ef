// The variant of Hopper: which kernel for how many rows, and its launch.
#include "tenon/ops/fp8_gemm/sm90.cuh"

#include "tenon/device/variant.h"

namespace tenon::TENON_TARGET::fp8_gemm {
namespace {

// The widest scales that leave a ring of two stages to 64 rows.
constexpr int kMostK = 65536;

// What of a kernel was chosen for a plan. It changes no bit.
struct Sm90Form {
  int columns, rows;  // of a block
  int resident;       // blocks on a multiprocessor
  int stages;
};

// Bytes that a block may take if so many are to fit on a multiprocessor: each has 1 KiB besides.
int fair_share(std::size_t most, int resident) {
  return (static_cast<int>(most) + 1024) / resident - 1024;
}
int stages_for(int groups, int rows, const Segments& cut, int bytes) {
  constexpr int kMost = 32;
  int stages = 0;
  while (stages < kMost && sm90_shared(groups, rows, stages + 1, cut).bytes <= bytes) ++stages;
  const int longest = (cut.num_blocks + cut.count - 1) / cut.count;
  return stages < longest ? stages : longest;
}

// Measured on an H100 with the products of two models, 1 to 8192 rows: up to 16 rows narrow blocks
// are best, above wide ones; and one on a multiprocessor with a long ring, unless there are more
// blocks than that.
Sm90Form form_of(const GemmCall& gemm, const Segments& cut, const DeviceProperties& device) {
  const int rows = gemm.rows <= 8 ? 8 : gemm.rows <= 16 ? 16 : gemm.rows <= 32 ? 32 : 64;
  const int groups = rows <= 16 ? 1 : 2, columns = kGroupColumns * groups;
  const std::int64_t blocks =
      std::int64_t{1} * ceil_div(gemm.rows, rows) * ceil_div(gemm.n, columns) * cut.count;
  int resident = blocks <= device.num_units ? 1 : groups == 1 ? 3 : 2;
  int stages = stages_for(groups, rows, cut, fair_share(device.max_shared_bytes, resident));
  while (stages < 2 && resident > 1)
    stages = stages_for(groups, rows, cut, fair_share(device.max_shared_bytes, --resident));
  return {columns, rows, resident, stages};
}

using Kernel = void (*)(Sm90Call);
Kernel kernel_of(int rows, int resident) {
  switch (rows) {
    case 8: return sm90_kernel<1, 8, 3>;
    case 16: return sm90_kernel<1, 16, 3>;
    case 32: return resident == 1 ? sm90_kernel<2, 32, 1> : sm90_kernel<2, 32, 2>;
    default: return resident == 1 ? sm90_kernel<2, 64, 1> : sm90_kernel<2, 64, 2>;
  }
}

// Every answer but the form depends on the weight and on the device alone: the bits of a row must
// not change with the number of rows.
Status supports(const Args& args, const PlanContext& where, Recipe* recipe) {
  const auto no = [](std::string why) { return Status::error(Code::kUnsupported, std::move(why)); };
  const int found = where.properties.cuda_capability;
  if (found != 90)
    return no("the device has compute capability " + std::to_string(found / 10) + "." +
              std::to_string(found % 10) + "; its instructions are those of 9.0");
  if (args.weight.num_dims == 3) return no("weight has experts; it is for one matrix");
  const GemmCall gemm = call_of(args).gemm;
  if (gemm.k > kMostK)
    return no("k is " + std::to_string(gemm.k) + "; at most " + std::to_string(kMostK) +
              " leave room for the scales");
  const Segments cut = segments_of(gemm.n, gemm.k);
  const Sm90Form form = form_of(gemm, cut, where.properties);
  if (form.stages < 1) return no("a block has too little shared memory");
  LaunchShape shape;
  const int groups = form.columns / kGroupColumns;
  shape.blocks = ceil_div(gemm.rows, form.rows) * ceil_div(gemm.n, form.columns) * cut.count;
  shape.threads = sm90_threads(groups);
  shape.shared_bytes =
      static_cast<std::size_t>(sm90_shared(groups, form.rows, form.stages, cut).bytes);
  shape.cluster = cut.count;
  shape.early = where.may_start_early;
  recipe->launch("sm90_kernel", shape);
  recipe->set("columns", form.columns);
  recipe->set("rows", form.rows);
  recipe->set("resident", form.resident);
  recipe->set("stages", form.stages);
  return Status::ok();
}

Status launch(const Recipe& recipe, const Args& args, const ChannelView*, Stream& stream) {
  const Fp8Call operands = call_of(args);
  const GemmCall& gemm = operands.gemm;
  if (gemm.rows == 0) return Status::ok();
  const LaunchShape& shape = recipe.launches.front().shape;
  const auto setting = [&](std::size_t i) { return static_cast<int>(recipe.settings[i].value); };
  const int columns = setting(0), rows = setting(1), resident = setting(2);
  Sm90Call call;
  call.gemm = gemm;
  call.scales = operands.scales;
  call.cut = segments_of(gemm.n, gemm.k);
  call.row_tiles = shape.blocks / call.cut.count / ceil_div(gemm.n, columns);
  call.stages = setting(3);
  // The stride of a single row may be any number.
  const auto stride = [&](std::int64_t count, std::int64_t asked) {
    return count > 1 ? asked : gemm.k;
  };
  TENON_ASSIGN(call.x, ::tenon::sm90::tile_map(gemm.x, gemm.rows, gemm.k,
                                               stride(gemm.rows, gemm.x_stride), rows));
  TENON_ASSIGN(call.weight, ::tenon::sm90::tile_map(gemm.weight, gemm.n, gemm.k,
                                                    stride(gemm.n, gemm.weight_stride), columns));
  return tenon::launch(stream, shape, kernel_of(rows, resident), call);
}

}  // namespace

TENON_DEFINE_VARIANT(sm90, Args, supports, launch);

}  // namespace tenon::TENON_TARGET::fp8_gemm
