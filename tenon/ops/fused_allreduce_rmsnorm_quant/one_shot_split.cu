// one_shot_split: one shot with the blocks of a cluster for each row, each of which sends, takes
// and norms a part of it. What limits few rows is what one multiprocessor can send to its peers and
// read again; several do that side by side, for the price of a sum over the cluster. Rows lie in a
// mailbox as in one_shot, whose kernel does calls that do not fit a slot.
#include <bit>

#include "tenon/device/cluster_sum.cuh"
#include "tenon/ops/fused_allreduce_rmsnorm_quant/launch.cuh"

namespace tenon::TENON_TARGET::fused_allreduce_rmsnorm_quant {

Status launch_one_shot_bf16(const LaunchShape& shape, const Args& args, const ChannelView* team,
                            Stream& stream);

namespace {

using tenon::fused_allreduce_rmsnorm_quant::kMaxSplitThreads;

template <class K>
TENON_KERNEL_RESIDENT(kMaxSplitThreads, 1)
one_shot_split_kernel(TENON_ARGS(FusedArgs) args) {
  static_assert(K::kMaxSpan == 1);
  TENON_SHARED(ClusterSum, sum, 1);
  const ClusterPlace place{1 << args.split_shift, block_id() & ((1 << args.split_shift) - 1)};
  const int row = block_id() >> args.split_shift;
  if (row < args.rows) begin_cluster_sum(*sum, place);  // others go before they would meet
  const int vector = place.rank * block_threads() + thread_id();
  one_shot_row<K>(
      args, row, {vector, 1, 1}, [] { await_cluster(); },
      [&](float value) { return cluster_sum(*sum, place, value); }, place.rank == 0);
}

// A cluster of `split` blocks for each row, and one whose last block exchanges the notes.
void set_split(const Args& args, int split, LaunchShape* shape) {
  shape->threads = static_cast<int>(args.residual.shape[1]) / kVector / split;
  shape->blocks = static_cast<int>(blocks_of_split(args.residual.shape[0], split)) - 1;
  shape->cluster = split;
}

Status supports(const Args& args, const PlanContext& where, Recipe* recipe) {
  TENON_ASSIGN(const int split, split_for(args, where));
  TENON_TRY(is_fastest(args, where, name_of(Shots::kOneSplit, false)));
  LaunchShape shape;
  TENON_TRY(shape_for(args, where, Shots::kOne, false, &shape));
  set_split(args, split, &shape);
  recipe->launch("one_shot_split_kernel", shape);
  recipe->set(kTogether, where.properties.max_cooperative_blocks);
  return Status::ok();
}

Status launch(const Recipe& recipe, const Args& args, const ChannelView* team, Stream& stream) {
  // Of these rows, of which there may be fewer than the plan is for: then no fewer blocks each.
  LaunchShape shape = recipe.launches.front().shape;
  const std::int64_t rows = args.residual.shape[0], hidden = args.residual.shape[1];
  set_split(args,
            split_of(hidden, rows, recipe.setting(kTogether), is_host(stream.device().target)),
            &shape);
  LaunchShape of_row = shape;  // on which a block does a row
  of_row.blocks = static_cast<int>(rows);
  of_row.threads *= shape.cluster;
  of_row.cluster = 1;
  FusedArgs call = fused_args<Plain>(args, *team);
  std::int64_t fit = 0;
  TENON_TRY(fit_chunk(call, call.entry_units, 1, &fit));
  if (call.rows > fit) return launch_one_shot_bf16(of_row, args, team, stream);
  set_chunk(call, fit, call.rows);
  find_places(call);
  call.split_shift =
      static_cast<std::uint8_t>(std::countr_zero(static_cast<unsigned>(shape.cluster)));
  call.note = note_for(call, shape, Shots::kOneSplit, false);
  call.workers = shape.blocks;
  return with_instance<bf16, Plain, SoundProtocol>(of_row, call, [&]<class K>() {
    if constexpr (K::kMaxSpan == 1 && K::kRanks > 1)
      return tenon::launch(stream, with_note_block(shape, *team), one_shot_split_kernel<K>, call);
    return Status::error(Code::kInternal, "no instance serves the call");
  });
}

}  // namespace

TENON_DEFINE_VARIANT(one_shot_split, Args, supports, launch);

}  // namespace tenon::TENON_TARGET::fused_allreduce_rmsnorm_quant
