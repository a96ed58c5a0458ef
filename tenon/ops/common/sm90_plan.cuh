// The host side of sm90_product.cuh: which of its kernels for how many rows, and their launch.
#pragma once

#include <algorithm>

#include "tenon/device/variant.h"
#include "tenon/ops/common/sm90_few.cuh"

namespace tenon::TENON_TARGET {

// The widest scales that leave a ring of two stages to 64 rows.
inline constexpr int kSm90MostK = 65536;
inline constexpr int kTurnRows = 16;      // up to so many rows warpgroups may take turns
inline constexpr int kWholeBatches = 20;  // stages, of which a few are worth whole batches
inline constexpr int kTurnBlocks = 64;    // of k, from which on they do so in narrow blocks

// What of a kernel was chosen for a plan. It changes no bit.
struct Sm90Form {
  int columns, rows;  // of a block
  int row_groups;     // warpgroups that share its columns; else there is one for each 64 of them
  int turns;          // warpgroups that take blocks of k in turn
  int stages;
  int threads, shared_bytes, blocks;  // blocks: of the grid
};

// Bytes that a block may take if so many are to fit on a multiprocessor: each has 1 KiB besides.
inline int sm90_fair_share(std::size_t most, int resident) {
  return (static_cast<int>(most) + 1024) / resident - 1024;
}
inline int sm90_stages(Sm90Kind kind, int columns, int rows, const Segments& cut, int bytes,
                       int turns = 1) {
  constexpr int kMost = 32;
  const int step = kind == Sm90Kind::kE4m3 && turns > 1 ? kTurnBatch : 1;
  const int longest =
      is_in_order(kind) ? cut.num_blocks : (cut.num_blocks + cut.count - 1) / cut.count;
  const int most = std::min(kMost, ceil_div(longest, step) * step);
  int stages = 0;
  while (stages + step <= most &&
         sm90_shared(kind, columns, rows, stages + step, cut, turns).bytes <= bytes)
    stages += step;
  // Refilled stages of a batch of blocks of k are neighbours, or the batch is cut.
  return stages < longest && stages >= kWholeBatches ? stages / kTurnBatch * kTurnBatch : stages;
}

// Measured on an H100 with the products of two models. Up to 16 rows one warpgroup is enough.
// Above, two share the columns if there would be too few blocks of 128. Where several blocks of 64
// columns share a multiprocessor and k is long, they become as narrow as leaves their number on it:
// one must not have three of them where the mean is two. Where each has its own, two warpgroups
// take turns if that fills the device anyhow, or if k is so long that narrow blocks on all
// multiprocessors gain more than the next launch loses, which then finds none free (docs/adr/0069).
// `beside`: further blocks of the launch.
inline Sm90Form sm90_form(Sm90Kind kind, const GemmCall& gemm, const Segments& cut, int units,
                          std::size_t most_shared, int beside = 0) {
  Sm90Form form{};
  form.rows = gemm.rows <= 8 ? 8 : gemm.rows <= 16 ? 16 : gemm.rows <= 32 ? 32 : 64;
  form.columns = kGroupColumns;
  form.row_groups = 1;
  const int base = ceil_div(gemm.rows, form.rows) * cut.count;
  const auto blocks_of = [&](int columns) { return base * ceil_div(gemm.n, columns); };
  const bool may_split = kind != Sm90Kind::kActivated;
  if (form.rows > 16 && may_split && 2 * blocks_of(2 * kGroupColumns) <= units) {
    form.row_groups = 2;
  } else if (form.rows > 16) {
    form.columns = 2 * kGroupColumns;
  }
  // Clusters of many blocks do not fill the device to the last multiprocessor.
  const int places = cut.count >= 4 ? units * 3 / 4 : units;
  const int on_each = ceil_div(blocks_of(form.columns) + beside, places);
  const bool is_long = cut.num_blocks / cut.count > 32;
  const bool fills = 8 * (blocks_of(kGroupColumns) + beside) >= 7 * units;
  const bool in_turns = kind == Sm90Kind::kE4m3 && form.rows <= kTurnRows && cut.count == 1 &&
                        on_each == 1 && cut.num_blocks > kTurnBatch &&
                        (fills || cut.num_blocks >= kTurnBlocks);
  form.turns = in_turns ? 2 : 1;
  if (form.columns == kGroupColumns && may_split &&
      (in_turns || (on_each > 1 ? is_long : is_bf16(kind))) &&
      on_each <= sm90_most_resident(form.row_groups)) {
    form.columns = 16;
    while (blocks_of(form.columns) + beside > on_each * places) form.columns += 8;
  }
  const int groups = ceil_div(form.columns, kGroupColumns) * form.row_groups * form.turns;
  form.blocks = blocks_of(form.columns);
  const auto stages_of = [&](int resident) {
    return sm90_stages(kind, form.columns, form.rows, cut, sm90_fair_share(most_shared, resident),
                       form.turns);
  };
  int resident = std::clamp(ceil_div(form.blocks + beside, units), 1, sm90_most_resident(groups));
  form.stages = stages_of(resident);
  while (form.stages < 2 && resident > 1) form.stages = stages_of(--resident);
  form.threads = sm90_threads(groups);
  form.shared_bytes =
      sm90_shared(kind, form.columns, form.rows, form.stages, cut, form.turns).bytes;
  return form;
}

// Ok; or why the device or the product is not for these kernels. The answer depends on the weight
// and on the device alone: the bits of a row must not change with the number of rows.
inline Status sm90_takes(Sm90Kind kind, const GemmCall& gemm, const DeviceProperties& device) {
  const auto no = [](std::string why) { return Status::error(Code::kUnsupported, std::move(why)); };
  const int found = device.cuda_capability;
  if (found != 90)
    return no("the device has compute capability " + std::to_string(found / 10) + "." +
              std::to_string(found % 10) + "; its instructions are those of 9.0");
  if (gemm.offsets != nullptr) return no("weight has experts; it is for one matrix");
  if (!is_bf16(kind) && gemm.k > kSm90MostK)
    return no("k is " + std::to_string(gemm.k) + "; at most " + std::to_string(kSm90MostK) +
              " leave room for the scales");
  const Segments cut = segments_of(gemm.n, gemm.k);
  if (kind == Sm90Kind::kActivated && cut.count > 1)
    return no("the sum over k has " + std::to_string(cut.count) +
              " segments; an activation is for products of one");
  return Status::ok();
}

// --- Few rows, the weight of a block whole in shared memory ------------------------------------

// segments 0: not for these kernels.
struct FewForm {
  int segments = 0, columns = 0, rows = 0, grid = 0, shared_bytes = 0;
};
// `units`: multiprocessors; each has a block at most. Blocks are wide where the weight of such a
// one fits, else as narrow as `units` allows; with more than 8 rows, of which each block reads all,
// they are wide or not at all (5120 × 3072 took 6.6 µs instead of 6.4).
inline FewForm few_form(const GemmCall& gemm, int units, std::size_t most_shared) {
  const Segments cut = segments_of(gemm.n, gemm.k);
  if (gemm.rows > kMostFewRows || cut.count > 4 || gemm.row_map != nullptr ||
      cut.num_blocks > kFewMostBlocks || cut.num_blocks % (cut.count * few_batch(cut.count)) != 0)
    return {};
  FewForm form{.segments = cut.count, .rows = few_rows(gemm.rows)};
  const auto fits = [&](int columns) {
    form.columns = columns;
    form.grid = ceil_div(gemm.n, columns);
    form.shared_bytes = few_shared(cut.count, cut.num_blocks / cut.count, columns, form.rows).bytes;
    return form.grid <= units && static_cast<std::size_t>(form.shared_bytes) <= most_shared;
  };
  const int most = kGroupColumns / cut.count, step = cut.count > 1 ? 16 : 8;
  if (fits(most)) return form;
  if (form.rows > 8) return {};
  for (int columns = 16; columns < most; columns += step)
    if (fits(columns)) return form;
  return {};
}
inline constexpr std::string_view kFewName = "sm90_few_kernel";
inline constexpr std::string_view kFewPairName = "sm90_few_pair_kernel";
inline void set_few(const FewForm& form, Recipe* recipe) {
  recipe->set("segments", form.segments);
  recipe->set("columns", form.columns);
  recipe->set("rows", form.rows);
}

inline Status sm90_plan(Sm90Kind kind, const GemmCall& gemm, const PlanContext& where,
                        Recipe* recipe) {
  TENON_TRY(sm90_takes(kind, gemm, where.properties));
  const Segments cut = segments_of(gemm.n, gemm.k);
  if (kind == Sm90Kind::kE4m3) {
    const FewForm few =
        few_form(gemm, where.properties.num_units, where.properties.max_shared_bytes);
    if (few.segments > 0) {
      LaunchShape shape;
      shape.blocks = few.grid;
      shape.threads = sm90_threads(1);
      shape.shared_bytes = static_cast<std::size_t>(few.shared_bytes);
      shape.early = where.may_start_early;
      recipe->launch(kFewName, shape);
      set_few(few, recipe);
      return Status::ok();
    }
  }
  const Sm90Form form =
      sm90_form(kind, gemm, cut, where.properties.num_units, where.properties.max_shared_bytes);
  if (form.stages < 1)
    return Status::error(Code::kUnsupported, "a block has too little shared memory");
  LaunchShape shape;
  shape.blocks = form.blocks;
  shape.threads = form.threads;
  shape.shared_bytes = static_cast<std::size_t>(form.shared_bytes);
  shape.cluster = sm90_cluster(kind, form.columns, cut);
  shape.early = where.may_start_early;
  recipe->launch("sm90_kernel", shape);
  recipe->set("columns", form.columns);
  recipe->set("rows", form.rows);
  recipe->set("row groups", form.row_groups);
  recipe->set("stages", form.stages);
  recipe->set("turns", form.turns);
  return Status::ok();
}

template <Sm90Kind kKind>
auto sm90_kernel_of(int rows, int row_groups, int turns) -> void (*)(Sm90Call) {
  if constexpr (kKind == Sm90Kind::kE4m3)
    if (turns == 2)
      return rows == 8 ? sm90_kernel<kKind, 1, 1, 8, 2> : sm90_kernel<kKind, 1, 1, 16, 2>;
  switch (rows) {
    case 8: return sm90_kernel<kKind, 1, 1, 8>;
    case 16: return sm90_kernel<kKind, 1, 1, 16>;
  }
  if constexpr (kKind != Sm90Kind::kActivated)
    if (row_groups == 2)
      return rows == 32 ? sm90_kernel<kKind, 1, 2, 16> : sm90_kernel<kKind, 1, 2, 32>;
  return rows == 32 ? sm90_kernel<kKind, 2, 1, 32> : sm90_kernel<kKind, 2, 1, 64>;
}

// A matrix in tiles; the stride of a single row may be any number. stride, row: in bytes.
inline Result<TensorMap> sm90_map(const void* data, std::int64_t rows, std::int64_t row,
                                  std::int64_t stride, int tile_rows) {
  return ::tenon::sm90::tile_map(data, rows, row, rows > 1 ? stride : row, tile_rows);
}

// tokens: rows of x. columns, rows: of a block. row_tiles: of the grid.
inline Result<Sm90Call> sm90_call(Sm90Kind kind, const GemmCall& gemm, std::int64_t tokens,
                                  int columns, int rows, int stages) {
  const std::int64_t bytes = is_bf16(kind) ? 2 : 1;  // of an element
  Sm90Call call;
  call.gemm = gemm;
  call.cut = segments_of(gemm.n, gemm.k);
  call.columns = columns;
  call.stages = stages;
  const auto x_map = [&](int tile_rows) {
    return sm90_map(gemm.x, tokens, gemm.k * bytes, gemm.x_stride * bytes, tile_rows);
  };
  if (gemm.row_map == nullptr) {
    TENON_ASSIGN(call.x, x_map(rows));
  } else {
    TENON_ASSIGN(call.x, x_map(1));
    TENON_ASSIGN(call.x_runs, x_map(kRun));
  }
  TENON_ASSIGN(call.weight, sm90_map(gemm.weight, gemm.n, gemm.k * bytes,
                                     gemm.weight_stride * bytes, columns / sm90_parts(kind)));
  return call;
}

inline Result<FewCall> few_call(const Recipe& recipe, const GemmCall& gemm,
                                const GemmScales& scales) {
  const int segments = recipe.setting("segments"), columns = recipe.setting("columns");
  FewCall call{};
  TENON_ASSIGN(call.weight, sm90_map(gemm.weight, gemm.n, gemm.k, gemm.weight_stride, columns));
  if (recipe.setting("rows") > 8) {
    TENON_ASSIGN(call.x, sm90_map(gemm.x, gemm.rows, gemm.k, gemm.x_stride, kMostFewRows));
  }
  call.gemm = gemm;
  call.scales = scales;
  call.blocks = ceil_div(gemm.k, kProductBlock) / segments;
  call.columns = columns;
  call.packs = !gemm.out_is_f32 && reinterpret_cast<std::uintptr_t>(gemm.out) % 4 == 0 &&
               (gemm.rows == 1 || gemm.out_stride % 2 == 0);
  return call;
}
template <int kRows>
auto few_kernel_of(int segments) -> void (*)(FewCall) {
  return segments == 1   ? sm90_few_kernel<1, kRows>
         : segments == 2 ? sm90_few_kernel<2, kRows>
                         : sm90_few_kernel<4, kRows>;
}
template <Sm90Kind = Sm90Kind::kE4m3>  // compiled where it is called
Status launch_few(const Recipe& recipe, const GemmCall& gemm, const GemmScales& scales,
                  Stream& stream) {
  if (gemm.rows == 0) return Status::ok();
  const int segments = recipe.setting("segments");
  TENON_ASSIGN(const FewCall call, few_call(recipe, gemm, scales));
  return tenon::launch(stream, recipe.launches.front().shape,
                       recipe.setting("rows") == 8 ? few_kernel_of<8>(segments)
                                                   : few_kernel_of<kMostFewRows>(segments),
                       call);
}

template <Sm90Kind kKind>
Status sm90_launch(const Recipe& recipe, const GemmCall& gemm, const GemmScales& scales,
                   const QuantSpec& activated, std::int64_t tokens, Stream& stream) {
  if (gemm.rows == 0) return Status::ok();
  const LaunchShape& shape = recipe.launches.front().shape;
  const int columns = recipe.setting("columns"), rows = recipe.setting("rows");
  TENON_ASSIGN(Sm90Call call,
               sm90_call(kKind, gemm, tokens, columns, rows, recipe.setting("stages")));
  call.scales = scales;
  call.activated = activated;
  call.row_tiles = shape.blocks / call.cut.count / ceil_div(gemm.n, columns);
  return tenon::launch(
      stream, shape,
      sm90_kernel_of<kKind>(rows, recipe.setting("row groups"), recipe.setting("turns")), call);
}

// --- Two products in a launch -----------------------------------------------------------------

// By warps where rows are few and k is so short that the chain over all of it is what the launch
// waits for: 9.1 instead of 10.5 µs for 6144 × 2048 with 32 × 2048 beside, one row (H200,
// 2026-11-28). With k 5120 it did not pay.
inline constexpr int kWarpBlocks = 24, kWarpRows = 16;

// `main` of e4m3 in one segment, `beside` of bf16, of as many rows.
inline Status sm90_plan_pair(const GemmCall& main, const GemmCall& beside, const PlanContext& where,
                             Recipe* recipe) {
  const auto no = [](std::string why) { return Status::error(Code::kUnsupported, std::move(why)); };
  TENON_TRY(sm90_takes(Sm90Kind::kE4m3, main, where.properties));
  const Segments cut = segments_of(main.n, main.k), other = segments_of(beside.n, beside.k);
  if (cut.count > 1)
    return no("the sum over k has " + std::to_string(cut.count) +
              " segments; a product may stand beside one of one segment");
  if (main.rows > 64)
    return no(std::to_string(main.rows) +
              " rows; two products share a launch where both are bound by reading their weights, "
              "up to 64 rows");
  const int beside_blocks = ceil_div(beside.n, kBesideColumns);
  const std::size_t most_shared = where.properties.max_shared_bytes;
  if (beside_blocks > where.properties.num_units / 4)
    return no("the product beside has " + std::to_string(beside.n) +
              " columns; it is for a few, which nobody waits for");
  const Sm90Form form =
      sm90_form(Sm90Kind::kE4m3, main, cut, where.properties.num_units, most_shared, beside_blocks);
  if (form.columns > kGroupColumns)
    return no("weight has " + std::to_string(main.n) + " columns, too many for narrow blocks");
  // Warpgroups in turns have a multiprocessor, so the product beside may take what it needs: all of
  // its blocks of k, or those of a segment for each warpgroup.
  const auto needs = [&](Sm90Kind kind, int stages) {
    return sm90_shared(kind, kBesideColumns, form.rows, stages, other, form.turns).bytes;
  };
  const bool is_short = form.rows <= kWarpRows && other.num_blocks <= kWarpBlocks;
  int bytes = form.shared_bytes;
  if (form.turns > 1) {
    const int whole = needs(Sm90Kind::kBf16ByWarps, other.num_blocks);
    const int at_once =
        std::min(form.turns * ceil_div(other.num_blocks, other.count), other.num_blocks);
    const bool fits = is_short && static_cast<std::size_t>(whole) <= most_shared;
    bytes = std::max(bytes, fits ? whole : needs(Sm90Kind::kBf16InOrder, at_once));
  }
  const auto stages_of = [&](Sm90Kind kind) {
    return sm90_stages(kind, kBesideColumns, form.rows, other, bytes, form.turns);
  };
  const int by_warps = stages_of(Sm90Kind::kBf16ByWarps);
  const bool warps = is_short && by_warps == other.num_blocks;
  const int stages = warps ? by_warps : stages_of(Sm90Kind::kBf16InOrder);
  if (form.stages < 1 || stages < 1 || static_cast<std::size_t>(bytes) > most_shared)
    return no("a block has too little shared memory");
  const FewForm few = few_form(main, where.properties.num_units - beside_blocks, most_shared);
  if (few.segments == 1) {
    constexpr Sm90Kind kByWarps = Sm90Kind::kBf16ByWarps;
    const int all = other.num_blocks;
    if (sm90_stages(kByWarps, kBesideColumns, few.rows, other, static_cast<int>(most_shared)) ==
        all) {
      const int beside_bytes = sm90_shared(kByWarps, kBesideColumns, few.rows, all, other).bytes;
      LaunchShape shape;
      shape.blocks = beside_blocks + few.grid;
      shape.threads = sm90_threads(1);
      shape.shared_bytes = static_cast<std::size_t>(std::max(few.shared_bytes, beside_bytes));
      shape.early = where.may_start_early;
      recipe->launch(kFewPairName, shape);
      set_few(few, recipe);
      return Status::ok();
    }
  }
  LaunchShape shape;
  shape.blocks = beside_blocks + form.blocks;
  shape.threads = form.threads;
  shape.shared_bytes = static_cast<std::size_t>(bytes);
  shape.early = where.may_start_early;
  recipe->launch("sm90_pair_kernel", shape);
  recipe->set("columns", form.columns);
  recipe->set("rows", form.rows);
  recipe->set("stages", form.stages);
  recipe->set("stages beside", stages);
  recipe->set("beside by warps", warps ? 1 : 0);
  recipe->set("turns", form.turns);
  return Status::ok();
}

template <Sm90Kind kByWarps = Sm90Kind::kBf16ByWarps>  // compiled where it is called
Status sm90_launch_pair(const Recipe& recipe, const GemmCall& main, const GemmScales& scales,
                        const GemmCall& beside, Stream& stream) {
  if (main.rows == 0) return Status::ok();
  if (recipe.launches.front().kernel == kFewPairName) {
    FewPair call;
    TENON_ASSIGN(call.main, few_call(recipe, main, scales));
    const int rows = recipe.setting("rows");
    TENON_ASSIGN(call.beside, sm90_call(kByWarps, beside, beside.rows, kBesideColumns, rows,
                                        ceil_div(beside.k, kProductBlock)));
    call.beside_blocks = ceil_div(beside.n, kBesideColumns);
    return tenon::launch(stream, recipe.launches.front().shape,
                         rows == 8 ? sm90_few_pair_kernel<kByWarps, 8>
                                   : sm90_few_pair_kernel<kByWarps, kMostFewRows>,
                         call);
  }
  const int rows = recipe.setting("rows");
  Sm90Pair call;
  TENON_ASSIGN(call.main, sm90_call(Sm90Kind::kE4m3, main, main.rows, recipe.setting("columns"),
                                    rows, recipe.setting("stages")));
  const bool warps = recipe.setting("beside by warps") != 0;
  TENON_ASSIGN(call.beside, sm90_call(kByWarps, beside, beside.rows, kBesideColumns, rows,
                                      recipe.setting("stages beside")));
  call.main.scales = scales;
  call.beside_blocks = ceil_div(beside.n, kBesideColumns);
  constexpr Sm90Kind kInOrder = Sm90Kind::kBf16InOrder;
  if (recipe.setting("turns") == 2)
    return tenon::launch(stream, recipe.launches.front().shape,
                         warps && rows == 8 ? sm90_pair_kernel<1, 8, kByWarps, 2>
                         : warps            ? sm90_pair_kernel<1, 16, kByWarps, 2>
                         : rows == 8        ? sm90_pair_kernel<1, 8, kInOrder, 2>
                                            : sm90_pair_kernel<1, 16, kInOrder, 2>,
                         call);
  return tenon::launch(stream, recipe.launches.front().shape,
                       warps && rows == 8 ? sm90_pair_kernel<1, 8, kByWarps>
                       : warps            ? sm90_pair_kernel<1, 16, kByWarps>
                       : rows == 8        ? sm90_pair_kernel<1, 8>
                       : rows == 16       ? sm90_pair_kernel<1, 16>
                       : rows == 32       ? sm90_pair_kernel<2, 16>
                                          : sm90_pair_kernel<2, 32>,
                       call);
}

}  // namespace tenon::TENON_TARGET
