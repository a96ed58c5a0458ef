// The host side of sm90_product.cuh: which of its kernels for how many rows, and their launch.
#pragma once

#include "tenon/device/variant.h"
#include "tenon/ops/common/sm90_product.cuh"

namespace tenon::TENON_TARGET {

// The widest scales that leave a ring of two stages to 64 rows.
inline constexpr int kSm90MostK = 65536;

// What of a kernel was chosen for a plan. It changes no bit.
struct Sm90Form {
  int groups, rows;  // of a block: 64 · groups columns
  int resident;      // blocks on a multiprocessor
  int stages;
};

// Bytes that a block may take if so many are to fit on a multiprocessor: each has 1 KiB besides.
inline int sm90_fair_share(std::size_t most, int resident) {
  return (static_cast<int>(most) + 1024) / resident - 1024;
}
inline int sm90_stages(Sm90Kind kind, int groups, int rows, const Segments& cut, int bytes) {
  constexpr int kMost = 32;
  int stages = 0;
  while (stages < kMost && sm90_shared(kind, groups, rows, stages + 1, cut).bytes <= bytes)
    ++stages;
  const int longest = (cut.num_blocks + cut.count - 1) / cut.count;
  return stages < longest ? stages : longest;
}

// Measured on an H100 with the products of two models, 1 to 8192 rows: up to 16 rows narrow blocks
// are best, above wide ones; and one on a multiprocessor with a long ring, unless there are more
// blocks than that.
inline Sm90Form sm90_form(Sm90Kind kind, const GemmCall& gemm, const Segments& cut,
                          const DeviceProperties& device) {
  const int rows = gemm.rows <= 8 ? 8 : gemm.rows <= 16 ? 16 : gemm.rows <= 32 ? 32 : 64;
  const int groups = rows <= 16 ? 1 : 2;
  const std::int64_t blocks = std::int64_t{1} * ceil_div(gemm.rows, rows) *
                              ceil_div(gemm.n, kGroupColumns * groups) * cut.count;
  int resident = blocks <= device.num_units ? 1 : groups == 1 ? 3 : 2;
  const auto stages_of = [&](int number) {
    return sm90_stages(kind, groups, rows, cut, sm90_fair_share(device.max_shared_bytes, number));
  };
  int stages = stages_of(resident);
  while (stages < 2 && resident > 1) stages = stages_of(--resident);
  return {groups, rows, resident, stages};
}

// Ok and fills the recipe; or why the device or the product is not for these kernels. Every answer
// but the form depends on the weight and on the device alone: the bits of a row must not change
// with the number of rows.
inline Status sm90_plan(Sm90Kind kind, const GemmCall& gemm, const PlanContext& where,
                        Recipe* recipe) {
  const auto no = [](std::string why) { return Status::error(Code::kUnsupported, std::move(why)); };
  const int found = where.properties.cuda_capability;
  if (found != 90)
    return no("the device has compute capability " + std::to_string(found / 10) + "." +
              std::to_string(found % 10) + "; its instructions are those of 9.0");
  if (gemm.offsets != nullptr) return no("weight has experts; it is for one matrix");
  if (kind != Sm90Kind::kBf16 && gemm.k > kSm90MostK)
    return no("k is " + std::to_string(gemm.k) + "; at most " + std::to_string(kSm90MostK) +
              " leave room for the scales");
  const Segments cut = segments_of(gemm.n, gemm.k);
  if (kind == Sm90Kind::kActivated && cut.count > 1)
    return no("the sum over k has " + std::to_string(cut.count) +
              " segments; an activation is for products of one");
  const Sm90Form form = sm90_form(kind, gemm, cut, where.properties);
  if (form.stages < 1) return no("a block has too little shared memory");
  LaunchShape shape;
  shape.blocks =
      ceil_div(gemm.rows, form.rows) * ceil_div(gemm.n, kGroupColumns * form.groups) * cut.count;
  shape.threads = sm90_threads(form.groups);
  shape.shared_bytes =
      static_cast<std::size_t>(sm90_shared(kind, form.groups, form.rows, form.stages, cut).bytes);
  shape.cluster = sm90_cluster(kind, form.groups, cut);
  shape.early = where.may_start_early;
  recipe->launch("sm90_kernel", shape);
  recipe->set("columns", kGroupColumns * form.groups);
  recipe->set("rows", form.rows);
  recipe->set("resident", form.resident);
  recipe->set("stages", form.stages);
  return Status::ok();
}

template <Sm90Kind kKind>
auto sm90_kernel_of(int rows, int resident) -> void (*)(Sm90Call) {
  switch (rows) {
    case 8: return sm90_kernel<kKind, 1, 8, 3>;
    case 16: return sm90_kernel<kKind, 1, 16, 3>;
  }
  if constexpr (kKind != Sm90Kind::kActivated)
    if (resident == 1)
      return rows == 32 ? sm90_kernel<kKind, 2, 32, 1> : sm90_kernel<kKind, 2, 64, 1>;
  return rows == 32 ? sm90_kernel<kKind, 2, 32, 2> : sm90_kernel<kKind, 2, 64, 2>;
}

// A matrix in tiles; the stride of a single row may be any number. stride, row: in bytes.
inline Result<TensorMap> sm90_map(const void* data, std::int64_t rows, std::int64_t row,
                                  std::int64_t stride, int tile_rows) {
  return ::tenon::sm90::tile_map(data, rows, row, rows > 1 ? stride : row, tile_rows);
}

// tokens: rows of x.
template <Sm90Kind kKind>
Status sm90_launch(const Recipe& recipe, const GemmCall& gemm, const GemmScales& scales,
                   const QuantSpec& activated, std::int64_t tokens, Stream& stream) {
  if (gemm.rows == 0) return Status::ok();
  const LaunchShape& shape = recipe.launches.front().shape;
  const auto setting = [&](std::size_t i) { return static_cast<int>(recipe.settings[i].value); };
  const int columns = setting(0), rows = setting(1), resident = setting(2);
  constexpr std::int64_t kBytes = kKind == Sm90Kind::kBf16 ? 2 : 1;  // of an element
  Sm90Call call;
  call.gemm = gemm;
  call.scales = scales;
  call.activated = activated;
  call.cut = segments_of(gemm.n, gemm.k);
  call.row_tiles = shape.blocks / call.cut.count / ceil_div(gemm.n, columns);
  call.stages = setting(3);
  const auto x_map = [&](int tile_rows) {
    return sm90_map(gemm.x, tokens, gemm.k * kBytes, gemm.x_stride * kBytes, tile_rows);
  };
  if (gemm.row_map == nullptr) {
    TENON_ASSIGN(call.x, x_map(rows));
  } else {
    TENON_ASSIGN(call.x, x_map(1));
    TENON_ASSIGN(call.x_runs, x_map(kRun));
  }
  TENON_ASSIGN(call.weight,
               sm90_map(gemm.weight, gemm.n, gemm.k * kBytes, gemm.weight_stride * kBytes,
                        sm90_weight_rows(kKind, columns / kGroupColumns)));
  return tenon::launch(stream, shape, sm90_kernel_of<kKind>(rows, resident), call);
}

}  // namespace tenon::TENON_TARGET
