// The plain collectives of a Communicator. all_reduce is the generic one: where the transport
// gathers on streams it does so and sums behind; else, on host targets, it moves bytes through the
// transport's host exchange and sums here, with no peer pointer; on devices it is the kernel over
// peer memory. Kernels: the folders beside.
#include "tenon/comm/collectives/collectives.h"

#include <algorithm>
#include <type_traits>

#include "tenon/comm/collectives/all_gather/all_gather.h"
#include "tenon/comm/collectives/all_reduce/all_reduce.h"
#include "tenon/comm/collectives/places.h"
#include "tenon/comm/collectives/ranked_sum/ranked_sum.h"
#include "tenon/comm/communicator.h"
#include "tenon/comm/plan_context.h"
#include "tenon/comm/state.h"
#include "tenon/comm/transport/host_exchange.h"
#include "tenon/core/fp8.h"

namespace tenon {
namespace {

constexpr std::size_t kChunkBytes = HostExchange::kChunkBytes;

// Of every rank's addend, what is gathered at a time on a stream: 64 MiB in all for eight ranks.
constexpr std::size_t kGatherBytes = std::size_t{8} << 20;

// Of a rank's mailbox of all_gather, whatever the number of ranks: on devices a step costs a round
// trip, so that the slots of one must hold what links carry in much longer than that.
constexpr std::size_t kGatherMailboxBytes = std::size_t{16} << 20;
std::size_t gather_mailbox_bytes(Target target, int size) {
  const std::size_t least = collectives::all_gather_mailbox_bytes(size, kChunkBytes);
  return is_host(target) || size == 1 ? least : std::max(least, kGatherMailboxBytes);
}

std::size_t gather_bytes(Target target) { return is_host(target) ? kChunkBytes : kGatherBytes; }

// A gather and a sum for each chunk, in the order of the stream: one scratch serves them all.
Status reduce_on_stream(Communicator::State& state, const TensorView& in, const TensorView& out,
                        Stream& stream) {
  StreamCollectives& collectives = *state.transport->on_streams();
  const auto* from = in.as<const std::byte>();
  if (state.vendor_sum)
    return collectives.all_reduce(from, out.as<std::byte>(), static_cast<std::size_t>(in.size()),
                                  in.dtype, stream);
  PlanContext where;  // the sum asks nothing of it but the target
  where.device = state.device;
  const std::size_t most = gather_bytes(state.device.target);
  for (std::size_t begin = 0; begin < in.bytes(); begin += most) {
    ranked_sum::Args args;
    args.bytes = std::min(most, in.bytes() - begin);
    args.parts = state.gathered.as<const std::uint8_t>();
    args.out = out.as<std::uint8_t>() + begin;
    args.size = state.bootstrap->size();
    args.dtype = in.dtype;
    TENON_TRY(
        collectives.all_gather(from + begin, state.gathered.as<std::byte>(), args.bytes, stream));
    TENON_ASSIGN(const Plan plan, choose(ranked_sum::kOp, &args, where));
    TENON_TRY(launch(plan, &args, nullptr, stream));
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

Status check_reduce(const TensorView& in, const TensorView& out, Device device,
                    const Stream& stream) {
  TENON_TRY(all_reduce::check({in, out}));
  return collectives::check_place("all_reduce", in, out, true, device, stream);
}

Status check_gather(const all_gather::Args& args, int size, Device device, const Stream& stream) {
  TENON_TRY(all_gather::check(args, size));
  return all_gather::check_place(args, size, device, stream);
}

Status copy_alone(const TensorView& in, const TensorView& out, Stream& stream) {
  return in.data == out.data ? Status::ok() : stream.copy(out.data, in.data, in.bytes());
}

// `least`: bytes of a mailbox that holds a vector of every peer.
Status check_channel(const Channel& channel, std::size_t least) {
  TENON_TRY(channel.ready());
  if (!channel || channel.view().base[0] == nullptr)
    return Status::error(Code::kUnsupported,
                         "channel \"" + std::string(channel.label()) + "\" has no peer pointers");
  const ChannelView& team = channel.view();
  if (team.bytes < least)
    return Status::error(Code::kInvalidArgument, "the mailbox has " + std::to_string(team.bytes) +
                                                     " bytes; " + std::to_string(team.size) +
                                                     " ranks need at least " +
                                                     std::to_string(least));
  return Status::ok();
}

}  // namespace

namespace collectives {

std::size_t all_reduce_mailbox_bytes(int team_size, std::size_t chunk_bytes) {
  return tenon::all_reduce::mailbox_bytes(team_size, chunk_bytes);
}

std::size_t all_gather_mailbox_bytes(int team_size, std::size_t chunk_bytes) {
  return tenon::all_gather::mailbox_bytes(team_size, chunk_bytes);
}

// Plans of these are made call by call: a function of sizes, in which nothing is allocated where
// the variant says yes.
Status all_reduce(const Channel& channel, const PartialRows& in, const TensorView& out,
                  Stream& stream) {
  const ChannelView& team = channel.view();
  TENON_TRY(check_reduce(in.addend, out, channel.device(), stream));
  if (in.addend.size() == 0) return Status::ok();
  if (team.size == 1) return copy_alone(in.addend, out, stream);
  TENON_TRY(check_channel(channel, all_reduce_mailbox_bytes(team.size, 1)), "all_reduce");
  const tenon::all_reduce::Args args{in.addend, out};
  TENON_ASSIGN(const Plan plan, choose(tenon::all_reduce::kOp, &args, plan_context(channel)));
  return launch(plan, &args, &team, stream);
}

namespace {
Status gather(const Channel& channel, const tenon::all_gather::Args& args, Stream& stream) {
  const ChannelView& team = channel.view();
  TENON_TRY(check_gather(args, team.size, channel.device(), stream));
  if (args.in.size() == 0) return Status::ok();
  if (team.size == 1) return copy_alone(args.in, args.out, stream);
  TENON_TRY(check_channel(channel, all_gather_mailbox_bytes(team.size, 1)), "all_gather");
  TENON_ASSIGN(const Plan plan, choose(tenon::all_gather::kOp, &args, plan_context(channel)));
  return launch(plan, &args, &team, stream);
}
}  // namespace

Status all_gather(const Channel& channel, const TensorView& in, const TensorView& out,
                  Stream& stream) {
  return gather(channel, {in, out}, stream);
}

Status deal_rows(const Channel& channel, const TensorView& in, const TensorView& out,
                 Stream& stream) {
  return gather(channel, {in, out, tenon::all_gather::Form::kDeal, channel.view().rank}, stream);
}

Status collect_rows(const Channel& channel, const TensorView& rows, Stream& stream) {
  return gather(channel, {rows, rows, tenon::all_gather::Form::kCollect, channel.view().rank},
                stream);
}

}  // namespace collectives

Status Communicator::open_collectives() {
  if (state_->transport->on_streams() != nullptr) return open_streams(*state_);
  state_->scratch.resize(kChunkBytes * static_cast<std::size_t>(size()));
  if (!can().peer_pointers) return Status::ok();
  TENON_ASSIGN(gather_channel_,
               make_channel(gather_mailbox_bytes(device().target, size()), "all_gather"));
  if (is_host(device().target)) return Status::ok();
  TENON_ASSIGN(
      reduce_channel_,
      make_channel(collectives::all_reduce_mailbox_bytes(size(), kChunkBytes), "all_reduce"));
  return Status::ok();
}

std::int64_t Communicator::mailbox_bytes() const {
  return static_cast<std::int64_t>(gather_channel_.bytes() + reduce_channel_.bytes());
}

Status Communicator::all_reduce(const PartialRows& in, const TensorView& out, Stream& stream) {
  tell_call();
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
  tell_call();
  TENON_TRY(state_->awake(), "all_gather");
  if (gather_channel_) return collectives::all_gather(gather_channel_, in, out, stream);
  TENON_TRY(check_gather({in, out}, size(), device(), stream));
  if (in.size() == 0) return Status::ok();
  if (StreamCollectives* const collectives = state_->transport->on_streams())
    return size() == 1 ? copy_alone(in, out, stream)
                       : collectives->all_gather(in.as<const std::byte>(), out.as<std::byte>(),
                                                 in.bytes(), stream);
  const HostCollective job{
      state_.get(), in.as<const std::byte>(), out.as<std::byte>(), in.bytes(), {}};
  return enqueue(*state_, job, stream);
}

Status Communicator::deal_rows(const TensorView& in, const TensorView& out, Stream& stream) {
  tell_call();
  TENON_TRY(check_deals("deal_rows"));
  return collectives::deal_rows(gather_channel_, in, out, stream);
}

Status Communicator::collect_rows(const TensorView& rows, Stream& stream) {
  tell_call();
  TENON_TRY(check_deals("collect_rows"));
  return collectives::collect_rows(gather_channel_, rows, stream);
}

Status Communicator::check_deals(std::string_view what) const {
  TENON_TRY(state_->awake(), what);
  if (gather_channel_) return Status::ok();
  return Status::error(Code::kUnsupported,
                       std::string(what) + ": over transport " + std::string(transport()) +
                           " the ranks cannot address each other's memory, by which rows are " +
                           "dealt; accepted where can().peer_pointers");
}

}  // namespace tenon
