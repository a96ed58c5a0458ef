// all_gather over peer memory. It carries bytes of any pattern, so a flag follows the payload; it
// works in steps of one chunk each, counted in device memory, so nothing in a captured launch
// changes. All three forms are one kernel: of what each peer gets, and where it goes, the launch
// makes tables.
#include "tenon/comm/collectives/all_gather/all_gather.h"

#include "tenon/comm/collectives/vectors.cuh"
#include "tenon/comm/device/exchange.cuh"

namespace tenon::TENON_TARGET::all_gather {
namespace {

using namespace tenon::TENON_TARGET::collectives;
using tenon::all_gather::Args;
using tenon::all_gather::Form;
using tenon::all_gather::kFlagBytes;
using tenon::all_gather::kGatherGenerations;
using tenon::all_gather::kMaxFlags;

// The counters in ChannelView::state.
constexpr int kStep = 0;        // steps so far
constexpr int kCall = 1;        // calls so far: what faults report
constexpr int kBlocksDone = 2;  // blocks of the running call that have finished

struct Segment {
  std::uint64_t begin, bytes;
};
struct GatherArgs {
  ChannelView team;
  const std::uint8_t* in;
  std::uint8_t* out;
  std::uint64_t slot_bytes;  // what a peer's slot holds: the chunk of a step
  std::uint32_t steps;       // the same on all ranks: at least one
  Segment to[kMaxRanks];     // of `in`: what each rank gets of mine
  Segment from[kMaxRanks];   // of `out`: where what each rank sends me goes
};

// The bytes of a segment that travel in a step; none behind its end.
TENON_DEVICE Segment chunk_of(const GatherArgs& args, const Segment& whole, std::uint32_t step) {
  const std::uint64_t begin = step * args.slot_bytes;
  const std::uint64_t left = begin < whole.bytes ? whole.bytes - begin : 0;
  return {whole.begin + begin, left < args.slot_bytes ? left : args.slot_bytes};
}

// Flags lie in front of the slots: one word per generation, sender and block of the sender.
TENON_DEVICE std::uint32_t* flag(const ChannelView& team, std::uint32_t generation, int owner,
                                 int sender) {
  const int place = (static_cast<int>(generation) * kMaxRanks + sender) * kMaxFlags + block_id();
  return reinterpret_cast<std::uint32_t*>(team.base[owner]) + place;
}
TENON_DEVICE std::uint8_t* payload(const GatherArgs& args, std::uint32_t generation, int owner,
                                   int sender) {
  const auto places = static_cast<std::uint64_t>(args.team.size - 1);
  const std::uint64_t place =
      generation * places + static_cast<std::uint64_t>(peer_index(sender, owner));
  return reinterpret_cast<std::uint8_t*>(args.team.base[owner] + kFlagBytes) +
         place * args.slot_bytes;
}

// The vectors of a chunk that are this thread's, which is a matter of their numbers alone, not of
// where the bytes lie: so a block takes what the same-numbered block has sent.
TENON_DEVICE void copy_chunk(std::uint8_t* to, const std::uint8_t* from, std::uint64_t bytes) {
  constexpr int kAtOnce = 4;  // loads that do not wait for each other
  const VectorRange range = own_range();
  const auto vectors = static_cast<std::uint32_t>((bytes + kVectorBytes - 1) / kVectorBytes);
  const auto whole = static_cast<std::uint32_t>(bytes / kVectorBytes);
  const auto move_any = [&](std::uint32_t v) {
    const std::uint64_t at = std::uint64_t{v} * kVectorBytes;
    store_bytes(to + at, load_bytes(from + at, bytes - at), bytes - at);
  };
  if (!is_aligned(to) || !is_aligned(from)) {
    TENON_NO_UNROLL
    for (std::uint32_t v = range.first; v < vectors; v += range.stride) move_any(v);
    return;
  }
  TENON_NO_UNROLL
  for (std::uint32_t first = range.first; first < whole; first += kAtOnce * range.stride) {
    Word4 words[kAtOnce];
    TENON_UNROLL
    for (int n = 0; n < kAtOnce; ++n) {
      const std::uint32_t v = first + static_cast<std::uint32_t>(n) * range.stride;
      words[n] = {0, 0, 0, 0};
      if (v < whole) words[n] = load16(from + std::uint64_t{v} * kVectorBytes);
    }
    TENON_UNROLL
    for (int n = 0; n < kAtOnce; ++n) {
      const std::uint32_t v = first + static_cast<std::uint32_t>(n) * range.stride;
      if (v < whole) store16(to + std::uint64_t{v} * kVectorBytes, words[n]);
    }
  }
  if (whole < vectors && whole % range.stride == range.first) move_any(whole);
}

// What a flag says when the bytes of a step have arrived: never what nobody has written.
TENON_DEVICE std::uint32_t flag_of(std::uint32_t step) { return (step + 1) & (kNotArrived >> 1); }

// Payload, then the flag, which every peer gets whether or not it gets bytes. `first`: the number
// of the call's first step.
TENON_DEVICE void push_step(const GatherArgs& args, std::uint32_t first, std::uint32_t step) {
  const ChannelView& team = args.team;
  const std::uint32_t generation = (first + step) % kGatherGenerations;
  TENON_NO_UNROLL
  for (int hop = 1; hop < team.size; ++hop) {  // so no rank is everybody's first
    const int peer = (team.rank + hop) % team.size;
    const Segment chunk = chunk_of(args, args.to[peer], step);
    copy_chunk(payload(args, generation, peer, team.rank), args.in + chunk.begin, chunk.bytes);
  }
  sync_block();
  for (int peer = thread_id(); peer < team.size; peer += block_threads())
    if (peer != team.rank)
      store_release(flag(team, generation, peer, team.rank), flag_of(first + step));
}

TENON_DEVICE void take_step(const GatherArgs& args, std::uint32_t first, std::uint32_t step) {
  const ChannelView& team = args.team;
  const std::uint32_t generation = (first + step) % kGatherGenerations;
  TENON_NO_UNROLL
  for (int sender = 0; sender < team.size; ++sender) {
    if (sender == team.rank) continue;
    const Segment chunk = chunk_of(args, args.from[sender], step);
    copy_chunk(args.out + chunk.begin, payload(args, generation, team.rank, sender), chunk.bytes);
  }
}

TENON_DEVICE void keep_own(const GatherArgs& args, std::uint32_t step) {
  const Segment mine = chunk_of(args, args.to[args.team.rank], step);
  const Segment place = chunk_of(args, args.from[args.team.rank], step);
  const std::uint8_t* const from = args.in + mine.begin;
  if (from != args.out + place.begin) copy_chunk(args.out + place.begin, from, mine.bytes);
}

// The last block to get here advances the counters. Every thread of every block has read them by
// then: it has met thread 0 of its block since, unless the call is lost, where nobody uses them.
TENON_DEVICE void finish_call(const ChannelView& team, std::uint32_t step, std::uint32_t call) {
  if (thread_id() != 0) return;
  std::uint32_t* state = team.state;
  if (atomic_add(&state[kBlocksDone], 1u) + 1 != static_cast<std::uint32_t>(grid_blocks())) return;
  state[kBlocksDone] = 0;
  state[kStep] = step;
  state[kCall] = call + 1;
}

TENON_KERNEL_RESIDENT(kMaxThreads, 1) all_gather_kernel(TENON_ARGS(GatherArgs) args) {
  wait_for_previous();
  let_next_start();
  const ChannelView& team = args.team;
  // Two words in turn: one step's is read while the next one's may be written.
  TENON_SHARED(std::uint32_t, failed, 2);
  if (thread_id() == 0) failed[0] = failed[1] = team_alive(team) ? 0 : 1;
  sync_block();
  const std::uint32_t call = team.state[kCall], first = team.state[kStep];
  const bool alive = failed[0] == 0;
  if (alive) push_step(args, first, 0);
  for (std::uint32_t step = 0; alive && step < args.steps; ++step) {
    if (step + 1 < args.steps) push_step(args, first, step + 1);
    keep_own(args, step);
    const std::uint32_t generation = (first + step) % kGatherGenerations;
    // The same-numbered blocks of all peers.
    for (int sender = thread_id(); sender < team.size; sender += block_threads()) {
      if (sender == team.rank) continue;
      const std::uint32_t* at = flag(team, generation, team.rank, sender);
      const auto arrived = [&] { return load_acquire(at) == flag_of(first + step); };
      if (!team_wait(team, Phase::kGather, sender, call, kNoRow, arrived)) failed[step % 2] = 1;
    }
    sync_block();
    if (failed[step % 2] != 0) break;  // the same answer in the whole block
    take_step(args, first, step);
  }
  finish_call(team, first + args.steps, call);
}

// What a peer's slot holds of a mailbox of `bytes`.
std::uint64_t slot_in(std::size_t bytes, int team_size) {
  const std::size_t slots = static_cast<std::size_t>(team_size - 1) * kGatherGenerations;
  return slot_of(bytes > kFlagBytes ? bytes - kFlagBytes : 0, slots);
}

std::uint32_t steps_of(const Args& args, int team_size, std::uint64_t slot) {
  const std::uint64_t most = tenon::all_gather::most_bytes(args, team_size);
  return static_cast<std::uint32_t>((most + slot - 1) / slot);
}

GatherArgs gather_args(const Args& args, const ChannelView& team) {
  GatherArgs made{};
  made.team = team;
  made.in = args.in.as<const std::uint8_t>();
  made.out = args.out.as<std::uint8_t>();
  made.slot_bytes = slot_in(team.bytes, team.size);
  made.steps = steps_of(args, team.size, made.slot_bytes);
  const std::int64_t rows = args.form == Form::kGather ? 1 : args.in.shape[0];
  const std::uint64_t row_bytes = args.in.bytes() / static_cast<std::uint64_t>(rows);
  const auto rows_of = [&](int rank) {
    const RowRange dealt = dealt_rows(rows, team.size, rank);
    return Segment{static_cast<std::uint64_t>(dealt.first) * row_bytes,
                   static_cast<std::uint64_t>(dealt.count) * row_bytes};
  };
  const Segment own = rows_of(team.rank);
  for (int rank = 0; rank < team.size; ++rank) {
    const auto place = static_cast<std::uint64_t>(rank);
    switch (args.form) {
      case Form::kGather:
        made.to[rank] = {0, row_bytes};
        made.from[rank] = {place * row_bytes, row_bytes};
        break;
      case Form::kDeal:
        made.to[rank] = rows_of(rank);
        made.from[rank] = {place * own.bytes, own.bytes};
        break;
      case Form::kCollect:
        made.to[rank] = own;
        made.from[rank] = rows_of(rank);
        break;
    }
  }
  return made;
}

Status supports(const Args& args, const PlanContext& where, Recipe* recipe) {
  LaunchShape shape;
  const std::uint64_t slot =
      where.team_size < 2 ? 0 : slot_in(where.mailbox_bytes, where.team_size);
  TENON_TRY(shape_for(tenon::all_gather::most_bytes(args, where.team_size), where, slot,
                      tenon::all_gather::mailbox_bytes(where.team_size, 1), &shape));
  const int units = where.properties.max_cooperative_blocks;
  const int most = units < kMaxFlags ? units : kMaxFlags;
  if (shape.blocks > most) shape.blocks = most;
  recipe->launch("all_gather_kernel", shape);
  recipe->set("steps", static_cast<std::int64_t>(steps_of(args, where.team_size, slot)));
  return Status::ok();
}

Status launch(const Recipe& recipe, const Args& args, const ChannelView* team, Stream& stream) {
  return tenon::launch(stream, recipe.launches.front().shape, all_gather_kernel,
                       gather_args(args, *team));
}

}  // namespace

TENON_DEFINE_VARIANT(steps, Args, supports, launch);

}  // namespace tenon::TENON_TARGET::all_gather
