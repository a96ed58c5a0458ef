// The portable variant: one block per row. It edits the row, draws, and puts back what it edited.
#include "tenon/device/variant.h"
#include "tenon/ops/sampling/draw.cuh"

namespace tenon::TENON_TARGET::sampling {
namespace {

// Emulated threads are slow, and give the same tokens.
constexpr int kThreads = kWave == 1 ? 1 : kKernelsAreOrdered ? 1024 : 256;

TENON_KERNEL sample_kernel(Sample sample) {
  TENON_SHARED(Room<BlockTeam>, rooms, 1);
  Room<BlockTeam>& room = rooms[0];
  const int r = block_id();
  if (r >= sample.rows) return;  // the plan was made for more
  const LogitRow row = row_of(sample, r);
  keep_setting(room, sample, r);
  sync_block();
  const Setting setting = room.setting;
  LogitRow candidates = row;
  candidates.mask = setting.mask;
  if (setting.edits) {
    visit_edits(sample, r, [&](const Edit& edit, std::int32_t i) {
      float* const logit = const_cast<float*>(logit_at(row, edit.id));
      sample.saved[i] = *logit;
      *logit = edited(*logit, edit, sample, r);
    });
    sync_block();
  }
  const Seen seen = join(room, see_all(candidates), 0);
  const std::int32_t drawn = draw(room, candidates, seen);
  if (setting.edits) {
    sync_block();
    visit_edits(sample, r, [&](const Edit& edit, std::int32_t i) {
      *const_cast<float*>(logit_at(row, edit.id)) = sample.saved[i];
    });
    sync_block();
  }
  if (setting.wanted >= 0)
    report(room, sample, r, setting.wanted, row, join(room, see_all(row), 0));
  if (thread_id() == 0) finish_row(sample, r, setting, row, drawn);
}

Status supports_rows(const Args& args, const PlanContext&, Recipe* recipe) {
  LaunchShape shape;
  shape.blocks = static_cast<int>(args.out.shape[0]);
  shape.threads = kThreads;
  recipe->launch("sample_kernel", shape);
  return Status::ok();
}

Status launch_rows(const Recipe& recipe, const Args& args, const ChannelView*, Stream& stream) {
  return tenon::launch(stream, recipe.launches.front().shape, sample_kernel, sample_of(args));
}

}  // namespace

TENON_DEFINE_VARIANT(rows, Args, supports_rows, launch_rows);

}  // namespace tenon::TENON_TARGET::sampling
