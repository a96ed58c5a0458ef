// Kernels of the plain collectives over peer memory.
//
// all_reduce: every rank pushes its addend into every peer's mailbox and the data is the flag; each
// thread sums what it finds there in rank order. all_gather carries bytes of any pattern, so a flag
// follows the payload. Both work in steps: one chunk of at most a slot per step, any number of
// steps per call, counted in device memory, so that nothing in a captured launch ever changes.
#include "tenon/comm/collectives.h"

#include "tenon/comm/wait.h"
#include "tenon/gpu/vec.h"

namespace tenon::TENON_TARGET::collectives {
namespace {

using tenon::collectives::kFlagBytes;
using tenon::collectives::kGatherGenerations;
using tenon::collectives::kMaxBlocks;
using tenon::collectives::kReduceGenerations;
using tenon::collectives::kVectorBytes;

constexpr int kMaxThreads = 128;

// A channel's counters in TeamView::state.
constexpr int kStep = 0;         // steps so far
constexpr int kCall = 1;         // calls so far: what faults report
constexpr int kLastVectors = 2;  // vectors of the last step, whose slots are still to be cleared
constexpr int kBlocksDone = 3;   // blocks of the running call that have finished

struct Args {
  TeamView team;
  const std::uint8_t* in;
  std::uint8_t* out;
  std::uint64_t bytes;       // of `in`
  std::uint64_t row_bytes;   // names the row in a fault
  std::uint64_t slot_bytes;  // what a peer's slot holds: the chunk of a step
};

// --- any bytes as vectors ---------------------------------------------------------------------

TENON_DEVICE bool is_aligned(const void* at) {
  return (reinterpret_cast<std::uintptr_t>(at) & (kVectorBytes - 1)) == 0;
}

// `valid` bytes at `at`, zeros behind them. Any alignment.
TENON_DEVICE Word4 load_bytes(const std::uint8_t* at, std::uint64_t valid) {
  if (valid >= kVectorBytes && is_aligned(at)) return load16(at);
  std::uint32_t words[4] = {0, 0, 0, 0};
  TENON_UNROLL
  for (std::size_t i = 0; i < kVectorBytes; ++i)
    if (i < valid) words[i / 4] |= std::uint32_t{at[i]} << (8 * (i % 4));
  return {words[0], words[1], words[2], words[3]};
}

TENON_DEVICE void store_bytes(std::uint8_t* at, Word4 value, std::uint64_t valid) {
  if (valid >= kVectorBytes && is_aligned(at)) return store16(at, value);
  const std::uint32_t words[4] = {value.x, value.y, value.z, value.w};
  TENON_UNROLL
  for (std::size_t i = 0; i < kVectorBytes; ++i)
    if (i < valid) at[i] = static_cast<std::uint8_t>(words[i / 4] >> (8 * (i % 4)) & 0xffu);
}

// --- what the two kernels share ---------------------------------------------------------------

// Who this thread is, and which vectors it owns: the same ones in every step of a launch.
struct Lane {
  std::uint32_t first, stride;
};
TENON_DEVICE Lane own_lane() {
  return {static_cast<std::uint32_t>(block_id() * block_threads() + thread_id()),
          static_cast<std::uint32_t>(grid_blocks() * block_threads())};
}

// One chunk: `bytes` of the call from `begin` on, as vectors of 16.
struct Chunk {
  std::uint64_t begin, bytes;
  std::uint32_t vectors;
};
TENON_DEVICE Chunk chunk_at(const Args& args, std::uint64_t begin) {
  const std::uint64_t left = args.bytes - begin;
  const std::uint64_t bytes = left < args.slot_bytes ? left : args.slot_bytes;
  return {begin, bytes, static_cast<std::uint32_t>((bytes + kVectorBytes - 1) / kVectorBytes)};
}

// Where `sender` leaves its chunk for `owner`. A rank has no slot for itself.
TENON_DEVICE std::byte* slot(const Args& args, std::uint32_t generation, int owner, int sender) {
  const std::uint32_t place = static_cast<std::uint32_t>(sender < owner ? sender : sender - 1);
  const std::uint32_t slots = static_cast<std::uint32_t>(args.team.size - 1);
  return args.team.base[owner] + (generation * slots + place) * args.slot_bytes;
}

// False once somebody has given up. What peers still read is then anybody's guess, so that nothing
// may be written there any more. A device would read the abort word across the bus on every call:
// it looks at what its own waits have found out.
TENON_DEVICE bool team_alive(const TeamView& team) {
  const std::uint32_t* const lost =
      kKernelsAreOrdered ? &team.state[kLostWord] : team.abort_word[team.rank];
  return load_acquire(lost) == 0;
}

// The last block to get here advances the counters. Every block has read them by then.
TENON_DEVICE void finish_call(const Args& args, std::uint32_t step, std::uint32_t call,
                              std::uint32_t last_vectors) {
  sync_block();
  if (thread_id() != 0) return;
  std::uint32_t* state = args.team.state;
  if (atomic_add(&state[kBlocksDone], 1u) + 1 != static_cast<std::uint32_t>(grid_blocks())) return;
  state[kBlocksDone] = 0;
  state[kStep] = step;
  state[kCall] = call + 1;
  state[kLastVectors] = last_vectors;
}

// --- all_reduce ---------------------------------------------------------------------------------

// A word that would read as "not arrived" holds two NaNs: another pair of NaNs travels instead.
TENON_DEVICE std::uint32_t sendable(std::uint32_t word) {
  return word == kNotArrived ? 0x7fffffffu : word;
}
TENON_DEVICE Word4 load_addend(const Args& args, const Chunk& chunk, std::uint32_t vector) {
  const std::uint64_t at = std::uint64_t{vector} * kVectorBytes;
  const Word4 words = load_bytes(args.in + chunk.begin + at, chunk.bytes - at);
  return {sendable(words.x), sendable(words.y), sendable(words.z), sendable(words.w)};
}

TENON_DEVICE void push_chunk(const Args& args, const Chunk& chunk, std::uint32_t generation) {
  const Lane lane = own_lane();
  const TeamView& team = args.team;
  for (std::uint32_t v = lane.first; v < chunk.vectors; v += lane.stride) {
    const Word4 words = load_addend(args, chunk, v);
    // Everybody starts with its right-hand neighbour, so that no rank is everybody's first.
    for (int hop = 1; hop < team.size; ++hop) {
      const int peer = (team.rank + hop) % team.size;
      store16_relaxed(slot(args, generation, peer, team.rank) + std::uint64_t{v} * kVectorBytes,
                      words);
    }
  }
}

// Makes the slots of the previous step ready for the step after the next.
TENON_DEVICE void clear_slots(const Args& args, std::uint32_t generation, std::uint32_t vectors) {
  const Lane lane = own_lane();
  const TeamView& team = args.team;
  constexpr Word4 kEmpty{kNotArrived, kNotArrived, kNotArrived, kNotArrived};
  for (int sender = 0; sender < team.size; ++sender) {
    if (sender == team.rank) continue;
    std::byte* at = slot(args, generation, team.rank, sender);
    for (std::uint32_t v = lane.first; v < vectors; v += lane.stride)
      store16_relaxed(at + std::uint64_t{v} * kVectorBytes, kEmpty);
  }
}

// Sums this thread's vectors as the ranks' words arrive. False if a wait ended badly.
template <class T>
TENON_DEVICE bool reduce_chunk(const Args& args, const Chunk& chunk, std::uint32_t generation,
                               std::uint32_t call) {
  const Lane lane = own_lane();
  const TeamView& team = args.team;
  for (std::uint32_t v = lane.first; v < chunk.vectors; v += lane.stride) {
    const std::uint64_t offset = std::uint64_t{v} * kVectorBytes;
    const std::uint64_t place = chunk.begin + offset;
    float sum[8] = {};
    for (int rank = 0; rank < team.size; ++rank) {
      Word4 words;
      if (rank == team.rank) {
        words = load_addend(args, chunk, v);
      } else {
        const std::byte* at = slot(args, generation, team.rank, rank) + offset;
        const auto arrived = [&] {
          words = load16_relaxed(at);
          return words.x != kNotArrived && words.y != kNotArrived && words.z != kNotArrived &&
                 words.w != kNotArrived;
        };
        // Naming the row costs a division: only for words that are not there yet.
        if (!arrived()) {
          const auto row = static_cast<std::uint32_t>(place / args.row_bytes);
          if (!team_wait(team, Phase::kScatter, rank, call, row, arrived)) return false;
        }
      }
      float addend[8];
      unpack8<T>(words, addend);
      TENON_UNROLL
      for (int i = 0; i < 8; ++i) sum[i] = rank == 0 ? addend[i] : sum[i] + addend[i];
    }
    store_bytes(args.out + place, pack8<T>(sum), chunk.bytes - offset);
  }
  return true;
}

template <class T>
TENON_KERNEL_MAX(kMaxThreads)
all_reduce_kernel(Args args) {
  wait_for_previous();
  let_next_start();
  const std::uint32_t* state = args.team.state;
  const std::uint32_t call = state[kCall];
  std::uint32_t step = state[kStep];
  std::uint32_t vectors_to_clear = state[kLastVectors];
  bool alive = team_alive(args.team);
  for (std::uint64_t begin = 0; begin < args.bytes; begin += args.slot_bytes, ++step) {
    const Chunk chunk = chunk_at(args, begin);
    if (alive) {
      // What was cleared in step g−1 must be seen before what is pushed in step g, because that
      // push lets peers start step g+1 and write there. Between launches a device sees to it.
      if (begin > 0 || !kKernelsAreOrdered) fence_system();
      push_chunk(args, chunk, step % kReduceGenerations);
      clear_slots(args, (step + 2) % kReduceGenerations, vectors_to_clear);
      alive = reduce_chunk<T>(args, chunk, step % kReduceGenerations, call);
    }
    vectors_to_clear = chunk.vectors;
  }
  finish_call(args, step, call, vectors_to_clear);
}

// --- all_gather ---------------------------------------------------------------------------------

// Flags lie in front of the slots: one word per generation, sender and block of the sender.
TENON_DEVICE std::uint32_t* flag(const TeamView& team, std::uint32_t generation, int owner,
                                 int sender) {
  const int place = (static_cast<int>(generation) * kMaxRanks + sender) * kMaxBlocks + block_id();
  return reinterpret_cast<std::uint32_t*>(team.base[owner]) + place;
}
TENON_DEVICE std::byte* payload(const Args& args, std::uint32_t generation, int owner, int sender) {
  return slot(args, generation, owner, sender) + kFlagBytes;
}

TENON_DEVICE void push_bytes(const Args& args, const Chunk& chunk, std::uint32_t generation) {
  const Lane lane = own_lane();
  const TeamView& team = args.team;
  std::uint8_t* own_part = args.out + static_cast<std::uint64_t>(team.rank) * args.bytes;
  for (std::uint32_t v = lane.first; v < chunk.vectors; v += lane.stride) {
    const std::uint64_t at = std::uint64_t{v} * kVectorBytes;
    const Word4 words = load_bytes(args.in + chunk.begin + at, chunk.bytes - at);
    for (int hop = 1; hop < team.size; ++hop) {
      const int peer = (team.rank + hop) % team.size;
      store16(payload(args, generation, peer, team.rank) + at, words);
    }
    store_bytes(own_part + chunk.begin + at, words, chunk.bytes - at);
  }
}

TENON_DEVICE void take_bytes(const Args& args, const Chunk& chunk, std::uint32_t generation) {
  const Lane lane = own_lane();
  const TeamView& team = args.team;
  for (int sender = 0; sender < team.size; ++sender) {
    if (sender == team.rank) continue;
    const std::byte* from = payload(args, generation, team.rank, sender);
    std::uint8_t* part = args.out + static_cast<std::uint64_t>(sender) * args.bytes + chunk.begin;
    for (std::uint32_t v = lane.first; v < chunk.vectors; v += lane.stride) {
      const std::uint64_t at = std::uint64_t{v} * kVectorBytes;
      store_bytes(part + at, load16(from + at), chunk.bytes - at);
    }
  }
}

TENON_KERNEL_MAX(kMaxThreads) all_gather_kernel(Args args) {
  wait_for_previous();
  let_next_start();
  const TeamView& team = args.team;
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
      if (peer != team.rank) store_release(flag(team, generation, peer, team.rank), step + 1);
    // 2: the same-numbered blocks of all peers.
    for (int sender = thread_id(); sender < team.size; sender += block_threads()) {
      if (sender == team.rank) continue;
      const std::uint32_t* at = flag(team, generation, team.rank, sender);
      const auto arrived = [&] { return load_acquire(at) == step + 1; };
      if (!team_wait(team, Phase::kGather, sender, call, kNoRow, arrived)) failed[0] = 1;
    }
    sync_block();
    if (failed[0] != 0) break;  // the same answer in the whole block
    // 3: what has arrived.
    take_bytes(args, chunk, generation);
  }
  const auto num_steps =
      static_cast<std::uint32_t>((args.bytes + args.slot_bytes - 1) / args.slot_bytes);
  finish_call(args, first_step + num_steps, call, 0);
}

// --- launches -----------------------------------------------------------------------------------

// A function of the size alone, which is the same on every rank.
LaunchShape shape_for(const Args& args) {
  const std::uint64_t chunk = args.bytes < args.slot_bytes ? args.bytes : args.slot_bytes;
  const auto vectors = static_cast<int>((chunk + kVectorBytes - 1) / kVectorBytes);
  LaunchShape shape;
  shape.cooperative = true;
  shape.early = !args.team.shares_device;
  if constexpr (kWave == 1) return shape;  // more blocks would only run one after the other
  const int wanted = (vectors + kWave - 1) / kWave * kWave;
  shape.threads = wanted < kMaxThreads ? wanted : kMaxThreads;
  const int blocks = (vectors + shape.threads - 1) / shape.threads;
  shape.blocks = blocks < kMaxBlocks ? blocks : kMaxBlocks;
  return shape;
}

Result<Args> make_args(const TeamView& team, const TensorView& in, const TensorView& out,
                       std::uint32_t generations, std::size_t reserved) {
  const std::size_t slots = static_cast<std::size_t>(team.size - 1) * generations;
  const std::size_t room = team.bytes > reserved ? team.bytes - reserved : 0;
  Args args{};
  args.team = team;
  args.in = in.as<const std::uint8_t>();
  args.out = out.as<std::uint8_t>();
  args.bytes = in.bytes();
  const std::int64_t row =
      in.num_dims == 0 ? in.size() : in.shape[static_cast<std::size_t>(in.num_dims - 1)];
  args.row_bytes = static_cast<std::uint64_t>(row) * size_of(in.dtype);
  args.slot_bytes = room / slots / kVectorBytes * kVectorBytes;
  if (args.slot_bytes == 0)
    return Status::error(Code::kInvalidArgument,
                         "the mailbox has " + std::to_string(team.bytes) + " bytes; " +
                             std::to_string(team.size) + " ranks need at least " +
                             std::to_string(reserved + slots * kVectorBytes));
  return args;
}

Status all_reduce(const TeamView& team, const TensorView& in, const TensorView& out,
                  Stream& stream) {
  TENON_ASSIGN(const Args args, make_args(team, in, out, kReduceGenerations, 0));
  const LaunchShape shape = shape_for(args);
  if (in.dtype == DType::kBF16) return launch(stream, shape, all_reduce_kernel<bf16>, args);
  return launch(stream, shape, all_reduce_kernel<f16>, args);
}

Status all_gather(const TeamView& team, const TensorView& in, const TensorView& out,
                  Stream& stream) {
  TENON_ASSIGN(const Args args, make_args(team, in, out, kGatherGenerations, kFlagBytes));
  return launch(stream, shape_for(args), all_gather_kernel, args);
}

}  // namespace

extern const tenon::collectives::Table table;
const tenon::collectives::Table table{all_reduce, all_gather};

}  // namespace tenon::TENON_TARGET::collectives
