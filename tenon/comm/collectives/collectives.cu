// Kernels of the plain collectives over peer memory.
//
// all_reduce: every rank sends its addend to every peer and each thread sums what it takes, in rank
// order: the exchange of comm/device/exchange.cuh. all_gather carries bytes of any pattern, so a
// flag follows the payload; it works in steps of one chunk each, counted in device memory. Either
// way nothing in a captured launch ever changes.
#include "tenon/comm/collectives/collectives.h"

#include "tenon/comm/device/exchange.cuh"
#include "tenon/device/vec.cuh"

namespace tenon::TENON_TARGET::collectives {
namespace {

using tenon::collectives::kFlagBytes;
using tenon::collectives::kGatherGenerations;
using tenon::collectives::kMaxFlags;
using tenon::collectives::kVectorBytes;

constexpr int kMaxThreads = kWave == 1 ? 1 : 512;

// The counters of all_gather in ChannelView::state; those of all_reduce are
// comm/device/exchange.cuh's.
constexpr int kStep = 0;        // steps so far
constexpr int kCall = 1;        // calls so far: what faults report
constexpr int kBlocksDone = 2;  // blocks of the running call that have finished

struct Args {
  ChannelView team;
  const std::uint8_t* in;
  std::uint8_t* out;
  std::uint64_t bytes;             // of `in`
  std::uint64_t row_bytes;         // names the row in a fault
  std::uint64_t slot_bytes;        // what a peer's slot holds: the chunk of a step
  std::uint64_t generation_bytes;  // all_reduce: the slots of all peers, and what is left over
  // all_reduce: where peer number (rank + 1 + i) mod size keeps what I send it, in generation 0. So
  // no rank is everybody's first.
  std::byte* to[kMaxRanks - 1];
  bool whole_waves;  // all_reduce: lanes of a wave have as many vectors as each other
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
struct VectorRange {
  std::uint32_t first, stride;
};
TENON_DEVICE VectorRange own_range() {
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

TENON_DEVICE std::uint32_t num_chunks(const Args& args) {
  return static_cast<std::uint32_t>((args.bytes + args.slot_bytes - 1) / args.slot_bytes);
}

// Where `sender` leaves its chunk for `owner`, of the slots that begin at `first`.
TENON_DEVICE std::byte* slot(const Args& args, std::uint64_t first, int owner, int sender) {
  const auto place = static_cast<std::uint32_t>(peer_index(sender, owner));
  return args.team.base[owner] + first + place * args.slot_bytes;
}

// --- all_reduce ---------------------------------------------------------------------------------

// One vector of 16 bytes of a chunk, and where it lies in the call. Whole calls are aligned at both
// ends and have no odd end.
template <bool kWhole>
TENON_DEVICE Word4 load_vector(const Args& args, const Chunk& chunk, std::uint64_t at) {
  if constexpr (kWhole) return load16(args.in + chunk.begin + at);
  return load_bytes(args.in + chunk.begin + at, chunk.bytes - at);
}
template <bool kWhole>
TENON_DEVICE void store_vector(const Args& args, const Chunk& chunk, std::uint64_t at,
                               Word4 words) {
  if constexpr (kWhole) return store16(args.out + chunk.begin + at, words);
  store_bytes(args.out + chunk.begin + at, words, chunk.bytes - at);
}

// The ranks' words, in rank order, in fp32, rounded once.
template <class T, int kRanks>
TENON_DEVICE Word4 sum_words(const Word4 (&words)[kRanks], int size) {
  float sum[8];
  unpack8<T>(words[0], sum);
  TENON_UNROLL
  for (int rank = 1; rank < kRanks; ++rank) {
    if (rank >= size) continue;
    float addend[8];
    unpack8<T>(words[rank], addend);
    TENON_UNROLL
    for (int i = 0; i < 8; ++i) sum[i] = sum[i] + addend[i];
  }
  return pack8<T>(sum);
}

// Sends this thread's vector `v` of a chunk to every peer: a VECTOR of rule 6. Returns it.
template <class Protocol, int kRanks, bool kWhole>
TENON_DEVICE Word4 send_vector(const Args& args, const Call& call, const Chunk& chunk,
                               std::uint32_t v) {
  const std::uint64_t at = std::uint64_t{v} * kVectorBytes;
  const Word4 words = load_vector<kWhole>(args, chunk, at);
  TENON_UNROLL
  for (int i = 0; i < kRanks - 1; ++i)
    if (i < args.team.size - 1)
      send<Protocol>(args.to[i] + call.slot * args.generation_bytes + at, words);
  return words;
}

// Sums vector `v`, of which this rank's words are `own`, as the others' arrive.
template <class T, class Protocol, int kRanks, bool kWhole>
TENON_DEVICE void take_vector(const Args& args, Call& call, const Chunk& chunk, std::uint32_t v,
                              Word4 own) {
  const ChannelView& team = args.team;
  const std::uint64_t at = std::uint64_t{v} * kVectorBytes;
  Word4 words[kRanks] = {};
  // Naming the row costs a division: the wait does it only when it fails.
  take_of_all<Protocol, kRanks>(
      team, call, Phase::kScatter,
      [&] { return static_cast<std::uint32_t>((chunk.begin + at) / args.row_bytes); },
      [&](int rank) {
        return SlotAddress{slot(args, call.slot * args.generation_bytes, team.rank, rank) + at};
      },
      words, args.whole_waves);
  TENON_UNROLL
  for (int rank = 0; rank < kRanks; ++rank)
    if (rank == team.rank) words[rank] = own;
  if (!call.lost) store_vector<kWhole>(args, chunk, at, sum_words<T>(words, team.size));
}

// Each thread sends a vector ahead of the one it sums.
template <class T, int kRanks, bool kWhole, class Protocol = SoundProtocol>
TENON_KERNEL_RESIDENT(kMaxThreads, 2)
all_reduce_kernel(TENON_ARGS(Args) args) {
  enter<Protocol>();
  Call call = begin_call<Protocol>(args.team);
  const ChannelView& team = args.team;
  const VectorRange range = own_range();
  for (std::uint64_t begin = 0; begin < args.bytes; begin += args.slot_bytes) {
    if (begin > 0) next_generation<Protocol>(call);
    const Chunk chunk = chunk_at(args, begin);
    Word4 sent{};
    for (std::uint32_t next = range.first; next < chunk.vectors + range.stride;
         next += range.stride) {
      const Word4 own = sent;
      if (next < chunk.vectors && !call.lost)
        sent = send_vector<Protocol, kRanks, kWhole>(args, call, chunk, next);
      if (next >= range.stride) {
        take_vector<T, Protocol, kRanks, kWhole>(args, call, chunk, next - range.stride, own);
      } else if (begin == 0) {
        count_call<Protocol>(team, call, num_chunks(args));
      }
    }
  }
}

// --- all_gather ---------------------------------------------------------------------------------

// Flags lie in front of the slots: one word per generation, sender and block of the sender.
TENON_DEVICE std::uint32_t* flag(const ChannelView& team, std::uint32_t generation, int owner,
                                 int sender) {
  const int place = (static_cast<int>(generation) * kMaxRanks + sender) * kMaxFlags + block_id();
  return reinterpret_cast<std::uint32_t*>(team.base[owner]) + place;
}
TENON_DEVICE std::byte* payload(const Args& args, std::uint32_t generation, int owner, int sender) {
  const auto places = static_cast<std::uint64_t>(args.team.size - 1);
  return slot(args, kFlagBytes + generation * places * args.slot_bytes, owner, sender);
}

TENON_DEVICE void push_bytes(const Args& args, const Chunk& chunk, std::uint32_t generation) {
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

TENON_DEVICE void take_bytes(const Args& args, const Chunk& chunk, std::uint32_t generation) {
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

TENON_KERNEL_RESIDENT(kMaxThreads, 1) all_gather_kernel(TENON_ARGS(Args) args) {
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

// --- launches -----------------------------------------------------------------------------------

// A function of the size and of what the ranks agreed on, hence the same on every rank.
LaunchShape shape_for(const Args& args) {
  const std::uint64_t chunk = args.bytes < args.slot_bytes ? args.bytes : args.slot_bytes;
  const auto vectors = static_cast<int>((chunk + kVectorBytes - 1) / kVectorBytes);
  LaunchShape shape;
  shape.cooperative = true;
  shape.early = args.team.may_start_early;
  const int wanted = (vectors + kWave - 1) / kWave * kWave;
  shape.threads = kWave == 1 ? 1 : wanted < kMaxThreads ? wanted : kMaxThreads;
  const int blocks = (vectors + shape.threads - 1) / shape.threads;
  // The kernel is compiled so that two of its largest blocks fit where one of 1024 threads does.
  const int most = kKernelsAreOrdered ? 2 * args.team.max_blocks : args.team.max_blocks;
  shape.blocks = blocks < most ? blocks : most;
  return shape;
}

// `slot_bytes`: what a peer's slot holds; too small a mailbox has none.
Result<Args> make_args(const ChannelView& team, const TensorView& in, const TensorView& out,
                       std::size_t slot_bytes, std::size_t least) {
  Args args{};
  args.team = team;
  args.in = in.as<const std::uint8_t>();
  args.out = out.as<std::uint8_t>();
  args.bytes = in.bytes();
  const std::int64_t row =
      in.num_dims == 0 ? in.size() : in.shape[static_cast<std::size_t>(in.num_dims - 1)];
  args.row_bytes = static_cast<std::uint64_t>(row) * size_of(in.dtype);
  args.slot_bytes = slot_bytes / kVectorBytes * kVectorBytes;
  if (args.slot_bytes == 0)
    return Status::error(Code::kInvalidArgument, "the mailbox has " + std::to_string(team.bytes) +
                                                     " bytes; " + std::to_string(team.size) +
                                                     " ranks need at least " +
                                                     std::to_string(least));
  return args;
}

template <class T, class Protocol, int kRanks>
Status launch_all_reduce(const Args& args, Stream& stream) {
  const bool whole = args.bytes % kVectorBytes == 0 &&
                     reinterpret_cast<std::uintptr_t>(args.in) % kVectorBytes == 0 &&
                     reinterpret_cast<std::uintptr_t>(args.out) % kVectorBytes == 0;
  return launch(stream, shape_for(args),
                whole ? all_reduce_kernel<T, kRanks, true, Protocol>
                      : all_reduce_kernel<T, kRanks, false, Protocol>,
                args);
}
template <class T, class Protocol>
Status launch_all_reduce(const Args& args, Stream& stream) {
  if constexpr (kWave > 1) {  // cpu has one for all teams
    if (args.team.size <= 2) return launch_all_reduce<T, Protocol, 2>(args, stream);
    if (args.team.size <= 4) return launch_all_reduce<T, Protocol, 4>(args, stream);
  }
  return launch_all_reduce<T, Protocol, kMaxRanks>(args, stream);
}

template <class Protocol>
Status all_reduce(const ChannelView& team, const TensorView& in, const TensorView& out,
                  Stream& stream) {
  const auto places = static_cast<std::size_t>(team.size - 1);
  TENON_ASSIGN(Args args, make_args(team, in, out, slot_bytes(team.bytes) / places,
                                    tenon::collectives::all_reduce_mailbox_bytes(team.size, 1)));
  args.generation_bytes = slot_bytes(team.bytes);
  for (int i = 0; i < team.size - 1; ++i) {
    const int peer = (team.rank + 1 + i) % team.size;
    const auto place = static_cast<std::uint64_t>(peer_index(team.rank, peer));
    args.to[i] = team.base[peer] + place * args.slot_bytes;
  }
  constexpr std::uint64_t kWaveBytes = std::uint64_t{kVectorBytes} * kWave;
  args.whole_waves = args.bytes % kWaveBytes == 0 &&
                     (args.bytes <= args.slot_bytes || args.slot_bytes % kWaveBytes == 0);
  if (in.dtype == DType::kBF16) return launch_all_reduce<bf16, Protocol>(args, stream);
  return launch_all_reduce<f16, Protocol>(args, stream);
}

Status all_gather(const ChannelView& team, const TensorView& in, const TensorView& out,
                  Stream& stream) {
  const std::size_t slots = static_cast<std::size_t>(team.size - 1) * kGatherGenerations;
  const std::size_t room = team.bytes > kFlagBytes ? team.bytes - kFlagBytes : 0;
  TENON_ASSIGN(const Args args,
               make_args(team, in, out, room / slots,
                         tenon::collectives::all_gather_mailbox_bytes(team.size, 1)));
  LaunchShape shape = shape_for(args);
  const int most = team.max_blocks < kMaxFlags ? team.max_blocks : kMaxFlags;
  if (shape.blocks > most) shape.blocks = most;
  return launch(stream, shape, all_gather_kernel, args);
}

}  // namespace

extern const tenon::collectives::Table table;
const tenon::collectives::Table table{all_reduce<SoundProtocol>, all_gather};

}  // namespace tenon::TENON_TARGET::collectives
