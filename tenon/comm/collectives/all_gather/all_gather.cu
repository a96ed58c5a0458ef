// all_gather over peer memory. It carries bytes of any pattern, so a flag follows the payload; it
// works in steps of one chunk each, counted in device memory, so nothing in a captured launch
// changes.
#include "tenon/comm/collectives/all_gather/all_gather.h"

#include "tenon/comm/collectives/vectors.cuh"
#include "tenon/comm/device/exchange.cuh"

namespace tenon::TENON_TARGET::all_gather {
namespace {

using namespace tenon::TENON_TARGET::collectives;
using tenon::all_gather::Args;
using tenon::all_gather::kFlagBytes;
using tenon::all_gather::kGatherGenerations;
using tenon::all_gather::kMaxFlags;

// The counters in ChannelView::state.
constexpr int kStep = 0;        // steps so far
constexpr int kCall = 1;        // calls so far: what faults report
constexpr int kBlocksDone = 2;  // blocks of the running call that have finished

// Flags lie in front of the slots: one word per generation, sender and block of the sender.
TENON_DEVICE std::uint32_t* flag(const ChannelView& team, std::uint32_t generation, int owner,
                                 int sender) {
  const int place = (static_cast<int>(generation) * kMaxRanks + sender) * kMaxFlags + block_id();
  return reinterpret_cast<std::uint32_t*>(team.base[owner]) + place;
}
TENON_DEVICE std::byte* payload(const KernelArgs& args, std::uint32_t generation, int owner,
                                int sender) {
  const auto places = static_cast<std::uint64_t>(args.team.size - 1);
  return slot(args, kFlagBytes + generation * places * args.slot_bytes, owner, sender);
}

TENON_DEVICE void push_bytes(const KernelArgs& args, const Chunk& chunk, std::uint32_t generation) {
  const VectorRange range = own_range();
  const ChannelView& team = args.team;
  std::uint8_t* own_part = args.out + static_cast<std::uint64_t>(team.rank) * args.bytes;
  for (std::uint32_t v = range.first; v < chunk.vectors; v += range.stride) {
    const std::uint64_t at = std::uint64_t{v} * kVectorBytes;
    const Word4 words = load_bytes(args.in + chunk.begin + at, chunk.bytes - at);
    for (int hop = 1; hop < team.size; ++hop) {
      const int peer = (team.rank + hop) % team.size;
      store16(payload(args, generation, peer, team.rank) + at, words);
    }
    store_bytes(own_part + chunk.begin + at, words, chunk.bytes - at);
  }
}

TENON_DEVICE void take_bytes(const KernelArgs& args, const Chunk& chunk, std::uint32_t generation) {
  const VectorRange range = own_range();
  const ChannelView& team = args.team;
  for (int sender = 0; sender < team.size; ++sender) {
    if (sender == team.rank) continue;
    const std::byte* from = payload(args, generation, team.rank, sender);
    std::uint8_t* part = args.out + static_cast<std::uint64_t>(sender) * args.bytes + chunk.begin;
    for (std::uint32_t v = range.first; v < chunk.vectors; v += range.stride) {
      const std::uint64_t at = std::uint64_t{v} * kVectorBytes;
      store_bytes(part + at, load16(from + at), chunk.bytes - at);
    }
  }
}

// What a flag says when the bytes of a step have arrived: never what nobody has written.
TENON_DEVICE std::uint32_t flag_of(std::uint32_t step) { return (step + 1) & (kNotArrived >> 1); }

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

TENON_KERNEL_RESIDENT(kMaxThreads, 1) all_gather_kernel(TENON_ARGS(KernelArgs) args) {
  wait_for_previous();
  let_next_start();
  const ChannelView& team = args.team;
  TENON_SHARED(std::uint32_t, failed, 1);
  if (thread_id() == 0) failed[0] = team_alive(team) ? 0 : 1;
  sync_block();
  const std::uint32_t call = team.state[kCall];
  const std::uint32_t first_step = team.state[kStep];
  std::uint32_t step = first_step;
  const bool alive = failed[0] == 0;
  for (std::uint64_t begin = 0; alive && begin < args.bytes; begin += args.slot_bytes, ++step) {
    const std::uint32_t generation = step % kGatherGenerations;
    const Chunk chunk = chunk_at(args, begin);
    // 1: payload, then the flag. Peers have read what lay there: they flagged step − 1 since.
    push_bytes(args, chunk, generation);
    sync_block();
    for (int peer = thread_id(); peer < team.size; peer += block_threads())
      if (peer != team.rank) store_release(flag(team, generation, peer, team.rank), flag_of(step));
    // 2: the same-numbered blocks of all peers.
    for (int sender = thread_id(); sender < team.size; sender += block_threads()) {
      if (sender == team.rank) continue;
      const std::uint32_t* at = flag(team, generation, team.rank, sender);
      const auto arrived = [&] { return load_acquire(at) == flag_of(step); };
      if (!team_wait(team, Phase::kGather, sender, call, kNoRow, arrived)) failed[0] = 1;
    }
    sync_block();
    if (failed[0] != 0) break;  // the same answer in the whole block
    // 3: what has arrived.
    take_bytes(args, chunk, generation);
  }
  finish_call(team, first_step + num_chunks(args), call);
}

// What a peer's slot holds of a mailbox of `bytes`.
std::uint64_t slot_in(std::size_t bytes, int team_size) {
  const std::size_t slots = static_cast<std::size_t>(team_size - 1) * kGatherGenerations;
  return slot_of(bytes > kFlagBytes ? bytes - kFlagBytes : 0, slots);
}

Status supports(const Args& args, const PlanContext& where, Recipe* recipe) {
  LaunchShape shape;
  const std::uint64_t slot =
      where.team_size < 2 ? 0 : slot_in(where.mailbox_bytes, where.team_size);
  TENON_TRY(shape_for(args.in, where, slot, tenon::all_gather::mailbox_bytes(where.team_size, 1),
                      &shape));
  const int units = where.properties.max_cooperative_blocks;
  const int most = units < kMaxFlags ? units : kMaxFlags;
  if (shape.blocks > most) shape.blocks = most;
  recipe->launch("all_gather_kernel", shape);
  recipe->set("steps", static_cast<std::int64_t>((args.in.bytes() + slot - 1) / slot));
  return Status::ok();
}

Status launch(const Recipe& recipe, const Args& args, const ChannelView* team, Stream& stream) {
  return tenon::launch(stream, recipe.launches.front().shape, all_gather_kernel,
                       kernel_args(*team, args.in, args.out, slot_in(team->bytes, team->size)));
}

}  // namespace

TENON_DEFINE_VARIANT(steps, Args, supports, launch);

}  // namespace tenon::TENON_TARGET::all_gather
