// The plain collectives of a Communicator. all_reduce is the generic one: where the transport
// gathers on streams it does so and sums behind; else, on host targets, it moves bytes through the
// transport's host exchange and sums here, with no peer pointer; on devices it is the kernel over
// peer memory. Kernels: collectives.cu, ranked_sum.cu.
#include "tenon/comm/collectives/collectives.h"

#include <algorithm>
#include <functional>
#include <type_traits>

#include "tenon/comm/collectives/ranked_sum.h"
#include "tenon/comm/communicator.h"
#include "tenon/comm/state.h"
#include "tenon/comm/transport/host_exchange.h"
#include "tenon/core/fp8.h"

// The tables that the kernel files define, one for each target of this build.
#define TENON_TARGET_ENTRY(enumerator, space, folder, wave) \
  namespace tenon::space::collectives {                     \
  extern const tenon::collectives::Table table;             \
  }                                                         \
  namespace tenon::space::ranked_sum {                      \
  extern const tenon::ranked_sum::Table table;              \
  }
#include "tenon/core/built_targets.def"
#undef TENON_TARGET_ENTRY

namespace tenon {

const collectives::Table* collectives::table(Target target) {
  switch (target) {
#define TENON_TARGET_ENTRY(enumerator, space, folder, wave) \
  case Target::k##enumerator:                               \
    return &space::collectives::table;
#include "tenon/core/built_targets.def"
#undef TENON_TARGET_ENTRY
    default: return nullptr;
  }
}

const ranked_sum::Table* ranked_sum::table(Target target) {
  switch (target) {
#define TENON_TARGET_ENTRY(enumerator, space, folder, wave) \
  case Target::k##enumerator:                               \
    return &space::ranked_sum::table;
#include "tenon/core/built_targets.def"
#undef TENON_TARGET_ENTRY
    default: return nullptr;
  }
}

namespace {

constexpr std::size_t kChunkBytes = HostExchange::kChunkBytes;

// Of every rank's addend, what is gathered at a time on a stream: 64 MiB in all for eight ranks.
constexpr std::size_t kGatherBytes = std::size_t{8} << 20;
std::size_t gather_bytes(Target target) { return is_host(target) ? kChunkBytes : kGatherBytes; }

// A gather and a sum for each chunk, in the order of the stream: one scratch serves them all.
Status reduce_on_stream(Communicator::State& state, const TensorView& in, const TensorView& out,
                        Stream& stream) {
  StreamCollectives& collectives = *state.transport->on_streams();
  const auto* from = in.as<const std::byte>();
  if (state.vendor_sum)
    return collectives.all_reduce(from, out.as<std::byte>(), static_cast<std::size_t>(in.size()),
                                  in.dtype, stream);
  const ranked_sum::Table* sums = ranked_sum::table(state.device.target);
  const std::size_t most = gather_bytes(state.device.target);
  for (std::size_t begin = 0; begin < in.bytes(); begin += most) {
    ranked_sum::Args args;
    args.bytes = std::min(most, in.bytes() - begin);
    args.parts = state.gathered.as<const std::uint8_t>();
    args.out = out.as<std::uint8_t>() + begin;
    args.size = state.bootstrap->size();
    TENON_TRY(
        collectives.all_gather(from + begin, state.gathered.as<std::byte>(), args.bytes, stream));
    TENON_TRY(sums->run(args, in.dtype, stream));
  }
  return Status::ok();
}

// What collectives on streams need: scratch, and connections to all peers.
Status open_streams(Communicator::State& state) {
  const std::size_t part = gather_bytes(state.device.target);
  auto scratch =
      Buffer::allocate(state.device, part * static_cast<std::size_t>(state.bootstrap->size()));
  TENON_TRY(agree(*state.bootstrap, scratch.status(), "scratch of all_reduce", state.deadline));
  state.gathered = *std::move(scratch);
  return state.transport->on_streams()->connect(state.gathered.as<std::byte>(), part,
                                                state.vendor_sum);
}

// out[i] = the sum of the ranks' element i, in rank order, in fp32, rounded once.
template <class T>
void sum_chunk(const std::byte* all, std::size_t count, int size, std::byte* out_bytes) {
  const T* in = reinterpret_cast<const T*>(all);
  T* out = reinterpret_cast<T*>(out_bytes);
  for (std::size_t i = 0; i < count; ++i) {
    float sum = to_float(in[i]);
    for (int rank = 1; rank < size; ++rank)
      sum += to_float(in[static_cast<std::size_t>(rank) * count + i]);
    if constexpr (std::is_same_v<T, bf16>)
      out[i] = to_bf16(sum);
    else
      out[i] = to_f16(sum);
  }
}

void all_reduce_on_host(const HostCollective& job) {
  Communicator::State& state = *job.state;
  const ChannelView team = state.bare_team();
  if (load_word(team.abort_word[team.rank]) != 0) return;
  for (std::size_t begin = 0; begin < job.bytes; begin += kChunkBytes) {
    const std::size_t count = std::min(kChunkBytes, job.bytes - begin);
    const std::span all(state.scratch.data(), count * static_cast<std::size_t>(team.size));
    if (!state.transport->all_gather(HostChannel::kData, {job.in + begin, count}, all, team))
      return;
    if (job.sum_as == DType::kBF16)
      sum_chunk<bf16>(all.data(), count / sizeof(bf16), team.size, job.out + begin);
    else
      sum_chunk<f16>(all.data(), count / sizeof(f16), team.size, job.out + begin);
  }
}

void run_on_host(void* data) {
  const HostCollective& job = *static_cast<const HostCollective*>(data);
  if (job.sum_as) return all_reduce_on_host(job);
  const ChannelView team = job.state->bare_team();
  if (load_word(team.abort_word[team.rank]) != 0) return;
  job.state->transport->all_gather(HostChannel::kData, {job.in, job.bytes},
                                   {job.out, job.bytes * static_cast<std::size_t>(team.size)},
                                   team);
}

Status enqueue(Communicator::State& state, const HostCollective& job, Stream& stream) {
  if (!is_host(state.device.target))
    return Status::error(Code::kUnsupported, "transport " + std::string(state.transport_name) +
                                                 " moves bytes on the host, which cannot read " +
                                                 "the memory of " +
                                                 std::string(name(state.device.target)));
  if (stream.capturing()) {
    state.recorded.push_back(job);
    return stream.host_call(run_on_host, &state.recorded.back());
  }
  HostCollective now = job;  // host targets run it before host_call returns
  return stream.host_call(run_on_host, &now);
}

// Kernels and copies of `stream` reach both. `out` may be `in` itself, where that is said to be
// allowed, but not lie across it.
Status check_place(std::string_view what, const TensorView& in, const TensorView& out,
                   bool in_place, Device device, const Stream& stream) {
  const auto refuse = [&](std::string_view why) {
    return Status::error(Code::kInvalidArgument, std::string(what) + ": in is " + describe(in) +
                                                     " and out is " + describe(out) +
                                                     std::string(why));
  };
  if (in.device != device || out.device != device || stream.device() != device) [[unlikely]]
    return refuse(", the stream is on " + std::string(name(stream.device().target)) + ":" +
                  std::to_string(stream.device().index) +
                  "; accepted: " + std::string(name(device.target)) + ":" +
                  std::to_string(device.index) + ", the device of the communicator");
  if (in.bytes() == 0) return Status::ok();
  if (in.data == nullptr || out.data == nullptr) [[unlikely]]
    return refuse(", but a data pointer is null");
  const auto* const from = in.as<const std::byte>();
  const auto* const to = out.as<const std::byte>();
  const bool apart =
      !std::less<>()(from, to + out.bytes()) || !std::less<>()(to, from + in.bytes());
  if (!apart && !(in_place && from == to)) [[unlikely]]
    return refuse(in_place ? "; they overlap, but out must be the addend itself or lie apart"
                           : "; they overlap, but must lie apart");
  return Status::ok();
}

Status check_reduce(const TensorView& in, const TensorView& out, Device device,
                    const Stream& stream) {
  if (in.dtype != DType::kBF16 && in.dtype != DType::kF16)
    return Status::error(Code::kInvalidArgument,
                         "all_reduce: the addend is " + describe(in) + "; accepted: bf16, f16");
  if (out.dtype != in.dtype || out.size() != in.size())
    return Status::error(Code::kInvalidArgument, "all_reduce: out is " + describe(out) +
                                                     " but the addend is " + describe(in));
  if (!in.contiguous() || !out.contiguous())
    return Status::error(Code::kInvalidArgument,
                         "all_reduce: addend and out must be contiguous; they are " + describe(in) +
                             " and " + describe(out));
  return check_place("all_reduce", in, out, true, device, stream);
}

Status check_gather(const TensorView& in, const TensorView& out, int size, Device device,
                    const Stream& stream) {
  if (out.dtype != in.dtype || out.size() != in.size() * size)
    return Status::error(Code::kInvalidArgument, "all_gather: out is " + describe(out) + " but " +
                                                     std::to_string(size) + " times " +
                                                     describe(in) + " is gathered");
  if (!in.contiguous() || !out.contiguous())
    return Status::error(Code::kInvalidArgument,
                         "all_gather: in and out must be contiguous; they are " + describe(in) +
                             " and " + describe(out));
  return check_place("all_gather", in, out, size == 1, device, stream);
}

Status copy_alone(const TensorView& in, const TensorView& out, Stream& stream) {
  return in.data == out.data ? Status::ok() : stream.copy(out.data, in.data, in.bytes());
}

std::size_t num_peers(int team_size) {
  return static_cast<std::size_t>(std::max(team_size - 1, 1));
}
std::size_t round_up(std::size_t bytes) {
  using collectives::kVectorBytes;
  return std::max<std::size_t>((bytes + kVectorBytes - 1) / kVectorBytes, 1) * kVectorBytes;
}

Result<const collectives::Table*> kernels_for(const Channel& channel, const Stream& stream) {
  TENON_TRY(channel.ready());
  if (!channel || channel.view().base[0] == nullptr)
    return Status::error(Code::kUnsupported,
                         "channel \"" + std::string(channel.label()) + "\" has no peer pointers");
  const Target target = stream.device().target;
  const collectives::Table* found = collectives::table(target);
  if (found == nullptr)
    return Status::error(Code::kUnsupported,
                         "target " + std::string(name(target)) + " is not part of this build");
  return found;
}

}  // namespace

namespace collectives {

std::size_t all_reduce_mailbox_bytes(int team_size, std::size_t chunk_bytes) {
  const std::size_t slot = num_peers(team_size) * round_up(chunk_bytes);
  return mailbox_with_slots_of(slot);
}

std::size_t all_gather_mailbox_bytes(int team_size, std::size_t chunk_bytes) {
  return kGatherGenerations * num_peers(team_size) * round_up(chunk_bytes) + kFlagBytes;
}

Status all_reduce(const Channel& channel, const PartialRows& in, const TensorView& out,
                  Stream& stream) {
  const ChannelView& team = channel.view();
  TENON_TRY(check_reduce(in.addend, out, channel.device(), stream));
  if (in.addend.size() == 0) return Status::ok();
  if (team.size == 1) return copy_alone(in.addend, out, stream);
  TENON_ASSIGN(const Table* const kernels, kernels_for(channel, stream), "all_reduce");
  return kernels->all_reduce(team, in.addend, out, stream);
}

Status all_gather(const Channel& channel, const TensorView& in, const TensorView& out,
                  Stream& stream) {
  const ChannelView& team = channel.view();
  TENON_TRY(check_gather(in, out, team.size, channel.device(), stream));
  if (in.size() == 0) return Status::ok();
  if (team.size == 1) return copy_alone(in, out, stream);
  TENON_ASSIGN(const Table* const kernels, kernels_for(channel, stream), "all_gather");
  return kernels->all_gather(team, in, out, stream);
}

}  // namespace collectives

Status Communicator::open_collectives() {
  if (state_->transport->on_streams() != nullptr) return open_streams(*state_);
  state_->scratch.resize(kChunkBytes * static_cast<std::size_t>(size()));
  if (!can().peer_pointers) return Status::ok();
  TENON_ASSIGN(
      gather_channel_,
      make_channel(collectives::all_gather_mailbox_bytes(size(), kChunkBytes), "all_gather"));
  if (is_host(device().target)) return Status::ok();
  TENON_ASSIGN(
      reduce_channel_,
      make_channel(collectives::all_reduce_mailbox_bytes(size(), kChunkBytes), "all_reduce"));
  return Status::ok();
}

Status Communicator::all_reduce(const PartialRows& in, const TensorView& out, Stream& stream) {
  TENON_TRY(check_reduce(in.addend, out, device(), stream));
  TENON_TRY(state_->awake(), "all_reduce");
  if (in.addend.size() == 0) return Status::ok();
  if (size() == 1) return copy_alone(in.addend, out, stream);
  if (reduce_channel_) return collectives::all_reduce(reduce_channel_, in, out, stream);
  if (state_->transport->on_streams() != nullptr)
    return reduce_on_stream(*state_, in.addend, out, stream);
  const HostCollective job{state_.get(), in.addend.as<const std::byte>(), out.as<std::byte>(),
                           in.addend.bytes(), in.addend.dtype};
  return enqueue(*state_, job, stream);
}

Status Communicator::all_gather(const TensorView& in, const TensorView& out, Stream& stream) {
  TENON_TRY(state_->awake(), "all_gather");
  if (gather_channel_) return collectives::all_gather(gather_channel_, in, out, stream);
  TENON_TRY(check_gather(in, out, size(), device(), stream));
  if (in.size() == 0) return Status::ok();
  if (StreamCollectives* const collectives = state_->transport->on_streams())
    return size() == 1 ? copy_alone(in, out, stream)
                       : collectives->all_gather(in.as<const std::byte>(), out.as<std::byte>(),
                                                 in.bytes(), stream);
  const HostCollective job{
      state_.get(), in.as<const std::byte>(), out.as<std::byte>(), in.bytes(), {}};
  return enqueue(*state_, job, stream);
}

}  // namespace tenon
