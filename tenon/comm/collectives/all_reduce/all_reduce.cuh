// The kernel of all_reduce and its launch: every rank sends its addend to every peer and each
// thread sums what it takes, in rank order. The exchange is that of comm/device/exchange.cuh.
#pragma once

#include "tenon/comm/collectives/all_reduce/all_reduce.h"
#include "tenon/comm/collectives/vectors.cuh"
#include "tenon/comm/device/exchange.cuh"
#include "tenon/device/vec.cuh"

namespace tenon::TENON_TARGET::all_reduce {

using namespace tenon::TENON_TARGET::collectives;

// One vector of 16 bytes of a chunk, and where it lies in the call. Whole calls are aligned at both
// ends and have no odd end.
template <bool kWhole>
TENON_DEVICE Word4 load_vector(const KernelArgs& args, const Chunk& chunk, std::uint64_t at) {
  if constexpr (kWhole) return load16(args.in + chunk.begin + at);
  return load_bytes(args.in + chunk.begin + at, chunk.bytes - at);
}
template <bool kWhole>
TENON_DEVICE void store_vector(const KernelArgs& args, const Chunk& chunk, std::uint64_t at,
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
  return round_pack8<T>(sum);
}

// Sends this thread's vector `v` of a chunk to every peer: a VECTOR of rule 6. Returns it.
template <class Protocol, int kRanks, bool kWhole>
TENON_DEVICE Word4 send_vector(const KernelArgs& args, const Call& call, const Chunk& chunk,
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
TENON_DEVICE void take_vector(const KernelArgs& args, Call& call, const Chunk& chunk,
                              std::uint32_t v, Word4 own) {
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
all_reduce_kernel(TENON_ARGS(KernelArgs) args) {
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

// What a peer's slot holds of a mailbox of `bytes`.
inline std::uint64_t slot_in(std::size_t bytes, int team_size) {
  return slot_of(slot_bytes(bytes), static_cast<std::size_t>(team_size - 1));
}

template <class T, class Protocol, int kRanks>
Status launch_instance(const LaunchShape& shape, const KernelArgs& args, Stream& stream) {
  const bool whole = args.bytes % kVectorBytes == 0 &&
                     reinterpret_cast<std::uintptr_t>(args.in) % kVectorBytes == 0 &&
                     reinterpret_cast<std::uintptr_t>(args.out) % kVectorBytes == 0;
  return launch(stream, shape,
                whole ? all_reduce_kernel<T, kRanks, true, Protocol>
                      : all_reduce_kernel<T, kRanks, false, Protocol>,
                args);
}
template <class T, class Protocol>
Status launch_instance(const LaunchShape& shape, const KernelArgs& args, Stream& stream) {
  if constexpr (kWave > 1) {  // cpu has one for all teams
    if (args.team.size <= 2) return launch_instance<T, Protocol, 2>(shape, args, stream);
    if (args.team.size <= 4) return launch_instance<T, Protocol, 4>(shape, args, stream);
  }
  return launch_instance<T, Protocol, kMaxRanks>(shape, args, stream);
}

template <class Protocol>
Status launch_all_reduce(const LaunchShape& shape, const tenon::all_reduce::Args& call,
                         const ChannelView& team, Stream& stream) {
  KernelArgs args = kernel_args(team, call.in, call.out, slot_in(team.bytes, team.size));
  args.generation_bytes = slot_bytes(team.bytes);
  for (int i = 0; i < team.size - 1; ++i) {
    const int peer = (team.rank + 1 + i) % team.size;
    const auto place = static_cast<std::uint64_t>(peer_index(team.rank, peer));
    args.to[i] = team.base[peer] + place * args.slot_bytes;
  }
  constexpr std::uint64_t kWaveBytes = std::uint64_t{kVectorBytes} * kWave;
  args.whole_waves = args.bytes % kWaveBytes == 0 &&
                     (args.bytes <= args.slot_bytes || args.slot_bytes % kWaveBytes == 0);
  if (call.in.dtype == DType::kBF16) return launch_instance<bf16, Protocol>(shape, args, stream);
  return launch_instance<f16, Protocol>(shape, args, stream);
}

}  // namespace tenon::TENON_TARGET::all_reduce
