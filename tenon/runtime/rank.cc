#include "tenon/runtime/rank.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <string>
#include <thread>

#include "tenon/comm/agreement.h"
#include "tenon/comm/bootstrap/bootstrap.h"
#include "tenon/core/env.h"
#include "tenon/core/guard.h"
#include "tenon/ops/sampling/sampling.h"
#include "tenon/runtime/engine.h"

namespace tenon {
namespace {

// Ranks of one machine share its cores.
int threads_of_rank(int ranks) {
  if (env().cpu_threads > 0) return env().cpu_threads;
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / ranks);
}

}  // namespace

Rank::Rank(const EngineOptions& options)
    : max_batch_(options.max_batch),
      max_context_(options.max_context),
      num_tokens_(options.num_tokens),
      layout_(options.max_tokens_per_step, options.max_batch,
              Scheduler::blocks_per_sequence(options.max_context)) {}

Result<std::unique_ptr<Rank>> Rank::open(const EngineOptions& options, int rank,
                                         std::shared_ptr<Bootstrap> bootstrap,
                                         const ModelFactory& make_model) {
  std::unique_ptr<Rank> opened(new Rank(options));
  // Before ranks meet: no target is the plainest reason of all.
  const bool is_process = options.bootstrap != nullptr;
  const int place = is_process ? local_rank_or(rank, std::getenv) : rank;
  TENON_ASSIGN(const Device device, nth_device(options.target, place));
  set_log_rank(rank);
  set_cpu_threads(threads_of_rank(options.tp));
  CommOptions comm_options;
  comm_options.rank = rank;
  comm_options.size = options.tp;
  comm_options.transport = options.transport;
  comm_options.deadline = options.deadline;
  comm_options.bootstrap = std::move(bootstrap);
  TENON_ASSIGN(opened->comm_, Communicator::create(comm_options, device));
  Fields fields;  // what steps, caches and draws are cut to; a process may have been told otherwise
  fields("max_batch", options.max_batch);
  fields("max_context", options.max_context);
  fields("max_tokens_per_step", options.max_tokens_per_step);
  fields("num_tokens", options.num_tokens);
  TENON_TRY(opened->comm_->agree_equal(fields, "engine options"));
  TENON_ASSIGN(Stream stream, Stream::create(device));
  opened->stream_.emplace(std::move(stream));
  TENON_ASSIGN(opened->model_, make_model(*opened->comm_, *opened->stream_));
  TENON_TRY(opened->allocate());
  TENON_TRY(opened->stream_->synchronize());
  return opened;
}

Status Rank::allocate() {
  const Device device = comm_->device();
  const int vocab = model_->vocab_size();
  if (vocab % comm_->size() != 0)
    return Status::error(Code::kInternal,
                         "the model reports a vocabulary of " + std::to_string(vocab) + ", which " +
                             std::to_string(comm_->size()) + " ranks cannot share evenly");
  if (num_tokens_ <= 0) num_tokens_ = model_->num_ids();
  num_tokens_ = std::min(num_tokens_, model_->num_ids());
  const auto batch = static_cast<std::size_t>(max_batch_);
  TENON_ASSIGN(input_, Buffer::allocate(device, layout_.bytes()));
  TENON_ASSIGN(logits_, Buffer::allocate(device, batch * static_cast<std::size_t>(vocab) * 4));
  TENON_ASSIGN(drawn_, Buffer::allocate(device, batch * 4));
  drawn_host_.resize(batch);
  if (comm_->rank() != 0) received_.resize(layout_.bytes());
  const int sharers = is_host(device.target) ? comm_->size() : 1;
  TENON_ASSIGN(caches_, CacheMemory::allocate(model_->cache_layout(),
                                              {max_context_, max_batch_, sharers}, *stream_));
  return plan_sampling();
}

TensorView Rank::gathered_logits(int rows) const {
  return view(logits_.data(), DType::kF32, comm_->device(),
              {comm_->size(), rows, model_->vocab_size() / comm_->size()});
}

Status Rank::plan_sampling() {
  const Device device = comm_->device();
  sampling::Args args;
  args.logits = gathered_logits(max_batch_);
  args.num_tokens = num_tokens_;
  const auto per_row = [&](DType dtype) {
    return view(input_.data(), dtype, device, {max_batch_});  // shapes and types only
  };
  args.temperature = args.top_p = per_row(DType::kF32);
  args.top_k = args.position = per_row(DType::kI32);
  args.seed = per_row(DType::kI64);
  args.out = view(drawn_.data(), DType::kI32, device, {max_batch_});
  TENON_ASSIGN(const PlanContext where, plan_context(device));
  TENON_ASSIGN(sampling_plan_, sampling::plan(args, where));
  return Status::ok();
}

Status Rank::run_on_stream(std::span<const std::byte> input) {
  const Device device = comm_->device();
  Stream& stream = *stream_;
  TENON_TRY(stream.copy(input_.data(), input.data(), input.size()));
  const StepView step = StepReader::step(layout_, input, input_.data(), device);
  TENON_ASSIGN(const LogitsShard shard, model_->forward(step, caches_.views(), stream));
  last_rows_ = step.num_sequences;
  sampling::Args args;
  args.logits = gathered_logits(step.num_sequences);
  TENON_TRY(comm_->all_gather(shard.logits, args.logits, stream));
  args.num_tokens = num_tokens_;
  const auto fields = StepReader::sampling(layout_, input, input_.data(), device);
  args.temperature = fields.temperature;
  args.top_k = fields.top_k;
  args.top_p = fields.top_p;
  args.seed = fields.seed;
  args.position = fields.position;
  args.out = view(drawn_.data(), DType::kI32, device, {step.num_sequences});
  TENON_TRY(sampling::run(sampling_plan_, args, stream));
  TENON_TRY(stream.copy(drawn_host_.data(), drawn_.data(), args.out.bytes()));
  TENON_TRY(stream.synchronize());
  // What a sequence without a number leaves behind may be NaN, and 0 · NaN is NaN for whoever has
  // these blocks and this slot next.
  for (int row = 0; row < last_rows_; ++row)
    if (drawn_host_[static_cast<std::size_t>(row)] < 0)
      TENON_TRY(caches_.clear(StepReader::caches(layout_, input, row), stream));
  return comm_->health();
}

Result<std::span<const std::int32_t>> Rank::run(std::span<const std::byte> input) {
  const Status status = guarded([&] { return run_on_stream(input); });
  if (!status) {
    // What a peer did wrong comes first: a step that failed because of it is only the consequence.
    const Status health = comm_->health();
    const Status& cause = health ? status : health;
    static_cast<void>(guarded([&] {  // without the memory for it they notice by their deadline
      comm_->abort(cause.message());
      return Status::ok();
    }));
    return cause;
  }
  return std::span<const std::int32_t>(drawn_host_.data(), static_cast<std::size_t>(last_rows_));
}

Result<std::uint64_t> Rank::logits_fingerprint() {
  if (last_rows_ == 0) return std::uint64_t{0};
  const auto width = static_cast<std::size_t>(model_->vocab_size() / comm_->size());
  std::vector<std::uint32_t> slice(width);
  std::uint64_t hash = 14695981039346656037ull;
  for (int rank = 0; rank < comm_->size(); ++rank) {
    const auto row = static_cast<std::size_t>(rank * last_rows_ + last_rows_ - 1);
    TENON_TRY(stream_->copy(slice.data(), logits_.as<float>() + row * width, width * 4));
    TENON_TRY(stream_->synchronize());
    for (const std::uint32_t word : slice)
      for (int shift = 0; shift < 32; shift += 8)
        hash = (hash ^ ((word >> shift) & 0xffu)) * 1099511628211ull;
  }
  return hash;
}

}  // namespace tenon
