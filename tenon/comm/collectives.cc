// The plain collectives of a Communicator. all_reduce is the generic one: it moves bytes through
// the transport's host exchange and sums here, with no peer pointer. Kernels: collectives.cu.
#include "tenon/comm/communicator.h"
#include "tenon/comm/host_exchange.h"
#include "tenon/comm/state.h"
#include "tenon/core/fp8.h"

namespace tenon {
namespace {

constexpr std::size_t kChunkBytes = HostExchange::kChunkBytes;

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
  const TeamView team = state.bare_team();
  if (load_word(team.abort_word[team.rank]) != 0) return;
  for (std::size_t begin = 0; begin < job.bytes; begin += kChunkBytes) {
    const std::size_t count = std::min(kChunkBytes, job.bytes - begin);
    const std::span all(state.scratch.data(), count * static_cast<std::size_t>(team.size));
    if (!state.transport->all_gather(Lane::kData, {job.in + begin, count}, all, team)) return;
    if (job.sum_as == DType::kBF16)
      sum_chunk<bf16>(all.data(), count / sizeof(bf16), team.size, job.out + begin);
    else
      sum_chunk<f16>(all.data(), count / sizeof(f16), team.size, job.out + begin);
  }
}

void run_on_host(void* data) {
  const HostCollective& job = *static_cast<const HostCollective*>(data);
  if (job.sum_as) return all_reduce_on_host(job);
  const TeamView team = job.state->bare_team();
  if (load_word(team.abort_word[team.rank]) != 0) return;
  job.state->transport->all_gather(Lane::kData, {job.in, job.bytes},
                                   {job.out, job.bytes * static_cast<std::size_t>(team.size)},
                                   team);
}

Status enqueue(Communicator::State& state, const HostCollective& job, Stream& stream) {
  if (stream.capturing()) {
    state.recorded.push_back(job);
    return stream.host_call(run_on_host, &state.recorded.back());
  }
  HostCollective now = job;  // host targets run it before host_call returns
  return stream.host_call(run_on_host, &now);
}

Status check_reduce(const TensorView& in, const TensorView& out) {
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
  return Status::ok();
}

Status check_gather(const TensorView& in, const TensorView& out, int size) {
  if (out.dtype != in.dtype || out.size() != in.size() * size)
    return Status::error(Code::kInvalidArgument, "all_gather: out is " + describe(out) + " but " +
                                                     std::to_string(size) + " times " +
                                                     describe(in) + " is gathered");
  if (!in.contiguous() || !out.contiguous())
    return Status::error(Code::kInvalidArgument,
                         "all_gather: in and out must be contiguous; they are " + describe(in) +
                             " and " + describe(out));
  return Status::ok();
}

}  // namespace

Status Communicator::open_collectives() {
  state_->scratch.resize(kChunkBytes * static_cast<std::size_t>(size()));
  return Status::ok();
}

Status Communicator::all_reduce(const PartialRows& in, const TensorView& out, Stream& stream) {
  TENON_TRY(check_reduce(in.addend, out));
  if (in.addend.size() == 0) return Status::ok();
  HostCollective job{state_.get(), in.addend.as<const std::byte>(), out.as<std::byte>(),
                     in.addend.bytes(), in.addend.dtype};
  return enqueue(*state_, job, stream);
}

Status Communicator::all_gather(const TensorView& in, const TensorView& out, Stream& stream) {
  TENON_TRY(check_gather(in, out, size()));
  if (in.size() == 0) return Status::ok();
  HostCollective job{state_.get(), in.as<const std::byte>(), out.as<std::byte>(), in.bytes(), {}};
  return enqueue(*state_, job, stream);
}

}  // namespace tenon
