// The lookup: one block per token copies a row of the table or writes zeros.
#include "tenon/ops/embedding/embedding.h"

#include "tenon/device/device.cuh"
#include "tenon/device/variant.h"

namespace tenon::TENON_TARGET::embedding {
namespace {

using Args = tenon::embedding::Args;

struct Lookup {
  const std::int32_t* ids = nullptr;
  const std::uint16_t* table = nullptr;
  std::uint16_t* out = nullptr;
  std::int64_t table_stride = 0, out_stride = 0;  // elements
  std::int32_t vocab_begin = 0, vocab_size = 0, hidden = 0, tokens = 0;
};

TENON_KERNEL lookup_kernel(Lookup lookup) {
  const int token = block_id();
  wait_for_previous();
  let_next_start();
  if (token >= lookup.tokens) return;  // the plan was made for more
  const std::int64_t row = std::int64_t{lookup.ids[token]} - lookup.vocab_begin;
  const bool mine = row >= 0 && row < lookup.vocab_size;
  const std::uint16_t* from = lookup.table + (mine ? row : 0) * lookup.table_stride;
  std::uint16_t* to = lookup.out + token * lookup.out_stride;
  for (int i = thread_id() * 8; i < lookup.hidden; i += block_threads() * 8)
    store16(to + i, mine ? load16(from + i) : Word4{0, 0, 0, 0});
}

Status supports_rows(const Args& args, const PlanContext& where, Recipe* recipe) {
  LaunchShape shape;
  shape.blocks = static_cast<int>(args.ids.shape[0]);
  shape.threads = kWave == 1 ? 1 : 256;
  shape.early = where.may_start_early;
  recipe->launch("lookup_kernel", shape);
  return Status::ok();
}

Status launch_rows(const Recipe& recipe, const Args& args, const ChannelView*, Stream& stream) {
  const TensorView& out = args.out.addend;
  Lookup lookup;
  lookup.ids = args.ids.as<const std::int32_t>();
  lookup.table = args.table.as<const std::uint16_t>();
  lookup.out = out.as<std::uint16_t>();
  lookup.table_stride = args.table.stride[0];
  lookup.out_stride = out.stride[0];
  lookup.vocab_begin = args.vocab_begin;
  lookup.vocab_size = static_cast<std::int32_t>(args.table.shape[0]);
  lookup.hidden = static_cast<std::int32_t>(out.shape[1]);
  lookup.tokens = static_cast<std::int32_t>(args.ids.shape[0]);
  return tenon::launch(stream, recipe.launches.front().shape, lookup_kernel, lookup);
}

}  // namespace

TENON_DEFINE_VARIANT(rows, Args, supports_rows, launch_rows);

}  // namespace tenon::TENON_TARGET::embedding
