#include "tenon/runtime/rank.h"

#include <algorithm>
#include <cstdlib>
#include <string>
#include <thread>
#include <tuple>

#include "tenon/comm/agreement.h"
#include "tenon/comm/bootstrap/bootstrap.h"
#include "tenon/core/env.h"
#include "tenon/core/guard.h"
#include "tenon/core/hash.h"
#include "tenon/runtime/engine.h"

namespace tenon {
namespace {

// Ranks of one machine share its cores.
int threads_of_rank(int ranks) {
  if (env().cpu_threads > 0) return env().cpu_threads;
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / ranks);
}

ModelOptions model_options(const EngineOptions& options) {
  ModelOptions out;
  out.weights = options.weights;
  out.max_tokens_per_step = options.max_tokens_per_step;
  out.max_sequences = options.max_batch;
  out.max_logits = std::max(options.max_batch, PromptTeller::kRows);
  out.max_context = options.max_context;
  out.force_stage = options.force_stage;
  out.max_stage = options.max_stage;
  out.force_variant = options.force_variant;
  out.more_stages = options.more_stages;
  out.progress = options.progress;
  return out;
}

}  // namespace

Rank::Rank(const EngineOptions& options)
    : num_tokens_(options.num_tokens),
      layout_(options.max_tokens_per_step, options.max_batch,
              Scheduler::blocks_per_sequence(options.max_context), options.num_tokens),
      steps_(options.max_tokens_per_step, 1 + static_cast<int>(options.more_stages.size())) {}

Result<std::unique_ptr<Rank>> Rank::open(const EngineOptions& options, int rank,
                                         std::shared_ptr<Bootstrap> bootstrap,
                                         const ModelFactory& factory) {
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
  fields("fits_context", static_cast<int>(options.fits_context));
  fields("max_tokens_per_step", options.max_tokens_per_step);
  fields("num_tokens", options.num_tokens);
  fields("arms", static_cast<int>(1 + options.more_stages.size()));
  fields("cache_tokens", options.cache_tokens);
  fields("memory_fraction", static_cast<float>(options.memory_fraction));
  fields("prefix_states", options.prefix_states);
  TENON_TRY(opened->comm_->agree_equal(fields, "engine options"));
  TENON_ASSIGN(Stream stream, Stream::create(device));
  opened->stream_.emplace(std::move(stream));
  TENON_TRY(opened->make_model(options, factory));
  TENON_TRY(opened->prepare(options));
  TENON_TRY(opened->stream_->synchronize());
  return opened;
}

void Rank::settle() {
  if (runner_ != nullptr && in_flight() > 0) static_cast<void>(stream_->synchronize());
}

// A model of a factory is there when its memory is planned; another one is planned first.
Status Rank::make_model(const EngineOptions& options, const ModelFactory& factory) {
  if (factory) {
    TENON_ASSIGN(model_, factory(*comm_, *stream_));
    return plan_memory(options, {model_->memory(), model_->cache_layout(), model_->vocab_size()});
  }
  ModelOptions wanted = model_options(options);
  if (comm_->rank() != 0) wanted.progress = {};
  wanted.planned = [&](const ModelPlan& plan) { return plan_memory(options, plan); };
  TENON_ASSIGN(model_, open_model(options.model, wanted, *comm_, *stream_));
  return Status::ok();
}

// The plan, and with it how many tokens the caches hold. Collective on devices.
Status Rank::plan_memory(const EngineOptions& options, const ModelPlan& model) {
  const Device device = comm_->device();
  const bool on_host = is_host(device.target), fills = options.cache_tokens == kAutoCacheTokens;
  const int sharers = on_host || comm_->shares_device() ? comm_->size() : 1;
  TENON_ASSIGN(const DeviceProperties found, properties(device));
  room_ = {options.max_context,   options.max_batch,   sharers, fills ? 0 : options.cache_tokens,
           options.prefix_states, options.fits_context};
  memory_plan_.device = static_cast<std::int64_t>(found.total_bytes) / sharers;
  memory_plan_.model = model.memory;
  memory_plan_.steps = StepRunner::count_bytes(layout_, model.vocab_size, *comm_);
  if (!on_host && fills) {
    const std::int64_t left = memory_plan_.left(options.memory_fraction);
    TENON_ASSIGN(room_.cache_tokens,
                 agree_on_cache_tokens(CacheMemory::blocks_in(model.caches, room_, left), *comm_));
  } else if (!on_host) {
    const Status fits = CacheMemory::check_left(model.caches, room_, memory_plan_.left(1));
    TENON_TRY(comm_->agree(fits, "caches"));
  }
  const std::int64_t state = model.caches.sequence_bytes();
  memory_plan_.blocks = model.caches.block_bytes() * room_.blocks();
  memory_plan_.states = state * room_.max_batch;
  memory_plan_.kept_states = state * room_.prefix_states;
  memory_plan_.cache_tokens = std::int64_t{room_.blocks()} * kBlockTokens;
  log(LogLevel::kInfo, memory_plan_.text());
  return Status::ok();
}

MemoryPlan Rank::held_memory() const {
  MemoryPlan held = memory_plan_;
  held.model = model_->memory();
  held.steps = runner_->bytes();
  held.blocks = caches_.bytes() - held.states - held.kept_states;
  return held;
}

Status Rank::prepare(const EngineOptions& options) {
  const int vocab = model_->vocab_size(), ranks = comm_->size();
  if (vocab % ranks != 0)
    return Status::error(Code::kInternal, "the model reports a vocabulary of " +
                                              std::to_string(vocab) + ", which " +
                                              std::to_string(ranks) + " ranks cannot share evenly");
  if (num_tokens_ <= 0) num_tokens_ = model_->num_ids();
  num_tokens_ = std::min(num_tokens_, model_->num_ids());
  TENON_ASSIGN(caches_, CacheMemory::allocate(model_->cache_layout(), room_, *stream_));
  TENON_ASSIGN(runner_,
               StepRunner::make({layout_, *model_, caches_.views(), *comm_, *stream_}, num_tokens_,
                                options.graphs && env().graphs && model_->launches_only()));
  if (!options.time_steps) return Status::ok();
  for (int i = 0; i < StepRunner::kMostInFlight; ++i) {
    TENON_ASSIGN(Event begin, Event::create(stream_->device()));
    TENON_ASSIGN(Event end, Event::create(stream_->device()));
    times_.push_back({std::move(begin), std::move(end)});
  }
  return Status::ok();
}

Status Rank::broadcast(std::span<std::byte> step) {
  const std::size_t most = layout_.bytes_without_edits();
  TENON_TRY(comm_->broadcast(step.first(most)));
  const StepHeader header = StepReader::header(step);
  if (header.num_edits > 0) {
    const std::size_t used = layout_.used_bytes(header.shape, header.num_edits);
    TENON_TRY(comm_->broadcast(step.subspan(most, used - most)));
  }
  if (header.num_masks == 0) return Status::ok();
  return comm_->broadcast(
      step.subspan(layout_.offset(StepField::masks), layout_.mask_bytes(header.num_masks)));
}

// What a sequence without a number leaves behind may be NaN, and 0 · NaN is NaN for whoever has
// these blocks and this slot next. A step ahead has the same sequences as the one in front of it,
// this one too: it is cleared behind both.
Status Rank::clear_left() {
  for (const Left& each : left_) TENON_TRY(caches_.clear({each.blocks, each.state_slot}, *stream_));
  left_.clear();
  return Status::ok();
}

Status Rank::launch_on_stream() {
  const StepHeader step = runner_->header();
  if (step.ahead == 0) TENON_TRY(clear_left());
  if (step.command == StepCommand::kMakeCaches) {
    TENON_CHECK(in_flight() == 0);
    const Status filled = caches_.fill(*stream_);
    return comm_->agree(filled ? stream_->synchronize() : filled, "make caches");
  }
  Times* const times = times_.empty() ? nullptr : &times_[runner_->turn()];
  if (times != nullptr) TENON_TRY(times->begin.record(*stream_));
  TENON_TRY(runner_->upload());
  TENON_TRY(runner_->enqueue());
  if (times != nullptr) TENON_TRY(times->end.record(*stream_));
  TENON_TRY(runner_->fetch());
  last_ = step;
  steps_.add(step.shape.tokens, step.shape.arm);
  return Status::ok();
}

Result<std::span<const std::int32_t>> Rank::take_from_stream() {
  TENON_ASSIGN(const auto drawn, runner_->take());
  if (!times_.empty()) {
    Times& times = times_[runner_->turn_of_taken()];
    TENON_ASSIGN(const double us, times.end.us_since(times.begin));
    device_seconds_ += 1e-6 * us;
  }
  for (std::size_t row = 0; row < drawn.size(); ++row) {
    if (drawn[row] >= 0) continue;
    const HeldCaches held = StepReader::caches(layout_, runner_->taken(), static_cast<int>(row));
    left_.push_back({{held.blocks.begin(), held.blocks.end()}, held.state_slot});
  }
  TENON_TRY(comm_->health());
  return drawn;
}

void Rank::begin_step() {
  if (place_.step > num_launched_) return;
  place_ = {num_launched_ + 1, false};
  comm_->tell_place(place_.word());
}

void Rank::tell_if_all_ended() {
  if (in_flight() > 0) return;
  place_.has_ended = true;
  comm_->tell_place(place_.word());
}

// What a peer did wrong comes first: a step that failed because of it is only the consequence.
Status Rank::give_up(Status why) {
  Status health;
  std::ignore = guarded([&] { health = comm_->health(); });
  const Status cause = health ? why : health;
  std::ignore = guarded([&] {  // without the memory for it they notice by their deadline
    comm_->abort(cause.message());
  });
  return cause;
}

Status Rank::launch() {
  begin_step();
  const Status launched = guarded([&] { return launch_on_stream(); });
  if (!launched) return give_up(launched);
  ++num_launched_;
  tell_if_all_ended();
  return launched;
}

bool Rank::has_ended() const {
  const auto ended = runner_->has_ended();
  return !ended || *ended;
}

Result<std::span<const std::int32_t>> Rank::take() {
  auto drawn = guarded([&] { return take_from_stream(); });
  if (!drawn) return give_up(drawn.status());
  tell_if_all_ended();
  return drawn;
}

Result<std::span<const std::int32_t>> Rank::run() {
  TENON_TRY(launch());
  if (in_flight() == 0) return std::span<const std::int32_t>();
  return take();
}

Result<std::uint64_t> Rank::logits_fingerprint() {
  if (last_.num_sequences == 0) return std::uint64_t{0};
  const RowRange own = runner_->own_rows(last_.shape);
  const std::int64_t last = std::min<std::int64_t>(own.first + own.count, last_.num_sequences) - 1;
  if (last < own.first) return std::uint64_t{0};
  const TensorView logits = runner_->logits(last_.shape);
  const auto width = static_cast<std::size_t>(logits.shape[2]);
  std::vector<std::uint32_t> slice(width);
  Fnv1a hash;
  for (int rank = 0; rank < comm_->size(); ++rank) {
    const auto row = static_cast<std::size_t>(rank * own.count + last - own.first);
    TENON_TRY(stream_->copy(slice.data(), logits.as<float>() + row * width, width * 4));
    TENON_TRY(stream_->synchronize());
    for (const std::uint32_t word : slice)
      for (int shift = 0; shift < 32; shift += 8) hash.add(word >> shift & 0xffu);
  }
  return hash.value();
}

}  // namespace tenon
