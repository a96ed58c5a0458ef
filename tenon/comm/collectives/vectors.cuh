// Bytes as vectors of 16, the arguments and the chunks that the kernels of all_reduce and
// all_gather share.
#pragma once

#include "tenon/comm/device/channel_view.h"
#include "tenon/core/tensor.h"
#include "tenon/device/device.cuh"
#include "tenon/device/variant.h"

namespace tenon::TENON_TARGET::collectives {

inline constexpr std::size_t kVectorBytes = 16;
inline constexpr int kMaxThreads = kWave == 1 ? 1 : 512;

struct KernelArgs {
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

// --- ranges and chunks -----------------------------------------------------------------------

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
TENON_DEVICE Chunk chunk_at(const KernelArgs& args, std::uint64_t begin) {
  const std::uint64_t left = args.bytes - begin;
  const std::uint64_t bytes = left < args.slot_bytes ? left : args.slot_bytes;
  return {begin, bytes, static_cast<std::uint32_t>((bytes + kVectorBytes - 1) / kVectorBytes)};
}

TENON_DEVICE std::uint32_t num_chunks(const KernelArgs& args) {
  return static_cast<std::uint32_t>((args.bytes + args.slot_bytes - 1) / args.slot_bytes);
}

// Where `sender` leaves its chunk for `owner`, of the slots that begin at `first`.
TENON_DEVICE std::byte* slot(const KernelArgs& args, std::uint64_t first, int owner, int sender) {
  const auto place = static_cast<std::uint32_t>(peer_index(sender, owner));
  return args.team.base[owner] + first + place * args.slot_bytes;
}

// --- launches -----------------------------------------------------------------------------------

// What a slot holds where `bytes` are dealt to `slots` of them; too small a mailbox has none.
inline std::uint64_t slot_of(std::size_t bytes, std::size_t slots) {
  return bytes / slots / kVectorBytes * kVectorBytes;
}

// Why calls cannot go through a mailbox, or a shape: a function of the size and of what the ranks
// agreed on, hence the same on every rank.
inline Status shape_for(std::size_t bytes, const PlanContext& where, std::uint64_t slot_bytes,
                        std::size_t least, LaunchShape* shape) {
  if (where.team_size < 2)
    return Status::error(Code::kUnsupported, "one rank has nobody to exchange with");
  if (!where.peer_pointers)
    return Status::error(Code::kUnsupported, "the ranks cannot address each other's mailboxes");
  if (slot_bytes == 0)
    return Status::error(Code::kInvalidArgument,
                         "the mailbox has " + std::to_string(where.mailbox_bytes) + " bytes; " +
                             std::to_string(where.team_size) + " ranks need at least " +
                             std::to_string(least));
  const std::uint64_t chunk = bytes < slot_bytes ? bytes : slot_bytes;
  const auto vectors = static_cast<int>((chunk + kVectorBytes - 1) / kVectorBytes);
  shape->cooperative = true;
  shape->early = where.may_start_early;
  const int wanted = (vectors + kWave - 1) / kWave * kWave;
  shape->threads = kWave == 1 ? 1 : wanted < kMaxThreads ? wanted : kMaxThreads;
  const int blocks = (vectors + shape->threads - 1) / shape->threads;
  // The kernel is compiled so that two of its largest blocks fit where one of 1024 threads does.
  const int units = where.properties.max_cooperative_blocks;
  const int most = kKernelsAreOrdered ? 2 * units : units;
  shape->blocks = blocks < most ? blocks : most;
  return Status::ok();
}

inline KernelArgs kernel_args(const ChannelView& team, const TensorView& in, const TensorView& out,
                              std::uint64_t slot_bytes) {
  KernelArgs args{};
  args.team = team;
  args.in = in.as<const std::uint8_t>();
  args.out = out.as<std::uint8_t>();
  args.bytes = in.bytes();
  const std::int64_t row =
      in.num_dims == 0 ? in.size() : in.shape[static_cast<std::size_t>(in.num_dims - 1)];
  args.row_bytes = static_cast<std::uint64_t>(row) * size_of(in.dtype);
  args.slot_bytes = slot_bytes;
  return args;
}

}  // namespace tenon::TENON_TARGET::collectives
