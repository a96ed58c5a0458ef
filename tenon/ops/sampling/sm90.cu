// The variant of Hopper: a cluster of blocks has a row in its shared memory, as keys, and reads it
// from memory once. Edits are made there: the logits are never written to.
#include "tenon/device/cuda_hip/sm90/cluster.cuh"
#include "tenon/device/variant.h"
#include "tenon/ops/sampling/draw.cuh"

namespace tenon::TENON_TARGET::sampling {
namespace {

constexpr int kClusterThreads = 1024;

struct ClusterTeam {
  static constexpr int kRanks = 8, kBuckets = 4096;
  TENON_DEVICE int rank() { return block_id() % kRanks; }
  TENON_DEVICE void sync() {
    sync_wave();
    sm90::cluster_sync();
  }
  template <class T>
  TENON_DEVICE T* at(T* mine, int rank) {
    return sm90::at_rank(mine, rank);
  }
};
using ClusterRoom = Room<ClusterTeam>;
static_assert(sizeof(ClusterRoom) % 16 == 0);

// Ids of a row that a block has, a multiple of 4; the last ones may have no token, and no key then.
std::int64_t part_of(std::int64_t num_tokens) {
  return (num_tokens + 4 * ClusterTeam::kRanks - 1) / (4 * ClusterTeam::kRanks) * 4;
}

struct ClusterSample {
  Sample sample;
  std::int32_t part = 0;
};

// The ids from `begin` on.
struct Part {
  std::uint32_t* keys;  // [count], in shared memory
  std::int32_t begin, count;
};
template <class Visit>
TENON_DEVICE void visit(const Part& part, Visit body) {
  for (std::int32_t i = 4 * thread_id(); i < part.count; i += 4 * block_threads()) {
    const Word4 four = load16(part.keys + i);
    const std::int32_t id = part.begin + i;
    body(order_of(four.x, id));
    body(order_of(four.y, id + 1));
    body(order_of(four.z, id + 2));
    body(order_of(four.w, id + 3));
  }
}

// Fills the part's keys; returns the ends of what this thread has loaded. Neighbouring logits are
// loaded at once where they lie at multiples of 16 bytes.
TENON_DEVICE Pair load_part(const LogitRow& row, const Part& part) {
  constexpr int kAtOnce = 4;
  const bool wide = row.width % 4 == 0 && row.slice_stride % 4 == 0 &&
                    reinterpret_cast<std::uint64_t>(row.logits) % 16 == 0;
  Pair ends{0, 0};
  const auto key_at = [&](float logit, std::int32_t id) {
    const std::uint32_t key = id < row.num_tokens ? key_of(logit) : kNoKey;
    see(ends, order_of(key, id));
    return key;
  };
  if (!wide) {
    for (std::int32_t i = thread_id(); i < part.count; i += block_threads()) {
      const std::int32_t id = part.begin + i;
      part.keys[i] = key_at(id < row.num_tokens ? *logit_at(row, id) : 0.0f, id);
    }
    return ends;
  }
  for (std::int32_t first = 4 * thread_id(); first < part.count;
       first += 4 * kClusterThreads * kAtOnce) {
    Word4 fours[kAtOnce];
    TENON_UNROLL
    for (int n = 0; n < kAtOnce; ++n) {
      const std::int32_t i = first + 4 * kClusterThreads * n, id = part.begin + i;
      fours[n] = {0, 0, 0, 0};
      if (i < part.count && id < row.num_tokens) fours[n] = load16(logit_at(row, id));
    }
    TENON_UNROLL
    for (int n = 0; n < kAtOnce; ++n) {
      const std::int32_t i = first + 4 * kClusterThreads * n, id = part.begin + i;
      if (i >= part.count) break;
      const Word4 keys{key_at(bits_float(fours[n].x), id), key_at(bits_float(fours[n].y), id + 1),
                       key_at(bits_float(fours[n].z), id + 2),
                       key_at(bits_float(fours[n].w), id + 3)};
      store16(part.keys + i, keys);
    }
  }
  return ends;
}

TENON_KERNEL sample_cluster_kernel(ClusterSample call) {
  TENON_DYNAMIC_SHARED(std::byte, memory);
  ClusterRoom& room = *reinterpret_cast<ClusterRoom*>(memory);
  const Sample& sample = call.sample;
  const int r = block_id() / ClusterTeam::kRanks;
  let_next_start();
  wait_for_previous();
  if (r >= sample.rows) return;  // the plan was made for more
  const LogitRow row = row_of(sample, r);
  const std::int32_t begin = ClusterTeam::rank() * call.part;
  const std::int32_t left = (row.num_tokens - begin + 3) / 4 * 4;
  const Part part{reinterpret_cast<std::uint32_t*>(memory + sizeof(ClusterRoom)), begin,
                  left < 0           ? 0
                  : left < call.part ? left
                                     : call.part};
  const bool edits = has_edits(sample, r), reports = wants_report(sample, r);

  Pair ends = load_part(row, part);
  if (!edits || reports) ends = team_reduce(room, ends, 0, wider);
  if (reports) report(room, sample, r, part, ends);
  if (edits) {
    sync_block();  // all keys are there, and have been read
    visit_edits(sample, r, [&](const Edit& edit, std::int32_t) {
      const std::int32_t i = edit.id - begin;
      if (i >= 0 && i < part.count)
        part.keys[i] = key_of(edited(*logit_at(row, edit.id), edit, sample, r));
    });
    sync_block();
    ends = team_reduce(room, see_all(part), 0, wider);
  }
  const std::int32_t drawn = draw(room, sample, r, part, ends);
  if (ClusterTeam::rank() == 0 && thread_id() == 0) finish_row(sample, r, row, drawn);
  ClusterTeam::sync();  // a block's memory stays while others read it
}

Status supports(const Args& args, const PlanContext& where, Recipe* recipe) {
  const auto no = [](std::string why) { return Status::error(Code::kUnsupported, std::move(why)); };
  const int found = where.properties.cuda_capability;
  if (found != 90)
    return no("the device has compute capability " + std::to_string(found / 10) + "." +
              std::to_string(found % 10) + "; its instructions are those of 9.0");
  const std::size_t bytes =
      sizeof(ClusterRoom) + static_cast<std::size_t>(part_of(args.num_tokens)) * sizeof(float);
  if (bytes > where.properties.max_shared_bytes)
    return no("num_tokens is " + std::to_string(args.num_tokens) + "; a part of such a row takes " +
              std::to_string(bytes) + " bytes of shared memory, and a block has " +
              std::to_string(where.properties.max_shared_bytes));
  LaunchShape shape;
  shape.blocks = static_cast<int>(args.out.shape[0]) * ClusterTeam::kRanks;
  shape.threads = kClusterThreads;
  shape.shared_bytes = bytes;
  shape.cluster = ClusterTeam::kRanks;
  shape.early = where.may_start_early;
  recipe->launch("sample_cluster_kernel", shape);
  return Status::ok();
}

Status launch(const Recipe& recipe, const Args& args, const ChannelView*, Stream& stream) {
  return tenon::launch(
      stream, recipe.launches.front().shape, sample_cluster_kernel,
      ClusterSample{sample_of(args), static_cast<std::int32_t>(part_of(args.num_tokens))});
}

}  // namespace

TENON_DEFINE_VARIANT(sm90, Args, supports, launch);

}  // namespace tenon::TENON_TARGET::sampling
