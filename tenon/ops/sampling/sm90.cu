// The variant of Hopper: a cluster of blocks has a row in its shared memory, which it fills
// once. Edits are made there, and what a mask leaves out becomes −infinity there: the logits are
// never written to.
#include "tenon/device/cuda_hip/sm90/cluster.cuh"
#include "tenon/device/variant.h"
#include "tenon/ops/sampling/draw.cuh"

namespace tenon::TENON_TARGET::sampling {
namespace {

template <int kClusterBlocks>
struct ClusterTeam {
  static constexpr int kRanks = kClusterBlocks, kBuckets = 4096, kGroups = 64;
  TENON_DEVICE int rank() { return block_id() % kRanks; }
  TENON_DEVICE void sync() {
    sync_wave();
    sm90::cluster_sync();
  }
  template <class T>
  TENON_DEVICE T* at(T* mine, int rank) {
    return sm90::at_rank(mine, rank);
  }
  template <class T>
  TENON_DEVICE T& own(T&) {
    TENON_DYNAMIC_SHARED(T, room);
    return *room;
  }
};
constexpr int kClusterThreads = 1024;
// Of a cluster. Few rows get clusters of the larger size, which any device of kLeastUnits can hold,
// for it has at most 8 groups of multiprocessors, of which a cluster takes one.
constexpr int kBlocks = 8, kMoreBlocks = 16, kMostRowsOfMore = 4, kLeastUnits = 8 * 15 + 1;

// Ids of a row that a block has, a multiple of 4; the last ones may have no token.
std::int64_t part_of(std::int64_t num_tokens, int blocks) {
  return (num_tokens + 4 * blocks - 1) / (4 * blocks) * 4;
}

struct ClusterSample {
  Sample sample;
  std::int32_t part = 0;
};

// The ids from `begin` on; −infinity where there is no token. They lie behind the room.
template <class Team>
struct Part {
  std::int32_t begin, count;
};
template <class Team>
TENON_DEVICE float* logits_of(const Part<Team>&) {
  TENON_DYNAMIC_SHARED(std::byte, memory);
  return reinterpret_cast<float*>(memory + sizeof(Room<Team>));
}
template <class Team, class Visit>
TENON_DEVICE void visit(const Part<Team>& part, Visit body) {
  const float* const logits = logits_of(part);
  TENON_NO_UNROLL
  for (std::int32_t i = thread_id(); i < part.count; i += kClusterThreads)
    body(logits[i], part.begin + i);
}

// Fills the part; returns what this thread has seen of it. Neighbours are loaded together where
// they lie at multiples of 16 bytes. Calls meanwhile() when the first loads are on their way.
template <class Team, class Meanwhile>
TENON_DEVICE Seen load_part(const LogitRow& row, const Part<Team>& part, Meanwhile meanwhile) {
  constexpr int kAtOnce = 4;
  constexpr std::int32_t kStep = 4 * kClusterThreads;
  float* const logits = logits_of(part);
  const bool wide = row.width % 4 == 0 && row.slice_stride % 4 == 0 &&
                    reinterpret_cast<std::uint64_t>(row.logits) % 16 == 0;
  if (!wide) {
    meanwhile();
    TENON_NO_UNROLL
    for (std::int32_t i = thread_id(); i < part.count; i += kClusterThreads) {
      const std::int32_t id = part.begin + i;
      logits[i] = id < row.num_tokens ? plain(*logit_at(row, id)) : -kInfinity;
    }
    sync_block();
    return see_all(part);
  }
  Seen seen;
  TENON_NO_UNROLL
  for (std::int32_t first = 4 * thread_id(); first < part.count; first += kStep * kAtOnce) {
    Word4 fours[kAtOnce];
    TENON_UNROLL
    for (int n = 0; n < kAtOnce; ++n) {
      const std::int32_t i = first + kStep * n, id = part.begin + i;
      fours[n] = {0, 0, 0, 0};
      if (i < part.count && id < row.num_tokens) fours[n] = load16(logit_at(row, id));
    }
    if (first < kStep) meanwhile();
    TENON_UNROLL
    for (int n = 0; n < kAtOnce; ++n) {
      const std::int32_t i = first + kStep * n, id = part.begin + i;
      if (i >= part.count) continue;
      const std::uint32_t bits[4] = {fours[n].x, fours[n].y, fours[n].z, fours[n].w};
      std::uint32_t of_ids[4];
      TENON_UNROLL
      for (int j = 0; j < 4; ++j) {
        const float logit = id + j < row.num_tokens ? plain(bits_float(bits[j])) : -kInfinity;
        see(seen, logit, id + j);
        of_ids[j] = float_bits(logit);
      }
      store16(logits + i, {of_ids[0], of_ids[1], of_ids[2], of_ids[3]});
    }
  }
  return seen;
}

// What the mask leaves out of the part. Both begin at multiples of 4 ids.
template <class Team>
TENON_SAMPLING_SHARED void apply_mask(const Part<Team> part, const std::uint32_t* mask) {
  float* const logits = logits_of(part);
  TENON_NO_UNROLL
  for (std::int32_t i = 4 * thread_id(); i < part.count; i += 4 * kClusterThreads) {
    const std::int32_t id = part.begin + i;
    const std::uint32_t bits = mask[id >> 5] >> (id & 31);
    Word4 four = load16(logits + i);
    const std::uint32_t none = float_bits(-kInfinity);
    if ((bits & 1u) == 0) four.x = none;
    if ((bits & 2u) == 0) four.y = none;
    if ((bits & 4u) == 0) four.z = none;
    if ((bits & 8u) == 0) four.w = none;
    store16(logits + i, four);
  }
}
template <class Team>
TENON_SAMPLING_SHARED void apply_edits(const Sample& sample, int r, const LogitRow row,
                              const Part<Team> part) {
  float* const logits = logits_of(part);
  visit_edits(sample, r, [&](const Edit& edit, std::int32_t) {
    const std::int32_t i = edit.id - part.begin;
    if (i >= 0 && i < part.count)
      logits[i] = plain(edited(*logit_at(row, edit.id), edit, sample, r));
  });
}

template <int kClusterBlocks>
TENON_KERNEL_RESIDENT(kClusterThreads, 1)
sample_cluster_kernel(TENON_ARGS(ClusterSample) call) {
  using Team = ClusterTeam<kClusterBlocks>;
  static_assert(sizeof(Room<Team>) % 16 == 0);
  TENON_DYNAMIC_SHARED(std::byte, memory);
  Room<Team>& room = *reinterpret_cast<Room<Team>*>(memory);
  const Sample& sample = call.sample;
  const int r = block_id() / Team::kRanks;
  wait_for_previous();
  let_next_start();
  if (r >= sample.rows) return;  // the plan was made for more
  const Setting setting = setting_of(sample, r);
  const LogitRow row = row_of(sample, r);
  const std::int32_t begin = Team::rank() * call.part;
  const std::int32_t left = (row.num_tokens - begin + 3) / 4 * 4;
  const Part<Team> part{begin, left < 0 ? 0 : left < call.part ? left : call.part};

  Seen seen = load_part(row, part, [&] { keep_random(room, setting); });
  const bool reports = setting.wanted >= 0, changes = setting.edits || setting.mask != nullptr;
  if (!changes || reports) seen = join(room, seen, 0);
  if (reports) report(room, sample, r, setting.wanted, part, seen);
  if (changes) {
    sync_block();  // all logits are there, and have been read
    if (setting.edits) apply_edits(sample, r, row, part);
    sync_block();
    if (setting.mask != nullptr) apply_mask(part, setting.mask);
    sync_block();
    seen = join(room, see_all(part), 0);
  }
  const std::int32_t drawn = draw(room, setting, part, seen);
  if (Team::rank() == 0 && thread_id() == 0) finish_row(sample, r, setting, row, drawn);
  Team::sync();  // a block's memory stays while others read it
}

Status supports(const Args& args, const PlanContext& where, Recipe* recipe) {
  const auto no = [](std::string why) { return Status::error(Code::kUnsupported, std::move(why)); };
  const int found = where.properties.cuda_capability;
  if (found != 90)
    return no("the device has compute capability " + std::to_string(found / 10) + "." +
              std::to_string(found % 10) + "; its instructions are those of 9.0");
  const std::int64_t rows = args.out.shape[0];
  const bool more = rows <= kMostRowsOfMore && where.properties.num_units >= kLeastUnits;
  const int blocks = more ? kMoreBlocks : kBlocks;
  const std::size_t room =
      more ? sizeof(Room<ClusterTeam<kMoreBlocks>>) : sizeof(Room<ClusterTeam<kBlocks>>);
  const std::size_t bytes =
      room + static_cast<std::size_t>(part_of(args.num_tokens, blocks)) * sizeof(float);
  if (bytes > where.properties.max_shared_bytes)
    return no("num_tokens is " + std::to_string(args.num_tokens) + "; a part of such a row takes " +
              std::to_string(bytes) + " bytes of shared memory, and a block has " +
              std::to_string(where.properties.max_shared_bytes));
  LaunchShape shape;
  shape.blocks = static_cast<int>(rows) * blocks;
  shape.threads = kClusterThreads;
  shape.shared_bytes = bytes;
  shape.cluster = blocks;
  shape.early = where.may_start_early;
  recipe->launch("sample_cluster_kernel", shape);
  return Status::ok();
}

Status launch(const Recipe& recipe, const Args& args, const ChannelView*, Stream& stream) {
  const LaunchShape& shape = recipe.launches.front().shape;
  const ClusterSample call{sample_of(args),
                           static_cast<std::int32_t>(part_of(args.num_tokens, shape.cluster))};
  return tenon::launch(stream, shape,
                       shape.cluster == kMoreBlocks ? sample_cluster_kernel<kMoreBlocks>
                                                    : sample_cluster_kernel<kBlocks>,
                       call);
}

}  // namespace

TENON_DEFINE_VARIANT(sm90, Args, supports, launch);

}  // namespace tenon::TENON_TARGET::sampling
