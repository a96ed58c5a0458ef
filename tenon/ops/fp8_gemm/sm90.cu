// The variant of Hopper: which kernel for how many rows, and its launch.
#include "tenon/ops/fp8_gemm/sm90.cuh"

#include "tenon/device/variant.h"

namespace tenon::TENON_TARGET::fp8_gemm {
namespace {

// The widest scales that leave a ring of two stages to 64 rows.
constexpr int kMostK = 65536;

// What of a kernel was chosen for a plan.
struct Sm90Form {
  int groups, rows, stages;
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

// Measured on an H100 with the products of two models, 1 to 64 rows: 64 columns a block are best up
// to 16 rows, 128 above; two blocks on a multiprocessor, three if there are many, one where a few
// large blocks fill the device.
Sm90Form form_of(const GemmCall& gemm, const Segments& cut, std::size_t most) {
  const int rows = gemm.rows <= 8    ? 8
                   : gemm.rows <= 16 ? 16
                   : gemm.rows <= 32 ? 32
                   : gemm.rows <= 64 ? 64
                                     : 128;
  const int groups = rows <= 16 ? 1 : 2;
  const int blocks = ceil_div(gemm.n, kGroupColumns * groups) * cut.count;
  int resident = groups == 1 ? (blocks > 264 ? 3 : 2) : (blocks > 132 || cut.count > 1 ? 2 : 1);
  if (rows > 64) {
    const int stages = stages_for(2, rows, cut, fair_share(most, 1));
    if (stages >= 3 || stages >= cut.num_blocks / cut.count) return {2, rows, stages};
  }
  const int taken = rows > 64 ? 64 : rows;
  int stages = 0;
  while (stages < 2 && resident > 0)
    stages = stages_for(groups, taken, cut, fair_share(most, resident--));
  return {groups, taken, stages};
}

using Kernel = void (*)(Sm90Call);
Kernel kernel_of(int rows) {
  switch (rows) {
    case 8: return sm90_kernel<1, 8>;
    case 16: return sm90_kernel<1, 16>;
    case 32: return sm90_kernel<2, 32>;
    case 64: return sm90_kernel<2, 64>;
    default: return sm90_kernel<2, 128>;
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
  const Sm90Form form = form_of(gemm, cut, where.properties.max_shared_bytes);
  if (form.stages < 1) return no("a block has too little shared memory");
  LaunchShape shape;
  shape.blocks =
      ceil_div(gemm.rows, form.rows) * ceil_div(gemm.n, kGroupColumns * form.groups) * cut.count;
  shape.threads = sm90_threads(form.groups);
  shape.shared_bytes =
      static_cast<std::size_t>(sm90_shared(form.groups, form.rows, form.stages, cut).bytes);
  shape.cluster = cut.count;
  shape.early = where.may_start_early;
  recipe->launch("sm90_kernel", shape);
  recipe->set("groups", form.groups);
  recipe->set("rows", form.rows);
  recipe->set("stages", form.stages);
  return Status::ok();
}

Status launch(const Recipe& recipe, const Args& args, const ChannelView*, Stream& stream) {
  const Fp8Call operands = call_of(args);
  const GemmCall& gemm = operands.gemm;
  if (gemm.rows == 0) return Status::ok();
  const LaunchShape& shape = recipe.launches.front().shape;
  const int groups = static_cast<int>(recipe.settings[0].value);
  const int rows = static_cast<int>(recipe.settings[1].value);
  const int columns = kGroupColumns * groups;
  Sm90Call call;
  call.gemm = gemm;
  call.scales = operands.scales;
  call.cut = segments_of(gemm.n, gemm.k);
  call.row_tiles = shape.blocks / call.cut.count / ceil_div(gemm.n, columns);
  call.stages = static_cast<int>(recipe.settings[2].value);
  // The stride of a single row may be any number.
  const auto stride = [&](std::int64_t count, std::int64_t asked) {
    return count > 1 ? asked : gemm.k;
  };
  TENON_ASSIGN(call.x, ::tenon::sm90::tile_map(gemm.x, gemm.rows, gemm.k,
                                               stride(gemm.rows, gemm.x_stride), rows));
  TENON_ASSIGN(call.weight, ::tenon::sm90::tile_map(gemm.weight, gemm.n, gemm.k,
                                                    stride(gemm.n, gemm.weight_stride), columns));
  return tenon::launch(stream, shape, kernel_of(rows), call);
}

}  // namespace

TENON_DEFINE_VARIANT(sm90, Args, supports, launch);

}  // namespace tenon::TENON_TARGET::fp8_gemm
