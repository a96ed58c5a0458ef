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
  for (std::int32_t i = 4 * thread_id(); i < part.count; i += 4 * kClusterThreads) {
    const Word4 four = load16(logits + i);
    const std::int32_t id = part.begin + i;
    body(bits_float(four.x), id);
    body(bits_float(four.y), id + 1);
    body(bits_float(four.z), id + 2);
    body(bits_float(four.w), id + 3);
  }
}

// Where the first logits lie that a thread loads, four neighbours together, in elements from the
// row's first; below 0: nowhere. All of a part up to kAtOnce · 4096 ids, if `wide`: they lie at
// multiples of 16 bytes.
template <class Team>
struct Places {
  static constexpr int kAtOnce = 64 / Team::kRanks;
  static constexpr std::int32_t kStep = 4 * kClusterThreads;
  std::int64_t at[kAtOnce];
  bool wide;
};
template <class Team>
TENON_DEVICE Places<Team> find_places(const LogitRow& row, const Part<Team>& part) {
  Places<Team> places;
  // A part that lies in more than two slices is loaded one by one.
  places.wide = row.width % 4 == 0 && row.slice_stride % 4 == 0 && part.count <= row.width &&
                reinterpret_cast<std::uint64_t>(row.logits) % 16 == 0;
  const std::int32_t slice = part.begin / row.width, edge = (slice + 1) * row.width;
  const std::int64_t more = row.slice_stride - row.width, skipped = slice * more;
  TENON_UNROLL
  for (int n = 0; n < Places<Team>::kAtOnce; ++n) {
    const std::int32_t i = 4 * thread_id() + Places<Team>::kStep * n, id = part.begin + i;
    const bool there = places.wide && i < part.count && id < row.num_tokens;
    places.at[n] = there ? id + skipped + (id >= edge ? more : 0) : -1;
    hold(places.at[n]);
  }
  return places;
}
// The loads of a thread, on their way.
template <class Team>
struct Fours {
  Word4 of[Places<Team>::kAtOnce];
};
template <class Team>
TENON_DEVICE void load_fours(const LogitRow& row, const Places<Team>& places, Fours<Team>& fours) {
  TENON_UNROLL
  for (int n = 0; n < Places<Team>::kAtOnce; ++n) {
    fours.of[n] = {0, 0, 0, 0};
    if (places.at[n] >= 0) fours.of[n] = load16_relaxed(row.logits + places.at[n]);
  }
}
// Fills the part from them; returns what this thread has seen of it.
template <class Team>
TENON_DEVICE Seen fill_part(const LogitRow& row, const Part<Team>& part, const Places<Team>& places,
                            const Fours<Team>& fours) {
  float* const logits = logits_of(part);
  Seen seen;
  TENON_UNROLL
  for (int n = 0; n < Places<Team>::kAtOnce; ++n) {
    const std::int32_t i = 4 * thread_id() + Places<Team>::kStep * n, id = part.begin + i;
    if (places.at[n] < 0) continue;
    const Word4& four = fours.of[n];
    std::uint32_t bits[4] = {four.x, four.y, four.z, four.w};
    if (id + 4 > row.num_tokens) {
      TENON_UNROLL
      for (int j = 1; j < 4; ++j)
        if (id + j >= row.num_tokens) bits[j] = float_bits(-kInfinity);
    }
    TENON_UNROLL
    for (int j = 0; j < 4; ++j) {
      const float logit = plain(bits_float(bits[j]));
      see(seen, logit, id + j);
      bits[j] = float_bits(logit);
    }
    store16(logits + i, {bits[0], bits[1], bits[2], bits[3]});
  }
  const std::int32_t loaded = places.wide ? Places<Team>::kStep * Places<Team>::kAtOnce : 0;
  TENON_NO_UNROLL
  for (std::int32_t i = loaded + thread_id(); i < part.count; i += kClusterThreads) {
    const std::int32_t id = part.begin + i;
    logits[i] = id < row.num_tokens ? plain(*logit_at(row, id)) : -kInfinity;
    see(seen, logits[i], id);
  }
  return seen;
}

// What the mask leaves out of the part. Both begin at multiples of 4 ids.
template <class Team>
TENON_CALLED void apply_mask(const Part<Team> part, const std::uint32_t* mask) {
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
TENON_CALLED void apply_edits(const Sample& sample, int r, const LogitRow row,
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
  const LogitRow row = row_of(sample, r);
  const std::int32_t begin = Team::rank() * call.part;
  const std::int32_t left = (row.num_tokens - begin + 3) / 4 * 4;
  const Part<Team> part{begin, left < 0 ? 0 : left < call.part ? left : call.part};

  const Places<Team> places = find_places(row, part);
  wait_for_previous();
  let_next_start();
  if (r >= sample.rows) return;  // the plan was made for more
  Fours<Team> fours;
  load_fours(row, places, fours);
  keep_setting(room, sample, r);
  Seen seen = join(room, fill_part(row, part, places, fours), 0);
  const Setting setting = room.setting;
  if (setting.wanted >= 0) report(room, sample, r, setting.wanted, part, seen);
  if (setting.edits || setting.mask != nullptr) {
    sync_block();  // all logits have been read
    if (setting.edits) apply_edits(sample, r, row, part);
    sync_block();
    if (setting.mask != nullptr) apply_mask(part, setting.mask);
    sync_block();
    seen = join(room, see_all(part), setting.wanted >= 0 ? 0 : 1);
  }
  const std::int32_t drawn = draw(room, part, seen);
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
